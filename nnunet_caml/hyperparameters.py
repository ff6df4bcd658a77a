"""The hyperparameters of :class:`nnunet_caml.trainer.nnUNetTrainerCAML`, and which values they may have.

A wrong value would show late, OCC's for instance after a tenth of a training of days, so all are checked before it begins.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from inspect import get_annotations
from typing import Any

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_caml.consistency import CONSISTENCIES, rampup
from nnunet_caml.correlation import SIMILARITIES
from nnunet_caml.errors import UserError

__all__ = ["HyperparameterError", "Hyperparameters"]


class HyperparameterError(UserError, ValueError):
    """A hyperparameter has a value that it may not have."""


class Hyperparameters:
    """Class attributes of the trainer; nnU-Net's own settings, ``num_iterations_per_epoch`` for instance, may be some as well.

    Defaults are the paper's or its released code's where the comment says nothing else. The four that say "measured" were
    chosen on development cases (benchmarks/LOG.md); ``nnUNetTrainerCAML_paper`` has the paper's.
    """

    #: weight of the sum of both networks' supervised losses (nnU-Net's full weight; measured; paper: 0.5)
    supervised_weight: float = 1.0
    #: weight of the mutual consistency after the ramp-up
    lambda_c: float = 1.0
    #: weight of OCC after the ramp-up
    lambda_o: float = 0.05
    #: first part of the training, as a fraction, in which both weights are 0 and the networks learn from labels alone
    #: (measured; paper: 0)
    rampup_start_fraction: float = 0.1
    #: ramp-up of both weights, as a fraction of all iterations (measured; paper: 0.4 with 5 % labelled, 0.2 with 10 %,
    #: 0.15 with 20 %)
    rampup_fraction: float = 0.3
    #: unlabelled patches per labelled one in a batch, at least one a batch: with 0.5 one for two, so three patches where 1 has
    #: four, which saves as much of time and memory
    unlabeled_per_labeled: float = 1.0
    #: "labels": cross pseudo supervision on unlabelled patches (measured), or "sharpened", the paper's
    consistency: str = "labels"
    #: temperature of the consistency targets
    sharpening_temperature: float = 0.1
    #: stop the gradient through the sharpened side; the released code does not
    detach_consistency_target: bool = False
    #: length per axis, as a share of the patch, of the box that a labelled and an unlabelled patch exchange where V sees them
    #: (ours; 0 for none; 2/3 is that of bidirectional copy-paste)
    copy_paste_share: float = 0.0
    #: A sees unlabelled patches with their own intensities, V with augmented ones (ours)
    clean_view: bool = False
    #: whether A has CMA
    attention: bool = True
    #: heads of CMA
    attention_heads: int = 4
    #: dropout of CMA
    attention_dropout: float = 0.5
    #: CMA sits at the encoder stage nearest to this reduction per axis
    attention_downsampling: float = 8.0
    #: width of projection and prediction heads and of the memory's embeddings
    embedding_width: int = 64
    #: "dot" or "cosine"
    occ_similarity: str = "dot"
    #: temperature of the correlation rows
    occ_temperature: float = 0.1
    #: most confident voxels per class that enter OCC
    num_filtered: int = 12800
    #: bound on those of all classes together (ours: what the paper has with its two classes)
    max_filtered: int = 25600
    #: the same bound as a share of the unlabelled voxels (ours: 25600 of the paper's 2 x 112 x 112 x 80)
    max_filtered_share: float = 0.0128
    #: embeddings drawn from the memory per class and step
    memory_per_class: int = 256
    #: bound on the stored embeddings of a class over all cases (ours; the released code keeps every voxel)
    memory_max_rows_per_class: int = 65536
    #: A uses V's encoder: cheaper (ours)
    share_encoder: bool = False
    #: less memory for more time: both networks compute inner activations again for the gradient (ours)
    activation_checkpointing: bool = False
    #: gradient norm to which V, A and the heads are clipped, each by itself (nnU-Net's)
    clip_norm: float = 12.0
    #: length of training in epochs; None is nnU-Net's 1000
    epochs: int | None = None

    def check_hyperparameters(self) -> None:
        """Looks at all of them.

        Raises:
            HyperparameterError: One has a value that it may not have; the message names it and says what it may be. Or two
                exclude each other.
        """
        for name, (allowed, words) in {**_ALLOWED, **_OF_NNUNET}.items():
            value = getattr(self, name, None)
            if (hasattr(self, name) or name not in _OF_NNUNET) and not allowed(value):
                raise HyperparameterError(f"{type(self).__name__}.{name} must be {words}, got {value!r}")
        if self.memory_max_rows_per_class < self.memory_per_class:
            raise HyperparameterError(
                f"{type(self).__name__}.memory_max_rows_per_class must be at least memory_per_class "
                f"({self.memory_per_class}), or none could be drawn; got {self.memory_max_rows_per_class}"
            )
        if "epochs" in vars(self) and self.epochs is not None:  # set after nnU-Net's own were, by a constructor
            self.num_epochs = self.epochs
        num_epochs = getattr(type(self), "num_epochs", self.epochs)
        if self.epochs is not None and num_epochs != self.epochs:
            raise HyperparameterError(
                f"{type(self).__name__} has num_epochs = {num_epochs} and epochs = {self.epochs}, which both mean the length "
                "of the training; set epochs alone"
            )
        if self.clean_view and self.share_encoder:
            raise HyperparameterError(
                f"{type(self).__name__}: with share_encoder A sees what V sees and has no view of its own; "
                "set share_encoder or clean_view to False"
            )

    def apply_class_attributes(self) -> None:
        """Gives the instance the class's value of what nnU-Net's ``__init__`` has set on it and a class has set as well.

        Else ``num_iterations_per_epoch = 100`` in a class would be overruled by nnU-Net's 250 without a word.
        """
        for name in vars(self):
            if hasattr(type(self), name):
                setattr(self, name, getattr(type(self), name))
        if self.epochs is not None:
            self.num_epochs = self.epochs

    def unlabeled_per_batch(self, labeled: int) -> int:
        """Unlabelled patches beside ``labeled`` labelled ones."""
        return max(1, round(self.unlabeled_per_labeled * labeled))

    def settings(self) -> dict[str, Any]:
        """All of them and nnU-Net's own, by name, for a companion file; ``num_epochs`` says what ``epochs`` does."""
        names = [name for name in (*_ALLOWED, *_OF_NNUNET) if name != "epochs" and hasattr(self, name)]
        values = {name: getattr(self, name) for name in names}
        trainer: Any = self
        values["batch_size"] = trainer.configuration_manager.batch_size
        values["patch_size"] = [int(voxels) for voxels in trainer.configuration_manager.patch_size]
        if trainer.is_ddp:  # each process has its own, of its part of the batch
            del values["oversample_foreground_percent"]
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

    def remarks(self) -> Iterator[str]:
        """Sentences on settings that are allowed and not likely to be meant, once the trainer is initialised.

        Such as a ``train_step`` of a trainer that is combined with ours, or public class attributes of a subclass that have no
        effect: those that the plans overrule, and those that neither nnU-Net nor this package reads, unless they have an
        annotation (``palette: str = "viridis"``), which makes them the subclass's own, or are set on the instance. Of these
        two, those are told that look like a slip of the pen.
        """
        left = 1 - self.rampup_start_fraction
        reached = rampup(left, self.rampup_fraction) if left else 0.0
        if (self.lambda_c or self.lambda_o) and reached < 1:
            yield (
                f"{type(self).__name__}: rampup_start_fraction + rampup_fraction is {self.rampup_start_fraction:g} + "
                f"{self.rampup_fraction:g}, more than the whole training: consistency and OCC end with {reached:.0%} of their "
                "weight."
            )
        if (groups := len(getattr(vars(self).get("optimizer"), "param_groups", ()))) > 1:
            yield (
                f"{type(self).__name__}: the optimiser of V has {groups} groups of parameters. That of A and the heads has a "
                "single one, with the learning rate of the first and the defaults for all else."
            )
        settings = [*_ALLOWED, *_OF_NNUNET]
        for name in vars(self):  # as a constructor sets them
            if name not in settings and not hasattr(type(self), name) and (close := _meant(name, settings, 0.85)):
                yield f"{type(self).__name__}.{name}: {_UNKNOWN} Did you mean {close}?"
        mro = type(self).__mro__
        known = {*vars(self), *(name for cls in mro for name in get_annotations(cls))} - {"batch_size"}
        wanted, actual = getattr(type(self), "batch_size", None), getattr(self, "batch_size", None)
        if wanted not in (None, actual):
            yield (
                f"{type(self).__name__}.batch_size = {wanted} has no effect, the batch is of {actual}: nnU-Net takes it from "
                "the plans. Change batch_size of the configuration in the plans file (nnUNetPlans.json)."
            )
        ours = mro.index(Hyperparameters)
        for cls in mro[ours + 1 : mro.index(nnUNetTrainer)]:  # those that are combined with ours
            if "train_step" in vars(cls):
                yield f"{cls.__name__}.train_step has no effect: a step of CAML is another one."
        for cls in mro[:ours]:
            if issubclass(cls, nnUNetTrainer) and not issubclass(cls, Hyperparameters):
                yield (
                    f"{type(self).__name__}: what {cls.__name__} does takes the place of what CAML does. Put it behind the "
                    "trainer of CAML in the list of bases."
                )
            for name, value in vars(cls).items():
                if name == "inference_allowed_mirroring_axes":
                    yield (
                        f"{cls.__name__}.{name} has no effect: nnU-Net mirrors in prediction as it does in training. Put a "
                        "trainer that mirrors less, such as nnUNetTrainerNoMirroring, behind that of CAML in the list of "
                        "bases, or predict with --disable_tta."
                    )
                is_part_of_class = callable(value) or isinstance(value, property | classmethod | staticmethod)
                if name.startswith("_") or is_part_of_class or name in {*settings, "batch_size"}:
                    continue
                close = _meant(name, settings, 0.85) if name in known else _meant(name, known, 0.75)
                if close or name not in known:
                    yield f"{cls.__name__}.{name}: {_UNKNOWN}" + (f" Did you mean {close}?" if close else "")


