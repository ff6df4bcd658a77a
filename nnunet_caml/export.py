"""Export of a trained model for a nnU-Net installation without this package.

The checkpoints already hold nothing but a stock network. What ties them to us is the name of the trainer, in the
checkpoint and in the folder; the exported model says ``nnUNetTrainer`` instead, or whichever of nnU-Net's own trainers
builds the network. Before anything is written, nnU-Net loads it under that name. No optimiser state is exported.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_caml.errors import StorageError, read_json
from nnunet_caml.unlabeled import DATASET_KEY

STOCK_TRAINER = "nnUNetTrainer"
WAY_OUT = "Share it with nnUNetv2_export_model_to_zip instead, together with this package and the module of its trainer."


class Installed(NamedTuple):
    """Where an exported model will be.

    Attributes:
        dataset: Data set name.
        plans: Plans name.
        configuration: Configuration name.
        folds: Folds it has.
        checkpoint: Name of the checkpoint files.
        trainer: Name of nnU-Net's trainer that it will seem to be of.
        first_stage: Configuration whose predictions it needs, of a cascade's second stage.
    """

    dataset: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    checkpoint: str
    trainer: str
    first_stage: str | None

    def __str__(self) -> str:
        return f"{self.dataset}/{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def command(self) -> str:
        """Arguments for ``nnUNetv2_predict``."""
        options = f"-d {self.dataset} -c {self.configuration} -f {' '.join(self.folds)} -i IN -o OUT"
        options += "" if self.plans == "nnUNetPlans" else f" -p {self.plans}"
        options += "" if self.trainer == STOCK_TRAINER else f" -tr {self.trainer}"
        options += "" if self.first_stage is None else " -prev_stage_predictions FIRST"
        return options + ("" if self.checkpoint == "checkpoint_final.pth" else f" -chk {self.checkpoint}")


def export(
    model_folder: Path,
    out: Path,
    folds: Sequence[str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    plans_name: str | None = None,
    overwrite: bool = False,
) -> Installed:
    """Writes a trained model as a zip for ``nnUNetv2_install_pretrained_model_from_zip``.

    Args:
        model_folder: ``.../DATASET/TRAINER__PLANS__CONFIGURATION`` in ``nnUNet_results``.
        out: Zip file to write.
        folds: Such as ``["0", "1"]`` or ``["all"]``; default: all that have the checkpoint.
        checkpoint_name: Which checkpoint.
        plans_name: Install under another plans name.
        overwrite: Replace an existing file.

    Returns:
        Where the model will be after installation.

    Raises:
        FileNotFoundError: If the folder is not a trained model, a fold is missing, or ``out`` has no folder to be in.
        IsADirectoryError: If ``out`` is a folder.
        ValueError: If the checkpoint is none of nnU-Net's, or its network is none that a stock nnU-Net builds.
        FileExistsError: If ``out`` exists and ``overwrite`` is not set.
    """
    model_folder = Path(os.path.abspath(model_folder))  # with the name that was given, which a link may have alone
    parts = model_folder.name.split("__")
    missing = [name for name in ("plans.json", "dataset.json") if not (model_folder / name).is_file()]
    if len(parts) != 3 or missing:
        raise FileNotFoundError(
            f"{model_folder} is not a trained model: expected a folder TRAINER__PLANS__CONFIGURATION with plans.json, "
            f"dataset.json and fold_* in it."
        )
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out} cannot be written: there is no folder {out.parent}.")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name the zip file to write.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Choose another name or add --overwrite.")
    if folds is None:
        trained = [f.parent.name for f in sorted(model_folder.glob(f"fold_*/{checkpoint_name}"))]
        folds = [name[len("fold_") :] for name in trained if re.fullmatch(r"fold_(all|\d+)", name)]  # no fold_0_backup
    checkpoints = {fold: model_folder / f"fold_{fold}" / checkpoint_name for fold in folds}
    absent = [str(file) for file in checkpoints.values() if not file.is_file()]
    if absent or not checkpoints:
        raise FileNotFoundError(
            f"{absent[0] if absent else f'fold_*/{checkpoint_name} in {model_folder}'} does not exist: "
            f"that fold is not trained to the end, or -f or -chk is wrong."
        )
    plans = read_json(model_folder / "plans.json")
    plans.pop("continue_training", None)
    if plans_name is not None and ("__" in plans_name or not re.fullmatch(r"[\w.-]+", plans_name)):
        raise ValueError(f"-p {plans_name!r} cannot name plans: use letters, digits, dots, hyphens and single underscores.")
    plans_name = plans_name or parts[1]
    plans["plans_name"] = plans_name
    description = without_cases(read_json(model_folder / "dataset.json"))
    trainer = check_stock(next(iter(checkpoints.values())), plans, description)
    first_stage = PlansManager(plans).get_configuration(parts[2]).previous_stage_name
    installed = Installed(
        plans["dataset_name"], plans_name, parts[2], tuple(checkpoints), checkpoint_name, trainer, first_stage
    )

    partial = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{installed}/plans.json", json.dumps(plans, indent=4))
            archive.writestr(f"{installed}/dataset.json", json.dumps(description, indent=4))
            if (model_folder / "dataset_fingerprint.json").is_file():
                archive.write(model_folder / "dataset_fingerprint.json", f"{installed}/dataset_fingerprint.json")
            for fold, file in checkpoints.items():
                archive.writestr(f"{installed}/fold_{fold}/{checkpoint_name}", stock_checkpoint(file, plans, trainer))
            for file in sorted(model_folder.glob("crossval_results_folds_*/*")):
                if file.name in ("postprocessing.pkl", "postprocessing.json", "summary.json"):
                    archive.write(file, f"{installed}/{file.relative_to(model_folder)}")
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return installed


def without_cases(dataset_json: dict) -> dict:
    """``dataset.json`` without the lists of unlabelled and of labelled cases, whose names and places concern nobody else."""
    return {key: value for key, value in dataset_json.items() if key not in (DATASET_KEY, "dataset")}


def check_stock(file: Path, plans: dict, dataset_json: dict) -> str:
    """Has nnU-Net load a checkpoint as a stock installation will.

    Returns:
        Name of nnU-Net's trainer that builds the network.

    Raises:
        ValueError: There is none, or the weights do not fit.
    """
    trainer, remark = stock_trainer(read_checkpoint(file)["trainer_name"])
    with TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        (model := Path(name, "fold_all")).mkdir()
        for content, of in ((plans, "plans.json"), (dataset_json, "dataset.json")):
            Path(name, of).write_text(json.dumps(content), encoding="utf-8")
        (model / file.name).write_bytes(stock_checkpoint(file, plans, trainer))
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
        try:
            predictor.initialize_from_trained_model_folder(name, ("all",), file.name)
        except RuntimeError as error:
            raise ValueError(
                f"{file} does not fit the network that {trainer} builds from its plans, so a stock nnU-Net cannot use it "
                f"({shorten(str(error), 300)}). {remark}{WAY_OUT}"
            ) from None
    return trainer


def stock_trainer(name: str) -> tuple[str, str]:
    """Which of nnU-Net's trainers builds the same network as the trainer of this name.

    Returns:
        Its name; and a sentence if the trainer is not to be had here, as that of a model from elsewhere, or empty.

    Raises:
        ValueError: The network is made by a class that is not nnU-Net's.
    """
    try:
        with redirect_stdout(io.StringIO()):
            kind = recursive_find_trainer_class_by_name(name)
    except Exception as problem:  # whatever a module of the user's raises; whether the weights fit will be seen
        return STOCK_TRAINER, f"{name} itself cannot be looked at: {shorten(str(problem), 200)}. "
    builder = next(base for base in kind.__mro__ if "build_network_architecture" in vars(base))
    if not builder.__module__.startswith("nnunetv2."):
        raise ValueError(
            f"{name} is a trainer whose network is built by {builder.__name__}.build_network_architecture, in module "
            f"{builder.__module__}, which a stock nnU-Net does not have. {WAY_OUT}"
        )
    return builder.__name__, ""


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net, on the CPU.

    Raises:
        ValueError: It is none.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{file} cannot be read as a checkpoint ({shorten(str(error), 160) or 'it is empty'}). Copy it again, or name "
            f"another one with -chk."
        ) from None
    if not isinstance(checkpoint, dict) or "init_args" not in checkpoint:
        raise ValueError(f"{file} is no checkpoint of nnU-Net. Name one with -chk, such as checkpoint_final.pth.")
    return checkpoint


def stock_checkpoint(file: Path, plans: dict, trainer: str) -> bytes:
    """A checkpoint as nnU-Net's ``trainer`` would have saved it, without the state that only training needs."""
    checkpoint = read_checkpoint(file)
    checkpoint["trainer_name"] = trainer
    checkpoint["optimizer_state"] = None
    checkpoint["grad_scaler_state"] = None
    arguments = checkpoint["init_args"]
    arguments = {**arguments, "dataset_json": without_cases(arguments["dataset_json"])}
    checkpoint["init_args"] = {**arguments, "plans": plans, "device": torch.device("cpu")}
    checkpoint["logging"] = {k: v for k, v in checkpoint["logging"].items() if not k.startswith("caml_")}
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
