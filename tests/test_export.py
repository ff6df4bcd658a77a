"""``nnunet-caml export``: what is in the zip, and how the installed model is called."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NAME
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fixed_plans import DATASET, plans
from nnunet_caml.cli import main
from nnunet_caml.export import export

CONFIGURATIONS = {"3d_tiny": plans({"patch": [8] * 3, "features": [2, 4]})["configurations"]["cost"]}
PLANS = {**plans({"patch": [8] * 3, "features": [2, 4]}), "dataset_name": NAME, "configurations": CONFIGURATIONS}


def weights(trainer: Any, value: float) -> dict[str, torch.Tensor]:
    """Of the network that a trainer builds from the plans, all of one value."""
    manager = PlansManager(PLANS)
    network = trainer.build_network_architecture(manager, manager.get_configuration("3d_tiny"), 1, 2, True)
    return {key: torch.full_like(weight, value) for key, weight in network.state_dict().items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as nnU-Net leaves it: two folds are trained, of a third there is only the best checkpoint so far."""
    folder = tmp_path / NAME / "nnUNetTrainerCAML__nnUNetPlans__3d_tiny"
    together = folder / "crossval_results_folds_0_1"
    together.mkdir(parents=True)
    for name, content in (("plans", PLANS), ("dataset", DATASET), ("dataset_fingerprint", {"spacings": []})):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("postprocessing.pkl", "postprocessing.json", "summary.json", "tr_0.nii.gz"):
        (together / name).write_text(name, encoding="utf-8")
    for fold, names in ((0, ("final", "best")), (1, ("final", "best")), (2, ("best",))):
        (folder / f"fold_{fold}").mkdir()
        for name in names:
            checkpoint = {
                "trainer_name": "nnUNetTrainerCAML",
                "network_weights": weights(nnUNetTrainer, float(fold)),
                "optimizer_state": {"state": {0: torch.ones(2)}},
                "grad_scaler_state": {"scale": 1.0},
                "init_args": {
                    **{"plans": PLANS, "dataset_json": DATASET, "configuration": "3d_tiny", "fold": fold},
                    "device": torch.device("cuda"),
                },
                "logging": {"mean_fg_dice": [0.5], "caml_l_c": [1.0]},
            }
            torch.save(checkpoint, folder / f"fold_{fold}" / f"checkpoint_{name}.pth")
        (folder / f"fold_{fold}" / "checkpoint_best_caml_0001.pth").write_bytes(b"both networks")
    return folder


