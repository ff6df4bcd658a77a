"""Checks of the data before any time on a device is spent. Each problem is a sentence with its way out."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import nibabel
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from tqdm import tqdm

from nnunet_caml.conversion.headers import voxel_files
from nnunet_caml.states import STATE_FOLDER, CaseState, file_digest, voxel_digest
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset


def preprocess_command(dataset: UnlabeledDataset) -> str:
    """nnU-Net's command that preprocesses the labelled cases."""
    number = convert_dataset_name_to_id(dataset.plans_manager.dataset_name)  # it takes no name
    return f"nnUNetv2_preprocess -d {number} -plans_name {dataset.plans_manager.plans_name} -c {dataset.configuration}"


def check_labeled(dataset: UnlabeledDataset) -> None:
    """Raises if the labelled cases are not preprocessed, or not as many as ``dataset.json`` says.

    Raises:
        UnlabeledDataError: If there are none, or ``numTraining`` does not match.
    """
    folder, command = dataset.labeled_folder, preprocess_command(dataset)
    cases = list(folder.glob("*.pkl")) if folder.is_dir() else []
    if not cases:
        raise UnlabeledDataError(f"There are no preprocessed labelled cases in {folder}. Run `{command}` first.")
    if (expected := dataset.dataset_json.get("numTraining")) != len(cases):
        raise UnlabeledDataError(
            f"dataset.json says numTraining = {expected!r}, but {len(cases)} labelled cases are preprocessed in {folder}. "
            f"Correct numTraining in the raw and the preprocessed dataset.json, or run `{command}` again."
        )


def check_split(split: tuple[Sequence[str], Sequence[str]], labeled: Iterable[str]) -> None:
    """Raises if the split names no case, or one that is not among the preprocessed labelled ones.

    Args:
        split: Identifiers of the training and of the validation cases.
        labeled: Identifiers of all labelled cases.

    Raises:
        UnlabeledDataError: See above.
    """
    if gone := sorted({case for part in split for case in part} - set(labeled)):
        raise UnlabeledDataError(
            f"splits_final.json names {gone[0]} ({len(gone)} such case(s)), which is not among the preprocessed labelled "
            f"cases. Take it out of that file, or delete the file for new folds."
        )
    for cases, kind, key in zip(split, ("training", "validation"), ("train", "val"), strict=True):
        if not cases:
            raise UnlabeledDataError(
                f"splits_final.json names no {kind} case for this fold, and nnU-Net trains with one at least. Add one under "
                f'"{key}", delete the file for new folds, or train fold `all`, which has all labelled cases in both parts.'
            )


def cases_without_foreground(cases: nnUNetBaseDataset) -> list[str]:
    """Labelled cases in which no foreground voxel was found when they were preprocessed.

    Raises:
        UnlabeledDataError: If no case has any: there is nothing to learn from.
    """
    empty = []
    for case in cases.identifiers:
        locations = cases.load_case(case)[3].get("class_locations") or {}
        # nnU-Net also lists all annotated voxels, background included, under a key with -1
        foreground = [v for k, v in locations.items() if not (isinstance(k, tuple) and -1 in k)]
        if not any(len(v) for v in foreground):
            empty.append(case)
    if len(empty) == len(cases.identifiers):
        raise UnlabeledDataError(
            f"None of the {len(empty)} labelled training cases ({', '.join(empty[:5])}) has any foreground voxel. "
            f"Check the label files and the labels in dataset.json."
        )
    return empty


def labeled_content(dataset: UnlabeledDataset, cases: nnUNetBaseDataset) -> dict[str, str]:
    """Digest of the preprocessed voxels of labelled cases, by case; remembered between runs, where that can be written."""
    fingerprint = dataset.fingerprint()
    cache = dataset.folder / STATE_FOLDER / "labeled"
    content = {}
    for case in tqdm(cases.identifiers, desc="Checking validation cases", unit="case", leave=False):
        files = sorted(f for f in Path(dataset.labeled_folder).glob(f"{escape(case)}.*") if f.suffix != ".pkl")
        sources = {f.name: f.stat().st_size for f in files} | {f"{f.name} mtime": f.stat().st_mtime_ns for f in files}
        state = CaseState.read(cache / f"{case}.json")
        if state is None or state.fingerprint != fingerprint or state.sources != sources:
            state = CaseState(fingerprint, sources, voxel_digest(cases.load_case(case)[0]))
            with suppress(OSError):  # preprocessed data may be read-only
                cache.mkdir(parents=True, exist_ok=True)
                state.write(cache / f"{case}.json")
        content[case] = state.content
    return content


