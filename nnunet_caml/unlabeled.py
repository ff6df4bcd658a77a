"""Where the unlabelled cases of a data set are, in raw form and preprocessed.

Raw: in ``imagesUn/`` of the raw data set folder, named like nnU-Net's images (``CASE_0000.nii.gz``), or wherever the entry
``unlabeled`` of ``dataset.json`` says, in the shape of nnU-Net's own ``dataset`` entry
(``{case: {"images": [path of channel 0, ...]}}``; relative paths start at the data set folder, environment variables are
expanded). Both may be used together.

Preprocessed: in ``<data_identifier>_unlabeled`` next to the labelled folder, as nnU-Net's data set classes want it, with a
hidden folder ``.state`` that holds one JSON file per finished case (:class:`CaseState`). A case counts as done only when
its state file is there and matches the plans; the file is written last. nnU-Net itself never looks at this folder.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from unicodedata import category

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_caml.errors import UserError, read_json
from nnunet_caml.states import SIDECAR, STATE_FOLDER, CaseState

RAW_FOLDER = "imagesUn"
DATASET_KEY = "unlabeled"
#: nnU-Net's normalisation schemes that look at nothing but the image
NORMALIZED_BY_IMAGE = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
#: in it, the states of cases that were taken away from the raw ones
WITHDRAWN_FOLDER = "withdrawn"


class UnlabeledDataError(UserError, ValueError):
    """Something is wrong with the data; the message is one or more sentences that name it and the way out."""


def number_of_channels(dataset_json: Mapping[str, Any]) -> int:
    """Channels that ``dataset.json`` promises for every case."""
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])


def read_dataset_json(file: Path) -> dict:
    """``dataset.json`` of a raw data set, which users write and edit by hand.

    Raises:
        FileContentError: It is no JSON.
        UnlabeledDataError: It lacks what says how images are named.
    """
    content = read_json(file)
    for kind, *keys in ((str, "file_ending"), (dict, "channel_names", "modality")):
        if not isinstance(content, dict) or not any(isinstance(content.get(key), kind) for key in keys):
            raise UnlabeledDataError(f'{file} lacks the entry "{keys[0]}" as nnU-Net wants it. Correct it.')
    return content


def list_folder(folder: Path, file_ending: str, channels: int) -> dict[str, list[Path]]:
    """Cases of a folder of images named as nnU-Net wants them.

    Args:
        folder: Such as ``imagesUn``.
        file_ending: As in ``dataset.json``.
        channels: That each case must have.

    Returns:
        For every case identifier its files, in the order of the channels. A file may hold several channels (colour PNG,
        4-D NIfTI), so all cases may have fewer files than channels; reading them tells whether they are all there.

    Raises:
        UnlabeledDataError: If a file is not named so, images lie in a folder within, a case has files too many or fewer
            than the others, or nobody lets us look into the folder.
    """
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    others = []
    try:
        files_and_folders = sorted(folder.iterdir())
    except PermissionError as error:
        raise UnlabeledDataError(
            f"{folder} cannot be opened ({error.strerror}). Make it readable, and the images in it."
        ) from None
    for file in files_and_folders:
        if file.name.startswith("."):
            continue
        if file.is_dir():
            if inner := next(file.rglob(f"*{file_ending}"), None):
                raise UnlabeledDataError(
                    f"{inner} lies in a folder within {folder}, where nnU-Net reads no images. Move it into {folder.name} "
                    f'itself, as CASE_0000{file_ending}, or name it in the entry "{DATASET_KEY}" of dataset.json.'
                )
            continue
        match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(file_ending), file.name)
        if match is None:
            others.append(file)
        else:
            found[match[1]][int(match[2])] = file
    if strays := [file.name for file in others if file.name.removesuffix(SIDECAR) not in found]:
        more = f" (and {len(strays) - 1} more: {', '.join(strays[1:6])}{', ...' if len(strays) > 6 else ''})"
        raise UnlabeledDataError(
            f"{folder / strays[0]}{more if len(strays) > 1 else ''} is not named like nnU-Net's images: expected "
            f"CASE_0000{file_ending} (the case identifier, the channel in four digits, and the file_ending of dataset.json). "
            f"Rename such files or move them elsewhere."
        )
    of_each = min(channels, max(map(len, found.values()), default=0))
    for case, files in found.items():
        if missing := [c for c in range(of_each) if c not in files]:
            raise UnlabeledDataError(
                f"Unlabelled case {case} in {folder} lacks channel {missing[0]:04d}: dataset.json names {channels} "
                f"channel(s), found {', '.join(f.name for f in files.values())}. Add the file or remove the case."
            )
        if len(files) > channels:
            raise UnlabeledDataError(
                f"Unlabelled case {case} in {folder} has {len(files)} channels, dataset.json names {channels}: "
                f"remove {files[max(files)].name} or correct channel_names."
            )
    return {case: [files[c] for c in range(of_each)] for case, files in found.items()}


def list_entry(entry: Any, folder: Path, channels: int) -> dict[str, list[Path]]:
    """Cases of the ``unlabeled`` entry of ``dataset.json``; arguments and errors as for :func:`list_folder`."""
    where = f'The entry "{DATASET_KEY}" of {folder / "dataset.json"}'
    if not isinstance(entry, dict):
        raise UnlabeledDataError(f'{where} must be {{case: {{"images": [...]}}}}, got {type(entry).__name__}.')
    cases = {}
    for case, value in entry.items():
        if not re.fullmatch(r"[^/\\.][^/\\]*", case) or any(category(letter) in ("Cc", "Cs") for letter in case):
            raise UnlabeledDataError(f"{where} names a case {case!r}, which cannot name a file. Rename it.")
        images = value.get("images") if isinstance(value, dict) else None
        if not isinstance(images, list) or not 1 <= len(images) <= channels or not all(isinstance(i, str) for i in images):
            raise UnlabeledDataError(
                f'{where} gives for case {case} {value!r}; expected {{"images": [...]}} with the path of a file for each of '
                f"the {channels} channel(s) of dataset.json, or fewer that hold them all."
            )
        # joining with an absolute path gives the absolute path
        cases[case] = [folder / os.path.expandvars(image) for image in images]
    return cases


@dataclass(frozen=True)
class UnlabeledDataset:
    """The unlabelled cases of one data set for one configuration.

    Attributes:
        raw_folder: Raw data set folder, or ``None`` if ``nnUNet_raw`` is not set; it need not exist.
        folder: Of the preprocessed unlabelled cases; it need not exist yet.
        labeled_folder: Of the preprocessed labelled cases.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's.
        dataset_json: The preprocessed data set's copy.
        configuration: Its name, for messages.
    """

    raw_folder: Path | None
    folder: Path
    labeled_folder: Path
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    configuration: str

    @classmethod
    def create(cls, plans_manager: PlansManager, configuration: str, dataset_json: dict) -> "UnlabeledDataset":
        """For a data set of ``nnUNet_preprocessed`` and a configuration of its plans."""
        manager = plans_manager.get_configuration(configuration)
        base = Path(nnUNet_preprocessed) / plans_manager.dataset_name
        return cls(
            raw_folder=Path(nnUNet_raw) / plans_manager.dataset_name if nnUNet_raw.is_set() else None,
            folder=base / f"{manager.data_identifier}_unlabeled",
            labeled_folder=base / manager.data_identifier,
            plans_manager=plans_manager,
            configuration_manager=manager,
            dataset_json=dataset_json,
            configuration=configuration,
        )

    def raw_cases(self) -> dict[str, list[Path]]:
        """Raw cases and their files, sorted by identifier; empty if there is no raw data.

        The raw folder's ``dataset.json`` is preferred to the copy made when the data set was planned, so that
        unlabelled cases can be added later.

        Raises:
            UnlabeledDataError: As :func:`list_folder`; also if a case is named in both places, or like nnU-Net's label files,
                or the folder is a link that leads nowhere and there are cases in the entry.
        """
        if self.raw_folder is None or not self.raw_folder.is_dir():
            return {}
        json_file = self.raw_folder / "dataset.json"
        dataset_json = read_dataset_json(json_file) if json_file.is_file() else self.dataset_json
        for key in dataset_json:
            if key != DATASET_KEY and re.fullmatch("un[ _-]?labell?ed", key, re.IGNORECASE):
                raise UnlabeledDataError(
                    f'{json_file} has an entry "{key}", which nothing reads: the list of unlabelled cases is called '
                    f'"{DATASET_KEY}". Rename it.'
                )
        channels = number_of_channels(dataset_json)
        cases = list_entry(dataset_json.get(DATASET_KEY, {}), self.raw_folder, channels)
        images = self.raw_folder / RAW_FOLDER
        in_folder = list_folder(images, dataset_json["file_ending"], channels) if images.is_dir() else {}
        if cases and (lost := self._lost_link()):  # else its cases would count as taken away
            raise UnlabeledDataError(lost.strip())
        if twice := sorted(cases.keys() & in_folder.keys()):
            raise UnlabeledDataError(
                f'Unlabelled case {twice[0]} is both in {images} and in the entry "{DATASET_KEY}" of {json_file}. '
                f"Remove it from one of them."
            )
        for case in (*cases, *in_folder):
            # nnU-Net's preprocessed cases: CASE.b2nd and CASE_seg.b2nd, so CASE_seg would overwrite a part of CASE
            if case.endswith("_seg"):
                raise UnlabeledDataError(
                    f"Unlabelled case {case} ends in _seg, as nnU-Net's own files of labels do. Rename it, or "
                    f"take it away if it is a label."
                )
        return dict(sorted((cases | in_folder).items()))

    def _lost_link(self) -> str:
        """A sentence on ``imagesUn`` if that is a link to what is not there, as a disk that is not mounted, or nothing."""
        images = self.raw_folder / RAW_FOLDER if self.raw_folder is not None else None
        if images is None or not images.is_symlink() or images.exists():
            return ""
        return f" {images} is a link to {images.readlink()}, which is not there. Connect that disk, or remove the link."

    def misnamed(self) -> str:
        """A sentence on a folder of the raw data set that may be meant for unlabelled images, or nothing."""
        if lost := self._lost_link():
            return lost
        folders = self.raw_folder.iterdir() if self.raw_folder is not None and self.raw_folder.is_dir() else ()
        for folder in sorted(folders):
            if folder.name != RAW_FOLDER and re.fullmatch(r"images?[ _-]?un.*", folder.name, re.IGNORECASE) and folder.is_dir():
                return f" {folder.name} is there: if it is meant, call it {RAW_FOLDER}."
        return ""

    def done_cases(self) -> list[str]:
        """Identifiers of the cases that are preprocessed with the present plans and whose files are there, sorted."""
        return [case for case, damaged in self._recorded().items() if not damaged]

    def damaged_files(self) -> dict[str, list[str]]:
        """Files that are missing or damaged of cases that were preprocessed with the present plans, by case."""
        return {case: damaged for case, damaged in self._recorded().items() if damaged}

    def outdated_cases(self) -> list[str]:
        """Identifiers of the cases that were preprocessed with other plans."""
        fingerprint = self.fingerprint()
        return [case for case, state in self._states().items() if state.fingerprint != fingerprint]

    def _recorded(self) -> dict[str, list[str]]:
        fingerprint = self.fingerprint()
        return {c: state.damaged(self.folder) for c, state in self._states().items() if state.fingerprint == fingerprint}

    def _states(self) -> dict[str, "CaseState"]:
        files = sorted((self.folder / STATE_FOLDER).glob("*.json"))
        return {file.stem: state for file in files if (state := CaseState.read(file)) is not None}

    def usable_cases(self) -> list[str]:
        """Preprocessed cases to train with: those that are (still) among the raw ones, or all where no raw data is.

        Those that have got a label since are left out.
        """
        labeled = {file.stem for file in self.labeled_folder.glob("*.pkl")}
        done, raw = [case for case in self.done_cases() if case not in labeled], self.raw_cases()
        # an emptied folder is a wish, a missing one may have been moved to save space
        emptied = self.raw_folder is not None and (self.raw_folder / RAW_FOLDER).is_dir()
        return [case for case in done if case in raw] if raw or emptied else done

    def dataset_class(self) -> type[nnUNetBaseDataset]:
        """nnU-Net's class that reads the preprocessed cases.

        Raises:
            UnlabeledDataError: There are files among them with which nnU-Net cannot tell.
        """
        try:
            return infer_dataset_class(str(self.folder))
        except (AssertionError, KeyError):
            files = [file for file in sorted(self.folder.iterdir()) if file.is_file() and file.suffix not in (".pkl", ".npy")]
            usual = Counter(file.suffix for file in files).most_common(1)
            strays = [file.name for file in files if file.suffix not in dict(usual)]
            raise UnlabeledDataError(
                f"{self.folder} holds {', '.join(strays)} beside the preprocessed cases, with which nnU-Net cannot tell how "
                f"they are stored. Remove {'it' if len(strays) == 1 else 'what is no case'}."
            ) from None

    def follow_raw(self, raw: Collection[str]) -> list[str]:
        """Withdraws preprocessed cases that are no longer among the raw ones: no training uses them, with raw data or without.

        What was preprocessed stays, and counts again when the case comes back. With a folder that may not be written to,
        or without any raw case, nothing is done.

        Returns:
            Identifiers of the cases that were withdrawn now.
        """
        states = self.folder / STATE_FOLDER
        away = states / WITHDRAWN_FOLDER
        gone = [file.stem for file in sorted(states.glob("*.json")) if file.stem not in raw] if raw else []
        try:
            if gone:
                away.mkdir(exist_ok=True)
            for case in gone:
                self.state_file(case).replace(away / f"{case}.json")
            for file in away.glob("*.json"):
                if file.stem in raw and not self.state_file(file.stem).exists():
                    file.replace(self.state_file(file.stem))
        except FileNotFoundError:  # another run is doing the same
            pass
        except OSError:  # no permission, or a file system that is read-only
            return []
        return gone

    def state_file(self, case: str) -> Path:
        """Where the state of a preprocessed case is kept."""
        return self.folder / STATE_FOLDER / f"{case}.json"

    def fingerprint(self) -> str:
        """Digest of everything in the plans that the preprocessed voxels depend on."""
        plans, manager = self.plans_manager, self.configuration_manager
        configuration = manager.configuration
        # with another label, the intensities in the foreground are others, and thousands of scans need not be done again for it
        by_image_alone = set(manager.normalization_schemes) <= NORMALIZED_BY_IMAGE
        relevant = {
            "preprocessor": manager.preprocessor_name,
            "reader": plans.plans["image_reader_writer"],
            "transpose_forward": plans.transpose_forward,
            "spacing": manager.spacing,
            "normalization_schemes": manager.normalization_schemes,
            "use_mask_for_norm": manager.use_mask_for_norm,
            "intensities": None if by_image_alone else plans.foreground_intensity_properties_per_channel,
            **{key: configuration[key] for key in sorted(configuration) if key.startswith("resampling_fn")},
        }
        return sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