def contents(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def load(content: bytes) -> dict:
    return torch.load(io.BytesIO(content), weights_only=False)


def test_all_trained_folds_and_what_belongs_to_them_are_exported(model: Path, tmp_path: Path):
    installed = export(model, tmp_path / "model.zip")
    base = f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_tiny"
    assert str(installed) == base
    assert installed.command == f"-d {NAME} -c 3d_tiny -f 0 1 -i IN -o OUT"
    found = contents(tmp_path / "model.zip")
    assert sorted(found) == [
        f"{base}/crossval_results_folds_0_1/postprocessing.json",
        f"{base}/crossval_results_folds_0_1/postprocessing.pkl",
        f"{base}/crossval_results_folds_0_1/summary.json",
        f"{base}/dataset.json",
        f"{base}/dataset_fingerprint.json",
        f"{base}/fold_0/checkpoint_final.pth",
        f"{base}/fold_1/checkpoint_final.pth",
        f"{base}/plans.json",
    ]
    assert found[f"{base}/crossval_results_folds_0_1/postprocessing.pkl"] == b"postprocessing.pkl"


def test_a_checkpoint_is_one_of_the_stock_trainer_without_what_only_training_needs(model: Path, tmp_path: Path):
    export(model, tmp_path / "model.zip")
    found = contents(tmp_path / "model.zip")
    for fold in range(2):
        checkpoint = load(found[f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_tiny/fold_{fold}/checkpoint_final.pth"])
        assert all((weight == fold).all() for weight in checkpoint["network_weights"].values())
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        assert checkpoint["optimizer_state"] is None
        assert checkpoint["grad_scaler_state"] is None
        assert checkpoint["logging"] == {"mean_fg_dice": [0.5]}
        assert checkpoint["init_args"]["fold"] == fold
        assert checkpoint["init_args"]["device"] == torch.device("cpu"), "whoever gets it may have no GPU"


def test_another_plans_name_is_everywhere(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """In the folder that is installed, in both copies of the plans, and in the command that is printed."""
    archive = tmp_path / "model.zip"
    assert main(["export", str(model), str(archive), "-p", "SharedPlans"]) == 0
    base = f"{NAME}/nnUNetTrainer__SharedPlans__3d_tiny"
    said = capsys.readouterr().out
    assert f"as {base}, " in said
    assert f"nnUNetv2_predict -d {NAME} -c 3d_tiny -f 0 1 -i IN -o OUT -p SharedPlans\n" in said
    found = contents(archive)
    assert all(name.startswith(f"{base}/") for name in found)
    expected = {**PLANS, "plans_name": "SharedPlans"}
    del expected["continue_training"]
    assert json.loads(found[f"{base}/plans.json"]) == expected
    assert load(found[f"{base}/fold_1/checkpoint_final.pth"])["init_args"]["plans"] == expected


def test_chosen_folds_and_checkpoint(model: Path, tmp_path: Path):
    installed = export(model, tmp_path / "model.zip", ["2"], "checkpoint_best.pth")
    assert installed.command == f"-d {NAME} -c 3d_tiny -f 2 -i IN -o OUT -chk checkpoint_best.pth"
    (name,) = (name for name in contents(tmp_path / "model.zip") if "/fold_" in name)
    assert name.endswith("/fold_2/checkpoint_best.pth")


def test_what_cannot_be_written_or_is_no_checkpoint_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.save({"auxiliary": {}}, model / "fold_0" / "checkpoint_best_caml_0001.pth")
    (model / "fold_0" / "empty.pth").touch()
    (model / "fold_0" / "log.txt").write_text("hello, training log", encoding="utf-8")
    torch.save([1], model / "fold_0" / "list.pth")
    for out, options, sentence in (
        (tmp_path / "nowhere" / "model.zip", [], f"there is no folder {tmp_path / 'nowhere'}."),
        (tmp_path, ["--overwrite"], f"{tmp_path} is a folder; name the zip file"),
        (tmp_path / "model.zip", ["-f", "0", "-chk", "checkpoint_best_caml_0001.pth"], "is no checkpoint of nnU-Net. Name one"),
        (tmp_path / "model.zip", ["-f", "0", "-chk", "list.pth"], "is no checkpoint of nnU-Net. Name one"),
        (tmp_path / "model.zip", ["-f", "0", "-chk", "log.txt"], "log.txt cannot be read as a checkpoint ("),
        (tmp_path / "model.zip", ["-f", "0", "-chk", "empty.pth"], "empty.pth cannot be read as a checkpoint ("),
        (tmp_path / "model.zip", ["-f", "0", "-p", "My Plans/x"], "-p 'My Plans/x' cannot name plans"),
        (Path("/proc/model.zip"), [], "/proc/model.zip cannot be written: "),
        (tmp_path / "model.zip", ["-f", "0", "-p", "my__plans"], "-p 'my__plans' cannot name plans"),
    ):
        assert main(["export", str(model), str(out), *options]) == 1
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.glob("*.zip*"))


def test_a_fold_that_is_not_trained_leaves_no_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["export", str(model), str(tmp_path / "model.zip"), "-f", "0", "2"]) == 1
    said = capsys.readouterr().err
    assert str(Path("fold_2", "checkpoint_final.pth")) in said
    assert "that fold is not trained to the end" in said
    assert not list(tmp_path.glob("*.zip*"))


def test_an_export_does_not_name_the_unlabelled_cases(model: Path, tmp_path: Path):
    """Their names and places concern nobody else; all else of the description stays."""
    description = {**DATASET, "unlabeled": {"private": {"images": ["/secret/private_0000.nii.gz"]}}}
    (model / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["init_args"]["dataset_json"] = description
    torch.save(checkpoint, file)
    installed = export(model, tmp_path / "model.zip", ["0"])
    found = contents(tmp_path / "model.zip")
    exported = load(found[f"{installed}/fold_0/checkpoint_final.pth"])
    assert json.loads(found[f"{installed}/dataset.json"]) == DATASET
    assert exported["init_args"]["dataset_json"] == DATASET


COMBINED = """
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN


class nnUNetTrainerCAML_BN(nnUNetTrainerCAML, nnUNetTrainerBN):
    pass


class nnUNetTrainerCAML_ownNetwork(nnUNetTrainerCAML):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        raise NotImplementedError
"""


@pytest.fixture
def combined(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of batch normalisation, and trainers of the user's own."""
    (trainers := tmp_path / "trainers").mkdir()
    (trainers / "mine.py").write_text(COMBINED, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    name_trainer(model, "nnUNetTrainerCAML_BN", weights(nnUNetTrainerBN, 1.0))
    return model


def name_trainer(model: Path, name: str, network_weights: dict | None = None) -> None:
    """Changes fold 0's checkpoint into one of another trainer."""
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False) | {"trainer_name": name}
    torch.save(checkpoint | ({} if network_weights is None else {"network_weights": network_weights}), file)


def test_a_network_that_one_of_nnunets_variants_builds_is_exported_as_that_variants(combined: Path, tmp_path: Path):
    installed = export(combined, tmp_path / "model.zip", ["0"])
    assert str(installed) == f"{NAME}/nnUNetTrainerBN__nnUNetPlans__3d_tiny"
    assert installed.command == f"-d {NAME} -c 3d_tiny -f 0 -i IN -o OUT -tr nnUNetTrainerBN"
    found = contents(tmp_path / "model.zip")
    assert load(found[f"{installed}/fold_0/checkpoint_final.pth"])["trainer_name"] == "nnUNetTrainerBN"


@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        ("nnUNetTrainerCAML", "does not fit the network that nnUNetTrainer builds from its plans"),
        ("nnUNetTrainerCAML_ofSomebodyElse", "nnUNetTrainerCAML_ofSomebodyElse itself cannot be looked at: Could not find"),
        ("nnUNetTrainerCAML_ownNetwork", "built by nnUNetTrainerCAML_ownNetwork.build_network_architecture, in module mine"),
    ],
)
def test_what_a_stock_nnunet_could_not_load_is_not_exported(
    combined: Path, tmp_path: Path, capsys: pytest.CaptureFixture, trainer: str, sentence: str
):
    name_trainer(combined, trainer)
    assert main(["export", str(combined), str(tmp_path / "model.zip"), "-f", "0"]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Share it with nnUNetv2_export_model_to_zip instead" in said
    assert not list(tmp_path.glob("*.zip*"))


def test_a_model_folder_that_is_a_link(model: Path, tmp_path: Path):
    """Results are often kept elsewhere, under another name."""
    elsewhere = tmp_path / "run 42"
    model.rename(elsewhere)
    model.symlink_to(elsewhere, target_is_directory=True)
    assert str(export(model, tmp_path / "model.zip")) == f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_tiny"


def test_the_second_stage_of_a_cascade(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """It cannot predict without the first one, which is another model."""
    second = {
        **PLANS,
        "configurations": {**CONFIGURATIONS, "3d_second": {"inherits_from": "3d_tiny", "previous_stage": "3d_tiny"}},
    }
    folder = model.rename(model.with_name("nnUNetTrainerCAML__nnUNetPlans__3d_second"))
    (folder / "plans.json").write_text(json.dumps(second), encoding="utf-8")
    manager = PlansManager(second)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_second"), 2, 2, True)
    for file in folder.glob("fold_*/checkpoint_final.pth"):
        checkpoint = load(file.read_bytes())
        checkpoint["network_weights"] = network.state_dict()
        checkpoint["init_args"] = {**checkpoint["init_args"], "plans": second, "configuration": "3d_second"}
        torch.save(checkpoint, file)
    assert main(["export", str(folder), str(tmp_path / "model.zip")]) == 0
    said = capsys.readouterr().out
    assert f"-d {NAME} -c 3d_second -f 0 1 -i IN -o OUT -prev_stage_predictions FIRST" in said
    assert "FIRST being the folder of what 3d_tiny predicts of IN" in said
    assert "export that model, too" in said


def test_the_command_that_is_printed_can_be_pasted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["export", str(model), str(tmp_path / "my model.zip")]) == 0
    assert f"nnUNetv2_install_pretrained_model_from_zip '{tmp_path}/my model.zip'" in capsys.readouterr().out


def test_where_the_labelled_cases_lie_is_not_told_either(model: Path, tmp_path: Path):
    listed = {**DATASET, "dataset": {"a": {"images": ["/home/me/a.nii.gz"], "label": "/home/me/b.nii.gz"}}}
    (model / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    for file in model.glob("fold_*/checkpoint_final.pth"):
        checkpoint = load(file.read_bytes())
        checkpoint["init_args"]["dataset_json"] = listed
        torch.save(checkpoint, file)
    export(model, tmp_path / "model.zip")
    assert not any(b"/home/me" in content for content in contents(tmp_path / "model.zip").values())


def test_a_copy_of_a_fold_is_no_fold(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(model / "fold_0", model / "fold_0_before")
    assert main(["export", str(model), str(tmp_path / "model.zip")]) == 0
    assert "-f 0 1 -i IN" in capsys.readouterr().out
    assert not [name for name in contents(tmp_path / "model.zip") if "before" in name]


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_a_damaged_file_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    (model / name).write_text("{\n oops", encoding="utf-8")
    assert main(["export", str(model), str(tmp_path / "model.zip")]) == 1
    assert f"{model / name} is no valid JSON (" in capsys.readouterr().err


def test_half_a_zip_does_not_stay(model: Path, tmp_path: Path):
    (model / "fold_1" / "checkpoint_final.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"fold_1.*cannot be read"):
        export(model, tmp_path / "model.zip")
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_the_folder_where_one_is(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(model)
    assert str(export(Path("."), tmp_path / "model.zip")) == f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_tiny"
