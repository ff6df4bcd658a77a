"""What is recorded of raw files and preprocessed cases, and what preprocessing makes of files that are not as usual."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json
from conftest import Workspace, blobs, write_image
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_unlabeled import dataset

from nnunet_caml import images, preprocessing, states
from nnunet_caml.images import check_images
from nnunet_caml.preprocessing import host, needs_work, preprocess, preprocess_case
from nnunet_caml.states import CaseState, read_sources, renewed_sources, source_files, voxel_digest
from nnunet_caml.unlabeled import NORMALIZED_BY_IMAGE, UnlabeledDataError, UnlabeledDataset, number_of_channels


def test_a_change_far_into_a_file_is_seen(tmp_path: Path):
    (file := tmp_path / "un_0_0000.nii").write_bytes(bytes(3 * 2**20))
    recorded = read_sources([file])
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"1")
    os.utime(file, ns=(1, 1))
    assert not renewed_sources(recorded, [file])


def test_every_channel_and_the_shape_count_in_the_digest_of_voxels():
    data = np.arange(24.0).reshape(2, 3, 4)
    digests = {voxel_digest(x) for x in (data, data.reshape(2, 4, 3), np.stack((data[0], data[0])), data[:1])}
    assert len(digests) == 4


@pytest.mark.parametrize("content", ["[]", "5", '{"of": "another version"}'])
def test_a_file_that_is_no_state(tmp_path: Path, content: str):
    (file := tmp_path / "un_0.json").write_text(content, encoding="utf-8")
    assert CaseState.read(file) is None


def test_raw_files_that_have_other_times_where_nothing_may_be_written(workspace: Workspace, monkeypatch):
    preprocess(dataset(workspace), 1)
    for file in (workspace.raw / "imagesUn").iterdir():
        os.utime(file, ns=(10**18, 10**18))

    def refuse(path: Path, *_args: object, **_settings: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert preprocess(dataset(workspace), 1) == 0


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".TIF"])
def test_spacing_beside_tiff_images_of_any_ending(tmp_path: Path, ending: str):
    for name in (f"a_0000{ending}", "a.json"):
        (tmp_path / name).touch()
    assert source_files([tmp_path / f"a_0000{ending}"]) == [tmp_path / f"a_0000{ending}", tmp_path / "a.json"]


def test_channels_under_their_older_name():
    assert number_of_channels({"modality": {"0": "T1", "1": "T2"}}) == 2


def test_raw_images_without_a_description(workspace: Workspace):
    (workspace.raw / "dataset.json").unlink()
    assert len(dataset(workspace).raw_cases()) == 5


def two_channels(workspace: Workspace, reader: str = "SimpleITKIO", copied: bool = True) -> tuple[UnlabeledDataset, list[Path]]:
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json")) | {"image_reader_writer": reader}
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    files = [workspace.raw / f"imagesUn/un_0_000{channel}.nii.gz" for channel in range(2)]
    if copied:
        shutil.copy(*files)
    return UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {}), files


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_origins_that_differ_by_rounding(workspace: Workspace, reader: str):
    """Of no more than a hundredth of a voxel nothing comes, and nnU-Net takes it with labelled cases, with a warning."""
    d, files = two_channels(workspace, reader)
    for distance in (0.009, 0.011):
        moved = sitk.ReadImage(str(files[0]))
        moved.SetOrigin((distance, 0, 0))
        sitk.WriteImage(moved, str(files[1]))
        if distance > 0.01:
            with pytest.raises(UnlabeledDataError, match=r"do not lie in the same place: .* up to 0\.011 voxels apart"):
                check_images("un_0", files, d)
        else:
            check_images("un_0", files, d)


def test_channels_that_the_reader_turns_to_one_grid(workspace: Workspace):
    """Stored in different orientations, read in one."""
    d, files = two_channels(workspace, "NibabelIOWithReorient")
    image = sitk.ReadImage(str(files[0]))
    sitk.WriteImage(sitk.Flip(image, [True, True, False]), str(files[1]))  # the voxels stay where they are
    check_images("un_0", files, d)
    with pytest.raises(UnlabeledDataError, match="do not lie in the same place"):
        check_images("un_0", files, two_channels(workspace, "NibabelIO", copied=False)[0])


@pytest.mark.parametrize("before", [None, "3"])
def test_the_threads_of_blosc_are_what_they_were(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("BLOSC_NTHREADS", raising=False)
    else:
        monkeypatch.setenv("BLOSC_NTHREADS", before)
    with preprocessing.single_blosc_thread():
        assert os.environ["BLOSC_NTHREADS"] == "1"
    assert os.environ.get("BLOSC_NTHREADS") == before


def test_a_done_case_of_which_one_channel_is_gone(workspace: Workspace):
    """It stays done; not if another file is named in its place, which is not there."""
    d = dataset(workspace)
    (first,) = d.raw_cases()["un_0"]
    preprocess_case(d, "un_0", [first])
    second = workspace.root / "t2.nii.gz"
    shutil.copy(first, second)
    state = CaseState.read(d.state_file("un_0"))
    state.renew(d.state_file("un_0"), read_sources([first, second]))
    second.unlink()
    assert not needs_work(d, "un_0", [first, second])
    assert needs_work(d, "un_0", [first, workspace.root / "typo.nii.gz"])


def test_host_tells_containers_apart():
    namespace = Path("/proc/self/ns/pid")
    if not namespace.exists():
        pytest.skip("no Linux")
    assert str(namespace.stat().st_ino) in host()


def test_raw_data_of_another_machine_are_no_missing_files(workspace: Workspace, capsys: pytest.CaptureFixture):
    """The list is there, and none of the files that it names."""
    file = workspace.raw / "dataset.json"
    shutil.move(workspace.raw / "imagesUn", workspace.root / "archive")
    entry = {"far": {"images": [str(workspace.root / "archive/un_0_0000.nii.gz")]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    assert preprocess(dataset(workspace), 1) == 1
    shutil.rmtree(workspace.root / "archive")
    assert preprocess(dataset(workspace), 1) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_nothing_may_be_written_by_any_number(tmp_path: Path, monkeypatch):
    def refuse(path: Path, *_args: object, **_settings: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(preprocessing.StorageError, match="Operation not permitted"):
        preprocessing.make_writable(tmp_path / ".state", ["a"])


def test_nan_in_a_file_that_is_no_nifti(workspace: Workspace):
    d, files = dataset(workspace), [workspace.root / "un_0_0000.nrrd"]
    image = blobs(0)[0].astype(np.float32)
    write_image(image, files[0])
    check_images("un_0", files, d)
    image[3, 3, 3] = np.nan
    write_image(image, files[0])
    with pytest.raises(ValueError, match="has NaN or infinite voxels"):
        check_images("un_0", files, d)


def test_an_image_that_may_not_be_read_is_named(workspace: Workspace, monkeypatch):
    """The other cases are done all the same."""
    real = preprocessing.read_sources

    def refuse(files: list[Path]) -> dict:
        if files[0].name.startswith("un_2"):
            raise PermissionError(errno.EACCES, "Permission denied", str(files[0]))
        return real(files)

    monkeypatch.setattr(preprocessing, "read_sources", refuse)
    with pytest.raises(ValueError, match=r"1 of 5 unlabelled cases .*\n.*case un_2 .*Permission denied"):
        preprocess(dataset(workspace), 1)
    assert len(dataset(workspace).done_cases()) == 4


def test_a_changed_image_that_may_not_be_read_is_named(workspace: Workspace, monkeypatch):
    """As one of a new case is; before that it would be no error of a case, but of the run."""
    preprocess(dataset(workspace), 1)
    (workspace.raw / "imagesUn/un_2_0000.nii.gz").touch()
    (workspace.preprocessed / "nnUNetPlans_3d_fullres_unlabeled/un_3.pkl").unlink()

    def refusing(real: Callable) -> Callable:
        def read(file: Path) -> object:
            if file.name == "un_2_0000.nii.gz":
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return real(file)

        return read

    for module, name in ((states, "file_digest"), (images, "damage")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    with pytest.raises(ValueError, match=r"1 of 5 .*\n.*un_2_0000.nii.gz of unlabelled case un_2 cannot be opened"):
        preprocess(dataset(workspace), 1)
    assert "un_3" in dataset(workspace).done_cases()


def test_a_folder_that_may_not_be_read_is_named(workspace: Workspace, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnlabeledDataError, match=r"imagesUn cannot be opened \(Permission denied\)"):
        dataset(workspace).raw_cases()


@pytest.mark.parametrize("scheme", sorted(NORMALIZED_BY_IMAGE))
def test_with_one_more_label_scans_are_not_done_again_for_nothing(workspace: Workspace, scheme: str):
    """Planning again measures other intensities in the foreground, which matter to schemes such as that for CT alone."""
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json"))
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = [scheme]
    before = UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {}).fingerprint()
    plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 1.0, "std": 2.0}}
    assert UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {}).fingerprint() == before
