"""Variants of :class:`nnUNetTrainerCAML` by nnU-Net's habit of naming: shorter schedules and ablations."""

from nnunet_caml.trainer import nnUNetTrainerCAML

__all__ = [
    "nnUNetTrainerCAML_100epochs",
    "nnUNetTrainerCAML_10epochs",
    "nnUNetTrainerCAML_1epoch",
    "nnUNetTrainerCAML_1epochs",
    "nnUNetTrainerCAML_20epochs",
    "nnUNetTrainerCAML_250epochs",
    "nnUNetTrainerCAML_50epochs",
    "nnUNetTrainerCAML_5epochs",
    "nnUNetTrainerCAML_cleanView",
    "nnUNetTrainerCAML_copyPaste",
    "nnUNetTrainerCAML_halfUnlabeled",
    "nnUNetTrainerCAML_lateStart",
    "nnUNetTrainerCAML_lessMemory",
    "nnUNetTrainerCAML_noCMA",
    "nnUNetTrainerCAML_noCMA_noOCC",
    "nnUNetTrainerCAML_noOCC",
    "nnUNetTrainerCAML_paper",
    "nnUNetTrainerCAML_sharedEncoder",
    "nnUNetTrainerCAML_sharedEncoder_lessMemory",
]


class nnUNetTrainerCAML_1epoch(nnUNetTrainerCAML):
    """1 epoch."""

    epochs = 1


class nnUNetTrainerCAML_1epochs(nnUNetTrainerCAML):
    """1 epoch, under the name that goes with the others."""

    epochs = 1


class nnUNetTrainerCAML_5epochs(nnUNetTrainerCAML):
    """5 epochs."""

    epochs = 5


class nnUNetTrainerCAML_10epochs(nnUNetTrainerCAML):
    """10 epochs."""

    epochs = 10


class nnUNetTrainerCAML_20epochs(nnUNetTrainerCAML):
    """20 epochs."""

    epochs = 20


class nnUNetTrainerCAML_50epochs(nnUNetTrainerCAML):
    """50 epochs."""

    epochs = 50


class nnUNetTrainerCAML_100epochs(nnUNetTrainerCAML):
    """100 epochs."""

    epochs = 100


class nnUNetTrainerCAML_250epochs(nnUNetTrainerCAML):
    """250 epochs."""

    epochs = 250


class nnUNetTrainerCAML_noCMA(nnUNetTrainerCAML):
    """Ablation: A without cross-sample mutual attention."""

    attention = False


class nnUNetTrainerCAML_noOCC(nnUNetTrainerCAML):
    """Ablation: without omni-correlation consistency (and so with a memory that stays empty)."""

    lambda_o = 0.0


class nnUNetTrainerCAML_noCMA_noOCC(nnUNetTrainerCAML):
    """Ablation: mutual learning of the two networks only."""

    attention = False
    lambda_o = 0.0


class nnUNetTrainerCAML_cleanView(nnUNetTrainerCAML):
    """A sees unlabelled patches with their own intensities: :mod:`nnunet_caml.views`."""

    clean_view = True


class nnUNetTrainerCAML_copyPaste(nnUNetTrainerCAML):
    """V sees a labelled and an unlabelled patch with a box exchanged: :mod:`nnunet_caml.copy_paste`."""

    copy_paste_share = 2 / 3


class nnUNetTrainerCAML_halfUnlabeled(nnUNetTrainerCAML):
    """One unlabelled patch for two labelled ones: less memory and time."""

    unlabeled_per_labeled = 0.5


class nnUNetTrainerCAML_lateStart(nnUNetTrainerCAML):
    """Unlabelled patches have a say from 40 % of the training on: about five sixths of CAML's time."""

    rampup_start_fraction = 0.4


class nnUNetTrainerCAML_lessMemory(nnUNetTrainerCAML):
    """The same training in less memory and more time: inner activations are computed again for the gradient."""

    activation_checkpointing = True


class nnUNetTrainerCAML_paper(nnUNetTrainerCAML):
    """The paper's settings (those for 10 % labelled), whatever the defaults are.

    What is not the paper's, such as nnU-Net's recipe, is listed in ``documentation/method.md``.
    """

    supervised_weight = 0.5
    lambda_c = 1.0
    lambda_o = 0.05
    rampup_fraction = 0.2
    rampup_start_fraction = 0.0
    unlabeled_per_labeled = 1.0
    consistency = "sharpened"
    sharpening_temperature = 0.1
    detach_consistency_target = False
    copy_paste_share = 0.0
    clean_view = False
    attention = True
    attention_heads = 4
    attention_dropout = 0.5
    attention_downsampling = 8.0
    embedding_width = 64
    occ_similarity = "dot"
    occ_temperature = 0.1
    num_filtered = 12800
    max_filtered = 25600
    max_filtered_share = 1.0
    memory_per_class = 256
    share_encoder = False


class nnUNetTrainerCAML_sharedEncoder(nnUNetTrainerCAML):
    """One shared encoder and two decoders: less memory and time than two networks."""

    share_encoder = True


class nnUNetTrainerCAML_sharedEncoder_lessMemory(nnUNetTrainerCAML):
    """Both ways to less memory."""

    share_encoder = True
    activation_checkpointing = True
