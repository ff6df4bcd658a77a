"""ACDC in both of its layouts, and what all converters owe to patients and to broken files."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_conversion_errors import cases_named, nothing_left, sentence
from test_conversion_layouts import (
    OBLIQUE,
    SCRIPTS,
    assert_same_geometry,
    image_of,
    random_image,
    random_label,
    raw,  # noqa: F401
    run,
    run_as_user,
    split_of,
    verify,
    voxels,
    write,
)

from nnunet_caml.conversion import Case, ConversionError, Dataset, convert, draw_split, read_h5

SEQUENCE = 4  # frames of the whole heart beat


# ------------------------------------------------------------------------------------------------- the two layouts, small


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
        (folder / "training" / patient / "Info.cfg").write_text("ED: 1\nES: 3\n")
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


def acdc_h5(folder: Path, training: int = 4) -> Path:
    """The literature's layout: patients 5 and above are training patients, 3 is for validation, 1 and 2 for testing."""
    h5py = pytest.importorskip("h5py")

    def save(path: Path, image: np.ndarray, label: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=image.astype(np.float32) / 100, compression="gzip")
            file.create_dataset("label", data=label.astype(np.uint8), compression="gzip")

    lists: dict[str, list[str]] = {"train": [], "val": [], "test": [], "train_slices": []}
    for number in (1, 2, 3, *range(5, 5 + training)):
        for frame in (1, 2):
            name = f"patient{number:03d}_frame{frame:02d}"
            count = 12 if number == 6 else 5  # two digits, which sort the wrong way as text
            image = np.random.default_rng(10 * number + frame).integers(0, 100, (count, 6, 7))
            label = np.random.default_rng(10 * number + frame).integers(0, 4, (count, 6, 7))
            lists["train" if number >= 5 else "val" if number == 3 else "test"].append(name)
            if number < 5:
                save(folder / "data" / f"{name}.h5", image, label)
                continue
            for level in range(count):
                save(folder / "data" / "slices" / f"{name}_slice_{level + 1}.h5", image[level], label[level])
                lists["train_slices"].append(f"{name}_slice_{level + 1}")
    lists["train"] = [*lists["train"][2:], *lists["train"][:2]]  # not sorted, as in the original
    for key, names in lists.items():
        (folder / f"{key}.list").write_text("\n".join(names) + "\n")
    return folder


def check_acdc(source: Path, target: Path) -> None:
    """Every file in the data set is what the source holds, and no patient is divided."""
    split = split_of(target)
    for folder, role in (("Tr", "labeled"), ("Un", "unlabeled"), ("Ts", "test")):
        for name in split[role]:
            patient, _, frame = name.partition("_frame")
            single = next(iter(source.glob(f"*/{patient}/{name}.nii.gz")), None)
            image = target / f"images{folder}" / f"{name}_0000.nii.gz"
            if single is not None:
                expected = voxels(single)
            else:
                assert role == "unlabeled"
                expected = voxels(next(source.glob(f"*/{patient}/{patient}_4d.nii.gz")))[int(frame) - 1]
            np.testing.assert_array_equal(voxels(image), expected)
            assert voxels(image).dtype == expected.dtype
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (role != "unlabeled")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), voxels(next(source.glob(f"*/{patient}/{name}_gt.nii.gz"))))
                assert set(np.unique(voxels(label))) <= {0, 1, 2, 3}
    patients = {role: {name.partition("_")[0] for name in split[role]} for role in ("labeled", "unlabeled", "test")}
    assert not patients["test"] & (patients["labeled"] | patients["unlabeled"])


