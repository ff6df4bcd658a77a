"""BraTS in the challenge's files, as regions, and in the literature's h5 files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import fuzz_compressed, fuzz_h5
from conversion_helpers import (
    OBLIQUE,
    SHAPE,
    assert_same_geometry,
    dataset_json,
    imported,
    nothing_left,
    random_image,
    random_label,
    replace_in_h5,
    run,
    sentence,
    split_of,
    verify,
    voxels,
    write,
    write_h5,
    write_lists,
)

NAMES = ["BraTS19_CBICA_AAB_1", "BraTS19_2013_2_1", "BraTS19_TCIA01_131_1", "BraTS19_TMC_06290_1", "BraTS19_2013_0_1"]
SEQUENCES = ("t1", "t1ce", "t2", "flair")


def brats(source: Path, ending: str = ".nii.gz", **geometry: object) -> Path:
    """High- and low-grade tumours in folders of their own, the survival table, and a hidden file of macOS."""
    for number, name in enumerate(NAMES):
        folder = source / "MICCAI_BraTS_2019_Data_Training" / ("LGG" if number % 2 else "HGG") / name
        for channel, sequence in enumerate(SEQUENCES):
            write(folder / f"{name}_{sequence}{ending}", random_image(10 * number + channel), **geometry)
        label = random_label(number, [0, 1, 2, 4]).astype(np.int16)
        write(folder / f"{name}_seg{ending}", label, **geometry)
        (folder / f"._{name}_t1{ending}").write_bytes(b"macOS")
    (source / "survival_data.csv").write_text("BraTS19ID,Age\n", encoding="utf-8")
    return source


def lists(folder: Path, ending: str = ".txt") -> Path:
    """Three cases to train with, in an order that is not sorted, one to validate and one to test."""
    return write_lists(folder, ending, train=[NAMES[2], NAMES[0], NAMES[1]], val=[NAMES[4]], test=[NAMES[3]])


def brats_h5(source: Path) -> Path:
    """The literature's layout, axes z, y, x."""
    for number, name in enumerate(NAMES):
        image, label = random_image(number).astype(np.float32) / 9, random_label(number).astype(np.uint8)
        write_h5(source / "data" / f"{name}.h5", image, label)
    return lists(source)


def test_brats(tmp_path, raw, monkeypatch):
    source = brats(tmp_path / "source", **OBLIQUE)
    arguments = (source, "--dataset-id", 43, "--labeled", 2, "--lists", lists(tmp_path / "lists"), "--preview")
    run("brats.py", *arguments)
    target = raw / "Dataset043_BraTS"
    split = split_of(target)
    assert split["labeled"] == sorted([NAMES[2], NAMES[0]])  # the first two of the list
    assert split["unlabeled"] == [NAMES[1]]
    assert split["test"] == [NAMES[3]]
    assert split["seed"] is None
    for role, folder in (("labeled", "Tr"), ("unlabeled", "Un"), ("test", "Ts")):
        for name in split[role]:
            number = NAMES.index(name)
            for channel in range(4):
                image = target / f"images{folder}" / f"{name}_{channel:04d}.nii.gz"
                np.testing.assert_array_equal(voxels(image), random_image(10 * number + channel))
                assert voxels(image).dtype == np.int16
                assert_same_geometry(image, OBLIQUE)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (folder != "Un")
            if label.exists():
                expected = np.array([0, 2, 1, -1, 3])[random_label(number, [0, 1, 2, 4])]
                np.testing.assert_array_equal(voxels(label), expected)
                assert_same_geometry(label, OBLIQUE)
    content = dataset_json(target)
    assert list(content["channel_names"].values()) == ["T1", "T1ce", "T2", "FLAIR"]
    assert content["regions_class_order"] == [1, 2, 3]
    verify(target, monkeypatch)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_label_of_brats_2020_that_kept_its_old_name(tmp_path, raw, capsys, ending):
    """It is case 355's in the training data of that year."""
    source = brats(tmp_path / "source", ending)
    label = next(source.rglob(f"{NAMES[3]}_seg{ending}"))
    label.rename(label.with_name(f"W39_1998.09.19_Segm{ending}"))
    run("brats.py", source, "--dataset-id", 43, "--labeled", "all")
    assert NAMES[3] in split_of(raw / "Dataset043_BraTS")["labeled"]
    label.with_name(f"W39_1998.09.19_Segm{ending}").unlink()
    assert f"{NAMES[3]}_seg{ending} does not exist" in sentence(
        capsys, "brats.py", source, "--dataset-id", 44, "--labeled", "all"
    )


