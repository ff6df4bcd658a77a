"""FLARE22 and AMOS22: folders of any name, archives nobody unpacked, thousands of unlabelled files left in place."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import fuzz_compressed
from conversion_helpers import (
    OBLIQUE,
    SCRIPTS,
    SHAPE,
    assert_same_geometry,
    dataset_json,
    files_of,
    nothing_left,
    random_image,
    random_label,
    run,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)

from nnunet_caml.conversion import ConversionError, find_files
from nnunet_caml.conversion.writer import UNLABELED_KEY
from nnunet_caml.unlabeled import DATASET_KEY, list_entry


def flare22(source: Path, cases: int = 4, unlabeled: int = 5, **geometry: object) -> Path:
    """The challenge's names, in folders as they come from different mirrors."""
    labeled = source / "Training" / "FLARE22_LabeledCase50-20220324"
    for number in range(1, cases + 1):
        write(labeled / "images" / f"FLARE22_Tr_{number:04d}_0000.nii.gz", random_image(number), **geometry)
        label = random_label(number, 14).astype(np.uint8)
        write(labeled / "labels" / f"FLARE22_Tr_{number:04d}.nii.gz", label, **geometry)
    for number in range(1, unlabeled + 1):
        folder = "Unlabeled_1-3" if number < 4 else "rest/Unlabeled"
        write(source / "Training" / folder / f"Case_{number:05d}_0000.nii.gz", random_image(100 + number), **geometry)
    write(source / "Validation" / "FLARETs_0001_0000.nii.gz", random_image(0))
    (labeled / "images" / "._FLARE22_Tr_0001_0000.nii.gz").write_bytes(b"macOS")
    return source


def amos22(source: Path, **geometry: object) -> Path:
    """CT with numbers below 500, MRI from 500 on, and test images without labels."""
    for part, numbers in (("Tr", (1, 4, 83, 507, 510)), ("Va", (8, 600)), ("Ts", (2, 541))):
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            write(source / "amos22" / f"images{part}" / name, random_image(number), **geometry)
            if part != "Ts":
                write(source / "amos22" / f"labels{part}" / name, random_label(number, 16).astype(np.uint8), **geometry)
    (source / "amos22" / "readme.md").write_text("AMOS", encoding="utf-8")
    return source


def amos22_unlabeled(folder: Path) -> Path:
    """Unpacked archives, whose inner folders are named in different ways."""
    for name, number in (("amos_unlabeled_ct_5000_5399", 5000), ("amos22_unlabeled_6200_6899", 6200), ("mri", 7000)):
        write(folder / name / f"amos_{number}.nii.gz", random_image(number))
    return folder


def entry_of(target: Path) -> dict[str, list[Path]]:
    """The entry ``unlabeled`` as training reads it."""
    return list_entry(dataset_json(target)[DATASET_KEY], target, 1)


def test_flare22(tmp_path, raw, monkeypatch):
    source = flare22(tmp_path / "source", **OBLIQUE)
    run("flare22.py", source, "--dataset-id", 22, "--preview")
    target = raw / "Dataset022_FLARE22"
    split = split_of(target)
    assert split["labeled"] == [f"FLARE22_Tr_{number:04d}" for number in range(1, 5)]
    assert split["unlabeled"] == [f"Case_{number:05d}" for number in range(1, 6)]
    assert (split["test"], split["seed"]) == ([], None)
    for name in split["labeled"]:
        number = int(name[-4:])
        image, label = target / "imagesTr" / f"{name}_0000.nii.gz", target / "labelsTr" / f"{name}.nii.gz"
        np.testing.assert_array_equal(voxels(image), random_image(number))
        np.testing.assert_array_equal(voxels(label), random_label(number, 14))
        assert voxels(image).dtype == np.int16
        assert_same_geometry(image, OBLIQUE)
        assert_same_geometry(label, OBLIQUE)
    np.testing.assert_array_equal(voxels(target / "imagesUn" / "Case_00005_0000.nii.gz"), random_image(105))
    content = dataset_json(target)
    assert content["labels"]["liver"] == 1
    assert content["labels"]["left kidney"] == 13
    assert len(content["labels"]) == 14
    assert DATASET_KEY not in content
    verify(target, monkeypatch)


