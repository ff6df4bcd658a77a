"""Unlabelled cases: where they are, their preprocessing, and what is said when something is wrong with them."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
from batchgenerators.utilities.file_and_folder_operations import load_json
from conftest import Workspace, blobs, write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_caml.preprocessing import host, is_leftover, preprocess
from nnunet_caml.states import STATE_FOLDER, read_sources, renewed_sources
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset, list_folder


def dataset(workspace: Workspace, configuration: str = "3d_tiny") -> UnlabeledDataset:
    plans = PlansManager(load_json(str(workspace.preprocessed / "nnUNetPlans.json")))
    return UnlabeledDataset.create(plans, configuration, load_json(str(workspace.preprocessed / "dataset.json")))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_preprocessed_as_nnunet_preprocesses_labelled_cases(workspace: Workspace):
    """The image of a labelled case, given as unlabelled, comes out with the very same voxels."""
    shutil.copy(workspace.raw / "imagesTr/tr_0_0000.nii.gz", workspace.raw / "imagesUn/copy_0000.nii.gz")
    d = dataset(workspace)
    assert preprocess(d, 1) == 6
    ours = nnUNetDatasetBlosc2(str(d.folder), ["copy"]).load_case("copy")
    theirs = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0"]).load_case("tr_0")
    assert np.array_equal(ours[0][:], theirs[0][:])
    assert preprocess(d, 1) == 0
    assert d.usable_cases() == ["copy", *[f"un_{i}" for i in range(5)]]


def test_command_line_shares_the_work_between_parts(workspace: Workspace):
    for part, done in ((0, 3), (1, 2)):
        command = f"nnunet-caml preprocess -d 101 -c 3d_tiny -np 1 -num_parts 2 -part_id {part}"
        assert f"3d_tiny: {done} unlabelled cases preprocessed" in workspace.run(*command.split())
    assert len(dataset(workspace).done_cases()) == 5
    assert "-part_id must be from 0 to 1" in workspace.run(
        *["nnunet-caml", "preprocess", "-d", "101", "-num_parts", "2", "-part_id", "2"], status=1
    )


def test_the_same_images_give_the_same_bytes(workspace: Workspace):
    """Also those of several Blosc2 blocks, whose order in the file is up to its threads."""
    shutil.rmtree(workspace.raw / "imagesUn")
    large = np.random.default_rng(0).normal(size=(80, 80, 80)).cumsum(0).astype(np.float32)
    for i in range(4):
        write_image(large, workspace.raw / f"imagesUn/large_{i}_0000.nii.gz")
    d = dataset(workspace)
    preprocess(d, 1)
    assert len({(d.folder / f"large_{i}.b2nd").read_bytes() for i in range(4)}) == 1


def test_killed_preprocessing_goes_on_and_gives_the_same_files(workspace: Workspace, tmp_path: Path):
    for i in range(30):
        write_image(blobs(500 + i)[0], workspace.raw / f"imagesUn/more_{i:02}_0000.nii.gz")
    d = dataset(workspace)
    preprocess(d, 1)
    unbroken = contents(d.folder)
    shutil.rmtree(d.folder)

    process = workspace.start(*["nnunet-caml", "preprocess", "-d", "101", "-c", "3d_tiny", "-np", "1"])
    while len(list((d.folder / STATE_FOLDER).glob("*.json"))) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(d.done_cases())
    assert 5 <= done < 35
    assert preprocess(d, 1) == 35 - done
    assert contents(d.folder) == unbroken


def test_half_a_case_is_not_a_case(workspace: Workspace):
    d = dataset(workspace)
    preprocess(d, 1)
    d.state_file("un_1").write_text('{"fingerpr')
    d.state_file("un_2").unlink()
    assert d.done_cases() == ["un_0", "un_3", "un_4"]
    assert preprocess(d, 1) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("spacing", [2.0, 1.5, 1.5]), ("normalization_schemes", ["NoNormalization"]), ("resampling_fn_data_kwargs", {"order": 1})],
)
def test_changed_plans_are_done_again(workspace: Workspace, key: str, value: object):
    preprocess(dataset(workspace), 1)
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    entry = plans["configurations"]["3d_fullres"]
    entry[key] = {**entry[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(plans))
    assert dataset(workspace).done_cases() == []
    assert preprocess(dataset(workspace), 1) == 5
    assert len(dataset(workspace).done_cases()) == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transpose_forward", [1, 0, 2]),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 1.0, "std": 2.0}}),
        ("image_reader_writer", "NibabelIO"),
        ("use_mask_for_norm", [True]),
        ("preprocessor_name", "AnotherPreprocessor"),
    ],
)
def test_whatever_in_the_plans_the_voxels_depend_on_counts(workspace: Workspace, key: str, value: object):
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json"))
    configuration = plans["configurations"]["3d_fullres"]
    if key.startswith("foreground"):
        configuration["normalization_schemes"] = ["CTNormalization"]
    before = UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {}).fingerprint()
    part = plans if key in plans else configuration
    assert part[key] != value
    part[key] = value
    assert UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {}).fingerprint() != before


def test_changed_patch_size_is_not_done_again_and_a_changed_image_is(workspace: Workspace):
    preprocess(dataset(workspace), 1)
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    file.write_text(json.dumps(plans))
    assert preprocess(dataset(workspace), 1) == 0
    write_image(blobs(77)[0][:, :-1], workspace.raw / "imagesUn/un_3_0000.nii.gz")
    assert preprocess(dataset(workspace), 1) == 1


def test_an_image_changed_in_place_is_done_again_and_one_that_was_only_copied_is_not(workspace: Workspace):
    """Uncompressed images of one shape have one size."""
    description = workspace.raw / "dataset.json"
    description.write_text(description.read_text(encoding="utf-8").replace(".nii.gz", ".nii"), encoding="utf-8")
    for file in (workspace.raw / "imagesUn").iterdir():
        file.unlink()
    files = [workspace.raw / f"imagesUn/un_{i}_0000.nii" for i in range(3)]
    for i, file in enumerate(files):
        write_image(blobs(i)[0], file)
    assert preprocess(dataset(workspace), 1) == 3
    size = files[0].stat().st_size
    write_image(blobs(77)[0], files[0])
    assert files[0].stat().st_size == size
    os.utime(files[1], ns=(1, 1))
    assert preprocess(dataset(workspace), 1) == 1


def test_files_with_several_channels(workspace: Workspace):
    """Such as the colour PNG of nnU-Net's own example: one file for three channels."""
    for folder in (workspace.raw, workspace.preprocessed):
        file = folder / "dataset.json"
        content = {
            **json.loads(file.read_text(encoding="utf-8")),
            "channel_names": dict(enumerate("RGB")),
            "file_ending": ".png",
        }
        file.write_text(json.dumps(content), encoding="utf-8")
    plans_file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["image_reader_writer"] = "NaturalImage2DIO"
    flat = {"patch_size": [16, 16], "spacing": [1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"] * 3}
    plans["configurations"]["3d_fullres"].update(flat, use_mask_for_norm=[False] * 3)
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities.update(dict.fromkeys("12", intensities["0"]))
    plans_file.write_text(json.dumps(plans), encoding="utf-8")
    shutil.rmtree(workspace.raw / "imagesUn")
    (workspace.raw / "imagesUn").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        skimage.io.imsave(workspace.raw / f"imagesUn/un_{i}_0000.png", rng.integers(1, 255, (24, 20, 3), np.uint8))
    assert preprocess(dataset(workspace), 1) == 2
    skimage.io.imsave(workspace.raw / "imagesUn/grey_0000.png", rng.integers(1, 255, (24, 20), np.uint8))
    with pytest.raises(UnlabeledDataError, match=r"case grey \(grey_0000\.png\) has 1 channels, the plans were made for 3"):
        preprocess(dataset(workspace), 1)


def test_some_cases_with_fewer_files_than_others(tmp_path: Path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UnlabeledDataError, match=r"case b .* lacks channel 0001: dataset\.json names 2"):
        list_folder(tmp_path, ".nii.gz", 2)


def test_images_in_a_folder_within(tmp_path: Path):
    """As somebody has them who keeps a folder for each patient. Other folders do no harm."""
    (tmp_path / "a_0000.nii.gz").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/protocol.pdf").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/b_0000.nii.gz").touch()
    assert list(list_folder(tmp_path, ".nii.gz", 1)) == ["a"]
    (tmp_path / "patient_7/mr").mkdir(parents=True)
    (tmp_path / "patient_7/mr/b_0000.nii.gz").touch()
    with pytest.raises(
        UnlabeledDataError, match=r"patient_7/mr/b_0000\.nii\.gz lies in a folder within .*as CASE_0000\.nii\.gz"
    ):
        list_folder(tmp_path, ".nii.gz", 1)


def test_spacing_beside_tiff_images(tmp_path: Path):
    """nnU-Net's reader of 3-D TIFF takes the spacing from CASE.json."""
    for name in ("a_0000.tif", "a.json", "b_0000.tif"):
        (tmp_path / name).write_text(name)
    cases = list_folder(tmp_path, ".tif", 1)
    assert cases == {case: [tmp_path / f"{case}_0000.tif"] for case in "ab"}
    before = read_sources(cases["a"])
    assert renewed_sources(before, cases["a"])
    (tmp_path / "a.json").write_text("b.json")
    assert not renewed_sources(before, cases["a"]), "another spacing is another image"
    (tmp_path / "a.json").unlink()
    assert not renewed_sources(before, cases["a"]), "and so is none"
    (tmp_path / "c.json").touch()
    with pytest.raises(UnlabeledDataError, match=r"c\.json is not named like"):
        list_folder(tmp_path, ".tif", 1)


def test_entry_of_dataset_json_leaves_files_where_they_are(workspace: Workspace, tmp_path: Path, monkeypatch):
    shutil.move(workspace.raw / "imagesUn", tmp_path / "archive")
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "archive"))
    file = workspace.raw / "dataset.json"
    entry = {"far": {"images": ["$ARCHIVE/un_0_0000.nii.gz"]}, "near": {"images": ["imagesTs/ts_0_0000.nii.gz"]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}))
    d = dataset(workspace)
    assert preprocess(d, 1) == 2
    assert d.usable_cases() == ["far", "near"]
    # raw data gone, preprocessed there
    shutil.rmtree(workspace.raw)
    assert dataset(workspace).usable_cases() == ["far", "near"]
    assert preprocess(dataset(workspace), 1) == 0