def test_regions_are_those_of_the_challenge(tmp_path, raw):
    """nnU-Net's own label manager makes whole tumour 1, 2, 4, core 1, 4 and enhancing tumour 4 of the converted labels."""
    import torch
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    source = brats(tmp_path / "source")
    run("brats.py", source, "--dataset-id", 43, "--labeled", 1, "--lists", lists(tmp_path / "lists"))
    target = raw / "Dataset043_BraTS"
    content = dataset_json(target)
    manager = LabelManager(content["labels"], content["regions_class_order"])
    assert manager.has_regions
    names = [name for name in content["labels"] if name != "background"]
    converted = voxels(target / "labelsTr" / f"{NAMES[2]}.nii.gz")
    original = random_label(2, [0, 1, 2, 4])
    masks = {}
    for name, region in zip(names, manager.foreground_regions, strict=True):
        masks[name] = np.isin(converted, region)
    np.testing.assert_array_equal(masks["whole tumor"], np.isin(original, [1, 2, 4]))
    np.testing.assert_array_equal(masks["tumor core"], np.isin(original, [1, 4]))
    np.testing.assert_array_equal(masks["enhancing tumor"], original == 4)
    # and back: certain predictions of all regions give the label map again
    logits = torch.from_numpy(np.stack([masks[name] for name in names]).astype(np.float32)) * 200 - 100
    np.testing.assert_array_equal(manager.convert_logits_to_segmentation(logits).numpy(), converted)


def test_brats_drawn_by_lot(tmp_path, raw):
    source = brats(tmp_path / "source", ending=".nii")
    run("brats.py", source, "--dataset-id", 44, "--labeled", 2, "--test", 1, "--seed", 3)
    split = split_of(raw / "Dataset044_BraTS")
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 2, 1]
    assert split["seed"] == 3
    # and the challenge's validation cases as unlabelled ones
    more = tmp_path / "more" / "BraTS19_VAL_1"
    for sequence in SEQUENCES:
        write(more / f"BraTS19_VAL_1_{sequence}.nii.gz", random_image(7))
    run("brats.py", source, "--dataset-id", 45, "--labeled", 4, "--unlabeled-from", tmp_path / "more")
    assert len(split_of(raw / "Dataset045_BraTS")["unlabeled"]) == 2
    assert "BraTS19_VAL_1" in split_of(raw / "Dataset045_BraTS")["unlabeled"]


