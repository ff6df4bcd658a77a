"""Hyperparameters: wrong ones are refused before anything is trained, and the documentation tells them as they are."""

import re
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nnunet_caml import variants
from nnunet_caml.hyperparameters import _ALLOWED, Hyperparameters
from nnunet_caml.trainer import nnUNetTrainerCAML

PAGE = Path(__file__).resolve().parents[1] / "documentation" / "method.md"
NAMES = list(Hyperparameters.__annotations__)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("consistency", "hard", "one of 'sharpened', 'labels', got 'hard'"),
        ("occ_similarity", "Cosine", "one of 'dot', 'cosine', got 'Cosine'"),
        ("rampup_fraction", 40, "a number from 0 to 1, got 40"),
        ("lambda_c", -1.0, "a number from 0, got -1.0"),
        ("lambda_o", float("nan"), "a number from 0, got nan"),
        ("supervised_weight", "1", "a number from 0, got '1'"),
        ("occ_temperature", 0, "a number above 0, got 0"),
        ("attention_dropout", 1.0, "a number from 0 and below 1, got 1.0"),
        ("attention_downsampling", 0.125, "a number from 1, got 0.125"),
        ("unlabeled_per_labeled", 0, "a number above 0, got 0"),
        ("memory_per_class", 256.0, "a whole number from 1, got 256.0"),
        ("max_filtered_share", 1.28, "a number above 0, at most 1, got 1.28"),
        ("share_encoder", "no", "True or False, got 'no'"),
        ("memory_max_rows_per_class", 255, "at least memory_per_class (256), or none could be drawn; got 255"),
        ("epochs", 0, "None or a whole number from 1, got 0"),
    ],
)
def test_a_wrong_value_is_a_sentence(name: str, value: object, words: str):
    class Mine(Hyperparameters):
        pass

    setattr(Mine, name, value)
    with pytest.raises(ValueError, match=rf"^Mine\.{name} must be {re.escape(words)}$"):
        Mine().check_hyperparameters()


def test_an_encoder_for_both_has_one_view():
    class Mine(Hyperparameters):
        clean_view = share_encoder = True

    with pytest.raises(ValueError, match=r"^Mine: with share_encoder A sees what V sees .* set share_encoder or clean_view to"):
        Mine().check_hyperparameters()


def test_two_lengths_of_a_training_are_one_too_many():
    class Mine(variants.nnUNetTrainerCAML_100epochs):
        num_epochs = 10

    with pytest.raises(ValueError, match=r"^Mine has num_epochs = 10 and epochs = 100, .*; set epochs alone$"):
        Mine.__new__(Mine).check_hyperparameters()


def test_nnunets_own_settings_may_be_class_attributes(make_trainer, monkeypatch):
    """nnU-Net sets them in ``__init__``, which would overrule the class without a word."""
    monkeypatch.setattr(nnUNetTrainerCAML, "num_iterations_per_epoch", 7, raising=False)
    monkeypatch.setattr(nnUNetTrainerCAML, "initial_lr", 0.002, raising=False)
    monkeypatch.setattr(nnUNetTrainerCAML, "num_epochs", 3, raising=False)
    trainer = make_trainer("nnUNetTrainerCAML")
    assert (trainer.num_iterations_per_epoch, trainer.initial_lr, trainer.num_epochs) == (7, 0.002, 3)
    assert (trainer.num_val_iterations_per_epoch, trainer.weight_decay) == (50, 3e-5), "nnU-Net's, where the class says nothing"
    assert list(trainer.remarks()) == []
    trainer.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.auxiliary_optimizer.param_groups[0]["lr"] == 0.002