def test_a_case_in_both_places(workspace: Workspace):
    file = workspace.raw / "dataset.json"
    entry = {"un_1": {"images": ["imagesTs/ts_0_0000.nii.gz"]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}))
    with pytest.raises(UnlabeledDataError, match=r'un_1 is both in .*imagesUn and in the entry "unlabeled" of .*dataset\.json'):
        dataset(workspace).raw_cases()


def break_name(folder: Path) -> None:
    (folder / "un_0_0000.nii.gz").rename(folder / "un_0.nii.gz")


def break_extra_channel(folder: Path) -> None:
    shutil.copy(folder / "un_0_0000.nii.gz", folder / "un_0_0001.nii.gz")


def break_missing_channel(folder: Path) -> None:
    (folder / "un_0_0000.nii.gz").rename(folder / "un_0_0001.nii.gz")


def break_empty(folder: Path) -> None:
    (folder / "un_0_0000.nii.gz").write_bytes(b"")


def break_truncated(folder: Path) -> None:
    file = folder / "un_0_0000.nii.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def break_garbage(folder: Path) -> None:
    (folder / "un_0_0000.nii.gz").write_bytes(b"not an image" * 100)


def break_nan(folder: Path) -> None:
    image = blobs(0)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    write_image(image, folder / "un_0_0000.nii.gz")


