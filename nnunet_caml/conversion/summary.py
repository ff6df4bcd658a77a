"""What a conversion says at its end."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed

from nnunet_caml.conversion.cases import Dataset

#: labelled cases; with fewer than that all of them are for training
FEW = 20


@dataclass(frozen=True)
class Report:
    """What became of one case.

    Attributes:
        shape: Voxels ``(x, y, z)``.
        spacing_mm: ``(x, y, z)``.
        voxels: Number of voxels for each label value; empty without a label.
        files: How many files were ``"linked"``, ``"copied"``, ``"converted"`` and ``"used in place"``.
        in_place: The files of a case that stay where they are, one for each channel.
    """

    identifier: str
    role: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    voxels: Mapping[int, int]
    files: Mapping[str, int]
    in_place: Sequence[Path] = ()


@dataclass(frozen=True)
class Summary:
    """What a conversion did: where it is, one report for each case, and what was left out and why.

    Attributes:
        grouped: A patient has several labelled cases, which nnU-Net's folds would divide.
    """

    folder: Path
    dataset: Dataset
    reports: Sequence[Report]
    left_out: Mapping[str, str]
    link: bool = False
    grouped: bool = False

    def text(self) -> str:
        """A few lines for the terminal."""
        count = Counter(report.role for report in self.reports)
        files = sum((Counter(report.files) for report in self.reports), Counter())
        lines = [
            f"{self.folder}: {count['labeled']} labelled, {count['unlabeled']} unlabelled, {count['test']} test cases",
            f"  files    {', '.join(f'{number} {kind}' for kind, number in sorted(files.items()))}",
            f"  shape    {_range([report.shape for report in self.reports])} voxels (x, y, z)",
            f"  spacing  {_range([report.spacing_mm for report in self.reports])} mm",
        ]
        if self.link and files["converted"]:
            lines.insert(2, f"           (the format of {files['converted']} files does not allow a link)")
        labelled = [report for report in self.reports if report.role == "labeled"]
        voxels = sum((Counter(report.voxels) for report in labelled), Counter())
        names = {value: name for name, value in self.dataset.labels.items() if isinstance(value, int)}
        for value in self.dataset.values:
            share = voxels[value] / sum(voxels.values())
            cases = sum(value in report.voxels for report in labelled)
            name = f"label {value}  {names.get(value, '')}"
            lines.append(f"  {name}: {voxels[value]} voxels, {share:.2%}, in {cases} labelled cases")
        for identifier, reason in self.left_out.items():
            lines.append(f"  left out {identifier}: {reason}")
        tests = [report for report in self.reports if report.role == "test"]
        without = [report.identifier for report in tests if not report.voxels]
        if 0 < len(without) < len(tests):
            lines.append(
                f"Test cases without a label: {len(without)} of {len(tests)}, such as {min(without)}. "
                "nnUNetv2_evaluate_folder wants predictions of the others alone."
            )
        number = int(self.folder.name[len("Dataset") :].split("_")[0])
        # folds 0 to 4 hold a fifth back, of few cases too many to lose and too few to validate on
        fold = "all" if len(labelled) < FEW or self.grouped else 0
        trainer = " -tr nnUNetTrainerCAML" if count["unlabeled"] else ""
        # nnU-Net keeps what it knows of an earlier data set of that name, and plans and splits by it
        before = Path(nnUNet_preprocessed) / self.folder.name if nnUNet_preprocessed.is_set() else None
        clean = " --clean" if before and before.is_dir() else ""
        if before and (before / "splits_final.json").is_file():
            lines.append(f"An earlier split is there: remove {before / 'splits_final.json'} for folds of these cases.")
        configuration = "2d" if _flat(labelled) else "3d_fullres"
        return "\n".join(
            [
                *lines,
                "Next:",
                f"  nnUNetv2_plan_and_preprocess -d {number} -c {configuration} --verify_dataset_integrity{clean}",
                f"  nnUNetv2_train {number} {configuration} {fold}{trainer}",
            ]
        )


def _flat(labelled: Sequence[Report]) -> bool:
    """Whether nnU-Net plans nothing but ``2d``: images of two axes, or most with a single slice along that of the widest."""
    if any(len(report.shape) < 3 for report in labelled):
        return True
    shape = np.median([report.shape[::-1] for report in labelled], axis=0)
    spacing = np.median([report.spacing_mm[::-1] for report in labelled], axis=0)
    return bool(shape[np.argmax(spacing)] == 1)


def _range(vectors: Sequence[Sequence[float]]) -> str:
    """``"1 x 1 x 2-3"`` for the ranges of each component."""
    parts = []
    for values in zip(*vectors, strict=False):
        low, high = f"{min(values):.4g}", f"{max(values):.4g}"
        parts.append(low if low == high else f"{low}-{high}")
    return " x ".join(parts)