def check_acdc_h5(source: Path, target: Path) -> None:
    """The same for the literature's layout, with slices stacked in the order of their numbers."""
    import h5py

    def stack(name: str, key: str) -> np.ndarray:
        volume = source / "data" / f"{name}.h5"
        paths = source.glob(f"data/slices/{name}_slice_*.h5")
        paths = [volume] if volume.exists() else sorted(paths, key=lambda path: int(path.stem.rpartition("_")[2]))
        arrays = []
        for path in paths:
            with h5py.File(path) as file:
                arrays.append(file[key][()])
        return arrays[0] if volume.exists() else np.stack(arrays)

    split = split_of(target)
    for folder, role in (("Tr", "labeled"), ("Un", "unlabeled"), ("Ts", "test")):
        for name in split[role]:
            image = target / f"images{folder}" / f"{name}_0000.nii.gz"
            np.testing.assert_array_equal(voxels(image), stack(name, "image"))
            assert voxels(image).dtype == np.float32
            if role != "unlabeled":
                np.testing.assert_array_equal(voxels(target / f"labels{folder}" / f"{name}.nii.gz"), stack(name, "label"))
    patients = {role: {name.partition("_")[0] for name in split[role]} for role in ("labeled", "unlabeled", "test")}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values()))


# ------------------------------------------------------------------------------------------------------------------ fuzz


def rewritten(path: Path, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], rng: np.random.Generator) -> None:
    """Changes the voxels in a file of any of these formats; text files stay as they are."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "a") as file:
            key = str(rng.choice(["image", "label"]))
            array = change(file[key][()], rng)
            del file[key]
            file[key] = array
    elif path.name.endswith((".nii.gz", ".mha", ".mhd", ".nrrd")):
        image = sitk.ReadImage(str(path))
        changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image), rng), isVector=False)
        changed.SetSpacing(image.GetSpacing())
        changed.SetOrigin(image.GetOrigin())
        changed.SetDirection(image.GetDirection())
        sitk.WriteImage(changed, str(path))


def break_file(path: Path, kind: str, rng: np.random.Generator) -> None:
    """Breaks a file in one of :data:`KINDS` of ways."""
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: rng.integers(len(content))])
    elif kind == "garbage":
        path.write_bytes(rng.bytes(len(content)))
    elif kind == "other bytes":
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=3):
            damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
    elif kind == "other shape":
        rewritten(path, lambda array, rng: array[..., : -int(rng.integers(1, 3))], rng)
    elif kind == "other value":
        rewritten(path, lambda array, rng: np.where(rng.random(array.shape) < 0.1, 9, array).astype(array.dtype), rng)
    elif kind == "not finite":
        rewritten(path, lambda array, rng: np.where(rng.random(array.shape) < 0.1, np.nan, array).astype(np.float32), rng)
    else:
        raise AssertionError(kind)


KINDS = ["missing", "empty", "truncated", "garbage", "other bytes", "other shape", "other value", "not finite"]


def fuzz(
    capsys: pytest.CaptureFixture,
    source: Path,
    raw: Path,  # noqa: F811
    command: tuple[object, ...],
    check: Callable[[Path, Path], None],
    rounds: int = 24,
) -> None:
    """Breaks one file at a time; accepts one sentence that leaves nothing behind, or a data set that is right.

    Args:
        capsys: pytest's fixture.
        source: A complete source folder.
        raw: Where data sets go.
        command: Script and arguments, without the source.
        check: Compares a data set with its source, as it is now.
        rounds: How many files to break, with each kind of :data:`KINDS` in turn.
    """
    rng = np.random.default_rng(len(str(command[0])))
    files = sorted(path for path in source.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        path = files[rng.integers(len(files))]
        kind = KINDS[number % len(KINDS)]
        backup = path.read_bytes()
        shutil.rmtree(raw, ignore_errors=True)
        break_file(path, kind, rng)
        capsys.readouterr()
        status: object = 0
        try:
            run(str(command[0]), source, *command[1:])
        except SystemExit as stopped:
            status = stopped.code
        complaint = capsys.readouterr().err
        if status:
            assert (status, complaint.count("\n")) == (1, 1), (kind, path, complaint)
            assert complaint.startswith(f"{command[0]}: "), (kind, path, complaint)
            # what is wrong with a list shows in the cases that it names
            stem = path.name.partition(".")[0].partition("_slice")[0]
            assert stem in complaint or path.suffix in (".list", ".raw"), (kind, path, complaint)
            assert nothing_left(raw)
        else:
            check(source, next(raw.iterdir()))
        outcomes["error" if status else "right"] += 1
        path.write_bytes(backup)
    assert outcomes["error"] > rounds / 4, outcomes  # or nothing was tested
    shutil.rmtree(raw, ignore_errors=True)
    run(str(command[0]), source, *command[1:])
    check(source, next(raw.iterdir()))


def test_fuzz_acdc(tmp_path, raw, capsys):  # noqa: F811
    source = acdc(tmp_path / "source", training=4, testing=1, cine=4)
    command = ("acdc.py", "--dataset-id", 7, "--labeled", 2, "--challenge-split", "--use-cine-frames")
    fuzz(capsys, source, raw, command, check_acdc)


def test_fuzz_acdc_h5(tmp_path, raw, capsys):  # noqa: F811
    source = acdc_h5(tmp_path / "source", training=2)
    fuzz(capsys, source, raw, ("acdc_h5.py", "--dataset-id", 7, "--labeled", 1), check_acdc_h5)


# ------------------------------------------------------------------------------------------------------- official layout


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> Path:
    """All patients of the challenge's training folder, some with their sequences; not to be changed."""
    return acdc(tmp_path_factory.mktemp("acdc") / "source", cine=2, **OBLIQUE)


