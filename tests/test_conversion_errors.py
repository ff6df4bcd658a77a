"""What goes wrong: one sentence, exit status 1, and nothing half written."""

import gzip
import json
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conversion_layouts import (
    OBLIQUE,
    SCRIPTS,
    decathlon,
    files_of,
    image_of,
    left_atrium,
    left_atrium_h5,
    random_image,
    random_label,
    raw,  # noqa: F401
    raw_data_set,
    run,
    run_as_user,
    split_of,
    voxels,
    write,
)

from nnunet_caml.conversion import Case, ConversionError, Dataset, convert, draw_split, find_images, read_image, read_list
from nnunet_caml.conversion.commandline import command_line
from nnunet_caml.conversion.reading import check_same_grid, map_labels


def sentence(capsys, script: str, *arguments: object) -> str:
    """Runs a script that has to fail, and returns its complaint."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(script, *arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 1, output.err
    assert output.err.startswith(f"{script}: ")
    assert output.err.count("\n") == 1
    return output.err


def nothing_left(raw: Path) -> bool:  # noqa: F811
    return not raw.exists() or list(raw.iterdir()) == []


# ---------------------------------------------------------------------------------------------- the data set as a whole


def test_same_command_gives_the_same_bytes(tmp_path, raw):  # noqa: F811
    source = decathlon(tmp_path / "Task07_Organ", **OBLIQUE)
    arguments = ("--dataset-id", 7, "--labeled", 2, "--test", 1, "--preview")
    run("decathlon.py", source, *arguments)
    first = files_of(raw / "Dataset007_Organ")
    shutil.rmtree(raw / "Dataset007_Organ")
    time.sleep(1.1)  # gzip's and ZIP's time stamps count seconds
    run("decathlon.py", source, *arguments, "-np", 2)
    assert files_of(raw / "Dataset007_Organ") == first
    assert any(content[:2] == b"\x1f\x8b" for content in first.values())


def test_same_bytes_in_other_formats(tmp_path, raw):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=2, tests=1)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--link")
    first = files_of(raw / "Dataset007_LeftAtrium")
    time.sleep(1.1)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--link", "--overwrite")
    assert files_of(raw / "Dataset007_LeftAtrium") == first


def test_link(tmp_path, raw, capsys):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=3, tests=1, **OBLIQUE)
    os.chdir(tmp_path)
    run("left_atrium.py", "source", "--dataset-id", 7, "--labeled", 1, "--link")
    target = raw / "Dataset007_LeftAtrium"
    assert json.loads((target / "dataset.json").read_text())["file_ending"] == ".nrrd"
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


def test_four_channels_in_a_file_cannot_be_linked(tmp_path, raw, capsys):  # noqa: F811
    source = decathlon(tmp_path / "Task07_Organ")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 2, "--link")
    assert "12 converted, 2 linked" in capsys.readouterr().out


def test_existing_data_set_is_kept_unless_told(tmp_path, raw, capsys):  # noqa: F811
    source = left_atrium(tmp_path / "source")
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    before = files_of(raw)
    assert "--overwrite" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 3)
    assert files_of(raw) == before
    # an overwriting run that fails leaves the old one as it was
    broken = source / (source / "test.list").read_text().split()[0] / "laendo.nrrd"
    content = broken.read_bytes()
    broken.write_bytes(content[:-10])
    sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--overwrite")
    assert files_of(raw) == before
    broken.write_bytes(content)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--overwrite")
    assert len(split_of(raw / "Dataset007_LeftAtrium")["labeled"]) == 3
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]


def test_number_taken_by_another_name(tmp_path, raw, capsys, monkeypatch):  # noqa: F811
    source = left_atrium(tmp_path / "source")
    (raw / "Dataset007_Other").mkdir(parents=True)
    assert "Dataset007_Other" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 7)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results" / "Dataset008_Trained").mkdir(parents=True)
    assert "Dataset008_Trained" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 8)
    assert "1 to 999" in sentence(capsys, "left_atrium.py", source, "--dataset-id", 1000)


def test_source_is_never_replaced(tmp_path, raw, capsys):  # noqa: F811
    source = raw_data_set(raw / "Dataset007_Mine")
    before = files_of(raw)
    arguments = ("--dataset-id", 7, "--labeled", 2, "--overwrite")
    assert "its own source" in sentence(capsys, "hide_labels.py", source, *arguments)
    assert files_of(raw) == before


def test_leftovers_of_a_killed_run_are_removed_or_restored(tmp_path, raw):  # noqa: F811
    source = left_atrium(tmp_path / "source")
    (raw / ".Dataset007_LeftAtrium.partial" / "imagesTr").mkdir(parents=True)
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]
    (raw / "Dataset007_LeftAtrium").rename(raw / ".Dataset007_LeftAtrium.old")  # killed between the two renames
    (source / "test.list").write_text("nobody")
    with pytest.raises(SystemExit):
        run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_LeftAtrium"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_stopped_conversion_leaves_nothing(tmp_path, raw, stop):  # noqa: F811
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "from nnunet_caml.conversion import Case, Dataset, main, read_image\n"
        "def slow(path):\n    time.sleep(0.5)\n    return read_image(path)\n"
        "def find(source, options):\n"
        "    return [Case(f'c{n}', [source / 'i.nrrd'], source / 'l.nrrd') for n in range(100)]\n"
        "if __name__ == '__main__':\n"
        "    main(find, Dataset('Slow', ['CT'], {'background': 0, 'a': 1}, read_image=slow))\n"
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
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[stop]
    assert "Traceback" not in error
    assert nothing_left(raw)


def test_skip_broken(tmp_path, raw, capsys):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=8)
    train = (source / "train.list").read_text().split()
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
    assert json.loads((raw / "Dataset007_LeftAtrium" / "dataset.json").read_text())["numTraining"] == 2
    output = capsys.readouterr().out
    assert all(f"left out {train[number]}: " in output for number in (1, 6, 7))
    names = {path.name.split("_0000")[0].split(".")[0] for path in (raw / "Dataset007_LeftAtrium").glob("*/*")}
    assert names == {*split["labeled"], *split["unlabeled"], *split["test"]}


def test_skip_broken_with_nothing_left(tmp_path, raw, capsys):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=2)
    for path in source.glob("*/laendo.nrrd"):
        path.unlink()
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 1, "--skip-broken")
    assert "No labelled case is left" in complaint
    assert nothing_left(raw)


# ------------------------------------------------------------------------------------------------------------ bad input


def broken_left_atrium(kind: str, source: Path) -> None:
    """Breaks the first case of ``train.list``."""
    name = (source / "train.list").read_text().split()[0]
    image, label = source / name / "lgemri.nrrd", source / name / "laendo.nrrd"
    if kind == "missing case":
        shutil.rmtree(source / name)
    elif kind == "missing label":
        label.unlink()
    elif kind == "empty":
        image.write_bytes(b"")
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:-20])
    elif kind == "garbage":
        label.write_bytes(b"NRRD no more\n" * 9)
    elif kind == "other shape":
        write(label, np.zeros((5, 6, 8), np.uint8))
    elif kind == "other place":
        write(label, np.zeros((5, 6, 7), np.uint8), origin=(0, 0, 0.5))
    elif kind == "mirrored":
        write(label, np.zeros((5, 6, 7), np.uint8), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    elif kind == "value":
        write(label, np.full((5, 6, 7), 254, np.uint8))
    elif kind == "nan":
        write(image, np.where(np.arange(210).reshape(5, 6, 7) == 77, np.nan, 1).astype(np.float32))
    elif kind == "infinite":
        write(image, np.full((5, 6, 7), np.inf, np.float32))
    elif kind == "too many channels":
        sitk.WriteImage(sitk.JoinSeries([image_of(random_image(0))] * 2), str(image))
    elif kind == "twice in list":
        (source / "train.list").write_text(f"{name}\n{name}\n")
    elif kind == "in both lists":
        (source / "test.list").write_text(name)
    elif kind == "no list":
        (source / "train.list").unlink()
    elif kind == "empty list":
        (source / "test.list").write_text("\n\n")
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing case", ["laendo.nrrd does not exist", "--skip-broken"]),
        ("missing label", ["laendo.nrrd does not exist", "should have a label"]),
        ("empty", ["lgemri.nrrd is empty", "download"]),
        ("truncated", ["lgemri.nrrd", "truncated or damaged"]),
        ("garbage", ["laendo.nrrd", "not a readable image"]),
        ("other shape", ["lgemri.nrrd has shape (7, 6, 5)", "laendo.nrrd has (8, 6, 5)"]),
        ("other place", ["lgemri.nrrd and", "laendo.nrrd do not lie in the same place", "0.5 voxels"]),
        ("mirrored", ["laendo.nrrd do not lie in the same place"]),
        ("value", ["laendo.nrrd holds the value 254", "[0, 255]"]),
        ("nan", ["lgemri.nrrd has voxels that are NaN"]),
        ("infinite", ["lgemri.nrrd has voxels that are NaN or infinite"]),
        ("too many channels", ["lgemri.nrrd", "2 channels", "has 1 (MRI)"]),
        ("twice in list", ["train.list names", "more than once"]),
        ("in both lists", ["Two cases are called"]),
        ("no list", ["train.list does not exist", "--lists"]),
        ("empty list", ["test.list names no case"]),
    ],
)
def test_broken_left_atrium(tmp_path, raw, capsys, kind, words):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=3, tests=1)
    broken_left_atrium(kind, source)
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert all(word in complaint for word in words), complaint
    assert nothing_left(raw)


def test_sentence_as_a_user_sees_it(tmp_path, raw):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=3, tests=1)
    broken_left_atrium("other shape", source)
    done = run_as_user("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2, "-np", 2, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "laendo.nrrd" in done.stderr
    assert nothing_left(raw)


def test_unset_variable(tmp_path, raw, capsys, monkeypatch):  # noqa: F811
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in sentence(capsys, "left_atrium.py", tmp_path, "--dataset-id", 7)


def test_wrong_folders(tmp_path, raw, capsys):  # noqa: F811
    (tmp_path / "empty").mkdir()
    assert "is no folder" in sentence(capsys, "left_atrium.py", tmp_path / "nowhere", "--dataset-id", 7)
    assert "mri_norm2" not in sentence(capsys, "left_atrium_h5.py", tmp_path / "empty", "--dataset-id", 7)
    for script in ("decathlon.py", "hide_labels.py"):
        complaint = sentence(capsys, script, tmp_path / "empty", "--dataset-id", 7, "--labeled", 2)
        assert "dataset.json is not the description of" in complaint
    for content in ("[]", "{}", "{", '{"labels": 1, "modality": 2, "training": 3, "channel_names": 4, "file_ending": 5}'):
        (tmp_path / "empty" / "dataset.json").write_text(content)
        for script in ("decathlon.py", "hide_labels.py"):
            assert "dataset.json" in sentence(capsys, script, tmp_path / "empty", "--dataset-id", 7, "--labeled", 2)
    assert nothing_left(raw)


def test_more_labels_than_there_are(tmp_path, raw, capsys):  # noqa: F811
    source = left_atrium(tmp_path / "source", cases=3)
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 4)
    assert "--labeled 4 is not possible" in complaint
    assert "1 to 3" in complaint
    task = decathlon(tmp_path / "Task07_Organ", channels=1)
    complaint = sentence(capsys, "decathlon.py", task, "--dataset-id", 7, "--labeled", 2, "--test", 5)
    assert "1 to 1" in complaint
    assert "--test 7" in sentence(capsys, "decathlon.py", task, "--dataset-id", 7, "--labeled", 2, "--test", 7)


def test_listed_cases(tmp_path, raw, capsys):  # noqa: F811
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("# mine\norgan_004\n\norgan_001  \n")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled-cases", wanted, "--test", 2)
    split = split_of(raw / "Dataset007_Organ")
    assert split["labeled"] == ["organ_001", "organ_004"]
    assert len(split["test"]) == 2
    assert "--labeled-cases wanted.txt" in split["command"]
    wanted.write_text("organ_004\norgan_900")
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted)
    assert "organ_900, but the source has no such case" in complaint
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted, "--use-test-images")
    assert "organ_900, which has no label" in complaint
    wanted.write_bytes(b"\xff\xfe\x00")
    assert "one case identifier a line" in sentence(
        capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted
    )


def test_missing_files_of_a_task(tmp_path, raw, capsys):  # noqa: F811
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    complaint = sentence(
        capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--unlabeled-from", source / "imagesTr"
    )
    assert "Two cases are called organ_000" in complaint
    (source / "imagesTr" / "organ_003.nii.gz").unlink()
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6)
    assert "organ_003.nii.gz does not exist" in complaint
    shutil.rmtree(source / "imagesTs")
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--use-test-images")
    assert "imagesTs holds no .nii.gz files" in complaint
    complaint = sentence(
        capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 5, "--unlabeled-from", source / "labelsXX"
    )
    assert "labelsXX is no folder" in complaint


def test_broken_h5(tmp_path, raw, capsys):  # noqa: F811
    h5py = pytest.importorskip("h5py")
    source = left_atrium_h5(tmp_path / "source")
    path = source / "2018LA_Seg_Training Set" / "A" / "mri_norm2.h5"
    content = path.read_bytes()

    def complaint() -> str:
        return sentence(capsys, "left_atrium_h5.py", source, "--dataset-id", 7, "--labeled", 2)

    path.write_bytes(content[: len(content) // 2])
    assert "mri_norm2.h5 is not a readable HDF5 file" in complaint()
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        del file["label"]
    assert "should hold an array 'label' of three axes but holds {'image': (7, 6, 5)}" in complaint()
    with h5py.File(path, "a") as file:
        file["label"] = np.full((7, 6, 5), 3)
    assert "mri_norm2.h5 holds the value 3 where a label of [0, 1] is expected" in complaint()
    path.unlink()
    assert "A/mri_norm2.h5 does not exist" in complaint()
    assert nothing_left(raw)


def test_label_of_an_unlabelled_case_is_never_read(tmp_path, raw):  # noqa: F811
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    run("hide_labels.py", source, "--dataset-id", 7, "--labeled", 2)
    for name in split_of(raw / "Dataset007_Mine")["unlabeled"]:
        (source / "labelsTr" / f"{name}.nii.gz").write_bytes(b"garbage")
    run("hide_labels.py", source, "--dataset-id", 8, "--labeled", 2)
    written = {path.name for path in raw.glob("Dataset008_Mine/labels*/*")}
    assert written == {"t0.nii.gz"} | {f"{name}.nii.gz" for name in split_of(raw / "Dataset008_Mine")["labeled"]}


# ----------------------------------------------------------------------------------------------------------- the pieces


def cases_named(*names: str) -> list[Case]:
    return [Case(name, [Path(f"{name}.nii.gz")], Path(f"{name}_label.nii.gz")) for name in names]


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 2**31), st.randoms())
def test_fewer_labels_are_a_subset_of_more_and_the_test_cases_stay(labeled, test, seed, random):
    names = [f"case{number}" for number in range(30)]
    more = draw_split(cases_named(*names), labeled + 1, test=test, seed=seed)
    random.shuffle(names)  # the order in which a file system lists the cases does not matter
    fewer = draw_split(cases_named(*names), labeled, test=test, seed=seed)
    assert set(fewer.labeled) < set(more.labeled)
    assert (len(fewer.labeled), len(fewer.test)) == (labeled, test)
    assert fewer.test == more.test
    assert sorted(fewer.labeled + fewer.unlabeled + fewer.test) == sorted(names)


def test_seeds_differ_and_stay_the_same_for_ever():
    cases = cases_named(*(f"case{number}" for number in range(30)))
    assert draw_split(cases, 3, seed=0).labeled == ("case11", "case22", "case5")
    assert draw_split(cases, 3, seed=1).labeled != draw_split(cases, 3, seed=0).labeled


@pytest.mark.parametrize("name", ["a b", "a/b", ".hidden", "", "a\n"])
def test_identifiers_that_cannot_be_file_names(name):
    with pytest.raises(ConversionError, match="cannot name a case"):
        draw_split(cases_named(name), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Left Atrium"}, "letters, digits"),
        ({"channel_names": []}, "at least one channel"),
        ({"labels": {"background": 0, "a": 2}}, "consecutive values"),
        ({"labels": {"background": 0}}, "consecutive values"),
        ({"label_map": {0: 0, 255: 2}}, "label_map leads to"),
    ],
)
def test_impossible_data_sets(changes, words):
    fitting = {"name": "A", "channel_names": ["CT"], "labels": {"background": 0, "a": 1}}
    with pytest.raises(ConversionError, match=words):
        Dataset(**{**fitting, **changes})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_label_values_are_mapped(dtype):
    array = np.array([[[0, 205, 42], [85, 0, 0]]]).astype(dtype)
    values = {int(value): number for number, value in enumerate(np.unique(array))}
    mapped, counts = map_labels(image_of(array), Path("label.mha"), values)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mapped), np.unique(array, return_inverse=True)[1].reshape(1, 2, 3))
    assert sitk.GetArrayFromImage(mapped).dtype == np.uint8
    assert counts == {0: 3, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf, 2])
def test_values_that_are_no_label(value):
    with pytest.raises(ConversionError, match=r"label\.mha holds the value"):
        map_labels(image_of(np.array([[[0, 1, value]]], np.float64)), Path("label.mha"), {0: 0, 1: 1})


def test_small_differences_of_geometry_are_allowed_and_evened_out(tmp_path, raw):  # noqa: F811
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
def test_voxel_types_stay(tmp_path, raw, dtype):  # noqa: F811
    write(tmp_path / "i.mha", random_image(0, dtype), **OBLIQUE)
    write(tmp_path / "l.mha", random_label(0).astype(np.int16), **OBLIQUE)
    cases = [Case("c", [tmp_path / "i.mha"], tmp_path / "l.mha")]
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1})
    summary = convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1)
    written = voxels(summary.folder / "imagesTr" / "c_0000.nii.gz")
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, random_image(0, dtype))


def test_header_texts_do_not_get_into_the_data_set(tmp_path, raw):  # noqa: F811
    image = image_of(random_image(0))
    image.SetMetaData("patient", "John Doe")
    sitk.WriteImage(image, str(tmp_path / "i.nrrd"))
    write(tmp_path / "l.nrrd", random_label(0).astype(np.uint8))
    cases = [Case("c", [tmp_path / "i.nrrd"], tmp_path / "l.nrrd")]
    dataset = Dataset("A", ["CT"], {"background": 0, "a": 1}, file_ending=".mha")
    summary = convert(dataset, cases, draw_split(cases, 1), raw, 7, processes=1)
    assert b"John Doe" not in b"".join(files_of(summary.folder).values())


def test_full_disk_is_one_sentence_and_not_a_broken_case(tmp_path, raw, monkeypatch):  # noqa: F811
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


def test_command_is_recorded_without_folders_and_without_what_changes_nothing():
    arguments = ["/a/x.py", "/b/src dir", "--dataset-id=4", "--lists=/c/d", "-np", "3", "--overwrite", "-np4", "--link"]
    assert command_line(arguments) == "x.py 'src dir' --dataset-id=4 --lists=d --link"


def test_find_images(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", ".c_0000.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert {case.identifier: len(case.images) for case in find_images(tmp_path, 2)} == {"a": 2, "b": 2}
    assert len(list(find_images(tmp_path, 1))) == 4
    (tmp_path / "b.mha").write_bytes(b"")
    (tmp_path / "b.nrrd").write_bytes(b"")
    with pytest.raises(ConversionError, match="Two cases are called b"):
        draw_split([*find_images(tmp_path, 3), *cases_named("z")], 1)


def test_read_list(tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n\r\n")  # as Windows' editor writes it
    assert read_list(tmp_path / "list") == ["a", "b"]


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> dict[str, bytes]:
    """A complete image file of every kind."""
    folder = tmp_path_factory.mktemp("complete")
    content = {}
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".gipl"):
        content[ending] = write(folder / f"i{ending}", random_image(0), **OBLIQUE).read_bytes()
    for ending in PICTURES:
        path = folder / f"i{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (20, 30)).astype(np.uint8)), path)
        content[ending] = path.read_bytes()
    sitk.WriteImage(image_of(random_image(0), **OBLIQUE), str(folder / "raw.mha"), False)
    sitk.WriteImage(image_of(random_image(0), **OBLIQUE), str(folder / "raw.nrrd"), False)
    content["raw.mha"], content["raw.nrrd"] = (folder / "raw.mha").read_bytes(), (folder / "raw.nrrd").read_bytes()
    return content


def image_or_clean_error(path: Path) -> sitk.Image | None:
    """The image, or ``None`` after one sentence that names the file; anything else is raised."""
    try:
        return read_image(path)
    except ConversionError as error:
        if str(path) not in str(error) or "\n" in str(error):
            raise AssertionError(str(error)) from error
    return None


PICTURES = [".png", ".bmp", ".tif"]
KINDS = [".nii", ".nii.gz", ".nrrd", ".mha", ".gipl", "raw.mha", "raw.nrrd", *PICTURES]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_noticed(tmp_path, complete, kind):
    """ITK itself reads most truncated NIfTI files without complaint, with whatever the memory held."""
    whole, path = complete[kind], tmp_path / f"i{kind}"
    path.write_bytes(whole)
    expected = sitk.GetArrayFromImage(read_image(path))
    if kind not in PICTURES:
        np.testing.assert_array_equal(expected, random_image(0))
    for length in [*range(0, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        image = image_or_clean_error(path)
        if kind in PICTURES:  # they may end in something that no voxel needs
            assert image is None or np.array_equal(sitk.GetArrayFromImage(image), expected)
        else:
            assert image is None


@pytest.mark.parametrize("kind", [".nii.gz", ".mha", ".nrrd"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_with_a_checksum_give_an_error_or_the_right_voxels(tmp_path, complete, kind, data):
    content = bytearray(complete[kind])
    start = {".nii.gz": 0, ".mha": content.find(b"LOCAL"), ".nrrd": content.find(b"\n\n")}[kind]  # not the text header
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(start + 10 if start else 0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"i{kind}"
    path.write_bytes(content)
    image = image_or_clean_error(path)
    if image is not None:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_image(0))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    garbage=st.binary(max_size=800),
    head=st.integers(0, 400),
    ending=st.sampled_from([*KINDS, ".mhd"]),
    zipped=st.booleans(),
)
def test_garbage_is_an_error_or_an_image(tmp_path, complete, garbage, head, ending, zipped):
    content = complete.get(ending, b"")[:head] + garbage
    path = tmp_path / f"i{ending}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    image = image_or_clean_error(path)
    assert image is None or sitk.GetArrayFromImage(image).size > 0


def test_all_scripts_explain_themselves(tmp_path):
    for script in sorted(SCRIPTS.glob("*.py")):
        done = run_as_user(script.name, "--help", cwd=tmp_path)
        assert done.returncode == 0
        for option in ("--dataset-id", "--labeled", "--seed", "--unlabeled-from", "--link", "--overwrite", "--preview"):
            assert option in done.stdout
