#!/usr/bin/env python
"""How good are the labels that CAML's networks give each other? On unlabelled training patches of a finished run.

The patches are nnU-Net's training patches of the unlabelled cases: once augmented as in training, once without the
augmentation of intensities. The true labels are those of the upper bound's data set, which no training of CAML sees.
"""

import argparse
import os
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from tqdm import trange

from run_study import study_file
from study.commands import Workspace
from study.data import ALL_LABELS
from study.description import Run, Study, StudyError, read_study
from study.runs import model_folder


def load(folder: Path) -> nnUNetPredictor:
    """The network of a trained model, for single outputs at full resolution."""
    with redirect_stdout(StringIO()):  # nnU-Net tells how it looks for trainers
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.eval()
    predictor.network.decoder.deep_supervision = False
    return predictor


@dataclass(frozen=True)
class Patches:
    """Training patches with their true labels, and what happens to them.

    Attributes:
        loader: Loads them as large as nnU-Net does, with the margin that its augmentation needs.
        transforms: Its augmentation, in order; it cuts them to the network's size.
        mirror_axes: Along which it mirrors.
    """

    loader: nnUNetDataLoader
    transforms: list[Any]
    mirror_axes: tuple[int, ...]


def unlabeled_patches(study: Study, work: Workspace, run: Run, predictor: nnUNetPredictor) -> Patches:
    """Patches of the run's unlabelled cases.

    Raises:
        StudyError: The true labels have not been preprocessed.
    """
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    labels, patch = predictor.label_manager, configuration.patch_size
    folder = str(work.preprocessed / work.dataset(ALL_LABELS) / configuration.data_identifier)
    if not Path(folder).is_dir():
        raise StudyError(f"{folder} is missing: run the study's arm with all_labels first, whose labels are the truth here.")
    dataset = infer_dataset_class(folder)
    own = work.raw / model_folder(study, work, run).parent.name / "labelsTr"
    labeled = {file.name.split(".")[0] for file in own.iterdir()}
    cases = [case for case in dataset.get_identifiers(folder) if case not in labeled]
    # a trainer writes a log where results go
    with TemporaryDirectory() as results, redirect_stdout(StringIO()), mock.patch.dict(os.environ, nnUNet_results=results):
        # as nnUNetv2_train calls it
        described = {**plans.plans, "continue_training": False}
        trainer = nnUNetTrainer(described, study.configuration.name, "all", predictor.dataset_json, torch.device("cpu"))
        rotation, flat, larger, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    augmentation = trainer.get_training_transforms(
        patch, rotation, None, mirror_axes, flat, configuration.use_mask_for_norm, foreground_labels=labels.foreground_labels
    )
    loader = nnUNetDataLoader(dataset(folder, cases), 1, larger, patch, labels, 0.0)
    return Patches(loader, augmentation.transforms, mirror_axes)


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study that has been run: its file, or the name of one in benchmarks/studies")
    parser.add_argument("--arm", default="CAML", help="of the study, with its auxiliary network (default: CAML)")
    parser.add_argument("--labeled", type=int, required=True, metavar="N", help="number of labelled cases")
    parser.add_argument("--subset", type=int, default=0, metavar="SEED", help="labelled subset (default: 0)")
    parser.add_argument("--patches", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument("-o", "--output", type=Path, help="work folder of the study (default: study_output/NAME)")
    options = parser.parse_args()
    try:
        study = read_study(study_file(options.study))
        work = Workspace(options.output or Path("study_output") / study.name, Path())
        run = find_run(study, options.arm, options.labeled, options.subset)
        folders = [model_folder(study, work, run, suffix) for suffix in ("", "_auxiliary")]
        for folder in folders:
            if not (folder / "fold_all" / "checkpoint_final.pth").is_file():
                raise StudyError(f"{folder} has no trained model: run the study first, an arm with auxiliary.")
        os.environ.update(work.variables)
        torch.set_num_threads(1)
        sys.path.insert(0, str(work.trainers))
        predictors = [load(folder) for folder in folders]
        torch.manual_seed(0)
        np.random.seed(0)
        patches = unlabeled_patches(study, work, run, predictors[0])
    except StudyError as error:
        print(f"label_quality.py: {error}", file=sys.stderr)
        return 1
    for name, dice in quality(predictors, patches, options.patches).items():
        print(f"{name}: {dice:.3f}")
    return 0


def find_run(study: Study, arm: str, labeled: int, subset: int) -> Run:
    """A run of the study.

    Raises:
        StudyError: There is no such run.
    """
    for run in study.runs():
        if (run.arm.name, run.labeled, run.subset) == (arm, labeled, subset):
            return run
    raise StudyError(f"{study.name} has no arm {arm} with {labeled} labelled cases of subset {subset}.")


@torch.no_grad()
def quality(predictors: list[nnUNetPredictor], patches: Patches, number: int) -> dict[str, float]:
    """Mean over the classes of the Dice of so many patches together, for each way of giving labels."""
    classes, transforms, axes = predictors[0].label_manager.foreground_labels, patches.transforms, patches.mirror_axes
    of_intensity = [t for t in transforms if isinstance(getattr(t, "transform", t), ImageOnlyTransform)]
    networks = [predictor.network for predictor in predictors]
    counts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(classes), 2))
    for _ in trange(number, desc="patches", disable=None):
        batch = next(patches.loader)
        sample = {"image": torch.as_tensor(batch["data"][0]), "segmentation": torch.as_tensor(batch["target"][0])}
        for transform in transforms:
            if transform not in of_intensity:
                sample = transform(**sample)
        changed = {"image": sample["image"].clone()}
        for transform in of_intensity:
            changed = transform(**changed)
        truth = sample["segmentation"][0]
        for view, image in (("augmented", changed["image"]), ("plain intensities", sample["image"])):
            v, a = (probabilities(network, image) for network in networks)
            given = {"V": v, "A": a, "mean": v + a}
            if view == "plain intensities":
                given["mean over mirrorings"] = mirrored(networks[0], image, axes) + mirrored(networks[1], image, axes)
            for name, p in given.items():
                predicted = p.argmax(0)
                for i, label in enumerate(classes):
                    both = ((predicted == label) & (truth == label)).sum()
                    counts[f"{view}, {name}"][i] += torch.stack((2 * both, (predicted == label).sum() + (truth == label).sum()))
    return {name: float((c[:, 0] / c[:, 1]).mean()) for name, c in counts.items()}


def probabilities(network: nn.Module, image: Tensor) -> Tensor:
    """``(K, *patch)`` of an image ``(C, *patch)``."""
    return torch.softmax(network(image[None])[0], 0)


def mirrored(network: nn.Module, image: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum of the probabilities over all mirrorings."""
    total = torch.zeros(())
    for chosen in product((False, True), repeat=len(axes)):
        flipped = [axis + 1 for axis, flip in zip(axes, chosen, strict=True) if flip]
        total = total + probabilities(network, image.flip(flipped)).flip(flipped)
    return total


if __name__ == "__main__":
    sys.exit(main())