def test_a_misspelt_setting_is_told(make_trainer):
    class Mine(variants.nnUNetTrainerCAML_copyPaste):
        lamda_c = 3.0
        inital_lr = 0.001
        palette = "viridis"
        lambda_o = 0.1
        _own = 1
        of_mine: int = 1

        def helper(self) -> None: ...

        @property
        def another(self) -> int:
            return 1

    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.__class__ = Mine
    assert list(trainer.remarks()) == [
        "Mine.lamda_c: neither nnU-Net nor CAML has a setting of this name. Did you mean lambda_c?",
        "Mine.inital_lr: neither nnU-Net nor CAML has a setting of this name. Did you mean initial_lr?",
        "Mine.palette: neither nnU-Net nor CAML has a setting of this name.",
    ]


def test_mirroring_in_prediction_is_that_of_training(make_trainer):
    trainer = make_trainer()
    trainer.__class__ = type("Mine", (nnUNetTrainerCAML,), {"inference_allowed_mirroring_axes": (0,)})
    assert [*trainer.remarks()] == [
        "Mine.inference_allowed_mirroring_axes has no effect: nnU-Net mirrors in prediction as it does in training. Put a "
        "trainer that mirrors less, such as nnUNetTrainerNoMirroring, behind that of CAML in the list of "
        "bases, or predict with --disable_tta."
    ]
    both = type("Both", (nnUNetTrainerCAML, nnUNetTrainerNoMirroring), {})
    trainer.__class__ = both
    assert [*trainer.remarks()] == []
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes is None


def test_a_batch_size_is_the_plans(make_trainer):
    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (nnUNetTrainerCAML,), {"batch_size": 1, "bach_size": 1})
    trainer.initialize()
    assert list(trainer.remarks()) == [
        "nnUNetTrainerCAML_mine.batch_size = 1 has no effect, the batch is of 2: nnU-Net takes it from the plans. Change "
        "batch_size of the configuration in the plans file (nnUNetPlans.json).",
        "nnUNetTrainerCAML_mine.bach_size: neither nnU-Net nor CAML has a setting of this name.",
    ]
    trainer.__class__.batch_size = 2
    assert len(list(trainer.remarks())) == 1


def test_a_step_that_ours_takes_the_place_of_is_told(make_trainer):
    class Theirs(nnUNetTrainer):
        def train_step(self, batch: dict) -> dict:
            raise NotImplementedError

    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (nnUNetTrainerCAML, Theirs), {})
    assert list(trainer.remarks()) == ["Theirs.train_step has no effect: a step of CAML is another one."]
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (nnUNetTrainerCAML, type("Mixin", (), {})), {})
    assert list(trainer.remarks()) == []
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (Theirs, nnUNetTrainerCAML), {})
    assert list(trainer.remarks()) == [
        "nnUNetTrainerCAML_mine: what Theirs does takes the place of what CAML does. Put it behind the trainer of CAML in the "
        "list of bases."
    ]


@pytest.mark.parametrize(
    ("start", "fraction", "reached"), [(0.6, 0.8, "29%"), (1.0, 0.0, "0%"), (0.9, 0.1, None), (0.4, 0.3, None)]
)
def test_a_ramp_up_that_does_not_end_is_told(make_trainer, start: float, fraction: float, reached: str | None):
    trainer = make_trainer("nnUNetTrainerCAML")
    settings = {"rampup_start_fraction": start, "rampup_fraction": fraction}
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (nnUNetTrainerCAML,), settings)
    expected = (
        f"nnUNetTrainerCAML_mine: rampup_start_fraction + rampup_fraction is {start:g} + {fraction:g}, more than the whole "
        f"training: consistency and OCC end with {reached} of their weight."
    )
    assert list(trainer.remarks()) == ([] if reached is None else [expected])
    trainer.__class__.lambda_c = trainer.__class__.lambda_o = 0.0
    assert list(trainer.remarks()) == []


def test_settings_of_a_constructor(make_trainer):
    """nnU-Net's own idiom: what ``__init__`` sets on the instance counts, and is looked at."""
    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.initialize()
    assert list(trainer.remarks()) == []
    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.epochs, trainer.lamda_c, trainer.palette = 3, 0.5, "viridis"
    trainer.initialize()
    assert trainer.num_epochs == 3
    assert trainer.lr_scheduler.max_steps == 3
    assert list(trainer.remarks()) == [
        "nnUNetTrainerCAML.lamda_c: neither nnU-Net nor CAML has a setting of this name. Did you mean lambda_c?"
    ]


