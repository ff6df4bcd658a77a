"""Checks of the data before a training: leaks, spacing, orientation, labels."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle, write_pickle
from conftest import Workspace, blobs, write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_unlabeled import dataset

from nnunet_caml import checks
from nnunet_caml.checks import labeled_content, of_other_spacing, orientation, other_orientations, raw_images, same_files
from nnunet_caml.conversion.headers import voxel_files
from nnunet_caml.conversion.integrity import damage
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import CaseState
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset


def test_digests_are_not_kept_longer_than_the_voxels(workspace: Workspace):
    d = dataset(workspace)
    case = "tr[1]"
    for file in d.labeled_folder.glob("tr_1*"):
        shutil.copy(file, file.with_name(file.name.replace("tr_1", case)))
    cases = nnUNetDatasetBlosc2(str(d.labeled_folder), [case])
    before = labeled_content(d, cases)
    file = d.labeled_folder / f"{case}.b2nd"
    shutil.copy(d.labeled_folder / "tr_0.b2nd", file)
    assert labeled_content(d, cases) != before


def test_files_of_one_size_are_not_one_file(workspace: Workspace):
    d = dataset(workspace)
    preprocess(d, 1)
    (source,) = d.raw_cases()["un_0"]
    other = workspace.root / "other.nii.gz"
    other.write_bytes(source.read_bytes()[:-1] + bytes([source.read_bytes()[-1] ^ 1]))
    assert same_files(d, ["un_0"], [other]) == {}
    assert same_files(d, ["un_0"], [source]) == {"un_0": source.name}


def test_voxels_beside_a_header(workspace: Workspace):
    """As of images in a folder each, with one and the same header: another image is no copy, and other voxels are a change."""
    description = workspace.raw / "dataset.json"
    entry = {"mine": {"images": ["mine/image.mhd"]}}
    content = {**json.loads(description.read_text(encoding="utf-8")), "unlabeled": entry}
    description.write_text(json.dumps(content), encoding="utf-8")
    for name, seed in (("mine", 0), ("other", 1), ("copy", 0)):
        write_image(blobs(seed)[0], workspace.raw / name / "image.mhd")
    d = dataset(workspace)
    assert preprocess(d, 1) == 6
    assert same_files(d, ["mine"], [workspace.raw / "other/image.mhd"]) == {}
    assert same_files(d, ["mine"], [workspace.raw / "copy/image.mhd"]) == {"mine": "image.mhd"}
    assert preprocess(d, 1) == 0
    shutil.copy(workspace.raw / "other/image.raw", workspace.raw / "mine/image.raw")
    assert preprocess(d, 1) == 1


SLICES = len(blobs(0)[0])
NAMED = {
    "another name": "voxels.raw",
    "a list": "LIST\n" + "\n".join(f"s{i}.raw" for i in range(SLICES)),
    "a pattern": f"s%d.raw 0 {SLICES - 1} 1",
}
SHORT = {"s%d.raw 0": range(SLICES), "s%d.raw": range(1, SLICES + 1)}  # of MetaImage


def write_detached(array: np.ndarray, folder: Path, kind: str, named: str) -> None:
    """A header ``image.mhd`` or ``image.nhdr``, and ``voxels.raw`` or one for each slice, of which the first says nothing."""
    folder.mkdir()
    array[0] = 7
    array.tofile(folder / "voxels.raw")
    for i, voxels in enumerate(array):
        voxels.tofile(folder / f"s{i}.raw")
    size = " ".join(map(str, array.shape[::-1]))
    if kind == "mhd":
        text = (
            f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementSpacing = 1 1 1.5\nElementType = MET_SHORT\n"
            f"ElementByteOrderMSB = False\nElementDataFile = {named}\n"
        )
    else:
        text = (
            f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {size}\nencoding: raw\n"
            f"space directions: (1,0,0) (0,1,0) (0,0,1.5)\nendian: little\nkinds: domain domain domain\ndata file: {named}\n"
        )
    (folder / f"image.{kind}").write_text(text, encoding="ascii")


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("format_", ["mhd", "nhdr"])
def test_voxels_in_files_that_the_header_names(workspace: Workspace, kind: str, format_: str):
    """Images in a folder each, whose headers are alike, and whose first slices too."""
    for name, seed in (("mine", 0), ("other", 1), ("copy", 0)):
        write_detached(blobs(seed)[0], workspace.raw / name, format_, NAMED[kind])
    description = workspace.raw / "dataset.json"
    entry = {"mine": {"images": [f"mine/image.{format_}"]}}
    content = {**json.loads(description.read_text(encoding="utf-8")), "unlabeled": entry}
    description.write_text(json.dumps(content), encoding="utf-8")
    d = dataset(workspace)
    assert preprocess(d, 1) == 6
    voxels = np.asarray(nnUNetDatasetBlosc2(str(d.folder), ["mine"]).load_case("mine")[0])[0]
    assert np.corrcoef(voxels[1:].ravel(), blobs(0)[0][1:].ravel())[0, 1] > 0.999
    assert same_files(d, ["mine"], [workspace.raw / f"other/image.{format_}"]) == {}
    assert same_files(d, ["mine"], [workspace.raw / f"copy/image.{format_}"]) == {"mine": f"image.{format_}"}
    assert preprocess(d, 1) == 0
    (changed,) = (workspace.raw / "other").glob("voxels.raw" if kind == "another name" else f"s{SLICES - 1}.raw")
    shutil.copy(changed, workspace.raw / "mine" / changed.name)
    assert preprocess(d, 1) == 1
    (workspace.raw / "mine" / changed.name).unlink()
    with pytest.raises(UnlabeledDataError, match=rf"needs the file {changed.name} beside it"):
        preprocess(d, 1)


@pytest.mark.parametrize("named", SHORT)
def test_a_pattern_without_numbers_counts_slices(tmp_path: Path, named: str):
    """As to ITK, which takes the voxels of all files in this order."""
    image = blobs(0)[0]
    write_detached(image, tmp_path / "image", "mhd", named)
    folder = tmp_path / "image"
    if named == "s%d.raw":
        for i in reversed(range(SLICES)):
            (folder / f"s{i}.raw").rename(folder / f"s{i + 1}.raw")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "image.mhd"))), image)
    assert voxel_files(folder / "image.mhd") == [folder / f"s{i}.raw" for i in SHORT[named]]


def test_a_name_that_is_no_pattern(tmp_path: Path):
    (header := tmp_path / "a.mhd").write_text("ElementDataFile = 50% fat.raw\n", encoding="ascii")
    assert voxel_files(header) == [tmp_path / "50% fat.raw"]
    assert damage(header) == "needs the file 50% fat.raw beside it"


def test_which_raw_images_are_listed(workspace: Workspace, monkeypatch):
    monkeypatch.setenv("ARCHIVE", "/archive")
    d = dataset(workspace)
    d.dataset_json["dataset"] = {f"tr_{i}": {"images": [f"$ARCHIVE/{i}.nii.gz"], "label": "x"} for i in range(2)}
    assert raw_images(d, "imagesTr") == [Path("/archive/0.nii.gz"), Path("/archive/1.nii.gz")]
    assert raw_images(d, "imagesTr", {"tr_1"}) == [Path("/archive/1.nii.gz")]
    assert [file.name for file in raw_images(d, "imagesTs")] == ["ts_0_0000.nii.gz", "ts_1_0000.nii.gz"]


def test_spacing_of_transposed_cases(workspace: Workspace):
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json")) | {
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
    }
    spacing = plans["configurations"]["3d_fullres"]["spacing"]
    plans["configurations"]["3d_fullres"]["spacing"] = [spacing[1], spacing[0], spacing[2]]
    assert spacing[0] != spacing[1]
    d = UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {})
    preprocess(d, 1)
    assert of_other_spacing(d, nnUNetDatasetBlosc2(str(d.folder), d.done_cases())) == []


def test_a_resampling_of_ones_own_goes_by_rules_of_its_own(workspace: Workspace, monkeypatch):
    d = dataset(workspace)
    preprocess(d, 1)
    cases = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0"])
    monkeypatch.setattr(checks, "compute_new_shape", lambda *_: [1, 1, 1])
    checks.check_spacing(d, cases, ["un_0"])


def test_orientations_that_nobody_knows(workspace: Workspace):
    assert orientation({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}) is None, "of a 2-D image"
    d = dataset(workspace)
    preprocess(d, 1)
    labeled = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0"])
    properties = load_pickle(str(d.folder / "un_1.pkl"))
    write_pickle({k: v for k, v in properties.items() if k != "sitk_stuff"}, str(d.folder / "un_1.pkl"))
    assert other_orientations(labeled, d.folder, ["un_0", "un_1"]) == ({}, ["LPS"])
    file = str(d.labeled_folder / "tr_0.pkl")
    write_pickle({k: v for k, v in load_pickle(file).items() if k != "sitk_stuff"}, file)
    assert other_orientations(labeled, d.folder, ["un_0", "un_1"]) == ({}, [])


def test_labelled_cases_without_locations(workspace: Workspace):
    d = dataset(workspace)
    file = str(d.labeled_folder / "tr_0.pkl")
    write_pickle({**load_pickle(file), "class_locations": None}, file)
    assert checks.cases_without_foreground(nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0", "tr_1"])) == ["tr_0"]


def test_labelled_voxels_of_the_same_size(workspace: Workspace):
    d = dataset(workspace)
    preprocess(d, 1)
    cases = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_1"])
    before = labeled_content(d, cases)
    cache = d.folder / ".state" / "labeled" / "tr_1.json"
    recorded = CaseState.read(cache)
    os.utime(d.labeled_folder / "tr_1.b2nd", ns=(1, 1))
    CaseState(recorded.fingerprint, recorded.sources, "old voxels").write(cache)
    assert labeled_content(d, cases) == before


def test_other_images_that_are_not_there(workspace: Workspace):
    preprocess(dataset(workspace), 1)
    assert same_files(dataset(workspace), ["un_0"], [workspace.root / "gone.nii.gz"]) == {}
