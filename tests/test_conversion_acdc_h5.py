"""ACDC as the semi-supervised literature shares it: slices and volumes in h5 files."""

import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import SHARED
from conversion_damage import fuzz
from conversion_helpers import (
    ROLES,
    check_converted,
    needs_data,
    nothing_left,
    patients_of,
    replace_in_h5,
    run,
    sentence,
    split_of,
    verify,
    write_h5,
    write_lists,
)


def acdc_h5(folder: Path, training: int = 4) -> Path:
    """The literature's layout: patients 5 and above are training patients, 3 is for validation, 1 and 2 for testing."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": [], "train_slices": []}
    for number in (1, 2, 3, *range(5, 5 + training)):
        for frame in (1, 2):
            name = f"patient{number:03d}_frame{frame:02d}"
            count = 12 if number == 6 else 5  # two digits, which sort the wrong way as text
            image = np.random.default_rng(10 * number + frame).integers(0, 100, (count, 6, 7)).astype(np.float32) / 100
            label = np.random.default_rng(10 * number + frame).integers(0, 4, (count, 6, 7)).astype(np.uint8)
            lists["train" if number >= 5 else "val" if number == 3 else "test"].append(name)
            if number < 5:
                write_h5(folder / "data" / f"{name}.h5", image, label)
                continue
            for level in range(count):
                write_h5(folder / "data" / "slices" / f"{name}_slice_{level + 1}.h5", image[level], label[level])
                lists["train_slices"].append(f"{name}_slice_{level + 1}")
    lists["train"] = [*lists["train"][2:], *lists["train"][:2]]  # not sorted, as in the original
    return write_lists(folder, **lists)


def check_acdc_h5(source: Path, target: Path) -> None:
    """Every file in the data set is what the source holds, with slices stacked in the order of their numbers."""
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

    def expected_image(name: str) -> np.ndarray:
        image = stack(name, "image")
        assert image.dtype == np.float32
        return image

    check_converted(target, expected_image, lambda name: stack(name, "label"))
    patients = {role: patients_of(split_of(target)[role]) for _, role in ROLES}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values()))


def test_acdc_h5(tmp_path, raw, monkeypatch):
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


def test_acdc_h5_options(tmp_path, raw):
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


def test_acdc_h5_complaints(tmp_path, raw, capsys):
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
    replace_in_h5(middle, "image", np.zeros((6, 8), np.float32))
    assert "slice_4.h5: the array 'image' has shape (8, 6) (x, y)" in complaint()
    replace_in_h5(middle, "image", np.zeros((6, 7, 1), np.float32))
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


@needs_data("acdc_h5")
def test_acdc_h5_on_real_data(tmp_path, raw, monkeypatch):
    """Slices and volumes of the real files, in both frames of nine patients."""
    source = SHARED / "data" / "acdc_h5"
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


def test_fuzz_acdc_h5(tmp_path, raw, capsys):
    source = acdc_h5(tmp_path / "source", training=2)
    fuzz(capsys, source, raw, ("acdc_h5.py", "--dataset-id", 7, "--labeled", 1), check_acdc_h5)
