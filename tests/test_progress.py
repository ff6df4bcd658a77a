"""What CAML adds to the log, with numbers worked out by hand."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import Workspace
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_caml.learning import agreement_counts
from nnunet_caml.progress import FIGURE, VALUES, add_keys, describe, epoch_values, log, plot


def test_the_figure_is_not_drawn_with_what_nnunets_own_leaves_behind(tmp_path: Path):
    logger = MetaLogger(str(tmp_path), False)
    add_keys(logger)
    for epoch in range(3):
        log(logger, dict.fromkeys(VALUES, epoch / 3), epoch)
        for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
            logger.log(key, 0.5, epoch)
        for key, second in (("epoch_start_timestamps", 0.0), ("epoch_end_timestamps", 1.0)):
            logger.log(key, second, epoch)
    with matplotlib.rc_context():
        plot(logger, tmp_path)
        before = (tmp_path / FIGURE).read_bytes()
        logger.local_logger.plot_progress_png(str(tmp_path))
        assert matplotlib.rcParams["font.size"] > 20
        plot(logger, tmp_path)
        assert (tmp_path / FIGURE).read_bytes() == before


def outputs(agreement: list) -> dict[str, np.ndarray]:
    """Of an epoch of two steps."""
    steps = {
        "loss": [1.0, 2.0],
        "loss_a": [3.0, 6.0],
        "consistency": [0.2, 0.4],
        "correlation": [0.1, 0.7],
        "row_peak": [0.5, 1.0],
        "memory": [0.25, 0.75],
        "agreement": agreement,
    }
    return {key: np.array(values, np.float32) for key, values in steps.items()}


def test_voxels_that_both_networks_give_a_class():
    v = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 3]])
    a = torch.tensor([[0, 1, 1, 2], [2, 1, 2, 0]])
    assert agreement_counts(v, a, 5).tolist() == [[2, 1, 0, 0], [3, 2, 1, 0], [3, 3, 0, 0]], "both, V, A; no background"


def test_values_of_an_epoch():
    counts = [[[2, 1, 0, 0], [3, 2, 1, 0], [3, 3, 0, 0]], [[1, 0, 0, 0], [1, 0, 1, 0], [3, 0, 2, 0]]]
    values = epoch_values(outputs(counts), 0.5, 0.05, 0.125)
    assert list(values) == list(VALUES)
    assert values["supervised"] == 1.5 + 4.5
    assert values["supervised_a"] == 4.5
    assert values["consistency"] == pytest.approx(0.3)
    assert values["correlation"] == pytest.approx(0.4)
    assert values["row_peak"] == 0.75
    assert (values["lambda_c"], values["lambda_o"], values["waiting"]) == (0.5, 0.05, 0.125)
    assert values["memory"] == 0.75, "as full as it is at the end"
    # of the voxels of all steps together; the last class is in none of them
    assert values["agreement"] == pytest.approx((6 / 10 + 2 / 5 + 0 / 4) / 3)


def test_a_loss_that_is_not_finite_is_seen_and_an_agreement_on_nothing_is_not():
    values = epoch_values(outputs([[[0, 0]] * 3] * 2), 0.0, 0.0, 0.0)
    assert math.isnan(values["agreement"])
    values["consistency"] = float("nan")
    line = describe(values)
    assert "L_c nan" in line
    assert "agreement" not in line
    values["agreement"] = 0.25
    assert "(mean foreground Dice) 0.2500" in describe(values)


def test_what_ends_a_training_is_in_its_log(workspace: Workspace, make_trainer):
    shutil.rmtree(workspace.raw / "imagesUn")
    trainer = make_trainer()
    trainer.initialize()
    with pytest.raises(ValueError, match="no unlabelled cases"):
        trainer.on_train_start()
    log_file = next(Path(trainer.output_folder).glob("training_log_*"))
    assert "ERROR: There are no unlabelled cases" in log_file.read_text(encoding="utf-8")


def test_no_figure_stays_open(tmp_path: Path):
    logger = MetaLogger(str(tmp_path), False)
    add_keys(logger)
    log(logger, dict.fromkeys(VALUES, 0.5), 0)
    before = plt.get_fignums()
    plot(logger, tmp_path)
    assert plt.get_fignums() == before


def test_a_log_without_our_values_is_filled_up(tmp_path: Path):
    """As of a training that an earlier version has begun."""
    logger = MetaLogger(str(tmp_path), False)
    for epoch in range(3):
        logger.log("train_losses", 0.5, epoch)
    add_keys(logger)
    log(logger, dict.fromkeys(VALUES, 0.25), 3)
    assert np.isnan(logger.get_value("caml_agreement", step=None)[:3]).all()
    assert logger.get_value("caml_agreement", step=None)[3:] == [0.25]


def test_waiting_is_a_share_of_the_epoch(make_trainer, monkeypatch):
    from test_progress import outputs

    trainer, logged = make_trainer(), []
    trainer.dataloader_train = SimpleNamespace(waited_s=3.0)
    trainer._epoch_began = 100.0
    monkeypatch.setattr("nnunet_caml.trainer.perf_counter", lambda: 112.0)
    monkeypatch.setattr("nnunet_caml.progress.log", lambda _logger, values, _epoch: logged.append(values["waiting"]))
    steps = outputs([[[1, 1]] * 3] * 2)
    trainer.on_train_epoch_end([{key: values[i] for key, values in steps.items()} for i in range(2)])
    assert logged == [0.25]