def patients_of(names: list[str]) -> set[int]:
    return {int(name[len("patient") :][:3]) for name in names}


def test_acdc(tmp_path, raw, monkeypatch, hundred):  # noqa: F811
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


def test_acdc_drawn_with_cine_and_validation_frames(raw, hundred):  # noqa: F811
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


def test_acdc_challenge_split(tmp_path, raw):  # noqa: F811
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


def test_acdc_complaints(tmp_path, raw, capsys):  # noqa: F811
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


def list_of(folder: Path, *names: str) -> Path:
    (folder / "wanted.list").write_text("\n".join(names))
    return folder / "wanted.list"


# ----------------------------------------------------------------------------------------------------- literature's layout


def test_acdc_h5(tmp_path, raw, monkeypatch):  # noqa: F811
    source = acdc_h5(tmp_path / "source")
    run("acdc_h5.py", source, "--dataset-id", 28, "--labeled", 2)
    target = raw / "Dataset028_ACDC"
    split = split_of(target)
    assert patients_of(split["labeled"]) == {6, 7}
    assert patients_of(split["unlabeled"]) == {8, 5}
    assert patients_of(split["test"]) == {1, 2}
    image = sitk.ReadImage(str(target / "imagesTr" / "patient006_frame01_0000.nii.gz"))
    assert image.GetSize() == (7, 6, 12)
    assert image.GetSpacing() == (1.5625, 1.5625, 10)
    check_acdc_h5(source, target)
    verify(target, monkeypatch)


def test_acdc_h5_options(tmp_path, raw):  # noqa: F811
    source = acdc_h5(tmp_path / "source")
    shutil.copytree(source / "data", tmp_path / "more", ignore=lambda folder, names: {"slices", *names[:1]} - {"data"})
    for path in sorted((tmp_path / "more").glob("*.h5")):
        path.rename(path.with_name(path.name.replace("patient0", "patient9")))
    (source / "train_slices.list").unlink()
    arguments = (
        "--use-validation-images",
        "--draw",
        "--seed",
        1,
        "--spacing",
        1.4,
        1.4,
        5,
        "--unlabeled-from",
        tmp_path / "more",
    )
    run("acdc_h5.py", source, "--dataset-id", 7, "--labeled", 1, *arguments)
    split = split_of(raw / "Dataset007_ACDC")
    assert len(patients_of(split["labeled"])) == 1
    assert split["seed"] == 1
    assert 3 in patients_of(split["unlabeled"])
    assert max(patients_of(split["unlabeled"])) > 900
    image = sitk.ReadImage(str(next((raw / "Dataset007_ACDC" / "imagesUn").iterdir())))
    np.testing.assert_allclose(image.GetSpacing(), (1.4, 1.4, 5), atol=1e-6)


