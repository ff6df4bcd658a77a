"""The cascade: the first stage predicts unlabelled cases, too, and the second learns from both."""

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import combinations
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from conftest import NAME, Workspace, blobs, write_image
from forked import CommandFailed
from test_unlabeled import dataset

from nnunet_caml import cascade
from nnunet_caml.cascade import fold_share, with_previous_stage
from nnunet_caml.errors import WorkerError
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset

TRAINER = "nnUNetTrainerCAMLOneEpoch"


def add_cascade(plans_file: Path) -> None:
    """As nnU-Net plans a cascade for large images."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_tiny",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [2.0, 1.5, 1.5],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_tiny", "previous_stage": "3d_lowres"}
    plans_file.write_text(json.dumps(plans), encoding="utf-8")


def make_tiny_the_first_stage(plans_file: Path) -> None:
    """Of a cascade whose stages have one geometry."""
    add_cascade(plans_file)
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["configurations"]["3d_tiny"]["next_stage"] = "3d_cascade_fullres"
    plans_file.write_text(json.dumps(plans), encoding="utf-8")


def test_both_stages(workspace: Workspace):
    add_cascade(workspace.preprocessed / "nnUNetPlans.json")
    command = f"nnUNetv2_train 101 {{}} {{}} -tr {TRAINER} -device cpu"
    workspace.call(*["nnUNetv2_preprocess", "-d", "101", "-c", "3d_lowres", "-np", "1"])
    model = workspace.results / NAME / f"{TRAINER}__nnUNetPlans__3d_lowres"
    # not without the first stage
    with pytest.raises(
        CommandFailed, match=r"UnlabeledDataError: .*tr_\d has no prediction of the first stage .* Train every fold"
    ):
        workspace.call(*command.format("3d_cascade_fullres", "all").split())
    # where there is no raw data, and the cases were not preprocessed for the second stage, the first is trained all the same
    workspace.run("nnunet-caml", "preprocess", "-d", "101", "-c", "3d_lowres", "-np", "1")
    shutil.move(workspace.raw, workspace.root / "elsewhere")
    shutil.rmtree(workspace.preprocessed / "nnUNetPlans_3d_fullres_unlabeled", ignore_errors=True)
    workspace.call(*command.format("3d_lowres", "all").split())
    log = "".join(f.read_text(encoding="utf-8") for f in (model / "fold_all").glob("training_log_*.txt"))
    assert "5 unlabelled cases, such as un_0, are not preprocessed for 3d_cascade_fullres" in log
    shutil.move(workspace.root / "elsewhere", workspace.raw)
    workspace.call(*command.format("3d_lowres", "all").split(), "--val")
    predicted = model / "predicted_next_stage" / "3d_cascade_fullres"
    assert sorted(f.stem for f in predicted.glob("*.b2nd")) == [f"{k}_{i}" for k, n in (("tr", 4), ("un", 5)) for i in range(n)]
    full = workspace.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / "un_0.b2nd"
    assert blosc2.open(str(predicted / "un_0.b2nd")).shape == blosc2.open(str(full)).shape[1:]

    workspace.call(*command.format("3d_cascade_fullres", "all").split())
    low, high = workspace.root / "low", workspace.root / "high"
    images = ["-i", workspace.raw / "imagesTs", "-d", 101, "-tr", TRAINER]
    options = ["-f", "all", "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta"]
    workspace.call("nnUNetv2_predict", *images, "-c", "3d_lowres", "-o", low, *options)
    workspace.call(
        "nnUNetv2_predict", *images, "-c", "3d_cascade_fullres", "-o", high, "-prev_stage_predictions", low, *options
    )
    assert len(list(high.glob("ts_*.nii.gz"))) == 2


def test_the_next_stage_gets_what_v_predicts(workspace: Workspace, make_trainer, monkeypatch):
    """Where both stages have one geometry, and a case fits into a patch: the mean over all mirrorings."""
    make_tiny_the_first_stage(workspace.preprocessed / "nnUNetPlans.json")
    torch.manual_seed(0)
    trainer = make_trainer()
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.logger.log("epoch_end_timestamps", 1.0, 0)
    # starting a process takes seconds
    monkeypatch.setattr(cascade, "default_num_processes", 1)
    monkeypatch.setattr(cascade, "pool", lambda *_arguments: ThreadPoolExecutor(1))
    cascade.predict_for_next_stage(trainer)
    assert trainer.network.decoder.deep_supervision, "as it was"
    predicted = Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    axes = [c for k in range(4) for c in combinations((2, 3, 4), k)]
    for case in ("un_0", "un_2"):
        image = torch.from_numpy(blosc2.open(str(trainer.unlabeled.folder / f"{case}.b2nd"))[:])[None]
        shape, patch = image.shape[2:], trainer.configuration_manager.patch_size
        before = [(p - s) // 2 for s, p in zip(shape, patch, strict=True)]
        inside = (..., *(slice(b, b + s) for b, s in zip(before, shape, strict=True)))
        padded = torch.zeros(1, 1, *patch)
        padded[inside] = image
        with torch.no_grad():
            logits = sum(trainer.network(padded.flip(c)).flip(c) for c in axes)
        expected = logits[inside][0].argmax(0).numpy()
        assert len(np.unique(expected)) > 1
        found = blosc2.open(str(predicted / f"{case}.b2nd"))[:]
        assert (found == expected).mean() > 0.95, "but for near ties: nnU-Net adds up in half precision"

    class Dead(ThreadPoolExecutor):
        def submit(self, /, *_task: object) -> Future:
            future: Future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    shutil.rmtree(predicted)
    with monkeypatch.context() as patched:
        patched.setattr(cascade, "pool", lambda *_arguments: Dead(1))
        with pytest.raises(WorkerError, match=r"while predicting unlabelled cases .* 1 process.* nnUNet_def_n_proc .* --val"):
            cascade.predict_for_next_stage(trainer)

    def full(*_task: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(cascade, "resample_and_move", full)
    with pytest.raises(OSError, match="the disk is full"):
        cascade.predict_for_next_stage(trainer)


def test_predictions_that_another_fold_has_replaced_are_made_anew(workspace: Workspace, make_trainer, monkeypatch):
    """Fold ``all`` and those of a number share a folder, and nnU-Net's validation writes the labelled cases there each time."""
    make_tiny_the_first_stage(workspace.preprocessed / "nnUNetPlans.json")
    monkeypatch.setattr(cascade, "pool", lambda *_arguments: ThreadPoolExecutor(1))
    monkeypatch.setattr(
        cascade, "_tasks", lambda trainer, case, stages: [(cascade._folder(trainer, s) / case,) for s in stages]
    )

    def move(output: Path) -> None:
        time.sleep(0.02)  # some file systems count in steps of 10 ms
        output.with_suffix(".b2nd").touch()

    monkeypatch.setattr(cascade, "resample_and_move", move)
    trainers = [make_trainer(fold=fold) for fold in ("all", 0, 1)]
    for number, trainer in enumerate(trainers):
        trainer.initialize()
        trainer.logger.log("epoch_end_timestamps", float(number), 0)
    predicted = Path(trainers[0].output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    predicted.mkdir(parents=True)

    def made_anew(trainer) -> set[str]:
        before = {file.stem: file.stat().st_mtime_ns for file in predicted.iterdir()}
        time.sleep(0.02)
        cascade.predict_for_next_stage(trainer)
        return {file.stem for file in predicted.iterdir() if file.stat().st_mtime_ns != before.get(file.stem)}

    of_all = {f"un_{i}" for i in range(5)}
    assert made_anew(trainers[0]) == of_all
    assert made_anew(trainers[0]) == set()
    of_first = made_anew(trainers[1])
    of_second = made_anew(trainers[2])
    assert of_first
    assert not of_first & of_second
    assert made_anew(trainers[1]) == set(), "another fold of the same split has other cases"
    assert made_anew(trainers[0]) == of_all
    assert made_anew(trainers[0]) == set()
    (predicted / "un_3.b2nd").unlink()
    assert made_anew(trainers[0]) == {"un_3"}


def test_half_a_prediction_is_none(tmp_path: Path, monkeypatch):
    """Whoever is killed while a prediction is written leaves nothing that looks like one."""

    def killed(logits, shape, output: str) -> None:
        Path(f"{output}.b2nd").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cascade, "resample_and_save", killed)
    with pytest.raises(KeyboardInterrupt):
        cascade.resample_and_move(torch.zeros(1), [1], str(tmp_path / "un_0"))
    assert cascade._prediction(tmp_path, "un_0") is None
    monkeypatch.setattr(cascade, "resample_and_save", lambda logits, shape, output: Path(f"{output}.b2nd").touch())
    cascade.resample_and_move(torch.zeros(1), [1], str(tmp_path / "un_0"))
    assert cascade._prediction(tmp_path, "un_0") == tmp_path / "un_0.b2nd"


