"""What a user would otherwise pick, on the same machinery: the unlabelled loader, the log and the checkpoints of CAML."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_caml.consistency import at_least_float32
from nnunet_caml.learning import agreement_counts, first
from nnunet_caml.networks import unwrap
from nnunet_caml.trainer import nnUNetTrainerCAML

__all__ = ["nnUNetTrainerMeanTeacher"]


class nnUNetTrainerMeanTeacher(nnUNetTrainerCAML):
    """Mean teacher (Tarvainen and Valpola, NeurIPS 2017): the student's probabilities follow those of a teacher whose
    weights are the moving average of the student's.

    As in UA-MT (Yu et al., MICCAI 2019), without its uncertainty: each network sees the unlabelled patches with noise of
    its own, the loss is the mean squared difference of the probabilities, its weight 0.1 after a Gaussian ramp-up over the
    first 40 % of the training. The student is kept, as V of CAML is. The supervised loss has nnU-Net's full weight.
    """

    supervised_weight = 1.0
    lambda_c = 0.1
    lambda_o = 0.0
    rampup_start_fraction = 0.0
    rampup_fraction = 0.4
    #: decay of the moving average, once the training is long enough for it
    decay: float = 0.99
    #: standard deviation of the noise on (normalised) images, cut at twice that
    noise: float = 0.1

    def build_auxiliary(self, vanilla: nn.Module) -> nn.Module:
        """The teacher: a copy of the student."""
        teacher = deepcopy(vanilla)
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        return teacher

    def losses(self, images: Tensor, target: Any, cases: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """As the trainer's method of this name; ``loss_a``, ``correlation`` and ``row_peak`` are 0."""
        n = len(cases)
        unlabeled = images[n:]
        outputs = self.network(torch.cat((images[:n], self._noisy(unlabeled))))
        with torch.no_grad():
            taught = self.caml.auxiliary(self._noisy(unlabeled))
        self.tap_v.take()
        full_s, full_t = (o[0] if isinstance(o, list | tuple) else o for o in (outputs, taught))
        activation = torch.sigmoid if self.labels.regions else lambda logits: torch.softmax(logits, 1)
        difference = activation(at_least_float32(full_s[n:])) - activation(at_least_float32(full_t))
        zero = full_s.new_zeros((), dtype=torch.float32)
        losses = {
            "loss": self.loss(first(outputs, n), target),
            "loss_a": zero,
            "consistency": difference.square().mean(),
            "correlation": zero,
            "row_peak": zero,
        }
        predicted_s, predicted_t = self.labels.predicted(full_s[n:]), self.labels.predicted(full_t)
        return losses, agreement_counts(predicted_s, predicted_t, self.labels.num_classes)

    def _noisy(self, images: Tensor) -> Tensor:
        noise = torch.randn_like(images) * self.noise
        return images + noise.clamp(-2 * self.noise, 2 * self.noise)

    def update(self, total: Tensor) -> None:
        """A step of the student, and the teacher after it."""
        super().update(total)
        decay = min(self.decay, 1 - 1 / (self.iteration + 2))
        with torch.no_grad():
            pairs = zip(unwrap(self.caml.auxiliary).parameters(), unwrap(self.network).parameters(), strict=True)
            for teacher, student in pairs:
                teacher.lerp_(student, 1 - decay)