def test_acdc_h5_complaints(tmp_path, raw, capsys):  # noqa: F811
    h5py = pytest.importorskip("h5py")
    source = acdc_h5(tmp_path / "source")
    slices = source / "data" / "slices"

    def complaint(*more: object) -> str:
        return sentence(capsys, "acdc_h5.py", source, "--dataset-id", 7, "--labeled", 2, *more)

    last = slices / "patient006_frame01_slice_12.h5"
    last.rename(tmp_path / last.name)
    assert "should hold 12 slices of patient006_frame01, but patient006_frame01_slice_12.h5 is missing" in complaint()
    (tmp_path / last.name).rename(last)
    shutil.copy(last, slices / "patient006_frame01_slice_13.h5")
    assert "should hold 12 slices of patient006_frame01, but there are 13" in complaint()
    (slices / "patient006_frame01_slice_13.h5").unlink()
    middle = slices / "patient006_frame01_slice_4.h5"
    content = middle.read_bytes()
    with h5py.File(middle, "a") as file:
        del file["image"]
        file["image"] = np.zeros((6, 8), np.float32)
    assert "slice_4.h5: the array 'image' has shape (8, 6) (x, y)" in complaint()
    with h5py.File(middle, "a") as file:
        del file["image"]
        file["image"] = np.zeros((6, 7, 1), np.float32)
    assert "should hold an array 'image' of two axes" in complaint()
    middle.write_bytes(content)
    for path in slices.glob("patient006_frame02*"):
        path.unlink()
    assert "patient006_frame02_slice_1.h5 does not exist" in complaint()
    run("acdc_h5.py", source, "--dataset-id", 8, "--labeled", 2, "--skip-broken")
    split = split_of(raw / "Dataset008_ACDC")
    assert split["left_out"] == ["patient006_frame02"]
    check_acdc_h5(source, raw / "Dataset008_ACDC")
    shutil.rmtree(raw)
    assert "--spacing has to be above 0" in complaint("--spacing", 1, 1, 0)
    (source / "val.list").unlink()
    assert "val.list does not exist" in complaint()
    shutil.rmtree(source / "data")
    assert "has no folder 'data'" in complaint()
    assert nothing_left(raw)


def test_acdc_h5_on_real_data(tmp_path, raw, shared, monkeypatch):  # noqa: F811
    """Slices and volumes of the real files, in both frames of nine patients."""
    source = shared / "data" / "acdc_h5"
    if not source.is_dir():
        pytest.skip(f"no real data in {source}")
    run("acdc_h5.py", source, "--dataset-id", 28, "--labeled", 3)
    target = raw / "Dataset028_ACDC"
    split = split_of(target)
    assert patients_of(split["labeled"]) == {99, 38, 50}
    assert patients_of(split["unlabeled"]) == {100, 58, 21}
    assert patients_of(split["test"]) == {11, 13, 84}
    # the literature's 5 % are 68 slices
    assert sum(sitk.ReadImage(str(path)).GetSize()[2] for path in (target / "labelsTr").iterdir()) == 68
    check_acdc_h5(source, target)
    verify(target, monkeypatch)


def test_both_scripts_agree_on_the_split():
    """The order that acdc.py holds is that of the lists in the real data."""
    import runpy

    script = runpy.run_path(str(SCRIPTS / "acdc.py"))
    groups = [script[name].split() for name in ("TRAINING", "VALIDATION", "TEST")]
    assert [len(group) for group in groups] == [70, 10, 20]
    assert sorted(number for group in groups for number in group) == [f"{number:03d}" for number in range(1, 101)]


# ------------------------------------------------------------------------------------------------- patients and sequences