def break_infinite(folder: Path) -> None:
    image = blobs(0)[0].astype(np.float32)
    image[3, 3, 3] = np.inf
    write_image(image, folder / "un_0_0000.nii.gz")


def break_flat(folder: Path) -> None:
    write_image(blobs(0)[0][5], folder / "un_0_0000.nii.gz")


def break_zero(folder: Path) -> None:
    write_image(blobs(0)[0] * 0, folder / "un_0_0000.nii.gz")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_name, r"un_0\.nii\.gz is not named like nnU-Net's images"),
        (break_extra_channel, r"case un_0 .* has 2 channels, dataset\.json names 1"),
        (break_missing_channel, r"case un_0 .* lacks channel 0000"),
        (break_empty, r"un_0_0000\.nii\.gz of unlabelled case un_0 is empty"),
        (break_truncated, r"un_0_0000\.nii\.gz of unlabelled case un_0 is truncated or damaged"),
        (break_garbage, r"un_0_0000\.nii\.gz of unlabelled case un_0 is truncated or damaged"),
        (break_nan, r"un_0 has NaN or infinite voxels"),
        (break_infinite, r"un_0 has NaN or infinite voxels"),
        (break_flat, r"un_0 is two-dimensional .* configuration 3d_tiny is three-dimensional"),
        (break_zero, r"un_0 .* is zero everywhere"),
    ],
)
def test_bad_files_get_a_sentence_and_the_others_are_kept(workspace: Workspace, damage, sentence: str):
    damage(workspace.raw / "imagesUn")
    with pytest.raises(UnlabeledDataError, match=sentence):
        preprocess(dataset(workspace), 1)
    if damage not in (break_name, break_extra_channel, break_missing_channel):
        assert dataset(workspace).done_cases() == ["un_1", "un_2", "un_3", "un_4"]
    # nothing but finished cases and their states is left
    assert not list(workspace.preprocessed.rglob("tmp-*"))