def check_names(unlabeled: Iterable[str], labeled: Iterable[str]) -> None:
    """Raises if an unlabelled case has the name of a labelled one.

    Args:
        unlabeled: Identifiers of all unlabelled cases.
        labeled: Identifiers of all labelled cases, whatever the fold.

    Raises:
        UnlabeledDataError: See above.
    """
    if both := sorted(set(unlabeled) & set(labeled)):
        raise UnlabeledDataError(
            f"Case {both[0]} is labelled and unlabelled at the same time ({len(both)} such case(s)): it lies in imagesTr "
            f'and in imagesUn (or the entry "unlabeled" of dataset.json). Remove it from the unlabelled ones; if its label was '
            f"taken away, preprocess the labelled cases again (nnUNetv2_preprocess)."
        )


def of_other_spacing(dataset: UnlabeledDataset, cases: nnUNetBaseDataset) -> list[str]:
    """Preprocessed cases whose shape is not what nnU-Net's preprocessor makes of their image at the plans' spacing."""
    other = []
    for case in cases.identifiers:
        data, _, _, properties = cases.load_case(case)
        if (shape := properties.get("shape_after_cropping_and_before_resampling")) is None:
            continue
        spacing = [properties["spacing"][axis] for axis in dataset.plans_manager.transpose_forward]
        target = list(dataset.configuration_manager.spacing)
        target = [*spacing[: len(spacing) - len(target)], *target]  # 2-D configurations keep the distance of slices
        if list(data.shape[1:]) != list(compute_new_shape(shape, spacing, target)):
            other.append(case)
    return other


def check_spacing(dataset: UnlabeledDataset, labeled: nnUNetBaseDataset, unlabeled: Sequence[str]) -> None:
    """Raises if labelled cases were preprocessed at another spacing than the plans have now, as unlabelled ones are.

    Where unlabelled cases have other shapes as well, a preprocessor or a resampling of the user's own goes by other rules.

    Args:
        dataset: Where the preprocessed unlabelled cases are.
        labeled: Labelled cases of either part of the fold.
        unlabeled: Identifiers of unlabelled cases.

    Raises:
        UnlabeledDataError: See above.
    """
    if "no_resampling" in dataset.configuration_manager.configuration.get("resampling_fn_data", ""):
        return
    some = dataset.dataset_class()(str(dataset.folder), list(unlabeled[:5]))
    if (other := of_other_spacing(dataset, labeled)) and not of_other_spacing(dataset, some):
        raise UnlabeledDataError(
            f"{len(other)} labelled case(s), such as {other[0]}, are not preprocessed at the spacing of the present plans, "
            f"{tuple(dataset.configuration_manager.spacing)}, as the unlabelled ones are. Run `{preprocess_command(dataset)}` "
            f"again."
        )


def orientation(properties: Mapping[str, Any]) -> str | None:
    """Where the axes of an image point to, such as ``"LPS"``, from what nnU-Net's reader has kept; ``None`` if nothing."""
    if direction := properties.get("sitk_stuff", {}).get("direction"):
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction) if len(direction) == 9 else None
    # a reader that reorients keeps both
    stuff = properties.get("nibabel_stuff", {})
    affine = stuff.get("reoriented_affine", stuff.get("original_affine"))
    return None if affine is None else "".join(nibabel.aff2axcodes(affine))


