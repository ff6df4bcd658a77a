"""``nnUNetTrainerCAML``: nnU-Net's trainer with an unlabelled loader, a second network and the losses of CAML.

Glue only. The vanilla network V is ``self.network``, built, validated, saved and used for prediction by nnU-Net as ever. All
else is ``self.caml`` (:class:`nnunet_caml.learning.MutualLearning`).
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_caml import checkpoints, distributed, errors, footprint, progress
from nnunet_caml.cascade import predict_for_next_stage, with_previous_stage
from nnunet_caml.checks import check_labeled
from nnunet_caml.consistency import consistency_loss, cross_pseudo_loss, rampup
from nnunet_caml.copy_paste import view_of_v
from nnunet_caml.hyperparameters import Hyperparameters
from nnunet_caml.labels import LabelSpace
from nnunet_caml.learning import MutualLearning, agreement_counts, first, has_gradients, same_optimizer
from nnunet_caml.loading import PairedBatches, UnlabeledCases, labeled_loader, like, on_device, unlabeled_loader
from nnunet_caml.networks import (
    FeatureTap,
    SharedEncoderAuxiliary,
    checkpoint_activations,
    compile_for_each_size,
    copy_matching,
    make_auxiliary,
    network_of_plans,
    require_unet,
    unwrap,
)
from nnunet_caml.preparation import prepare, split_few_cases
from nnunet_caml.rehearsal import rehearse_on_gpu
from nnunet_caml.unlabeled import UnlabeledDataset

__all__ = ["nnUNetTrainerCAML"]


class nnUNetTrainerCAML(Hyperparameters, nnUNetTrainer):
    """Correlation-Aware Mutual Learning on nnU-Net's plans (Gao et al., MICCAI 2023, arXiv:2307.06312).

    Hyperparameters are class attributes (:mod:`nnunet_caml.hyperparameters`), so a subclass of two lines is a new trainer::

        class nnUNetTrainerCAML_cosine(nnUNetTrainerCAML):
            occ_similarity = "cosine"
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        errors.show_sentences()
        with errors.storage_of_results():
            super().__init__(plans, configuration, fold, dataset_json, device)
            errors.try_writing(Path(self.output_folder))
        self.apply_class_attributes()
        self.caml: Any = None  # MutualLearning -> initialize
        self.auxiliary_optimizer: Any = None  # -> initialize
        self.iteration = 0
        self._rng_to_restore: dict | None = None
        self._companion_problem: str | None = None
        self._begun_with: dict[str, Any] = {}  # settings of a continued training
        self._changed = ""  # those of them that are others now
        self._unlabeled_names: list[str] | None = None  # -> prepare_unlabeled
        progress.add_keys(self.logger)

    # ---------------------------------------------------------------- networks

    def initialize(self) -> None:
        """V, its optimiser and the loss by nnU-Net; then A, heads and memory, and a second optimiser of the same kind."""
        self.check_hyperparameters()
        self.unlabeled = UnlabeledDataset.create(self.plans_manager, self.configuration_name, self.dataset_json)
        check_labeled(self.unlabeled)
        if self._do_i_compile():
            compile_for_each_size(self.is_ddp and self.activation_checkpointing)
        super().initialize()
        vanilla: Any = unwrap(self.network)
        require_unet(vanilla)
        if self.activation_checkpointing:
            checkpoint_activations(vanilla)
        if self.enable_deep_supervision and self.consistency == "labels" and not isinstance(self.loss, DeepSupervisionWrapper):
            raise errors.UnsupportedError(
                f"{type(self).__name__}._build_loss gives a {type(self.loss).__name__}, in which CAML does not find the loss "
                f"of one resolution. Wrap that in nnU-Net's DeepSupervisionWrapper, or set enable_deep_supervision = False."
            )
        self.labels = LabelSpace.from_label_manager(self.label_manager)
        auxiliary = self.build_auxiliary(vanilla)
        if self.is_ddp:
            auxiliary = nn.SyncBatchNorm.convert_sync_batchnorm(auxiliary)  # as nnU-Net does with V
            # it writes the split file if there is none, and another rank would read a half of it
            distributed.on_first_rank(self.do_split, self.local_rank, True)
        training_cases, _ = self.do_split()
        self.caml = MutualLearning(
            auxiliary,
            vanilla.decoder.seg_layers[-1].in_channels,
            self.labels,
            training_cases,
            width=self.embedding_width,
            per_class=self.memory_per_class,
            max_rows_per_class=self.memory_max_rows_per_class,
            num_filtered=self.num_filtered,
            max_filtered=self.max_filtered,
            max_filtered_share=self.max_filtered_share,
            temperature=self.occ_temperature,
            similarity=self.occ_similarity,
        ).to(self.device)
        self.tap_v = FeatureTap(vanilla, skips=self.share_encoder)
        self.tap_a = FeatureTap(auxiliary)
        if self._do_i_compile():
            self.caml.auxiliary = torch.compile(auxiliary)
        self.auxiliary_optimizer = same_optimizer(self.optimizer, self.caml.parameters())
        if self.is_ddp:
            distributed.broadcast_state(self.caml.heads())
            ids = [self.local_rank] if self.device.type == "cuda" else None
            self.caml.auxiliary = DistributedDataParallel(self.caml.auxiliary, device_ids=ids)
        self._untrained = next(vanilla.parameters()).detach().clone()

    def build_auxiliary(self, vanilla: nn.Module) -> nn.Module:
        """A, on the CPU or wherever ``vanilla`` is."""
        auxiliary = make_auxiliary(
            network_of_plans(self), self.attention_heads, self.attention_dropout, self.attention, self.attention_downsampling
        )
        if self.activation_checkpointing:
            checkpoint_activations(auxiliary)
        return SharedEncoderAuxiliary(auxiliary, vanilla.get_submodule("encoder")) if self.share_encoder else auxiliary

    # ---------------------------------------------------------------- data

    def do_split(self) -> tuple:
        """nnU-Net's split of the labelled cases. With fewer than its five folds, each case is a fold of its own.

        Raises:
            UnlabeledDataError: If a fold is asked for that there is not, or there is a single labelled case.
        """
        if self.fold != "all":
            splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
            split_few_cases(self.preprocessed_dataset_folder, splits_file, int(self.fold), self.print_to_log_file)
        training, validation = super().do_split()
        # numpy's strings, where nnU-Net has just made the split, would go into the companion files, which are to be plain
        return [str(case) for case in training], [str(case) for case in validation]

    def prepare_unlabeled(self) -> None:
        """Checks the data and preprocesses unlabelled cases that are not done yet; one rank does it, the others wait.

        Raises:
            UnlabeledDataError: With a sentence per problem.
        """
        folder, say = self.preprocessed_dataset_folder, self.print_to_log_file
        try:
            # the same for all ranks, whatever another run does to the folder meanwhile
            self._unlabeled_names = distributed.on_first_rank(
                lambda: prepare(self.unlabeled, folder, self.do_split(), say), self.local_rank, self.is_ddp
            )
        except Exception as problem:
            self.print_to_log_file(f"ERROR: {problem}", also_print_to_console=False)
            raise

    def get_dataloaders(self) -> tuple:
        """nnU-Net's loaders; the one for training also gives unlabelled patches (:class:`PairedBatches`), if there is any."""
        if self.current_epoch >= self.num_epochs:
            return super().get_dataloaders()
        previous = self.folder_with_segs_from_previous_stage
        names = self.unlabeled.usable_cases() if self._unlabeled_names is None else self._unlabeled_names
        if previous is not None:
            of_labeled = [case for part in self.do_split() for case in part]
            stage = self.configuration_manager.previous_stage_name
            names = with_previous_stage(previous, stage, of_labeled, self.unlabeled, names, self.print_to_log_file)
        cases = UnlabeledCases(self.unlabeled.dataset_class()(str(self.unlabeled.folder), names, previous))
        labeled, validation = super().get_dataloaders()
        loader = unlabeled_loader(labeled_loader(labeled), cases, self.unlabeled_per_batch(self.batch_size), self.clean_view)
        unlabeled = like(labeled, loader)
        next(unlabeled)  # starts the workers, as nnU-Net does with its own
        return PairedBatches(labeled, unlabeled, lambda: any(self.current_weights())), validation

    # ---------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Prepares the data before nnU-Net starts; then what is left of a restored or pretrained run."""
        if not self.was_initialized:
            self.initialize()
        since = f"WARNING: this training was begun with other settings: {self._changed}." if self._changed else ""
        if self.current_epoch >= self.num_epochs:  # with --c, which does the validation of a finished training again
            if since:  # such as a shorter training, which ends here
                self.print_to_log_file(since)
            super().on_train_start()
            return
        if self._companion_problem is not None:
            raise checkpoints.CompanionError(self._companion_problem)
        self.prepare_unlabeled()
        self.print_to_log_file("\n".join(filter(None, [since, *self.remarks(), footprint.advice(self)])))
        vanilla = unwrap(self.network)
        if self.current_epoch == 0 and not torch.equal(self._untrained, next(vanilla.parameters())):
            copied = copy_matching(vanilla, unwrap(self.caml.auxiliary))
            self.print_to_log_file(f"Pretrained weights: {copied} tensors copied to the auxiliary network as well.")
        super().on_train_start()
        rehearse_on_gpu(self)
        # they are those of rank 0; with them, others that load data themselves would draw the same patches
        if self._rng_to_restore is not None and self.local_rank == 0:
            checkpoints.set_rng_state(self._rng_to_restore)

    def on_train_end(self) -> None:
        super().on_train_end()
        if isinstance(self.dataloader_train, PairedBatches):
            self.dataloader_train.finish()
        if self.local_rank == 0:  # who has just written the final checkpoint
            checkpoints.tidy_up(Path(self.output_folder))

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.caml.train()
        # same schedule as that of V's first parameters, whichever it is
        for group in self.auxiliary_optimizer.param_groups:
            group["lr"] = self.optimizer.param_groups[0]["lr"]
        self.iteration = self.current_epoch * self.num_iterations_per_epoch
        self.dataloader_train.waited_s = 0.0
        self._epoch_began = perf_counter()

    def current_weights(self) -> tuple[float, float]:
        """``lambda_c`` and ``lambda_o`` at the present iteration."""
        total = self.num_epochs * self.num_iterations_per_epoch
        since = self.iteration - self.rampup_start_fraction * total
        factor = rampup(since, self.rampup_fraction * total) if since >= 0 else 0.0
        return self.lambda_c * factor, self.lambda_o * factor

    def train_step(self, batch: dict) -> dict:
        """One step on a labelled and an unlabelled batch; on a labelled one alone while the unlabelled losses weigh nothing.

        Args:
            batch: As from :class:`PairedBatches`: ``data`` ``(B, C, *patch)``, ``target``, ``keys`` and, if there is use for
                it, ``unlabeled`` ``(B_u, C, *patch)``, with A's view in ``C`` further channels where it has its own.

        Returns:
            Values for the log. ``loss`` is V's supervised loss, which compares to nnU-Net's validation loss.
        """
        images, target = on_device(batch, self.device)
        for optimizer in (self.optimizer, self.auxiliary_optimizer):
            optimizer.zero_grad(set_to_none=True)
        # as in nnUNetTrainer.train_step: mixed precision on CUDA only
        with autocast("cuda") if self.device.type == "cuda" else dummy_context():
            losses, counts = self.losses(images, target, list(batch["keys"]))
        lambda_c, lambda_o = self.current_weights()
        total = (
            self.supervised_weight * (losses["loss"] + losses["loss_a"])
            + lambda_c * losses["consistency"]
            + lambda_o * losses["correlation"]
        )
        self.update(total)
        self.iteration += 1
        names = [*losses, "memory"]
        values = torch.stack([*(v.detach().float() for v in losses.values()), self.caml.memory.fill()])
        numbers = torch.cat((values, counts.flatten())).cpu().numpy()  # the only wait for the device
        return {**dict(zip(names, numbers, strict=False)), "agreement": numbers[len(names) :].reshape(counts.shape)}

    def losses(self, images: Tensor, target: Any, cases: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """All losses of one step, unweighted, and the agreement of V and A.

        Args:
            images: ``(B_l + B_u, C, *patch)``, labelled first; ``B_u`` may be 0. With twice the channels, V sees the first
                half of them and A the second.
            target: Of the labelled half; a list with deep supervision, highest resolution first.
            cases: Identifiers of the labelled half.

        Returns:
            Scalars ``loss`` (supervised, of V), ``loss_a`` (of A), ``consistency`` and ``correlation``; beside
            them ``row_peak`` of :class:`nnunet_caml.correlation.Correlation`; and the counts of
            :func:`nnunet_caml.learning.agreement_counts` on the unlabelled half.
        """
        n = len(cases)
        swap = view_of_v(images.shape, n, self._get_deep_supervision_scales(), self.copy_paste_share)
        channels = self.num_input_channels
        images_v, images_a = images[:, :channels].contiguous(), images[:, -channels:].contiguous()
        outputs_v = swap(self.network(swap(images_v)))
        outputs_a = self.caml.auxiliary(self.tap_v.take_skips() if self.share_encoder else images_a)
        features_v, features_a = swap(self.tap_v.take()), self.tap_a.take()
        if self.share_encoder:  # so A has seen what V has
            outputs_a, features_a = swap(outputs_a), swap(features_a)
        full_v, full_a = (o[0] if isinstance(o, list | tuple) else o for o in (outputs_v, outputs_a))
        zero = full_v.new_zeros((), dtype=torch.float32)
        losses = {
            "loss": self.loss(first(outputs_v, n), target),
            "loss_a": self.loss(first(outputs_a, n), target),
            "consistency": zero,
            "correlation": zero,
            "row_peak": zero,
        }
        has_unlabeled = len(images) > n
        if self.lambda_c and has_unlabeled:
            losses["consistency"] = self.mutual_consistency(full_v, full_a, n)
        predicted_v, predicted_a = self.labels.predicted(full_v), self.labels.predicted(full_a)
        if self.lambda_o:
            self.caml.remember(
                cases,
                features_v[:n],
                features_a[:n],
                predicted_v[:n],
                predicted_a[:n],
                target[0] if isinstance(target, list) else target,
            )
        if self.lambda_o and has_unlabeled:
            confidence = self.labels.confidence(full_v[n:])
            losses["correlation"], losses["row_peak"] = self.caml.correlate(
                features_v[n:], features_a[n:], predicted_v[n:], predicted_a[n:], confidence
            )
        return losses, agreement_counts(predicted_v[n:], predicted_a[n:], self.labels.num_classes)

    def mutual_consistency(self, logits_v: Tensor, logits_a: Tensor, n: int) -> Tensor:
        """The loss that :attr:`consistency` names, of logits ``(n + B_u, K, *patch)``."""
        if self.consistency == "labels":
            whole = self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss
            return cross_pseudo_loss(logits_v[n:], logits_a[n:], whole, self.labels)
        return consistency_loss(
            logits_v, logits_a, self.sharpening_temperature, self.labels.regions, self.detach_consistency_target
        )

    def update(self, total: Tensor) -> None:
        """Backward pass and one step of both optimisers. V, A and the heads are each clipped by themselves."""
        scaler = self.grad_scaler
        (total if scaler is None else scaler.scale(total)).backward()
        if self.is_ddp:
            # the heads run outside of any module's forward, where DistributedDataParallel does not see them
            distributed.average_gradients(self.caml.heads())
        # a gradient scaler refuses an optimiser without gradients, such as that of a network which only follows the other one
        optimizers = [o for o in (self.optimizer, self.auxiliary_optimizer) if has_gradients(o)]
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        head_parameters = [p for head in self.caml.heads() for p in head.parameters()]
        for parameters in (self.network.parameters(), self.caml.auxiliary.parameters(), head_parameters):
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for optimizer in optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        outputs = collate_outputs(train_outputs)
        if self.is_ddp:
            outputs = distributed.gather_outputs(outputs)
        waiting = self.dataloader_train.waited_s / (perf_counter() - self._epoch_began)
        values = progress.epoch_values(outputs, *self.current_weights(), waiting)
        progress.log(self.logger, values, self.current_epoch)
        self.print_to_log_file(progress.describe(values))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's; the first stage of a cascade then predicts this fold's share of the unlabelled cases for the next."""
        super().perform_actual_validation(save_probabilities)
        predict_for_next_stage(self)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            progress.plot(self.logger, Path(self.output_folder))

    # ---------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """A stock checkpoint of V, and beside it a companion file with all else a run needs to be continued.

        No companion for a finished run whose own is lost: A is an untrained one then.
        """
        if self.local_rank != 0 or self.disable_checkpointing or self._companion_problem is not None:
            super().save_checkpoint(filename)
            return
        state = checkpoints.companion_state(self.caml, self.auxiliary_optimizer, self._begun_with or self.settings())
        checkpoints.save(Path(filename), super().save_checkpoint, state, self.logger)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Restores V by nnU-Net and all else from the companion file, if it is there."""
        if not self.was_initialized:
            self.initialize()
        self._companion_problem, self._begun_with, self._changed = None, {}, ""
        path = Path(filename_or_checkpoint)
        try:
            with checkpoints.keeping_weight_decay(self.optimizer, self.auxiliary_optimizer):
                super().load_checkpoint(filename_or_checkpoint)
                progress.add_keys(self.logger)
                state = checkpoints.load_companion(path, self.logger, self.device)
                self._begun_with = state["settings"]
                self._changed = checkpoints.other_settings(self._begun_with, self.settings())
                same_cases = checkpoints.restore_companion(state, self.caml, self.auxiliary_optimizer)
            if not same_cases:
                self.print_to_log_file("The split has changed since the checkpoint was saved: the memory starts empty.")
            self._rng_to_restore = state["rng"]
        except checkpoints.CompanionError as problem:  # no harm for validation; training asks in on_train_start
            self._companion_problem = checkpoints.why_not_continued(problem, path, self.current_epoch, self._changed)