def test_flare22_fewer_labels_and_test_cases(tmp_path, raw):
    source = flare22(tmp_path / "source")
    run("flare22.py", source, "--dataset-id", 22, "--labeled", 2, "--test", 1)
    split = split_of(raw / "Dataset022_FLARE22")
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 1 + 5, 1]
    assert split["seed"] == 0
    assert len(list((raw / "Dataset022_FLARE22" / "labelsTs").iterdir())) == 1
    (tmp_path / "list.txt").write_text("FLARE22_Tr_0003\n", encoding="utf-8")
    run("flare22.py", source, "--dataset-id", 23, "--labeled-cases", tmp_path / "list.txt")
    assert split_of(raw / "Dataset023_FLARE22")["labeled"] == ["FLARE22_Tr_0003"]


def test_flare22_tuning_cases(tmp_path, raw, capsys):
    """Images of the challenge's test cases have the same names, and no labels."""
    source = flare22(tmp_path / "source")
    command = ("flare22.py", source, "--dataset-id", 22, "--use-tuning-cases")
    assert "holds no labels such as FLARETs_0001.nii.gz of the tuning cases" in sentence(capsys, *command)
    for number in (1, 2):
        write(source / "Tuning/images" / f"FLARETs_{number:04d}_0000.nii.gz", random_image(50 + number))
        write(source / "Tuning/labels" / f"FLARETs_{number:04d}.nii.gz", random_label(50 + number, 14).astype(np.uint8))
        write(source / "Testing" / f"FLARETs_{number:04d}_0000.nii.gz", random_image(70 + number))
    run(*command)
    target = raw / "Dataset022_FLARE22"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [4, 5, 2]
    for number in (1, 2):
        name = f"FLARETs_{number:04d}"
        np.testing.assert_array_equal(voxels(target / "imagesTs" / f"{name}_0000.nii.gz"), random_image(50 + number))
        np.testing.assert_array_equal(voxels(target / "labelsTs" / f"{name}.nii.gz"), random_label(50 + number, 14))
    (source / "Tuning/images/FLARETs_0002_0000.nii.gz").unlink()
    assert "Tuning/images/FLARETs_0002_0000.nii.gz does not exist" in sentence(capsys, *command, "--overwrite")


def test_flare22_in_place(tmp_path, raw, monkeypatch, capsys):
    source = flare22(tmp_path / "source")
    before = files_of(source)
    os.chdir(tmp_path)
    run("flare22.py", "source", "--dataset-id", 22, "--labeled", 2, "--link", "--preview")
    target = raw / "Dataset022_FLARE22"
    assert not (target / "imagesUn").exists()
    entry = entry_of(target)
    assert sorted(entry) == split_of(target)["unlabeled"]
    assert len(entry) == 2 + 5  # hidden labels, too
    for name, (path,) in entry.items():
        assert path.is_absolute()
        assert path.is_file()
        assert path.is_relative_to(source)
        assert path.name == f"{name}_0000.nii.gz"
    assert all(path.is_symlink() for path in (target / "imagesTr").iterdir())
    assert "7 used in place" in capsys.readouterr().out
    assert files_of(source) == before
    assert UNLABELED_KEY == DATASET_KEY
    verify(target, monkeypatch)
    again = (target / "dataset.json").read_bytes()
    run("flare22.py", "source", "--dataset-id", 22, "--labeled", 2, "--link", "--preview", "--overwrite")
    assert (target / "dataset.json").read_bytes() == again


def test_in_place_where_files_are_links_to_names_without_an_ending(tmp_path, raw, monkeypatch):
    """As download caches keep them."""
    source = flare22(tmp_path / "source")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(source.rglob("*.nii.gz"))):
        blob = tmp_path / "blobs" / f"blob{number}"
        path.rename(blob)
        path.symlink_to(blob)
    run("flare22.py", source, "--dataset-id", 22, "--labeled", 2, "--link", "--preview")
    target = raw / "Dataset022_FLARE22"
    assert all(path.name == f"{name}_0000.nii.gz" for name, (path,) in entry_of(target).items())
    verify(target, monkeypatch)


