"""ACDC as the challenge hands it out: annotated frames, sequences, patients."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import fuzz
from conversion_helpers import (
    OBLIQUE,
    ROLES,
    SCRIPTS,
    assert_same_geometry,
    check_converted,
    image_of,
    nothing_left,
    patients_of,
    random_image,
    random_label,
    run,
    run_as_user,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)

SEQUENCE = 4  # frames of the whole heart beat


def acdc(folder: Path, training: int = 100, testing: int = 0, cine: int = 0, **geometry: object) -> Path:
    """The challenge's layout; frames 1 and 3 are annotated, ``cine`` patients have their sequence."""
    for number in range(1, training + 1):
        patient = f"patient{number:03d}"
        for frame in (1, 3):
            write(
                folder / "training" / patient / f"{patient}_frame{frame:02d}.nii.gz",
                random_image(10 * number + frame),
                **geometry,
            )
            write(
                folder / "training" / patient / f"{patient}_frame{frame:02d}_gt.nii.gz",
                random_label(10 * number + frame, 4).astype(np.uint8),
                **geometry,
            )
        (folder / "training" / patient / "Info.cfg").write_text("ED: 1\nES: 3\n", encoding="utf-8")
        if number <= cine:
            volumes = [image_of(random_image(10 * number + frame), **geometry) for frame in range(1, SEQUENCE + 1)]  # type: ignore[arg-type]
            sitk.WriteImage(sitk.JoinSeries(volumes), str(folder / "training" / patient / f"{patient}_4d.nii.gz"))
    for number in range(101, 101 + testing):
        patient = f"patient{number:03d}"
        (folder / "training" / patient).parent.mkdir(parents=True, exist_ok=True)
        for frame in (1, 3):
            path = folder / "testing" / patient / f"{patient}_frame{frame:02d}.nii.gz"
            write(path, random_image(number), **geometry)
            write(path.with_name(f"{patient}_frame{frame:02d}_gt.nii.gz"), random_label(number, 4).astype(np.uint8), **geometry)
    return folder


def check_acdc(source: Path, target: Path) -> None:
    """Every file in the data set is what the source holds, and no patient is divided."""
    unlabeled = split_of(target)["unlabeled"]

    def file_of(name: str, ending: str = "") -> Path | None:
        return next(iter(source.glob(f"*/{name.partition('_')[0]}/{name}{ending}.nii.gz")), None)

    def expected_image(name: str) -> np.ndarray:
        single = file_of(name)
        if single is not None:
            return voxels(single)
        assert name in unlabeled
        patient, _, frame = name.partition("_frame")
        return voxels(next(source.glob(f"*/{patient}/{patient}_4d.nii.gz")))[int(frame) - 1]

    def expected_label(name: str) -> np.ndarray:
        label = voxels(file_of(name, "_gt"))
        assert set(np.unique(label)) <= {0, 1, 2, 3}
        return label

    check_converted(target, expected_image, expected_label)
    patients = {role: patients_of(split_of(target)[role]) for _, role in ROLES}
    assert not patients["test"] & (patients["labeled"] | patients["unlabeled"])


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> Path:
    """All patients of the challenge's training folder, some with their sequences; not to be changed."""
    return acdc(tmp_path_factory.mktemp("acdc") / "source", cine=2, **OBLIQUE)


def list_of(folder: Path, *names: str) -> Path:
    (folder / "wanted.list").write_text("\n".join(names), encoding="utf-8")
    return folder / "wanted.list"


