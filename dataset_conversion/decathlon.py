#!/usr/bin/env python
"""Any task of the Medical Segmentation Decathlon.

SOURCE is a task's folder, TaskXX_Name, with imagesTr, labelsTr, imagesTs and dataset.json. Of the cases in imagesTr,
the labelled ones are drawn at random, the others are unlabelled. 4-D images become one file for each channel. The task's
own test images have no public label; they are left out unless --use-test-images makes them unlabelled cases.
"""

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, main

ENDING = ".nii.gz"


def description(source: Path) -> dict[str, Any]:
    """The task's own ``dataset.json``."""
    path = source / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("labels", "modality", "training"):
            content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(
            f"{path} is not the description of a Decathlon task (labels, modality, training): SOURCE should be "
            "a folder TaskXX_Name with imagesTr, labelsTr and dataset.json."
        ) from error
    return content


def dataset(source: Path, options: Namespace) -> Dataset:
    """Names, channels and labels of the task."""
    task = description(source)
    try:
        channels = [name for _, name in sorted(task["modality"].items(), key=lambda item: int(item[0]))]
        labels = {
            name if int(value) else "background": int(value)
            for value, name in sorted(task["labels"].items(), key=lambda item: int(item[0]))
        }
    except (AttributeError, ValueError, TypeError) as error:
        raise ConversionError(f"{source / 'dataset.json'}: labels and modality should map numbers to names.") from error
    further: dict[str, Any] = {key: task[key] for key in ("description", "release") if key in task}
    return Dataset(
        name=options.name or source.resolve().name.partition("_")[2] or str(task.get("name", "")),
        channel_names=channels,
        labels=labels,
        licence=str(task.get("licence", "")),
        reference=str(task.get("reference", "")),
        further=further,
    )


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases that ``dataset.json`` lists, and with ``--use-test-images`` those in ``imagesTs``."""
    for entry in description(source)["training"]:
        try:
            image, label = source / entry["image"], source / entry["label"]
        except (KeyError, TypeError) as error:
            raise ConversionError(
                f"{source / 'dataset.json'}: each entry of training should have image and label, got {entry!r}."
            ) from error
        yield Case(image.name.removesuffix(ENDING), [image], label)
    if options.use_test_images:
        # the Decathlon's archives hold hidden copies of the files, ._name, made by macOS
        images = [path for path in sorted((source / "imagesTs").glob(f"*{ENDING}")) if not path.name.startswith(".")]
        if not images:
            raise ConversionError(f"{source / 'imagesTs'} holds no {ENDING} files: leave out --use-test-images.")
        for image in images:
            yield Case(image.name.removesuffix(ENDING), [image])


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--use-test-images",
        action="store_true",
        help="take imagesTs as unlabelled cases; results on these images are then transductive",
    )
    main(find, dataset, parser)
