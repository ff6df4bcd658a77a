#!/usr/bin/env python
"""PI-CAI (Prostate Imaging: Cancer AI), the public training and development data set.

SOURCE holds <patient>/<patient>_<study>_t2w.mha, ..._adc.mha and ..._hbv.mha, at any depth; --labels is the folder
picai_labels (or csPCa_lesion_delineations, or the folder of the files) with
csPCa_lesion_delineations/human_expert/resampled/<patient>_<study>.nii.gz, by default looked for in SOURCE; labels whose images
are not there are counted and left out. Any grade of lesion becomes 1. The split is the data set's own: the studies that a
human outlined are labelled (1295 of 1500), the others unlabelled; outlines by a network are not used. --labeled N keeps the
labels of N patients, drawn at random (--seed), and --test N holds out other patients with all that there is of them.

nnU-Net needs all channels of a case on one grid, but adc and hbv lie on a coarser one than t2w. So these two are
resampled onto t2w, linearly, 0 outside of their field of view; this is the one place where a converter resamples. t2w and
the labels, which come on the grid of t2w, stay as they are.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, find_files, main, outside, read_image

CHANNELS = ("t2w", "adc", "hbv")
FOLDER = Path("csPCa_lesion_delineations", "human_expert", "resampled")


def read_on_t2w(path: Path) -> sitk.Image:
    """Reads a channel; adc and hbv are resampled onto the grid of the t2w file beside them."""
    image = read_image(path)
    stem, _, channel = path.stem.rpartition("_")
    if channel == "t2w":
        return image
    t2w_path = path.with_name(f"{stem}_t2w{path.suffix}")
    t2w = read_image(t2w_path)
    if image.GetDimension() != 3 or t2w.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() > 1:
        raise ConversionError(
            f"{path} has shape {image.GetSize()} and {t2w_path.name} has {t2w.GetSize()} (x, y, z), but volumes with one "
            "number a voxel are expected: download them again, or leave the case out (--skip-broken)."
        )
    centre = t2w.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in t2w.GetSize()])
    index = np.array(image.TransformPhysicalPointToContinuousIndex(centre))
    # the prostate is in the middle of t2w
    if not np.all((index >= -0.5) & (index <= np.array(image.GetSize()) - 0.5)):
        raise ConversionError(
            f"{path} does not show the middle of {t2w_path.name}: check that they belong together (spacing, origin and "
            "direction of both), or leave the case out (--skip-broken)."
        )
    kind = np.dtype(sitk.GetArrayViewFromImage(image).dtype)
    work = image if kind.kind == "f" else sitk.Cast(image, sitk.sitkFloat64)
    resampled = sitk.Resample(work, t2w, sitk.Transform(), sitk.sitkLinear, 0.0)
    # a cast would cut off what is behind the point
    return resampled if kind.kind == "f" else sitk.Cast(sitk.Round(resampled), image.GetPixelID())


DATASET = Dataset(
    name="PICAI",
    channel_names=["T2W", "ADC", "HBV"],
    labels={"background": 0, "lesion": 1},
    label_map={
        0: 0,
        1: 1,
        2: 1,
        3: 1,
        4: 1,
        5: 1,
    },  # ISUP grades 2 to 5; 1, of a lesion that a network found, is in none of these
    read_image=read_on_t2w,
    licence="CC BY-NC 4.0",
    reference="https://pi-cai.grand-challenge.org, doi 10.1016/S1470-2045(24)00220-1",
)


def label_folder(source: Path, given: Path | None) -> Path:
    """Where the outlines by humans are."""
    base = given or source
    candidates = [base / FOLDER, base / "picai_labels" / FOLDER, base / Path(*FOLDER.parts[1:])]
    for folder in [*candidates, *([given] if given else [])]:
        if any(folder.glob("*.nii.gz")):
            return folder
    raise ConversionError(
        f"{base} holds no {FOLDER}/<patient>_<study>.nii.gz: get github.com/DIAGNijmegen/picai_labels and say with --labels "
        "where it is."
    )


def studies(source: Path, but: Path | None = None) -> list[Path]:
    """The first channel of every study outside the folder ``but``; any other one stands in where it is lost."""
    pairs = {
        path.with_name(f"{path.stem.rpartition('_')[0]}_t2w.mha")
        for path in outside(find_files(source, rf".+_({'|'.join(CHANNELS)})\.mha"), but)
        if path.stem.startswith(f"{path.parent.name}_")
    }
    if not pairs:
        raise ConversionError(
            f"{source} holds no <patient>/<patient>_<study>_t2w.mha: SOURCE should be the folder of the unpacked images."
        )
    return sorted(pairs, key=lambda path: path.name)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """All studies."""
    labels = {path.name.removesuffix(".nii.gz"): path for path in label_folder(source, options.labels).glob("*.nii.gz")}
    cases = list(find_unlabeled(source, options.unlabeled_from))
    known = {case.identifier for case in cases}
    if not known & set(labels):
        raise ConversionError(
            f"None of the labels beside {next(iter(labels.values()))} belongs to an image in {source}: check that both are of "
            "the same data set."
        )
    if alone := sorted(set(labels) - known):
        count = "1 label belongs" if len(alone) == 1 else f"{len(alone)} labels belong"
        print(
            f"{count} to no image in {source}: {', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''}. "
            "They are left out; are all parts of the download there?",
            file=sys.stderr,
        )
    for case in cases:
        yield Case(case.identifier, case.images, labels.get(case.identifier), patient=case.patient)


def find_unlabeled(folder: Path, but: Path | None = None) -> Iterable[Case]:
    """All studies in a folder, without their labels; none of the folder ``but``."""
    for t2w in studies(folder, but):
        identifier = t2w.stem.removesuffix("_t2w")
        yield Case(identifier, [t2w.with_name(f"{identifier}_{name}.mha") for name in CHANNELS], patient=t2w.parent.name)


if __name__ == "__main__":
    labeled_help = (
        "how many patients keep the labels of their studies, drawn at random, or 'all' that a human outlined (default: all, "
        "the data set's own split)"
    )
    parser = argument_parser(__doc__, default_labeled="all", labeled_help=labeled_help)
    parser.add_argument("--labels", type=Path, metavar="DIR", help="folder of the labels (default: looked for in SOURCE)")
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