def patients_named(**patients: str) -> list[Case]:
    """Cases ``a1``, ``a2`` of patient ``a``, with a label unless the name ends in ``-``."""
    return [
        Case(name.rstrip("-"), [Path(name)], None if name.endswith("-") else Path(name), patient=patient)
        for patient, names in patients.items()
        for name in names.split()
    ]


@pytest.mark.parametrize("seed", range(20))
def test_patients_are_never_divided(seed):
    cases = patients_named(a="a1 a2", b="b1 b2 b3-", c="c1 c2", d="d1 d2-", e="e1-")
    split = draw_split(cases, 2, test=1, seed=seed)
    for patient in "abcde":
        roles = {split.role(case.identifier) for case in cases if case.patient == patient and case.label is not None}
        assert len(roles) <= 1
    tested = {name[0] for name in split.test}
    assert len(tested) == 1
    assert not tested & {name[0] for name in split.labeled + split.unlabeled}  # not even without their label
    assert len({name[0] for name in split.labeled}) == 2
    more = draw_split(cases, 3, test=1, seed=seed)
    assert set(split.labeled) < set(more.labeled)
    assert more.test == split.test


def test_patients_in_lists():
    cases = patients_named(a="a1 a2", b="b1 b2 b3-", c="c1")
    assert draw_split(cases, None, labeled_cases=["b"]).labeled == ("b1", "b2")
    assert draw_split(cases, None, labeled_cases=["b1", "c1", "b2"]).labeled == ("b1", "b2", "c1")
    with pytest.raises(ConversionError, match="a part of b only, without b2"):
        draw_split(cases, None, labeled_cases=["b1"])
    with pytest.raises(ConversionError, match="has no label"):
        draw_split(cases, None, labeled_cases=["b3"])
    with pytest.raises(ConversionError, match="there are 3 patients with a label"):
        draw_split(cases, 4)
    with pytest.raises(ConversionError, match="--test 4 asks for more patients than the 3"):
        draw_split(cases, 1, test=4)


def test_lots_without_patients_stay_as_they_were():
    cases = cases_named(*(f"case{number}" for number in range(30)))
    assert draw_split(cases, 3, seed=0).labeled == ("case11", "case22", "case5")


def test_frames_of_a_sequence(tmp_path, raw):  # noqa: F811
    volumes = [image_of(random_image(number), **OBLIQUE) for number in range(3)]
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "4d.nii.gz"))
    write(tmp_path / "l.nii.gz", random_label(0).astype(np.uint8), **OBLIQUE)
    cases = [Case("a", [tmp_path / "4d.nii.gz"], tmp_path / "l.nii.gz", frame=0), Case("b", [tmp_path / "4d.nii.gz"], frame=2)]
    dataset = Dataset("A", ["MRI"], {"background": 0, "a": 1})
    split = draw_split(cases, 1)
    folder = convert(dataset, cases, split, raw, 7, processes=1, link=True).folder
    np.testing.assert_array_equal(voxels(folder / "imagesTr" / "a_0000.nii.gz"), random_image(0))
    np.testing.assert_array_equal(voxels(folder / "imagesUn" / "b_0000.nii.gz"), random_image(2))
    assert_same_geometry(folder / "imagesUn" / "b_0000.nii.gz", OBLIQUE)
    # a file that changes is read anew, and one that is too short is noticed
    sitk.WriteImage(sitk.JoinSeries(volumes[:2]), str(tmp_path / "4d.nii.gz"))
    with pytest.raises(ConversionError, match=r"4d\.nii\.gz has shape \(7, 6, 5, 2\) .* volume 3 of a sequence"):
        convert(dataset, cases, split, raw, 8, processes=1)
    write(tmp_path / "4d.nii.gz", random_image(0))
    with pytest.raises(ConversionError, match="volume 1 of a sequence is expected"):
        convert(dataset, cases, split, raw, 8, processes=1)


def test_slices_in_h5_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = array
    image = read_h5(tmp_path / "a.h5", "image", (2, 3), axes="yx")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == (2, 3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_h5(tmp_path / "a.h5", "image", (2, 3), axes="xy")), array.T)