def test_in_place_only_where_the_file_is_fit(tmp_path, raw):
    """Files with another ending are converted as ever, beside those that stay in place."""
    source = flare22(tmp_path / "source", unlabeled=2)
    write(tmp_path / "more" / "x.mha", random_image(7))
    write(tmp_path / "more" / "y.nii.gz", random_image(8))
    run("flare22.py", source, "--dataset-id", 22, "--link", "--unlabeled-from", tmp_path / "more")
    target = raw / "Dataset022_FLARE22"
    assert sorted(entry_of(target)) == ["Case_00001", "Case_00002", "y"]
    assert [path.name for path in (target / "imagesUn").iterdir()] == ["x_0000.nii.gz"]
    assert split_of(target)["unlabeled"] == ["Case_00001", "Case_00002", "x", "y"]


def test_broken_files_in_place_are_found_and_left_out(tmp_path, raw, capsys):
    source = flare22(tmp_path / "source")
    broken = next(source.rglob("Case_00002_0000.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:-9])
    complaint = sentence(capsys, "flare22.py", source, "--dataset-id", 22, "--link")
    assert "Case_00002_0000.nii.gz is truncated" in complaint
    assert nothing_left(raw)
    run("flare22.py", source, "--dataset-id", 22, "--link", "--skip-broken")
    target = raw / "Dataset022_FLARE22"
    assert sorted(entry_of(target)) == ["Case_00001", "Case_00003", "Case_00004", "Case_00005"]
    assert split_of(target)["left_out"] == ["Case_00002"]


def test_flare22_unlabeled_from_inside_and_outside_of_the_source(tmp_path, raw):
    source = flare22(tmp_path / "source")
    for folder in (source / "Training" / "rest", source / "Training"):
        run("flare22.py", source, "--dataset-id", 22, "--unlabeled-from", folder, "--overwrite")
        assert len(split_of(raw / "Dataset022_FLARE22")["unlabeled"]) == 5
    (source / "Training" / "rest").rename(tmp_path / "elsewhere")
    run("flare22.py", source, "--dataset-id", 22, "--unlabeled-from", tmp_path / "elsewhere", "--overwrite")
    assert len(split_of(raw / "Dataset022_FLARE22")["unlabeled"]) == 5


@pytest.mark.parametrize(
    ("modality", "name", "channel", "train", "test", "more"),
    [
        ("ct", "AMOS22CT", "CT", ["0001", "0004", "0083"], ["0008"], ["5000", "6200"]),
        ("mr", "AMOS22MR", "MRI", ["0507", "0510"], ["0600"], ["7000"]),
        ("both", "AMOS22", "CT or MRI", ["0001", "0004", "0083", "0507", "0510"], ["0008", "0600"], ["5000", "6200", "7000"]),
    ],
)
def test_amos22(tmp_path, raw, monkeypatch, modality, name, channel, train, test, more):
    source = amos22(tmp_path / "source", **OBLIQUE)
    unlabeled = amos22_unlabeled(tmp_path / "unlabeled")
    arguments = ("--dataset-id", 218, "--modality", modality, "--labeled", 1, "--unlabeled-from", unlabeled)
    run("amos22.py", source, *arguments)
    target = raw / f"Dataset218_{name}"
    split = split_of(target)
    assert len(split["labeled"]) == 1
    assert sorted(split["labeled"] + split["unlabeled"]) == sorted(f"amos_{number}" for number in train + more)
    assert split["test"] == [f"amos_{number}" for number in test]
    for case, folder in ((split["labeled"][0], "Tr"), (split["test"][0], "Ts")):
        image, label = target / f"images{folder}" / f"{case}_0000.nii.gz", target / f"labels{folder}" / f"{case}.nii.gz"
        np.testing.assert_array_equal(voxels(image), random_image(int(case[-4:])))
        np.testing.assert_array_equal(voxels(label), random_label(int(case[-4:]), 16))
        assert voxels(image).dtype == np.int16
        assert_same_geometry(image, OBLIQUE)
    content = dataset_json(target)
    assert content["channel_names"] == {"0": channel}
    assert len(content["labels"]) == 16
    assert content["labels"]["liver"] == 6
    verify(target, monkeypatch)


def test_amos22_in_place_with_all_there_is(tmp_path, raw):
    source = amos22(tmp_path / "source")
    amos22_unlabeled(source / "further")  # found in SOURCE itself, too
    arguments = (source, "--dataset-id", 218, "--modality", "ct", "--labeled", "all", "--link", "--use-test-images")
    run("amos22.py", *arguments)
    target = raw / "Dataset218_AMOS22CT"
    assert sorted(entry_of(target)) == split_of(target)["unlabeled"] == ["amos_0002", "amos_5000", "amos_6200"]
    assert not (target / "imagesUn").exists()


def test_amos22_further_scans_in_a_folder_of_the_challenges_name(tmp_path, raw):
    source = amos22(tmp_path / "source")
    amos22_unlabeled(source / "further" / "imagesTs")
    run("amos22.py", source, "--dataset-id", 218, "--modality", "ct", "--labeled", "all")
    assert split_of(raw / "Dataset218_AMOS22CT")["unlabeled"] == ["amos_5000", "amos_6200"]


def test_archives_that_nobody_unpacked_are_named(tmp_path, raw, capsys):
    source, unlabeled = amos22(tmp_path / "source"), amos22_unlabeled(tmp_path / "unlabeled")
    arguments = ("--dataset-id", 218, "--modality", "ct", "--labeled", 1)
    with ZipFile(unlabeled / "amos22_unlabeled_ct_5000_5399.zip", "w") as archive:
        archive.writestr("amos_unlabeled_ct_5000_5399/amos_5000.nii.gz", b"")
        archive.writestr("__MACOSX/amos_unlabeled_ct_5000_5399/._amos_5399.nii.gz", b"")
    run("amos22.py", source, *arguments, "--unlabeled-from", unlabeled)
    with ZipFile(unlabeled / "amos22_unlabeled_ct_5000_5399.zip", "a") as archive:
        archive.writestr("amos_unlabeled_ct_5000_5399/amos_5001.nii.gz", b"")
    complaint = sentence(capsys, "amos22.py", source, *arguments, "--unlabeled-from", unlabeled, "--overwrite")
    assert "amos22_unlabeled_ct_5000_5399.zip holds amos_5001.nii.gz, which is not among the unpacked files" in complaint
    (unlabeled / "amos22_unlabeled_ct_5000_5399.zip").write_bytes(b"PK half a download")
    complaint = sentence(capsys, "amos22.py", source, *arguments, "--unlabeled-from", unlabeled, "--overwrite")
    assert "is not a readable ZIP archive" in complaint


@pytest.mark.parametrize("script", ["flare22.py", "amos22.py"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing label", ["does not exist", "should have a label"]),
        ("missing image", ["does not exist"]),
        ("truncated", ["is truncated or damaged"]),
        ("empty", ["is empty"]),
        ("value", ["holds the value 99 where a label of [0, 1, 2"]),
        ("shape", ["has shape (7, 6, 5)", "has (8, 6, 5)"]),
        ("mirrored", ["do not lie in the same place"]),
        ("twice", ["are the same file of"]),
    ],
)
def test_broken(tmp_path, raw, capsys, script, kind, words):
    if script == "flare22.py":
        source, name = flare22(tmp_path / "source"), "FLARE22_Tr_0002"
        image, label = (next(source.rglob(f"{name}{end}.nii.gz")) for end in ("_0000", ""))
        options: tuple = ()
    else:
        source, name = amos22(tmp_path / "source"), "amos_0004"
        image, label = (source / "amos22" / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
        options = ("--modality", "both", "--labeled", "all")
    if kind == "missing label":
        label.unlink()
    elif kind == "missing image":
        image.unlink()
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:-9])
    elif kind == "empty":
        label.write_bytes(b"")
    elif kind == "value":
        write(label, np.full(SHAPE, 99, np.uint8))
    elif kind == "shape":
        write(label, np.zeros((5, 6, 8), np.uint8))
    elif kind == "mirrored":
        write(label, np.zeros(SHAPE, np.uint8), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    elif kind == "twice":
        (tmp_path / "source" / "again" / image.parent.name).mkdir(parents=True)
        shutil.copy(image, tmp_path / "source" / "again" / image.parent.name)
    complaint = sentence(capsys, script, source, "--dataset-id", 22, *options)
    assert all(word in complaint for word in [*words, name]), complaint
    assert nothing_left(raw)
    if kind != "twice":
        run(script, source, "--dataset-id", 22, *options, "--skip-broken")
        assert split_of(next(raw.iterdir()))["left_out"] == [name]


def test_wrong_layouts(tmp_path, raw, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ("--dataset-id", 22, "--labeled", 1)
    assert "FLARE22_Tr_0001_0000.nii.gz" in sentence(capsys, "flare22.py", tmp_path / "empty", *arguments)
    modality = ("--modality", "ct")
    assert "no folder imagesTr" in sentence(capsys, "amos22.py", tmp_path / "empty", *arguments, *modality)
    source = amos22(tmp_path / "source")
    complaint = sentence(capsys, "amos22.py", source, *arguments, *modality, "--unlabeled-from", tmp_path / "empty")
    assert "empty holds no image" in complaint
    shutil.rmtree(source / "amos22" / "imagesTs")
    complaint = sentence(capsys, "amos22.py", source, *arguments, *modality, "--use-test-images")
    assert "leave out --use-test-images" in complaint
    assert "4 to" not in complaint
    complaint = sentence(capsys, "amos22.py", source, "--dataset-id", 22, "--labeled", 4, *modality)
    assert "there are 3 cases with a label" in complaint
    with pytest.raises(ConversionError, match="nowhere is no folder"):
        find_files(tmp_path / "nowhere", ".*")
    with pytest.raises(SystemExit):
        run("amos22.py", source, *arguments)
    assert "--modality" in capsys.readouterr().err
    assert nothing_left(raw)


@pytest.mark.parametrize("script", ["flare22.py", "amos22.py"])
def test_fuzzed_files_are_an_error_or_right(tmp_path, raw, capsys, script):
    if script == "flare22.py":
        source, options = flare22(tmp_path / "source", 2, 2), ()
    else:
        source, options = amos22(tmp_path / "source"), ("--modality", "ct", "--labeled", "all")  # type: ignore[assignment]
    used = [
        path for path in sorted(source.rglob("[!.]*.nii.gz")) if "FLARETs" not in path.name and "Ts" not in path.parent.name
    ]
    files = [path for path in used if script == "flare22.py" or int(path.name[5:9]) < 500]
    fuzz_compressed(capsys, raw, script, (source, "--dataset-id", 22, *options), files, rounds=20)


def peak_megabytes(source: Path, raw: Path, number: int) -> float:
    """Of a conversion in a process of its own, which may have few files open at once."""
    code = (
        "import resource, runpy, sys\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    arguments = [str(SCRIPTS / "flare22.py"), str(source), "--dataset-id", str(number), "--link", "-np", "1"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = {arguments!r}\n{code}"],
        env={**os.environ, "nnUNet_raw": str(raw)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2]) / 1024


def test_memory_does_not_grow_with_the_number_of_unlabelled_files(tmp_path, raw):
    """100 volumes of 4 MB, which the disk holds once."""
    source = flare22(tmp_path / "source", cases=1, unlabeled=1)
    volume = tmp_path / "volume.nii.gz"
    sitk.WriteImage(sitk.Image([128, 128, 128], sitk.sitkInt16), str(volume), True)
    few = peak_megabytes(source, raw, 21)
    for number in range(100, 200):
        folder = source / f"more_{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"Case_{number:05d}_0000.nii.gz").hardlink_to(volume)
    many = peak_megabytes(source, raw, 22)
    target = raw / "Dataset022_FLARE22"
    assert len(entry_of(target)) == 101
    assert len(files_of(target)) == 4  # the labelled case, dataset.json and split.json
    assert many - few < 60