_UNKNOWN = "neither nnU-Net nor CAML has a setting of this name."


def _meant(name: str, settings: Iterable[str], cutoff: float) -> str | None:
    """The setting whose name is most like ``name``, if any is like it."""
    by_capitals = {setting.lower(): setting for setting in settings}
    same = by_capitals.get(name.lower())
    return same or next(iter(get_close_matches(name, list(by_capitals.values()), n=1, cutoff=cutoff)), None)


Rule = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_WEIGHT: Rule = (lambda value: _is_number(value) and value >= 0, "a number from 0")
_POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "a number above 0")
_FRACTION: Rule = (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_WHOLE: Rule = (_is_whole, "a whole number from 1")
_SWITCH: Rule = (lambda value: isinstance(value, bool), "True or False")


def _one_of(values: tuple[str, ...]) -> Rule:
    return lambda value: value in values, f"one of {', '.join(map(repr, values))}"


_ALLOWED: dict[str, Rule] = {
    "supervised_weight": _WEIGHT,
    "lambda_c": _WEIGHT,
    "lambda_o": _WEIGHT,
    "rampup_start_fraction": _FRACTION,
    "rampup_fraction": _FRACTION,
    "unlabeled_per_labeled": _POSITIVE,
    "consistency": _one_of(CONSISTENCIES),
    "sharpening_temperature": _POSITIVE,
    "detach_consistency_target": _SWITCH,
    "copy_paste_share": _FRACTION,
    "clean_view": _SWITCH,
    "attention": _SWITCH,
    "attention_heads": _WHOLE,
    "attention_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 and below 1"),
    "attention_downsampling": (lambda value: _is_number(value) and value >= 1, "a number from 1"),
    "embedding_width": _WHOLE,
    "occ_similarity": _one_of(SIMILARITIES),
    "occ_temperature": _POSITIVE,
    "num_filtered": _WHOLE,
    "max_filtered": _WHOLE,
    "max_filtered_share": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "memory_per_class": _WHOLE,
    "memory_max_rows_per_class": _WHOLE,
    "share_encoder": _SWITCH,
    "activation_checkpointing": _SWITCH,
    "clip_norm": _POSITIVE,
    "epochs": (lambda value: value is None or _is_whole(value), "None or a whole number from 1"),
}

#: nnU-Net's own, which it sets when a trainer is made
_OF_NNUNET: dict[str, Rule] = {
    "initial_lr": _POSITIVE,
    "weight_decay": _WEIGHT,
    "oversample_foreground_percent": _FRACTION,
    "num_iterations_per_epoch": _WHOLE,
    "num_val_iterations_per_epoch": _WHOLE,
    "save_every": _WHOLE,
    "num_epochs": _WHOLE,
}
