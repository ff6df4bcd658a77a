"""The data set as a whole: the same bytes again, links, whole or not at all, voxel types and geometry that stay."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_helpers import (
    OBLIQUE,
    dataset_json,
    files_of,
    image_of,
    nothing_left,
    random_image,
    random_label,
    run,
    sentence,
    split_of,
    voxels,
    write,
)
from conversion_sources import decathlon, left_atrium, raw_data_set

from nnunet_caml.conversion import Case, ConversionError, Dataset, convert, draw_split
from nnunet_caml.conversion.reading import check_same_grid


def test_same_command_gives_the_same_bytes(tmp_path, raw):
    source = decathlon(tmp_path / "Task07_Organ", **OBLIQUE)
    arguments = ("--dataset-id", 7, "--labeled", 2, "--test", 1, "--preview")
    run("decathlon.py", source, *arguments)
    first = files_of(raw / "Dataset007_Organ")
    shutil.rmtree(raw / "Dataset007_Organ")
    time.sleep(1.1)  # gzip's and ZIP's time stamps count seconds
    run("decathlon.py", source, *arguments, "-np", 2)
    assert files_of(raw / "Dataset007_Organ") == first
    assert any(content[:2] == b"\x1f\x8b" for content in first.values())


def test_same_bytes_in_other_formats(tmp_path, raw):
    source = left_atrium(tmp_path / "source", cases=2, tests=1)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--link")
    first = files_of(raw / "Dataset007_LeftAtrium")
    time.sleep(1.1)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--link", "--overwrite")
    assert files_of(raw / "Dataset007_LeftAtrium") == first


def test_link(tmp_path, raw, capsys):
    source = left_atrium(tmp_path / "source", cases=3, tests=1, **OBLIQUE)
    os.chdir(tmp_path)
    run("left_atrium.py", "source", "--dataset-id", 7, "--labeled", 1, "--link")
    target = raw / "Dataset007_LeftAtrium"
    assert dataset_json(target)["file_ending"] == ".nrrd"
    for path in target.glob("images*/*"):
        assert path.is_symlink()
        assert Path(os.readlink(path)) == source / path.name.removesuffix("_0000.nrrd") / "lgemri.nrrd"
    labels = list(target.glob("labels*/*"))
    assert len(labels) == 2
    assert not any(path.is_symlink() for path in labels)  # 255 has to become 1
    assert set(np.unique(voxels(labels[0]))) == {0, 1}
    assert "the format of 2 files does not allow a link" in capsys.readouterr().out
    # links lead to the file itself, not to another link that may vanish
    run("hide_labels.py", target, "--dataset-id", 8, "--labeled", 1, "--link")
    linked = next((raw / "Dataset008_LeftAtrium" / "imagesUn").iterdir())
    assert "source" in os.readlink(linked)
    # and copies are files
    run("hide_labels.py", target, "--dataset-id", 9, "--labeled", 1)
    assert not any(path.is_symlink() for path in (raw / "Dataset009_LeftAtrium").rglob("*"))


def test_four_channels_in_a_file_cannot_be_linked(tmp_path, raw, capsys):
    source = decathlon(tmp_path / "Task07_Organ")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 2, "--link")
    assert "12 converted, 2 linked" in capsys.readouterr().out


def test_existing_data_set_is_kept_unless_told(tmp_path, raw, capsys):
    source = left_atrium(tmp_path / "source")
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    before = files_of(raw)
    assert "--overwrite" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 3)
    assert files_of(raw) == before
    # an overwriting run that fails leaves the old one as it was
    broken = source / (source / "test.list").read_text(encoding="utf-8").split()[0] / "laendo.nrrd"
    content = broken.read_bytes()
    broken.write_bytes(content[:-10])
    sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--overwrite")
    assert files_of(raw) == before
    broken.write_bytes(content)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--overwrite")
    assert len(split_of(raw / "Dataset007_LeftAtrium")["labeled"]) == 3
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]


def test_number_taken_by_another_name(tmp_path, raw, capsys, monkeypatch):
    source = left_atrium(tmp_path / "source")
    (raw / "Dataset007_Other").mkdir(parents=True)
    assert "Dataset007_Other" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 7)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results" / "Dataset008_Trained").mkdir(parents=True)
    assert "Dataset008_Trained" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 8)
    assert "1 to 999" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 1000)


def test_source_is_never_replaced(tmp_path, raw, capsys):
    source = raw_data_set(raw / "Dataset007_Mine")
    before = files_of(raw)
    arguments = ("--dataset-id", 7, "--labeled", 2, "--overwrite")
    assert "its own source" in sentence(capsys, "hide_labels.py", source, *arguments)
    assert files_of(raw) == before


def test_links_into_the_data_set_that_gets_replaced_are_refused(tmp_path, raw, capsys):
    run("hide_labels.py", raw_data_set(raw / "Dataset007_Mine"), "--dataset-id", 8, "--labeled", 1, "--link")
    before = files_of(raw)
    arguments = (raw / "Dataset008_Mine", "--dataset-id", 7, "--labeled", 1, "--overwrite")
    assert "leave out --link" in sentence(capsys, "hide_labels.py", *arguments, "--link")
    assert files_of(raw) == before
    run("hide_labels.py", *arguments)  # copies are no danger


def test_a_link_to_a_data_set_can_be_replaced_again_and_again(tmp_path, raw):
    source = left_atrium(tmp_path / "source")
    (tmp_path / "far").mkdir()
    raw.mkdir()
    (raw / "Dataset007_LeftAtrium").symlink_to(tmp_path / "far")
    (raw / "Dataset007_LeftAtrium.zip").touch()  # no data set
    (raw / "Dataset007_Archive.zip").touch()
    for labeled in (2, 3):
        run("left_atrium.py", source, "--dataset-id", 7, "--labeled", labeled, "--overwrite")
        assert len(split_of(raw / "Dataset007_LeftAtrium")["labeled"]) == labeled
    assert not [path for path in raw.iterdir() if path.name.startswith(".")]


def test_leftovers_of_a_killed_run_are_removed_or_restored(tmp_path, raw):
    source = left_atrium(tmp_path / "source")
    (raw / ".Dataset007_LeftAtrium.partial" / "imagesTr").mkdir(parents=True)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]
    (raw / "Dataset007_LeftAtrium").rename(raw / ".Dataset007_LeftAtrium.old")  # killed between the two renames
    (source / "test.list").write_text("nobody", encoding="utf-8")
    with pytest.raises(SystemExit):
        run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_conversion_leaves_nothing(tmp_path, raw, stop):
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "from nnunet_caml.conversion import Case, Dataset, main, read_image\n"
        "def slow(path):\n    time.sleep(0.5)\n    return read_image(path)\n"
        "def find(source, options):\n"
        "    return [Case(f'c{n}', [source / 'i.nrrd'], source / 'l.nrrd') for n in range(100)]\n"
        "if __name__ == '__main__':\n"
        "    main(find, Dataset('Slow', ['CT'], {'background': 0, 'a': 1}, read_image=slow))\n",
        encoding="utf-8",
    )
    write(tmp_path / "i.nrrd", random_image(0))
    write(tmp_path / "l.nrrd", random_label(0).astype(np.uint8))
    command = [sys.executable, str(script), str(tmp_path), "--dataset-id", "7", "--labeled", "all", "-np", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # a shell starts background jobs, and so perhaps these tests, with interrupts ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if list(raw.rglob("*.nii.gz")):
            break
        time.sleep(0.05)
    assert list(raw.rglob("*.nii.gz"))
    process.send_signal(stop)
    _, error = process.communicate(timeout=30)
    if stop == signal.SIGKILL:  # nobody tidies up, but the workers go as well, which communicate() waits for
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[stop]
    assert "Traceback" not in error
    assert nothing_left(raw)


def test_skip_broken(tmp_path, raw, capsys):
    source = left_atrium(tmp_path / "source", cases=8)
    train = (source / "train.list").read_text(encoding="utf-8").split()
    (source / train[1] / "laendo.nrrd").unlink()
    (source / train[6] / "lgemri.nrrd").write_bytes(b"")
    shutil.rmtree(source / train[7])
    assert f"{train[1]} should have a label" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 3)
    assert nothing_left(raw)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--skip-broken")
    split = split_of(raw / "Dataset007_LeftAtrium")
    assert split["labeled"] == sorted([train[0], train[2]])
    assert split["unlabeled"] == sorted(train[3:6])
    assert split["left_out"] == sorted([train[1], train[6], train[7]])
    assert dataset_json(raw / "Dataset007_LeftAtrium")["numTraining"] == 2
    output = capsys.readouterr().out
    assert all(f"left out {train[number]}: " in output for number in (1, 6, 7))
    names = {path.name.split("_0000")[0].split(".")[0] for path in (raw / "Dataset007_LeftAtrium").glob("*/*")}
    assert names == {*split["labeled"], *split["unlabeled"], *split["test"]}


def test_skip_broken_with_nothing_left(tmp_path, raw, capsys):
    source = left_atrium(tmp_path / "source", cases=2)
    for path in source.glob("*/laendo.nrrd"):
        path.unlink()
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--skip-broken")
    assert "No labelled case is left" in complaint
    assert nothing_left(raw)


def test_small_differences_of_geometry_are_allowed_and_evened_out(tmp_path, raw):
    """nnU-Net refuses spacings of image and label that differ by 1e-4, which rounding in some tool easily makes."""
    write(tmp_path / "i.nii.gz", random_image(0), **OBLIQUE)
    write(tmp_path / "l.nii.gz", random_label(0).astype(np.uint8), **{**OBLIQUE, "spacing": (0.7813, 0.78, 3.3)})
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1})
    cases = [Case("c", [tmp_path / "i.nii.gz"], tmp_path / "l.nii.gz")]
    summary = convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1)
    image, label = (sitk.ReadImage(str(path)) for path in sorted(summary.folder.glob("*Tr/*")))
    check_same_grid(image, Path("image"), label, Path("label"))
    np.testing.assert_allclose(label.GetSpacing(), image.GetSpacing(), rtol=0, atol=1e-9)
    assert dict(summary.reports[0].files) == {"copied": 1, "converted": 1}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float64])
def test_voxel_types_stay(tmp_path, raw, dtype):
    write(tmp_path / "i.mha", random_image(0, dtype), **OBLIQUE)
    write(tmp_path / "l.mha", random_label(0).astype(np.int16), **OBLIQUE)
    cases = [Case("c", [tmp_path / "i.mha"], tmp_path / "l.mha")]
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1})
    summary = convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1)
    written = voxels(summary.folder / "imagesTr" / "c_0000.nii.gz")
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, random_image(0, dtype))


def test_header_texts_do_not_get_into_the_data_set(tmp_path, raw):
    image = image_of(random_image(0))
    image.SetMetaData("patient", "John Doe")
    sitk.WriteImage(image, str(tmp_path / "i.nrrd"))
    write(tmp_path / "l.nrrd", random_label(0).astype(np.uint8))
    cases = [Case("c", [tmp_path / "i.nrrd"], tmp_path / "l.nrrd")]
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1}, file_ending=".mha")
    summary = convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1)
    assert b"John Doe" not in b"".join(files_of(summary.folder).values())


def test_full_disk_is_one_sentence_and_not_a_broken_case(tmp_path, raw, monkeypatch):
    write(tmp_path / "i.nrrd", random_image(0))
    write(tmp_path / "l.nrrd", random_label(0).astype(np.uint8))
    cases = [Case("c", [tmp_path / "i.nrrd"], tmp_path / "l.nrrd")]
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1})

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("sitk::ERROR: no space")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(ConversionError, match="could not be written: the disk may be full"):
        convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1, skip_broken=True)
    assert nothing_left(raw)
