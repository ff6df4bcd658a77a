"""Everything of CAML beside the vanilla network V: the auxiliary network A, the heads, the memory bank, and the losses.

How a batch takes its way through a step (:meth:`nnunet_caml.trainer.nnUNetTrainerCAML.train_step`)::

    labelled + unlabelled patches ──┬── V ── logits_v, features_v ──┐
    (2B, C, *patch)                 └── A ── logits_a, features_a ──┤
                                        (CMA in its encoder)        │
      labelled half      supervised loss of nnU-Net, for V and A ◄──┤
      unlabelled half    mutual consistency of the logits        ◄──┤   (the paper's: of the whole batch)
      labelled half      features of voxels both get right ► memory │
      unlabelled half    features of voxels both agree on ► OCC  ◄──┘
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_caml.consistency import full_precision
from nnunet_caml.correlation import Correlation, occ_loss, select_voxels, voxels_per_class
from nnunet_caml.heads import NetworkHeads
from nnunet_caml.labels import LabelSpace
from nnunet_caml.memory import MemoryBank, random_correct_voxels


def voxel_features(features: Tensor, index: Tensor) -> Tensor:
    """Rows of a feature map at flat voxel positions, in float32 or more precise.

    Args:
        features: ``(B, C, *spatial)``.
        index: ``(N,)`` positions in the flattened ``(B, *spatial)``.

    Returns:
        ``(N, C)``. Only what was asked for is copied.
    """
    flat = features.flatten(2)
    voxels = flat.shape[2]
    rows = flat[index // voxels, :, index % voxels]
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class MutualLearning(nn.Module):
    """A, the heads of both networks and the memory bank; see the module's docstring for the way of a batch.

    Args:
        auxiliary: A.
        channels: Of the last decoder features, the same in V and A.
        labels: Meaning of the outputs.
        cases: Identifiers of the labelled training cases.
        width: Embedding width.
        per_class: Embeddings drawn from the memory per class and step.
        max_rows_per_class: See :class:`MemoryBank`.
        num_filtered: Voxels per class that enter OCC.
        max_filtered: Bound on the voxels of all classes together.
        max_filtered_share: The same bound as a share of the unlabelled voxels (:func:`voxels_per_class`).
        temperature: Of the correlation rows.
        similarity: ``"dot"`` or ``"cosine"``.
    """

    def __init__(
        self,
        auxiliary: nn.Module,
        channels: int,
        labels: LabelSpace,
        cases: list[str],
        *,
        width: int = 64,
        per_class: int = 256,
        max_rows_per_class: int = 65536,
        num_filtered: int = 12800,
        max_filtered: int = 25600,
        max_filtered_share: float = 1.0,
        temperature: float = 0.1,
        similarity: str = "dot",
    ) -> None:
        super().__init__()
        self.auxiliary: Any = auxiliary
        self.heads_v = NetworkHeads(channels, width)
        self.heads_a = NetworkHeads(channels, width)
        self.memory = MemoryBank(cases, labels.num_classes, width, per_class, max_rows_per_class)
        self.labels = labels
        self.num_filtered = num_filtered
        self.max_filtered = max_filtered
        self.max_filtered_share = max_filtered_share
        self.temperature = temperature
        self.similarity = similarity

    def heads(self) -> list[NetworkHeads]:
        """Those of V and of A."""
        return [self.heads_v, self.heads_a]

    @torch.no_grad()
    def remember(
        self,
        cases: list[str],
        features_v: Tensor,
        features_a: Tensor,
        predicted_v: Tensor,
        predicted_a: Tensor,
        target: Tensor,
    ) -> None:
        """Writes the labelled voxels that both networks classify correctly to the memory; a visit replaces a case's slot.

        The embedding is the mean of the two projection heads in evaluation mode, so that one patch's batch statistics
        do not enter embeddings that are used in later steps.

        Args:
            cases: Identifier of each labelled sample.
            features_v: ``(B, C, *spatial)``; ``features_a`` alike.
            predicted_v: ``(B, *spatial)`` class indices; ``predicted_a`` alike.
            target: Labels as nnU-Net's loader gives them, at full resolution.
        """
        classes, annotated = self.labels.target(target)
        correct = annotated & (predicted_v == classes) & (predicted_a == classes)
        was_training = self.training
        self.heads_v.eval()
        self.heads_a.eval()
        with full_precision(features_v.device):
            for b, case in enumerate(cases):
                index, counts = random_correct_voxels(
                    correct[b].flatten(), classes[b].flatten(), self.labels.num_classes, self.memory.slots
                )
                rows_v = voxel_features(features_v[b : b + 1], index.flatten())
                rows_a = voxel_features(features_a[b : b + 1], index.flatten())
                embeddings = (self.heads_v.projection(rows_v) + self.heads_a.projection(rows_a)) / 2
                self.memory.write(case, embeddings.view(*index.shape, -1), counts)
        self.heads_v.train(was_training)
        self.heads_a.train(was_training)

    def correlate(
        self, features_v: Tensor, features_a: Tensor, predicted_v: Tensor, predicted_a: Tensor, confidence: Tensor
    ) -> Correlation:
        """The OCC loss of unlabelled patches against a fresh sample of the memory.

        Args:
            features_v: ``(B, C, *spatial)``; ``features_a`` alike.
            predicted_v: ``(B, *spatial)`` class indices; ``predicted_a`` alike.
            confidence: ``(B, *spatial)``, of V.

        Returns:
            A :class:`nnunet_caml.correlation.Correlation`.
        """
        sample = self.memory.sample()
        selection = select_voxels(
            (predicted_v == predicted_a).flatten(),
            predicted_v.flatten(),
            confidence.flatten(),
            self.labels.num_classes,
            voxels_per_class(
                predicted_v.numel(), self.labels.num_classes, self.num_filtered, self.max_filtered, self.max_filtered_share
            ),
        )
        with full_precision(features_v.device):
            embedded_v = self.heads_v(voxel_features(features_v, selection.positions), selection.valid)
            embedded_a = self.heads_a(voxel_features(features_a, selection.positions), selection.valid)
            return occ_loss(
                embedded_v,
                embedded_a,
                selection.valid,
                sample.embeddings,
                sample.valid,
                self.temperature,
                self.similarity,
            )


@torch.no_grad()
def agreement_counts(predicted_v: Tensor, predicted_a: Tensor, num_classes: int) -> Tensor:
    """For each foreground class the voxels that both networks give it, and that V and A give it.

    Args:
        predicted_v: Class indices of any shape; ``predicted_a`` alike.
        num_classes: ``K``, background included.

    Returns:
        ``(3, K - 1)`` float32; Dice of V and A is ``2 * counts[0] / (counts[1] + counts[2])``.
    """
    rows = []
    for k in range(1, num_classes):
        v, a = predicted_v == k, predicted_a == k
        rows.append(torch.stack([(v & a).sum(), v.sum(), a.sum()]))
    return torch.stack(rows, dim=1).float()


def same_optimizer(optimizer: Any, parameters: Iterable[nn.Parameter]) -> Any:
    """An optimiser of ``parameters`` of the kind and with the defaults of ``optimizer``, whatever a subclass has configured.

    Its groups of parameters are not followed: there is a single one.
    """
    # torch keeps more among the defaults of some than their constructors take
    accepted = inspect.signature(type(optimizer)).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    return type(optimizer)(parameters, **{k: v for k, v in optimizer.defaults.items() if takes_all or k in accepted})


def has_gradients(optimizer: Any) -> bool:
    """Whether any parameter of an optimiser has a gradient."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def first(outputs: Any, n: int) -> Any:
    """The first ``n`` samples of an output, or of each output of a list."""
    return [o[:n] for o in outputs] if isinstance(outputs, list | tuple) else outputs[:n]