def test_acdc(tmp_path, raw, monkeypatch, hundred):
    done = run_as_user("acdc.py", hundred, "--dataset-id", 27, "-np", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset027_ACDC"
    split = split_of(target)
    assert patients_of(split["labeled"]) == {99, 38, 50, 100, 58, 21, 49}
    assert {role: len(split[role]) for role in ("labeled", "unlabeled", "test")} == {
        "labeled": 14,
        "unlabeled": 126,
        "test": 40,
    }
    assert patients_of(split["test"]) >= {11, 13, 52, 93}
    assert not {28, 85, 39} & patients_of(split["labeled"] + split["unlabeled"] + split["test"])  # for validation
    assert split["seed"] is None
    check_acdc(hundred, target)
    for path in (target / "imagesTr" / "patient099_frame03_0000.nii.gz", target / "labelsTs" / "patient011_frame01.nii.gz"):
        assert_same_geometry(path, OBLIQUE)
    verify(target, monkeypatch)


def test_acdc_drawn_with_cine_and_validation_frames(raw, hundred):
    """Patient 2 is for validation, patient 1 a test patient, whose other frames nobody may train on."""
    arguments = ("--labeled", 5, "--draw", "--seed", 3, "--use-cine-frames", "--use-validation-images")
    run("acdc.py", hundred, "--dataset-id", 7, *arguments, "--skip-broken", "--link")
    target = raw / "Dataset007_ACDC"
    split = split_of(target)
    assert len(split["labeled"]) == 10
    assert len(patients_of(split["labeled"])) == 5
    assert patients_of(split["labeled"]) != {99, 38, 50, 100, 58}
    assert split["seed"] == 3
    assert len(split["test"]) == 40
    assert len(split["unlabeled"]) == 2 * (65 + 10) + 2  # and the two other frames of patient 2
    assert {f"patient002_frame0{frame}" for frame in range(1, 5)} < set(split["unlabeled"])
    assert not patients_of(split["unlabeled"]) & patients_of(split["test"])
    without = {*range(3, 101)} - patients_of(split["test"])
    assert set(split["left_out"]) == {f"patient{number:03d}_4d" for number in without}
    check_acdc(hundred, target)
    assert (target / "imagesUn" / "patient002_frame01_0000.nii.gz").is_symlink()
    assert_same_geometry(target / "imagesUn" / "patient002_frame04_0000.nii.gz", OBLIQUE)


def test_acdc_challenge_split(tmp_path, raw):
    source = acdc(tmp_path / "source", training=5, testing=2, cine=3)
    run("acdc.py", source, "--dataset-id", 7, "--labeled", 2, "--challenge-split", "--use-cine-frames", "--skip-broken")
    target = raw / "Dataset007_ACDC"
    split = split_of(target)
    assert len(split["labeled"]) == 4
    assert split["test"] == [f"patient10{number}_frame0{frame}" for number in (1, 2) for frame in (1, 3)]
    assert len(split["unlabeled"]) == 6 + 3 * 2
    check_acdc(source, target)
    for path in source.glob("testing/*/*_gt.nii.gz"):  # as in old downloads
        path.unlink()
    run("acdc.py", source, "--dataset-id", 8, "--labeled", 2, "--challenge-split")
    assert not (raw / "Dataset008_ACDC" / "labelsTs").exists()
    assert len(list((raw / "Dataset008_ACDC" / "imagesTs").iterdir())) == 4
    # more patients without labels
    shutil.move(source / "testing", tmp_path / "more")
    shutil.copytree(source / "training" / "patient001", source / "testing" / "patient900")
    for path in sorted((source / "testing" / "patient900").glob("patient*")):
        path.rename(path.with_name(path.name.replace("001", "900")))
    arguments = ("--labeled", 5, "--challenge-split", "--unlabeled-from", tmp_path / "more")
    run("acdc.py", source, "--dataset-id", 9, *arguments)
    assert patients_of(split_of(raw / "Dataset009_ACDC")["unlabeled"]) == {101, 102}


def test_acdc_complaints(tmp_path, raw, capsys):
    source = acdc(tmp_path / "source", training=3)
    first = source / "training" / "patient001"

    def complaint(*more: object) -> str:
        return sentence(capsys, "acdc.py", source, "--dataset-id", 7, *more)

    assert "patient099_frame01_gt.nii.gz does not exist" in complaint()  # the first one of the literature's list
    assert "testing holds no folder patientXXX" in complaint("--challenge-split")
    assert "leave one of them out" in complaint("--challenge-split", "--use-validation-images")
    (source / "training" / "patient900").mkdir()
    assert "patient900 is none of the 100 patients" in complaint()
    (source / "testing").mkdir()
    (source / "training" / "patient900").rename(source / "testing" / "patient101")

    def challenge(*more: object) -> str:
        return complaint("--challenge-split", *more)

    assert "patient101_frame01.nii.gz does not exist" in challenge("--labeled-cases", list_of(tmp_path, "patient002"))
    assert "names a part of patient001" in challenge("--labeled-cases", list_of(tmp_path, "patient001_frame01"))
    assert "--labeled 4 is not possible: there are 3 patients" in challenge("--labeled", 4)
    label = first / "patient001_frame03_gt.nii.gz"
    write(label, np.full((5, 6, 7), 4, np.uint8))
    assert "patient001_frame03_gt.nii.gz holds the value 4" in challenge("--labeled", "all")
    write(label, random_label(0, 4).astype(np.uint8), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert "do not lie in the same place" in challenge("--labeled", "all")
    label.unlink()
    assert "frame03_gt.nii.gz does not exist" in challenge("--labeled", "all")
    (first / "patient001_frame03.nii.gz").rename(label)
    assert "frame03.nii.gz does not exist" in challenge("--labeled", "all")
    shutil.rmtree(source / "testing")
    shutil.copytree(source / "training", source / "testing")
    assert "Two cases are called patient001" in challenge("--labeled", "all")
    shutil.rmtree(source / "training")
    assert "training holds no folder patientXXX" in complaint()
    assert nothing_left(raw)


def test_both_scripts_agree_on_the_split():
    """The order that acdc.py holds is that of the lists in the real data."""
    script = runpy.run_path(str(SCRIPTS / "acdc.py"))
    groups = [script[name].split() for name in ("TRAINING", "VALIDATION", "TEST")]
    assert [len(group) for group in groups] == [70, 10, 20]
    assert sorted(number for group in groups for number in group) == [f"{number:03d}" for number in range(1, 101)]


def test_fuzz_acdc(tmp_path, raw, capsys):
    source = acdc(tmp_path / "source", training=4, testing=1, cine=4)
    command = ("acdc.py", "--dataset-id", 7, "--labeled", 2, "--challenge-split", "--use-cine-frames")
    fuzz(capsys, source, raw, command, check_acdc)
