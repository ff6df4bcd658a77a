"""Through nnU-Net's own command line: plan, preprocess, train, validate, predict, continue, export."""

import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from conftest import NAME, Workspace
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_caml.trainer import nnUNetTrainerCAML

TRAIN = "nnUNetv2_train 101 3d_tiny"


def predictions(folder: Path) -> dict[str, np.ndarray]:
    return {f.name: sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))}


def test_train_predict_export(workspace: Workspace, tmp_path: Path):
    output = workspace.run(*TRAIN.split(), 0, "-tr", "nnUNetTrainerCAMLShort", "-device", "cpu", "--npz")
    fold = workspace.fold("nnUNetTrainerCAMLShort")
    assert "5 unlabelled training cases (5 preprocessed now)" in output
    assert (fold / "validation" / "summary.json").is_file()
    assert len(list((fold / "validation").glob("*.npz"))) == 1
    for figure in ("progress.png", "progress_caml.png"):
        assert (fold / figure).stat().st_size > 10_000
    log = next(fold.glob("training_log_*.txt")).read_text(encoding="utf-8")
    for value in ("L_s", "L_c", "L_o", "lambda_c", "lambda_o", "agreement of V and A", "memory", "waiting for data"):
        assert log.count(f" {value}") >= 2, value

    # a stock network, strictly, and nothing of ours in nnU-Net's file
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    plans = PlansManager(str(workspace.preprocessed / "nnUNetPlans.json"))
    network = nnUNetTrainerCAML.build_network_architecture(plans, plans.get_configuration("3d_tiny"), 1, 3, True)
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    assert sorted(f.name for f in fold.glob("*.pth")) == [
        "checkpoint_best.pth",
        *sorted(f.name for f in fold.glob("checkpoint_best_caml_*.pth")),
        "checkpoint_final.pth",
        "checkpoint_final_caml_0002.pth",
    ]

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    images = ["-i", workspace.raw / "imagesTs", "-device", "cpu", "-npp", 1, "-nps", 1, "-f", 0]
    workspace.run("nnUNetv2_predict", "-d", 101, "-c", "3d_tiny", "-tr", "nnUNetTrainerCAMLShort", "-o", ours, *images)

    model, archive = fold.parent, tmp_path / "model.zip"
    assert "nnUNetv2_install_pretrained_model_from_zip" in workspace.run("nnunet-caml", "export", model, archive)
    assert "--overwrite" in workspace.run("nnunet-caml", "export", model, archive, status=1)
    with zipfile.ZipFile(archive) as z:
        assert f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_tiny/fold_0/checkpoint_final.pth" in z.namelist()
        assert not any(b"nnunet_caml" in z.read(name) or b"CAML" in z.read(name) for name in z.namelist())
    # as if this package were not installed
    predict = ["predict", "-d", "101", "-c", "3d_tiny", "-o", str(theirs), *map(str, images)]
    stock = (
        "import sys; sys.modules['nnunet_caml'] = None\n"
        "from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point as install\n"
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as predict\n"
        "if __name__ == '__main__':\n"
        f"    sys.argv = ['install', {str(archive)!r}]; install()\n"
        f"    sys.argv = {predict!r}; predict()\n"
    )
    script = tmp_path / "stock.py"
    script.write_text(stock)
    environment = {**os.environ, **workspace.variables, "nnUNet_results": str(tmp_path / "elsewhere"), "nnUNet_extTrainer": ""}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = predictions(ours), predictions(theirs)
    assert sorted(a) == ["ts_0.nii.gz", "ts_1.nii.gz"]
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_killed_run_continues(workspace: Workspace):
    process = workspace.start(*TRAIN.split(), "all", "-tr", "nnUNetTrainerCAMLShort", "-device", "cpu")
    assert process.stdout is not None
    for line in process.stdout:
        if "Epoch 1" in line:  # the first epoch's checkpoint is on disk, the second epoch has begun
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    fold = workspace.fold("nnUNetTrainerCAMLShort", "all")
    assert (fold / "checkpoint_latest_caml_0001.pth").is_file()
    output = workspace.run(*TRAIN.split(), "all", "-tr", "nnUNetTrainerCAMLShort", "-device", "cpu", "--c")
    assert "Epoch 1" in output
    assert "Epoch 0\n" not in output
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert not list(fold.glob("checkpoint_latest*"))


def test_look_up_gives_one_class_that_can_be_pickled(monkeypatch):
    from nnunet_caml.startup import DISCOVERY_FOLDER

    # a folder of the user's first
    monkeypatch.setenv("nnUNet_extTrainer", f"{Path(__file__).parent / 'trainers'}:{DISCOVERY_FOLDER}")
    for name in ("nnUNetTrainerCAML", "nnUNetTrainerCAML_5epochs", "nnUNetTrainerCAML_noCMA_noOCC"):
        found = recursive_find_trainer_class_by_name(name)
        assert found is recursive_find_trainer_class_by_name(name)
        assert pickle.loads(pickle.dumps(found)) is found
    assert recursive_find_trainer_class_by_name("nnUNetTrainerShort").__name__ == "nnUNetTrainerShort"


def test_interpreter_start_keeps_the_users_trainer_folders(tmp_path):
    show = [sys.executable, "-c", "import os; print(os.environ['nnUNet_extTrainer'])"]
    first, last = subprocess.run(
        show, env={"nnUNet_extTrainer": str(tmp_path)}, capture_output=True, encoding="utf-8", check=True
    ).stdout.strip().split(":")  # fmt: skip
    assert first == str(tmp_path)
    assert Path(last, "nnunet_caml_trainers.py").is_file()
