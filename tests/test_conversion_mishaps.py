"""What goes wrong around a conversion: full disks, other runs, signals, missing rights, names of every kind."""

import gzip
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_helpers import SCRIPTS, files_of, nothing_left, random_image, run, sentence, split_of, voxels, write
from conversion_sources import raw_data_set

from nnunet_caml.conversion import ConversionError, find_images, read_image, writer
from nnunet_caml.conversion.integrity import finite_in_file
from nnunet_caml.conversion.searching import find_files
from nnunet_caml.conversion.writer import _alone

ARGUMENTS = ("--dataset-id", 7, "--name", "Mine", "--labeled")


def test_a_file_that_was_cut_short_is_noticed(tmp_path, raw):
    """As by a quota; ITK writes what it can of a compressed file and says nothing."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    noise = np.random.default_rng(0).integers(0, 30000, (20, 40, 40)).astype(np.int16)
    write(tmp_path / "more" / "u1.mha", noise)
    command = [sys.executable, SCRIPTS / "hide_labels.py", source, *ARGUMENTS, "all", "-np", "1"]
    result = subprocess.run(
        [*map(str, command), "--unlabeled-from", str(tmp_path / "more")],
        capture_output=True,
        encoding="utf-8",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)),
    )
    assert result.returncode == 1
    assert "could not be written: a file was cut short, the disk may be full" in result.stderr
    assert nothing_left(raw)


def test_two_data_sets_of_one_number_are_not_written_at_once(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    raw.mkdir()
    with _alone(raw / ".Dataset007.lock", raw / "Dataset007_Other"):
        assert "written by another run" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)
    run("hide_labels.py", source, *ARGUMENTS, 2)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_Mine"]


def test_a_lock_is_not_that_of_a_file_which_another_run_has_removed(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    first = _alone(lock, tmp_path)
    first.__enter__()
    flock, ends = writer.fcntl.flock, [lambda: first.__exit__(None, None, None)]

    def after_the_first_has_ended(*arguments: object) -> None:
        if ends:
            ends.pop()()
        flock(*arguments)

    monkeypatch.setattr(writer.fcntl, "flock", after_the_first_has_ended)
    with (
        _alone(lock, tmp_path),
        pytest.raises(ConversionError, match="written by another run"),
        _alone(lock, tmp_path),
    ):
        pass
    assert not lock.exists()


def test_what_another_run_has_written_meanwhile_is_not_replaced(tmp_path, raw, capsys, monkeypatch):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    alone = writer._alone

    def later(lock: Path, target: Path):
        monkeypatch.setattr(writer, "_alone", alone)
        run("hide_labels.py", source, *ARGUMENTS, 2)
        return alone(lock, target)

    monkeypatch.setattr(writer, "_alone", later)
    assert "exists already" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 3)
    assert len(split_of(raw / "Dataset007_Mine")["labeled"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("renames", [1, 2])
def test_signals_during_the_swap_come_too_late(tmp_path, raw, monkeypatch, number, renames):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    run("hide_labels.py", source, *ARGUMENTS, 2)
    rename, left = Path.rename, [renames]

    def interrupted(path: Path, target: Path) -> Path:
        done = rename(path, target)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    run("hide_labels.py", source, *ARGUMENTS, 3, "--overwrite")
    assert left[0] <= 0
    assert [path.name for path in raw.iterdir()] == ["Dataset007_Mine"]
    assert len(split_of(raw / "Dataset007_Mine")["labeled"]) == 3


def test_a_channel_in_the_middle_is_missing(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine", channels=2)
    shutil.move(source / "imagesTr" / "p1_0001.nii.gz", source / "imagesTr" / "p1_0002.nii.gz")
    assert "p1_0001.nii.gz does not exist" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, "all")
    shutil.move(source / "imagesTr" / "p1_0002.nii.gz", source / "imagesTr" / "p1_0001.nii.gz")
    for name in ("u2_0000", "u2_0001", "bad_0000", "bad_0002"):
        write(tmp_path / "more" / f"{name}.nii.gz", random_image(0))
    more = ("--unlabeled-from", tmp_path / "more")
    assert "bad_0001.nii.gz does not exist" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, "all", *more)
    run("hide_labels.py", source, *ARGUMENTS, "all", *more, "--skip-broken")
    assert split_of(raw / "Dataset007_Mine")["left_out"] == ["bad"]


def test_voxels_that_itk_would_take_for_zero(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    image = random_image(0, np.float32)
    image[2, 2, 2] = np.nan
    write(source / "imagesUn" / "u0_0000.nii.gz", image)
    assert voxels(source / "imagesUn" / "u0_0000.nii.gz")[2, 2, 2] == 0
    assert "u0_0000.nii.gz has voxels that are NaN" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)


def test_two_files_of_one_channel(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    for name in ("u1_0000.nii.gz", "u2_0000.nii.gz", "u2_0000.nrrd"):
        write(tmp_path / "more" / name, random_image(0))
    complaint = sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2, "--unlabeled-from", tmp_path / "more")
    assert "u2_0000.nrrd are the same channel of a case" in complaint


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_last_voxel_of_headers_of_all_kinds(tmp_path, ending, kind, value):
    """Also where the header says that voxels begin at 0, which ITK corrects."""
    array = np.ones((3, 4, 5), np.dtype(kind))
    array[-1, -1, -1] = value
    order = kind[0]
    for offset in (352.0, 0.0, 416.0):
        header = bytearray(352)
        struct.pack_into(f"{order}i", header, 0, 348)
        struct.pack_into(f"{order}8h", header, 40, 3, 5, 4, 3, 1, 1, 1, 1)
        struct.pack_into(f"{order}2h", header, 70, {4: 16, 8: 64}[array.itemsize], 8 * array.itemsize)
        struct.pack_into(f"{order}4f", header, 76, 1, 1, 1, 1)
        struct.pack_into(f"{order}3f", header, 108, offset, 1.0, float("nan"))  # and no number for what is added
        header[344:348] = b"n+1\0"
        path = tmp_path / f"i{offset}{ending}"
        content = bytes(header) + bytes(max(0, int(offset) - 352)) + array.tobytes()
        path.write_bytes(gzip.compress(content) if "gz" in ending.lower() else content)
        assert finite_in_file(path) == np.isfinite(value)


def test_integers_are_finite_whatever_their_header_says_of_scaling(tmp_path):
    path = write(tmp_path / "i.nii", random_image(0))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, 1.0, float("nan"))
    path.write_bytes(content)
    assert finite_in_file(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)).shape, random_image(0).shape)


def forbid(monkeypatch, name: str) -> None:
    """A folder that may not be opened, which there is none of for whoever runs these tests as root."""

    def deny(look):
        def call(path):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return look(path)

        return call

    for owner, function in ((os, "scandir"), (os, "listdir"), (Path, "iterdir")):
        monkeypatch.setattr(owner, function, deny(getattr(owner, function)))


def test_folders_of_the_system_are_passed_by(tmp_path, monkeypatch):
    write(tmp_path / "a_0000.nii.gz", random_image(0))
    (tmp_path / "lost+found").mkdir()
    forbid(monkeypatch, "lost+found")
    assert len(find_files(tmp_path, r".*\.nii\.gz")) == 1
    assert [case.identifier for case in find_images(tmp_path)] == ["a"]


def test_a_lock_that_another_user_has_left(tmp_path, raw, monkeypatch):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    raw.mkdir()
    lock = raw / ".Dataset007.lock"
    lock.touch()
    opened = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if path == lock and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    run("hide_labels.py", source, *ARGUMENTS, 2)
    assert (raw / "Dataset007_Mine").is_dir()


def test_a_folder_that_cannot_be_opened_is_not_left_out(tmp_path, monkeypatch):
    write(tmp_path / "a" / "a.nii.gz", random_image(0))
    assert len(find_files(tmp_path, r".*\.nii\.gz")) == 1
    forbid(monkeypatch, "a")
    with pytest.raises(ConversionError, match=r"/a cannot be opened: Permission denied"):
        find_files(tmp_path, r".*\.nii\.gz")


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "a" / "a.nii.gz", random_image(0))
    for name in ("up", "down"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    for name in ("0", "latest"):
        (tmp_path / name).symlink_to(tmp_path / "a")
    assert find_files(tmp_path, r".*\.nii\.gz") == [tmp_path / "a" / "a.nii.gz"]


def test_what_nnunet_keeps_below_the_source_is_no_part_of_it(tmp_path, monkeypatch):
    """As with everything on one disk, the data set of an earlier conversion among it."""
    for i, variable in enumerate(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        write(tmp_path / variable / f"Dataset001_A/imagesTr/old{i}.nii.gz", random_image(0))
    write(tmp_path / "scans" / "new.nii.gz", random_image(1))
    assert find_files(tmp_path, r".*\.nii\.gz") == [tmp_path / "scans" / "new.nii.gz"]
    within = tmp_path / "nnUNet_raw"
    assert find_files(within, r".*\.nii\.gz") == [within / "Dataset001_A/imagesTr/old0.nii.gz"], "asked for by name"
    monkeypatch.setenv("nnUNet_results", "")
    assert len(find_files(tmp_path, r".*\.nii\.gz")) == 2


def test_damaged_list_of_patients(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (source / "split.json").write_text('{"patients": {"p0": "a",', encoding="utf-8")
    assert "split.json cannot be read, and patients" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)


def test_errors_of_the_system_are_sentences(tmp_path, monkeypatch, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "file" / "raw"))
    assert "file/raw: Not a directory" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)


@pytest.mark.parametrize("name", ["p1_seg_0000.nii.gz", "M\udcfcller_0000.nii.gz"])
def test_names_that_do_harm_later(tmp_path, raw, capsys, name):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    shutil.copyfile(source / "imagesUn" / "u0_0000.nii.gz", source / "imagesUn" / name)
    complaint = sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)
    assert "Take it away if it is a label" in complaint or "not UTF-8" in complaint


def test_preview_of_a_name_that_looks_like_a_formula(tmp_path, raw):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    shutil.copyfile(source / "imagesUn" / "u0_0000.nii.gz", source / "imagesUn" / "$a_$_0000.nii.gz")
    run("hide_labels.py", source, *ARGUMENTS, 2, "--preview")
    assert (raw / "Dataset007_Mine" / "preview.png").is_file()


def test_a_preview_that_fails_costs_the_picture_only(tmp_path, raw, capsys, monkeypatch):
    def fail(*arguments: Any) -> None:
        arguments[3].write_bytes(b"half")
        raise ValueError("no font")

    monkeypatch.setattr("nnunet_caml.conversion.preview.write_preview", fail)
    run("hide_labels.py", raw_data_set(tmp_path / "Dataset050_Mine"), *ARGUMENTS, 2, "--preview")
    assert "preview.png could not be drawn: no font" in capsys.readouterr().err
    assert (raw / "Dataset007_Mine" / "dataset.json").is_file()
    assert not (raw / "Dataset007_Mine" / "preview.png").exists()


def test_images_in_a_folder_below_are_mentioned(tmp_path, raw, capsys):
    write(tmp_path / "more" / "u1.nii.gz", random_image(0))
    write(tmp_path / "more" / "scanner2" / "u2.nii.gz", random_image(0))
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    run("hide_labels.py", source, *ARGUMENTS, 2, "--unlabeled-from", tmp_path / "more")
    assert "scanner2 holds images as well, which are not taken" in capsys.readouterr().err


def test_a_link_that_leads_nowhere_is_a_data_set(tmp_path, raw, capsys):
    raw.mkdir()
    (raw / "Dataset007_Mine").symlink_to(tmp_path / "unmounted")
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    before = files_of(source)
    assert "exists already" in sentence(capsys, "hide_labels.py", source, *ARGUMENTS, 2)
    assert (raw / "Dataset007_Mine").is_symlink()
    assert files_of(source) == before
