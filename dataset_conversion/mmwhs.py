#!/usr/bin/env python
"""MM-WHS (Multi-Modality Whole Heart Segmentation, 2017), as the challenge hands it out.

SOURCE holds ct_train_1001_image.nii.gz with ct_train_1001_label.nii.gz and so on (20 CT), mr_train_1001_... (20 MR) and
the challenge's test images ct_test_2001_image.nii.gz, mr_test_2001_image.nii.gz, anywhere below it. --modality chooses
CT, MR or both. There is no agreed semi-supervised split: labelled cases are drawn at random (--seed), and --test N holds
out others. The challenge's own test images are left out unless --use-test-images makes them unlabelled cases.

Labels become 1 myocardium, 2 left atrium, 3 left ventricle, 4 right atrium, 5 right ventricle, 6 aorta, 7 pulmonary
artery. One MR label of the download (the tenth, mr_train_1010, by the reports of others) holds the value 421 beside 420,
the left atrium. It is a slip of the pen and becomes left atrium as well, in MR labels only.
"""

import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, find_files, main, of_one_kind, read_image

ENDING = "_image.nii.gz"
LEFT_ATRIUM, SLIP = 420, 421
DATASET = Dataset(
    name="MMWHS",
    channel_names=["CT"],
    labels={
        "background": 0,
        "myocardium": 1,
        "left atrium": 2,
        "left ventricle": 3,
        "right atrium": 4,
        "right ventricle": 5,
        "aorta": 6,
        "pulmonary artery": 7,
    },
    label_map={0: 0, 205: 1, LEFT_ATRIUM: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7},
    reference="Zhuang et al., Medical Image Analysis 58, 2019, doi 10.1016/j.media.2019.101537",
)


def read_label(path: Path) -> sitk.Image:
    """Reads a label, with the known slip in an MR label put right."""
    label = read_image(path)
    array = sitk.GetArrayFromImage(label)
    if not path.name.startswith("mr_") or label.GetNumberOfComponentsPerPixel() > 1 or not (array == SLIP).any():
        return label
    array[array == SLIP] = LEFT_ATRIUM
    corrected = sitk.GetImageFromArray(array, isVector=False)
    corrected.CopyInformation(label)
    return corrected


def dataset(source: Path, options: Namespace) -> Dataset:
    """Named after the modality, on which nnU-Net's normalisation depends."""
    # with both, "CT" would scale MR by the statistics of all voxels; any other name means z-scores image by image
    name, channel = {"ct": ("MMWHS_CT", "CT"), "mr": ("MMWHS_MR", "MRI"), "both": ("MMWHS", "CT_or_MRI")}[options.modality]
    return replace(DATASET, name=name, channel_names=[channel], read_label=read_label)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The training cases of the modality, and with ``--use-test-images`` its test cases."""
    modality = "ct|mr" if options.modality == "both" else options.modality
    # archives of what is not wanted may stay packed
    images = find_files(source, rf"({modality})_train_\d+{re.escape(ENDING)}")
    # a label whose image is lost is a broken case, not none
    for path in find_files(source, rf"({modality})_train_\d+_label\.nii\.gz"):
        image = path.with_name(path.name.replace("_label", "_image"))
        if image not in images:
            images.append(image)
    if not images:
        wanted = modality.replace("|", " or ")
        raise ConversionError(
            f"{source} holds no {wanted}_train_1001{ENDING} and the like: SOURCE should be the folder of the unpacked download."
        )
    for image in images:
        label = image.with_name(image.name.replace("_image", "_label"))
        yield Case(image.name.removesuffix(ENDING), [image], label)
    if options.use_test_images:
        tests = find_files(source, rf"({modality})_test_\d+{re.escape(ENDING)}")
        if not tests:
            raise ConversionError(f"{source} holds no test images of this modality: leave out --use-test-images.")
        for image in tests:
            yield Case(image.name.removesuffix(ENDING), [image])


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: called as in the challenge, at any depth and without their labels, or else image files in the folder."""
    images = find_files(folder, rf"(ct|mr)_(train|test)_\d+{re.escape(ENDING)}")
    labels = find_files(folder, r"(ct|mr)_train_\d+_label\.nii\.gz")
    return of_one_kind([Case(image.name.removesuffix(ENDING), [image]) for image in images], folder, labels)


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--modality", choices=["ct", "mr", "both"], default="ct", help="which images (default: ct)")
    parser.add_argument(
        "--use-test-images",
        action="store_true",
        help="take the challenge's test images as unlabelled cases; results on these images are then transductive",
    )
    main(find, dataset, parser, find_unlabeled=find_unlabeled)