def test_capitals_count(make_trainer):
    trainer = make_trainer("nnUNetTrainerCAML")
    trainer.__class__ = type("Mine", (nnUNetTrainerCAML,), {"lambda_C": 0.5})
    assert list(trainer.remarks()) == [
        "Mine.lambda_C: neither nnU-Net nor CAML has a setting of this name. Did you mean lambda_c?"
    ]


def test_an_annotation_does_not_hide_a_slip_of_the_pen(make_trainer):
    trainer = make_trainer("nnUNetTrainerCAML")
    own = {"lamda_c": 0.5, "palette": "viridis", "__annotations__": {"lamda_c": float, "palette": str}}
    trainer.__class__ = type("Mine", (nnUNetTrainerCAML,), own)
    assert list(trainer.remarks()) == [
        "Mine.lamda_c: neither nnU-Net nor CAML has a setting of this name. Did you mean lambda_c?"
    ]


def test_ours_have_no_unknown_setting(make_trainer):
    trainer = make_trainer("nnUNetTrainerCAML")
    for name in variants.__all__:
        trainer.__class__ = getattr(variants, name)
        assert list(trainer.remarks()) == [], name


def test_every_one_of_them_is_looked_at():
    assert sorted(_ALLOWED) == sorted(NAMES)


@pytest.mark.parametrize("trainer", [nnUNetTrainerCAML, *(getattr(variants, name) for name in variants.__all__)])
def test_ours_are_right(trainer: type):
    Hyperparameters.check_hyperparameters(trainer.__new__(trainer))


def test_the_papers_settings_do_not_hang_on_the_defaults():
    ours = {"clip_norm", "epochs", "activation_checkpointing", "memory_max_rows_per_class"}
    # what Python itself notes of a class differs from version to version
    assert set(NAMES) - ours == {name for name in vars(variants.nnUNetTrainerCAML_paper) if not name.startswith("__")}


def test_training_does_not_begin_with_a_wrong_one(make_trainer):
    trainer = make_trainer()
    trainer.occ_similarity = "cosinus"
    with pytest.raises(ValueError, match="occ_similarity must be one of 'dot', 'cosine', got 'cosinus'"):
        trainer.on_train_start()
    assert trainer.network is None, "it is found before any network is built"


def test_the_documentation_has_the_defaults():
    """Each row of the page's table names attributes and, in the same order, their values."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {}
    for names, values in rows:
        names = re.findall(r"`(\w+)`", names)
        if set(names) <= set(NAMES):
            found |= dict(zip(names, values.replace("`", "").split(", "), strict=True))
    assert found == {name: str(getattr(Hyperparameters, name)).replace("'", "") for name in NAMES} | {
        name: f'"{getattr(Hyperparameters, name)}"' for name in ("consistency", "occ_similarity")
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("initial_lr", "1e-2", "a number above 0"),
        ("initial_lr", -1.0, "a number above 0"),
        ("weight_decay", None, "a number from 0"),
        ("num_iterations_per_epoch", 2.0, "a whole number from 1"),
        ("num_val_iterations_per_epoch", 0, "a whole number from 1"),
        ("save_every", "x", "a whole number from 1"),
        ("num_epochs", 0, "a whole number from 1"),
        ("oversample_foreground_percent", 33, "a number from 0 to 1"),
    ],
)
def test_settings_of_nnunet_are_looked_at_as_well(name: str, value: object, words: str):
    """Which itself notices none of them, or hours later."""
    trainer = nnUNetTrainerCAML.__new__(type("nnUNetTrainerCAML_mine", (nnUNetTrainerCAML,), {name: value}))
    with pytest.raises(ValueError, match=rf"nnUNetTrainerCAML_mine\.{name} must be {words}, got"):
        Hyperparameters.check_hyperparameters(trainer)