def test_folds_share_the_unlabelled_cases(tmp_path: Path):
    cases = [f"case{i:02d}" for i in range(11)]
    splits = tmp_path / "splits_final.json"
    assert fold_share(cases, 2, splits) == cases
    splits.write_text(json.dumps([{}] * 3))
    shares = [fold_share(cases, fold, splits) for fold in range(3)]
    assert sorted(case for share in shares for case in share) == cases
    assert all(shares)
    assert fold_share(cases, "all", splits) == cases
    # a case that stays would otherwise keep the prediction of a fold that is trained again without it
    more = [fold_share([*cases, "added", "b"], fold, splits) for fold in range(3)]
    assert all(set(share) <= set(grown) for share, grown in zip(shares, more, strict=True))


def test_a_prediction_of_another_image(workspace: Workspace, make_trainer, monkeypatch):
    """Its case was replaced and preprocessed again since, and the second stage would see two scans as one."""
    make_tiny_the_first_stage(workspace.preprocessed / "nnUNetPlans.json")
    monkeypatch.setattr(cascade, "pool", lambda *_arguments: ThreadPoolExecutor(1))
    trainer = make_trainer(fold="all")
    trainer.initialize()
    trainer.logger.log("epoch_end_timestamps", 1.0, 0)
    cascade.predict_for_next_stage(trainer)
    target = UnlabeledDataset.create(trainer.plans_manager, "3d_cascade_fullres", trainer.dataset_json)
    folder = str(Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres")
    cases, said = [f"un_{i}" for i in range(5)], []
    assert with_previous_stage(folder, "3d_tiny", [], target, cases, said.append) == cases
    write_image(blobs(301)[0], workspace.raw / "imagesUn/un_2_0000.nii.gz")
    write_image(blobs(300)[0], workspace.raw / "imagesUn/un_5_0000.nii.gz")  # which is new
    preprocess(target, 1)
    cases.append("un_5")
    usable = with_previous_stage(folder, "3d_tiny", [], target, cases, said.append)
    assert usable == ["un_0", "un_1", "un_3", "un_4"]
    assert "2 unlabelled cases, such as un_2, have no prediction of the first stage" in said[0]
    made = {case: (Path(folder) / f"{case}.b2nd").stat().st_mtime_ns for case in usable}
    cascade.predict_for_next_stage(trainer)  # as --val does, which keeps what is newer than the checkpoint and its case
    assert with_previous_stage(folder, "3d_tiny", [], target, cases, said.append) == cases
    assert made == {case: (Path(folder) / f"{case}.b2nd").stat().st_mtime_ns for case in usable}
    trainer.logger.log("epoch_end_timestamps", 2.0, 0)  # other weights, as with --val_best
    cascade.predict_for_next_stage(trainer)
    assert all((Path(folder) / f"{case}.b2nd").stat().st_mtime_ns > before for case, before in made.items())


def test_cases_without_a_prediction(workspace: Workspace, tmp_path: Path):
    target = dataset(workspace)
    for name in ("tr_0.b2nd", "un_0.b2nd", "un_2.npz"):
        (tmp_path / name).touch()
    said: list[str] = []
    usable = with_previous_stage(str(tmp_path), "3d_lowres", ["tr_0"], target, ["un_0", "un_1", "un_2"], said.append)
    assert usable == ["un_0", "un_2"]
    assert "1 unlabelled cases, such as un_1" in said[0]
    with pytest.raises(UnlabeledDataError, match="tr_9 has no prediction"):
        with_previous_stage(str(tmp_path), "3d_lowres", ["tr_0", "tr_9"], target, ["un_0"], said.append)
    with pytest.raises(UnlabeledDataError, match="No unlabelled case"):
        with_previous_stage(str(tmp_path), "3d_lowres", ["tr_0"], target, ["un_1"], said.append)


def test_a_fold_beyond_those_of_the_file(tmp_path: Path):
    """nnU-Net trains it on a split at random; the cases that it predicts are those of one of the others."""
    cases = [f"case{i:02d}" for i in range(11)]
    (splits := tmp_path / "splits_final.json").write_text(json.dumps([{}] * 3))
    assert fold_share(cases, 4, splits) == fold_share(cases, 1, splits) != []


def test_a_kill_before_the_predictions_leaves_the_old_ones_out(workspace: Workspace, make_trainer, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from test_cascade import make_tiny_the_first_stage

    make_tiny_the_first_stage(workspace.preprocessed / "nnUNetPlans.json")
    monkeypatch.setattr(cascade, "pool", lambda *_arguments: ThreadPoolExecutor(1))
    trainer = make_trainer(fold="all")
    trainer.initialize()
    trainer.logger.log("epoch_end_timestamps", 1.0, 0)
    cascade.predict_for_next_stage(trainer)
    target = UnlabeledDataset.create(trainer.plans_manager, "3d_cascade_fullres", trainer.dataset_json)
    folder = str(Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres")
    write_image(blobs(301)[0], workspace.raw / "imagesUn/un_2_0000.nii.gz")

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cascade, "_tasks", killed)
        with pytest.raises(KeyboardInterrupt):
            cascade.predict_for_next_stage(trainer)
    cases = [f"un_{i}" for i in range(5)]
    assert with_previous_stage(folder, "3d_tiny", [], target, cases, lambda _: None) == ["un_0", "un_1", "un_3", "un_4"]


def test_predictions_of_which_no_contents_were_recorded(workspace: Workspace):
    """As before they were recorded."""
    d = dataset(workspace)
    preprocess(d, 1)
    folder = workspace.root / "model" / "predicted_next_stage" / "3d_cascade_fullres"
    folder.mkdir(parents=True)
    (folder / "un_0.b2nd").touch()
    assert with_previous_stage(str(folder), "3d_lowres", [], d, ["un_0"], print) == ["un_0"]