def other_orientations(labeled: nnUNetBaseDataset, folder: Path, unlabeled: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Unlabelled cases that are stored in an orientation that no labelled one has.

    nnU-Net takes voxels as they are stored: to a network such cases are mirrored or turned.

    Args:
        labeled: Labelled training cases.
        folder: Of the preprocessed unlabelled cases.
        unlabeled: Their identifiers.

    Returns:
        Their orientations, and those of the labelled cases.
    """
    known = {code for case in labeled.identifiers if (code := orientation(labeled.load_case(case)[3]))}
    codes = {case: orientation(load_pickle(str(folder / f"{case}.pkl"))) for case in unlabeled} if known else {}
    return {case: code for case, code in codes.items() if code and code not in known}, sorted(known)


def same_files(dataset: UnlabeledDataset, unlabeled: Iterable[str], files: Iterable[Path]) -> dict[str, str]:
    """Unlabelled cases one of whose raw images has, byte by byte, the voxels of one of other images, and its name there.

    Args:
        dataset: Whose recorded digests are used, so that of the other images only those of the same size are read.
        unlabeled: Identifiers of preprocessed unlabelled cases.
        files: The other images; those that are not there are passed by.
    """
    digest_of = cache(file_digest)
    by_sizes = defaultdict(list)
    for file in files:
        parts = voxel_files(file) or [file]  # a header may be that of many images
        if all(part.is_file() for part in parts):
            by_sizes[frozenset(part.stat().st_size for part in parts)].append((file, parts))
    found = {}
    for case in unlabeled if by_sizes else ():
        state = CaseState.read(dataset.state_file(case))
        sources = {(size, digest) for size, _, digest in state.sources.values()} if state else set()
        sizes = {size for size, _ in sources}
        for file, parts in (image for needed, images in by_sizes.items() if needed <= sizes for image in images):
            if all((part.stat().st_size, digest_of(part)) in sources for part in parts):
                found[case] = file.name
    return found


def copies(dataset: UnlabeledDataset, unlabeled: Iterable[str]) -> dict[str, str]:
    """Unlabelled cases that have exactly the voxels of another one, and the first such one: they are drawn twice as often."""
    first: dict[str, str] = {}
    found = {}
    for case in unlabeled:
        state = CaseState.read(dataset.state_file(case))
        if state is not None and (other := first.setdefault(state.content, case)) != case:
            found[case] = other
    return found


def labeled_names(dataset: UnlabeledDataset) -> list[str]:
    """Identifiers of the labelled cases: of those that are preprocessed, and of raw ones, which may not be yet."""
    preprocessed = {file.stem for file in dataset.labeled_folder.glob("*.pkl")}
    ending = dataset.dataset_json["file_ending"]
    raw = dataset.dataset_json.get("dataset")  # in place of imagesTr, where it is
    if not isinstance(raw, dict):
        raw = [re.sub(r"_\d{4}$", "", file.name.removesuffix(ending)) for file in raw_images(dataset, "imagesTr")]
    return sorted({*preprocessed, *raw})


def raw_images(dataset: UnlabeledDataset, folder: str, cases: Collection[str] | None = None) -> list[Path]:
    """Image files of the raw data set; none where it is not, as on nodes without raw data.

    Args:
        dataset: Whose raw folder is meant.
        folder: ``"imagesTr"``, or the entry ``dataset`` of ``dataset.json`` in its stead where there is one, or ``"imagesTs"``.
        cases: Identifiers; default: all.
    """
    if dataset.raw_folder is None:
        return []
    if folder == "imagesTr" and isinstance(entry := dataset.dataset_json.get("dataset"), dict):
        named = [path for case, value in entry.items() if cases is None or case in cases for path in value["images"]]
        return [dataset.raw_folder / os.path.expandvars(path) for path in named]
    files = [file for file in sorted((dataset.raw_folder / folder).glob("*")) if not file.name.startswith(".")]
    names = {file: re.fullmatch(r"(.+)_\d{4}\..+", file.name) for file in files}
    return [file for file, name in names.items() if cases is None or (name and name[1] in cases)]


def check_overlap(dataset: UnlabeledDataset, unlabeled: Sequence[str], validation: nnUNetBaseDataset) -> None:
    """Raises if an unlabelled case has the voxels of a validation case, or is the same file.

    Args:
        dataset: Where the preprocessed unlabelled cases are.
        unlabeled: Identifiers of those to train with.
        validation: Validation cases of the fold.

    Raises:
        UnlabeledDataError: See above.
    """
    by_content = {content: case for case, content in labeled_content(dataset, validation).items()}
    for case in unlabeled:
        state = CaseState.read(dataset.state_file(case))
        if state is not None and state.content in by_content:
            raise UnlabeledDataError(
                f"Unlabelled case {case} has the same voxels as labelled case {by_content[state.content]}, which this "
                f"fold validates on. Remove {case} from the unlabelled cases. Without raw data, remove its file from "
                f"{dataset.folder / STATE_FOLDER}."
            )
    # with masked normalisation a label changes the voxels of its image
    for case, file in same_files(dataset, unlabeled, raw_images(dataset, "imagesTr", set(validation.identifiers))).items():
        raise UnlabeledDataError(
            f"Unlabelled case {case} is the same image as {file}, byte by byte, which this fold validates on. Remove it from "
            f"the unlabelled cases."
        )
