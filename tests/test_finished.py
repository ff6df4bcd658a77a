"""Trained models that are validated or continued, and data of which a part is gone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace

from nnunet_caml import checkpoints
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import STATE_FOLDER
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.unlabeled import UnlabeledDataError


@pytest.fixture
def trained(make_trainer) -> Path:
    """The final checkpoint of an epoch."""
    trainer = make_trainer()
    trainer.num_epochs = 1
    trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def test_a_finished_training_is_only_validated(workspace: Workspace, make_trainer, trained, monkeypatch):
    """``--c`` does so in nnU-Net, and needs neither unlabelled cases nor the memory of a training step."""
    trainer = make_trainer(resume=True)
    trainer.num_epochs = 1
    trainer.load_checkpoint(str(trained))
    shutil.rmtree(workspace.raw / "imagesUn")
    shutil.rmtree(trainer.unlabeled.folder)
    monkeypatch.setattr("nnunet_caml.trainer.rehearse_on_gpu", lambda _: pytest.fail("a step is tried"))
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.run_training()
    trainer.perform_actual_validation()
    assert (trained.parent / "validation" / "summary.json").is_file()
    saved = torch.load(trained, weights_only=False)["network_weights"]
    assert all(torch.equal(saved[k], v) for k, v in before.items())
    assert checkpoints.companion(trained, 1).is_file()


def test_preprocessed_cases_that_nothing_is_known_of(workspace: Workspace, make_trainer):
    """As where a folder was copied without what is hidden in it, to a machine that has no raw data."""
    trainer = make_trainer()
    trainer.initialize()
    preprocess(trainer.unlabeled, 1)
    shutil.rmtree(workspace.raw / "imagesUn")
    (workspace.raw / "imagesUn").mkdir()
    with pytest.raises(UnlabeledDataError, match=r"imagesUn holds no image, so none of the cases in .*_unlabeled is used"):
        trainer.prepare_unlabeled()
    shutil.rmtree(workspace.raw)
    trainer.prepare_unlabeled()
    shutil.rmtree(trainer.unlabeled.folder / STATE_FOLDER)
    with pytest.raises(
        UnlabeledDataError, match=r"None of the 5 preprocessed cases in .*_unlabeled can be used: .*\.state was not"
    ):
        trainer.prepare_unlabeled()


def resumed(make_trainer, checkpoint: Path, **settings: object) -> nnUNetTrainerCAML:
    trainer = make_trainer(resume=True)
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer.load_checkpoint(str(checkpoint))
    return trainer


def test_companion_of_another_run_is_not_used(make_trainer, trained):
    companion = checkpoints.companion(trained, 1)
    foreign = torch.load(companion, weights_only=True)
    torch.save({**foreign, "run": [0.0]}, companion)
    with pytest.raises(ValueError, match=r"checkpoint_final_caml_0001\.pth belongs to another run, so the auxiliary network"):
        resumed(make_trainer, trained).on_train_start()


def test_a_companion_that_does_not_fit_is_no_harm_but_for_training(workspace: Workspace, make_trainer, trained):
    preprocess(resumed(make_trainer, trained).unlabeled, 1)
    for settings, reason in (
        ({"attention": False}, r"PlainConvUNet: Missing key"),
        ({"embedding_width": 32}, r"size mismatch for"),
        ({"memory_per_class": 8, "memory_max_rows_per_class": 16}, r"size mismatch for"),
        ({"share_encoder": True}, r"Error\(s\) in loading state_dict"),
    ):
        trainer = resumed(make_trainer, trained, **settings)
        said = (
            rf"_caml_0001\.pth was saved with other settings of the trainer \(.*{reason}.*, {next(iter(settings))} \(.*, now .*"
            r", so this training cannot be continued with the present ones\. Put back .*start again without --c\.$"
        )
        with pytest.raises(ValueError, match=said):
            trainer.on_train_start()
    whole = checkpoints.companion(trained, 1).read_bytes()
    checkpoints.companion(trained, 1).write_bytes(whole[: len(whole) // 2])
    trainer = resumed(make_trainer, trained)
    trainer.perform_actual_validation()
    assert (trained.parent / "validation" / "summary.json").is_file()
    with pytest.raises(ValueError, match=r"checkpoint_final_caml_0001\.pth cannot be read \(.*cannot be continued"):
        trainer.on_train_start()
    checkpoints.companion(trained, 1).unlink()
    with pytest.raises(ValueError, match=r"checkpoint_final_caml_0001\.pth is missing, so"):
        resumed(make_trainer, trained).on_train_start()


def test_settings_that_were_changed_since_are_told(make_trainer, trained, capsys: pytest.CaptureFixture):
    trainer = resumed(make_trainer, trained, lambda_c=0.5)
    trainer.on_train_start()
    said = "WARNING: this training was begun with other settings: lambda_c (1.0, now 0.5), num_epochs (1, now 2)."
    assert said in capsys.readouterr().out


def test_they_are_told_where_nothing_is_left_to_train(make_trainer, capsys: pytest.CaptureFixture):
    """As where the number of epochs was lowered to less than those that are done."""
    trainer = make_trainer()
    trainer.run_training()
    capsys.readouterr()
    resumed(make_trainer, Path(trainer.output_folder) / "checkpoint_final.pth", num_epochs=1).on_train_start()
    assert "WARNING: this training was begun with other settings: num_epochs (2, now 1)." in capsys.readouterr().out


def test_a_patch_size_that_was_changed_since_is_told(workspace: Workspace, make_trainer, trained, capsys):
    plans = workspace.preprocessed / "nnUNetPlans.json"
    content = json.loads(plans.read_text(encoding="utf-8"))
    content["configurations"]["3d_tiny"]["patch_size"] = [16, 24, 24]
    plans.write_text(json.dumps(content), encoding="utf-8")
    resumed(make_trainer, trained).on_train_start()
    assert "other settings: num_epochs (1, now 2), patch_size ([20, 24, 24], now [16, 24, 24])" in capsys.readouterr().out


def test_they_are_told_however_often_a_training_is_continued(make_trainer, trained, capsys: pytest.CaptureFixture):
    again = resumed(make_trainer, trained, lambda_c=0.5)
    again.run_training()
    last = resumed(make_trainer, trained, lambda_c=0.5, num_epochs=3)
    capsys.readouterr()
    last.on_train_start()
    assert "begun with other settings: lambda_c (1.0, now 0.5), num_epochs (1, now 3)." in capsys.readouterr().out
    original = resumed(make_trainer, trained, num_epochs=1)
    original.on_train_start()
    assert "other settings" not in capsys.readouterr().out


def test_a_weight_decay_that_was_changed_since_counts(make_trainer, trained, monkeypatch):
    """Optimisers restore that of before."""
    trainer = resumed(make_trainer, trained)
    optimizers = trainer.optimizer, trainer.auxiliary_optimizer
    assert [group["weight_decay"] for o in optimizers for group in o.param_groups] == [3e-5, 3e-5]
    assert all(o.state for o in optimizers)
    monkeypatch.setattr(nnUNetTrainerCAML, "weight_decay", 0.01, raising=False)
    other = resumed(make_trainer, trained)
    optimizers = other.optimizer, other.auxiliary_optimizer
    assert [group["weight_decay"] for o in optimizers for group in o.param_groups] == [0.01, 0.01]
    assert all(o.state for o in optimizers)
    assert "weight_decay (3e-05, now 0.01)" in other._changed


def test_what_one_checkpoint_lacks_is_no_fault_of_the_next(make_trainer, trained):
    whole = checkpoints.companion(trained, 1).read_bytes()
    checkpoints.companion(trained, 1).unlink()
    trainer = resumed(make_trainer, trained)
    checkpoints.companion(trained, 1).write_bytes(whole)
    trainer.load_checkpoint(str(trained))
    trainer.on_train_start()


def test_a_part_of_the_batch_is_no_other_setting(make_trainer):
    """Several processes share it, and which part draws around foreground is none of the user's settings."""
    trainer = make_trainer()
    alone = trainer.settings()
    trainer.is_ddp, trainer.batch_size, trainer.oversample_foreground_percent = True, 1, 0.0
    assert not checkpoints.other_settings(alone, trainer.settings())
    assert not checkpoints.other_settings(trainer.settings(), alone)
    assert alone["batch_size"] == trainer.configuration_manager.batch_size


def test_a_finished_training_leaves_nothing_of_a_kill(trained, make_trainer):
    """As of a save of ``checkpoint_best.pth`` that was never made again."""
    half = trained.with_name("checkpoint_best.pth.partial")
    half.touch()
    trainer = resumed(make_trainer, trained, num_epochs=1)
    trainer.run_training()
    assert not half.exists()
    assert trained.with_name("checkpoint_best.pth").is_file()


def test_a_log_of_before_a_value_was_added(make_trainer, trained):
    checkpoint = torch.load(trained, weights_only=False)
    del checkpoint["logging"]["caml_row_peak"]
    torch.save(checkpoint, trained)
    trainer = resumed(make_trainer, trained)
    assert np.isnan(trainer.logger.get_value("caml_row_peak", step=None)).tolist() == [True]
