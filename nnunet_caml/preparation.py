"""What happens to the data before a training starts: the split of few cases, checks, and preprocessing of unlabelled ones."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_caml.checks import (
    cases_without_foreground,
    check_labeled,
    check_names,
    check_overlap,
    check_spacing,
    check_split,
    copies,
    other_orientations,
    raw_images,
    same_files,
)
from nnunet_caml.errors import StorageError, read_json
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import STATE_FOLDER
from nnunet_caml.unlabeled import DATASET_KEY, RAW_FOLDER, UnlabeledDataError, UnlabeledDataset

__all__ = ["prepare", "split_few_cases"]

#: of nnUNetTrainer.do_split in nnU-Net 2.8.1
NUM_FOLDS, SPLIT_SEED = 5, 12345


def split_few_cases(folder: str, splits_file: Path, fold: int, say: Callable[[str], None]) -> None:
    """Writes ``splits_final.json`` for fewer cases than nnU-Net's five folds, each case a fold; else leaves it to nnU-Net.

    Args:
        folder: The preprocessed labelled cases.
        splits_file: Where nnU-Net looks for it.
        fold: The one to train.
        say: Prints to the log.

    Raises:
        UnlabeledDataError: There is a single labelled case, or there is no such fold.
        StorageError: The file cannot be written.
    """
    cases = sorted(infer_dataset_class(folder).get_identifiers(folder))
    if len(cases) >= NUM_FOLDS:
        return
    there = len(read_json(splits_file)) if splits_file.is_file() else None
    if there not in (None, len(cases)):  # folds of the user's own
        return
    if len(cases) == 1:
        raise UnlabeledDataError(f"{cases[0]} is the only labelled case, which cannot be split into folds. Train fold `all`.")
    if fold >= len(cases):  # nnU-Net would make up a split at random
        raise UnlabeledDataError(
            f"There is no fold {fold}: {len(cases)} labelled cases are split into {len(cases)} folds, 0 to {len(cases) - 1}."
        )
    if there is not None:
        return
    say(f"{len(cases)} labelled cases are split into {len(cases)} folds.")
    # folds that are started together must not read a half of it
    half = splits_file.with_name(f".{splits_file.name}.{uuid4().hex}")
    try:
        save_json(generate_crossval_split(cases, seed=SPLIT_SEED, n_splits=len(cases)), str(half))
        half.replace(splits_file)
    except OSError as error:
        raise StorageError(
            f"{splits_file}, which says which cases are which fold's, cannot be written ({error.strerror}). Start a training "
            f"of any fold once where it can, which writes it, or train fold `all`, which needs none."
        ) from None


def prepare(
    unlabeled: UnlabeledDataset,
    folder: str,
    split: tuple[Sequence[str], Sequence[str]],
    say: Callable[[str], None],
) -> list[str]:
    """Checks the data and preprocesses unlabelled cases that are not done yet.

    Args:
        unlabeled: The unlabelled cases.
        folder: The preprocessed labelled cases.
        split: Identifiers of the training and of the validation cases.
        say: Prints to the log.

    Returns:
        Identifiers of the unlabelled cases to train with.

    Raises:
        UnlabeledDataError: With a sentence per problem.
    """
    check_labeled(unlabeled)
    raw = unlabeled.raw_cases()
    labeled_class = infer_dataset_class(folder)
    labeled = labeled_class.get_identifiers(folder)
    check_split(split, labeled)
    training, validation = (labeled_class(folder, list(cases)) for cases in split)
    # before hours of preprocessing: what can be known from names
    check_names(raw, labeled)
    if empty := cases_without_foreground(training):
        say(
            f"WARNING: no foreground in {len(empty)} labelled training case(s): {', '.join(empty)}. If they should have "
            f"some, check their label files."
        )
    # nnU-Net does not say so, and it is what becomes of cases that are labelled after the first training
    if idle := sorted(set(labeled) - set(training.identifiers) - set(validation.identifiers)):
        say(
            f"WARNING: {len(idle)} labelled case(s) are in neither part of this fold and go unused: {', '.join(idle)}. If "
            f"they were labelled after splits_final.json was written, delete that file for new folds, or add them to it."
        )
    # where raw cases are, these are made again
    if not raw and (
        damaged := [name for case, names in unlabeled.damaged_files().items() if case not in labeled for name in names]
    ):
        raise UnlabeledDataError(
            f"Files of {len(unlabeled.damaged_files().keys() - set(labeled))} preprocessed unlabelled case(s) in "
            f"{unlabeled.folder} are missing or damaged: {', '.join(damaged)}. Copy them again, or run `nnunet-caml "
            f"preprocess` where the raw images are; without a case, remove its file from {unlabeled.folder / STATE_FOLDER}."
        )
    done = preprocess(unlabeled, min(default_num_processes, os.cpu_count() or 1), say=say)
    usable = unlabeled.usable_cases()
    if not usable:
        name = unlabeled.plans_manager.dataset_name
        if not raw and unlabeled.done_cases():
            raise UnlabeledDataError(
                f"{unlabeled.raw_folder}/{RAW_FOLDER} holds no image, so none of the cases in {unlabeled.folder} is used. "
                f"Put the images back; or remove the empty folder {RAW_FOLDER} to train with cases whose images are not here."
            )
        if not raw and (others := len(list(unlabeled.folder.glob("*.pkl")))):
            raise UnlabeledDataError(
                f"None of the {others} preprocessed cases in {unlabeled.folder} can be used: they were made with other plans, "
                f"or its hidden folder {STATE_FOLDER} was not copied along. Their raw images, which could be preprocessed "
                f"again, are not here."
            )
        raise UnlabeledDataError(
            f"There are no unlabelled cases for {name}. Put images into "
            f"{unlabeled.raw_folder or '$nnUNet_raw/' + name}/{RAW_FOLDER}, named like those in imagesTr, or list them "
            f'under "{DATASET_KEY}" in dataset.json ({{case: {{"images": [...]}}}}).{unlabeled.misnamed()} To train without '
            f"unlabelled cases, use -tr nnUNetTrainer."
        )
    check_spacing(unlabeled, labeled_class(folder, [*training.identifiers, *validation.identifiers]), usable)
    check_overlap(unlabeled, usable, validation)
    if same := same_files(unlabeled, usable, raw_images(unlabeled, "imagesTs")):
        say(
            f"WARNING: {len(same)} unlabelled case(s) have the files of test cases in {unlabeled.raw_folder}/imagesTs: "
            f"{', '.join(f'{case} ({file})' for case, file in same.items())}. Unless this is meant, remove them."
        )
    if twice := copies(unlabeled, usable):
        some = [f"{case} ({other})" for case, other in twice.items()]
        say(
            f"WARNING: {len(twice)} unlabelled case(s) have exactly the voxels of another one: {', '.join(some[:10])}"
            f"{', ...' if len(some) > 10 else ''}. Training meets them twice as often; unless this is meant, remove them."
        )
    turned, usual = other_orientations(training, unlabeled.folder, usable)
    if turned:
        some = [f"{case} ({code})" for case, code in turned.items()]
        say(
            f"WARNING: {len(turned)} unlabelled case(s) are stored in another orientation than the labelled ones "
            f"({', '.join(usual)}): {', '.join(some[:10])}{', ...' if len(some) > 10 else ''}. nnU-Net takes voxels as they "
            "are stored, so these look mirrored or turned. Unless this is meant, store all in one orientation, or remove these."
        )
    if not raw and (outdated := sorted(set(unlabeled.outdated_cases()) - set(labeled))):
        say(
            f"WARNING: {len(outdated)} preprocessed unlabelled case(s) are not used, because they were made with other plans: "
            f"{', '.join(outdated)}. Run `nnunet-caml preprocess` where their raw images are."
        )
    if not raw and unlabeled.raw_folder is not None and (unlabeled.raw_folder / "dataset.json").is_file():
        say(
            f"WARNING: the {len(usable)} unlabelled cases are used as they were preprocessed before: there are no raw ones in "
            f"{unlabeled.raw_folder}. To train without them, make an empty folder {RAW_FOLDER} there."
        )
    nowhere = "" if raw else f"; no raw ones in {unlabeled.raw_folder or 'nnUNet_raw, which is not set'}"
    numbers = f"{len(training.identifiers)} labelled and {len(usable)} unlabelled training cases"
    say(f"{numbers} ({done} preprocessed now{nowhere}).")
    return usable