def test_channels_on_different_grids(workspace: Workspace):
    for name in ("dataset.json",):
        for folder in (workspace.raw, workspace.preprocessed):
            json_ = json.loads((folder / name).read_text(encoding="utf-8"))
            json_["channel_names"] = {"0": "T1", "1": "T2"}
            (folder / name).write_text(json.dumps(json_))
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
    }
    plans["foreground_intensity_properties_per_channel"]["1"] = plans["foreground_intensity_properties_per_channel"]["0"]
    file.write_text(json.dumps(plans))
    for i in range(5):
        write_image(blobs(i)[0], workspace.raw / f"imagesUn/un_{i}_0001.nii.gz")
    write_image(blobs(1)[0], workspace.raw / "imagesUn/un_1_0001.nii.gz", spacing=(1, 1, 2))
    write_image(blobs(2)[0][:-1], workspace.raw / "imagesUn/un_2_0001.nii.gz")
    moved = sitk.ReadImage(str(workspace.raw / "imagesUn/un_3_0000.nii.gz"))
    moved.SetOrigin((5, 0, 0))
    sitk.WriteImage(moved, str(workspace.raw / "imagesUn/un_3_0001.nii.gz"))
    with pytest.raises(UnlabeledDataError) as error:
        preprocess(dataset(workspace), 1)
    text = str(error.value)
    assert "3 of 5 unlabelled cases" in text
    assert "The channels of unlabelled case un_1 differ in geometry" in text
    assert "The channels of unlabelled case un_2 differ in geometry" in text
    assert "The channels of unlabelled case un_3 do not lie in the same place" in text
    assert "up to 5 voxels apart" in text
    assert dataset(workspace).done_cases() == ["un_0", "un_4"]


def test_a_full_disk_is_said_and_nothing_is_lost(workspace: Workspace):
    """A limit on the size of files makes writing fail as a full disk does."""
    d = dataset(workspace)
    preprocess(d, 1, part=0, parts=2)
    before = contents(d.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises((OSError, UnlabeledDataError), match=r"no space left in .* while preprocessing"):
            preprocess(d, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(d.folder) == before
    assert preprocess(d, 1) == 2


def test_what_another_node_has_just_finished_is_no_leftover(tmp_path: Path):
    assert not is_leftover(tmp_path / "tmp-case@elsewhere@1")


def test_of_another_node_only_what_is_older_than_a_day_is_a_leftover(tmp_path: Path):
    for hours, leftover in ((0, False), (23, False), (48, True)):
        temporary = tmp_path / f"tmp-case_{hours}@1a2b3c4d@elsewhere@1"
        temporary.mkdir()
        os.utime(temporary, (time.time() - 3600 * hours,) * 2)
        assert is_leftover(temporary) == leftover, hours


def test_leftovers_of_dead_processes_are_removed(workspace: Workspace):
    d = dataset(workspace)
    node = host()
    dead, alive = (d.folder / STATE_FOLDER / f"tmp-un_0@{node}@{pid}" for pid in (2**22 - 1, os.getppid()))
    dead.mkdir(parents=True)
    alive.mkdir()
    preprocess(d, 1)
    assert not dead.exists()
    assert alive.exists()