def test_brats_h5(tmp_path, raw, monkeypatch):
    source = brats_h5(tmp_path / "source")
    run("brats_h5.py", source, "--dataset-id", 46, "--labeled", 2, "--preview")
    target = raw / "Dataset046_BraTS19"
    split = split_of(target)
    assert split["labeled"] == sorted([NAMES[2], NAMES[0]])
    assert split["unlabeled"] == [NAMES[1]]
    assert split["test"] == [NAMES[3]]
    image = sitk.ReadImage(str(target / "imagesUn" / f"{NAMES[1]}_0000.nii.gz"))
    assert image.GetSpacing() == (1, 1, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_image(1).astype(np.float32) / 9)
    np.testing.assert_array_equal(voxels(target / "labelsTr" / f"{NAMES[2]}.nii.gz"), random_label(2))
    verify(target, monkeypatch)
    for path in list(source.glob("*.txt")):  # the same lists with the other ending, and elsewhere
        path.unlink()
    run("brats_h5.py", source, "--dataset-id", 47, "--labeled", 2, "--lists", lists(tmp_path / "lists", ".list"))
    assert split_of(raw / "Dataset047_BraTS19")["labeled"] == split["labeled"]
    more = source / "data" / f"{NAMES[4]}.h5"
    (tmp_path / "more").mkdir()
    more.rename(tmp_path / "more" / more.name)
    arguments = ("--lists", tmp_path / "lists", "--unlabeled-from", tmp_path / "more")
    run("brats_h5.py", source, "--dataset-id", 48, "--labeled", 3, *arguments)
    assert split_of(raw / "Dataset048_BraTS19")["unlabeled"] == [NAMES[4]]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing sequence", ["_t1ce.nii.gz does not exist"]),
        ("missing label", ["_seg.nii.gz does not exist", "should have a label"]),
        ("missing case", ["does not exist"]),
        ("truncated", ["_t2.nii.gz is truncated or damaged"]),
        ("value", ["_seg.nii.gz holds the value 3 where a label of [0, 1, 2, 4]"]),
        ("shape", ["has shape", "_flair.nii.gz has (8, 6, 5)"]),
        ("mirrored", ["_seg.nii.gz do not lie in the same place"]),
        ("twice", ["are the same image of the case"]),
    ],
)
def test_broken_brats(tmp_path, raw, capsys, kind, words):
    source = brats(tmp_path / "source")
    folder = next(source.rglob(NAMES[2]))
    files = {path.name.split("_")[-1].split(".")[0]: path for path in folder.glob("[!.]*.nii.gz")}
    if kind == "missing sequence":
        files["t1ce"].unlink()
    elif kind == "missing label":
        files["seg"].unlink()
    elif kind == "missing case":
        shutil.rmtree(folder)
    elif kind == "truncated":
        files["t2"].write_bytes(files["t2"].read_bytes()[:-9])
    elif kind == "value":
        write(files["seg"], np.full(SHAPE, 3, np.uint8))
    elif kind == "shape":
        write(files["flair"], np.zeros((5, 6, 8), np.int16))
    elif kind == "mirrored":
        write(files["seg"], np.zeros(SHAPE, np.uint8), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    elif kind == "twice":
        write(source / files["t1"].name.removesuffix(".gz"), random_image(0))
    arguments = (source, "--dataset-id", 43, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    complaint = sentence(capsys, "brats.py", *arguments)
    assert all(word in complaint for word in words), complaint
    assert NAMES[2] in complaint
    assert nothing_left(raw)
    if kind != "twice":
        run("brats.py", *arguments, "--skip-broken")
        assert split_of(raw / "Dataset043_BraTS")["left_out"] == [NAMES[2]]


def test_wrong_layouts(tmp_path, raw, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ("--dataset-id", 43, "--labeled", 1)
    assert "CASE_flair.nii.gz" in sentence(capsys, "brats.py", tmp_path / "empty", *arguments)
    assert "has no folder 'data'" in sentence(capsys, "brats_h5.py", tmp_path / "empty", *arguments)
    source = brats(tmp_path / "source")
    complaint = sentence(capsys, "brats.py", source, *arguments, "--lists", tmp_path / "empty")
    assert "train.txt does not exist" in complaint
    complaint = sentence(capsys, "brats.py", source, *arguments, "--lists", lists(tmp_path / "lists"), "--test", 1)
    assert "give one of the two" in complaint
    h5 = brats_h5(tmp_path / "h5")
    (h5 / "test.txt").unlink()
    assert "test.txt does not exist" in sentence(capsys, "brats_h5.py", h5, *arguments)
    lists(h5)
    replace_in_h5(h5 / "data" / f"{NAMES[2]}.h5", "label", np.full(SHAPE, 2))
    assert "holds the value 2 where a label of [0, 1]" in sentence(capsys, "brats_h5.py", h5, *arguments)
    assert nothing_left(raw)


def test_fuzzed_files_are_an_error_or_right(tmp_path, raw, capsys):
    source = brats(tmp_path / "source")
    files = sorted(next(source.rglob(NAMES[2])).glob("[!.]*.nii.gz"))
    arguments = (source, "--dataset-id", 43, "--labeled", 1, "--lists", lists(tmp_path / "lists"))
    fuzz_compressed(capsys, raw, "brats.py", arguments, files, rounds=24)


def test_fuzzed_h5_is_an_error_or_a_volume(tmp_path):
    source = brats_h5(tmp_path / "source")
    with imported("brats_h5") as script:
        fuzz_h5(script.DATASET, source / "data" / f"{NAMES[0]}.h5")
