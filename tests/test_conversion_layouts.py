"""Every source layout, written small as its source describes it, converted by its script and read back."""

import json
import os
import re
import runpy
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_caml.conversion

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "dataset_conversion"
SHARED = Path(os.environ.get("NNUNET_CAML_SHARED", ROOT.parent / "shared")) / "data"
needs = {
    name: pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"real data {name} not in NNUNET_CAML_SHARED/data")
    for name in ("left_atrium", "left_atrium_h5", "hippocampus")
}
SHAPE = (5, 6, 7)  # z, y, x


def rotation(*angles: float) -> np.ndarray:
    """A direction matrix that is parallel to no axis."""
    a, b = angles
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


OBLIQUE = {
    "spacing": (0.7812345678, 0.78, 3.3000001),
    "origin": (-123.456789, 34.56789, -987.654321),
    "direction": rotation(0.3, -0.7).ravel().tolist(),
}


def image_of(array: np.ndarray, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def write(path: Path, array: np.ndarray, **geometry: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(array, **geometry), str(path), True)  # type: ignore[arg-type]
    return path


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def random_image(seed: int, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, SHAPE).astype(dtype)


def random_label(seed: int, values: int | list[int] = 2) -> np.ndarray:
    return np.random.default_rng(100 + seed).choice(np.arange(values) if isinstance(values, int) else values, SHAPE)


def left_atrium(folder: Path, cases: int = 5, tests: int = 2, **geometry: object) -> Path:
    """The challenge's layout; train.list is deliberately not sorted."""
    names = [f"C{7 * (number + 1) % 10}X{number}" for number in range(cases + tests)]
    for number, name in enumerate(names):
        write(folder / name / "lgemri.nrrd", random_image(number, np.uint8), **geometry)
        write(folder / name / "laendo.nrrd", (255 * random_label(number)).astype(np.uint8), **geometry)
    (folder / "train.list").write_text("\n".join(names[:cases]) + "\n")
    (folder / "test.list").write_text("\n".join(names[cases:]))
    return folder


def left_atrium_h5(folder: Path) -> Path:
    """The literature's layout."""
    h5py = pytest.importorskip("h5py")
    for number, name in enumerate("ABCD"):
        path = folder / "2018LA_Seg_Training Set" / name / "mri_norm2.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:  # axes x, y, z
            file["image"] = random_image(number).transpose().astype(np.float32) / 7 - 5
            file["label"] = random_label(number).transpose().astype(np.uint8)
    (folder / "train.list").write_text("A\nB\nC\n")
    (folder / "test.list").write_text("D\n")
    return folder


def decathlon(folder: Path, channels: int = 2, cases: int = 6, **geometry: object) -> Path:
    """A task with ``channels`` channels in one 4-D file, hidden files of macOS, and test images without labels."""
    names = [f"organ_{number:03d}" for number in range(cases)]
    for part, group in (("Tr", names), ("Ts", ["organ_900", "organ_901"])):
        for number, name in enumerate(group):
            volumes = [image_of(random_image(10 * number + c), **geometry) for c in range(channels)]  # type: ignore[arg-type]
            path = folder / f"images{part}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.JoinSeries(volumes) if channels > 1 else volumes[0], str(path))
            path.with_name(f"._{path.name}").write_bytes(b"macOS")
            if part == "Tr":
                write(folder / "labelsTr" / path.name, random_label(number, 3).astype(np.uint8), **geometry)
    content = {
        "name": "Organ",
        "licence": "CC-BY-SA 4.0",
        "reference": "somewhere",
        "modality": {str(c): f"M{c}" for c in range(channels)},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/organ_900.nii.gz", "./imagesTs/organ_901.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def raw_data_set(folder: Path, cases: int = 6, ending: str = ".nii.gz", channels: int = 1) -> Path:
    """A data set of nnU-Net with test cases, one of them without a label, and an unlabelled case."""
    for number in range(cases):
        for channel in range(channels):
            write(folder / "imagesTr" / f"p{number}_{channel:04d}{ending}", random_image(10 * number + channel))
        write(folder / "labelsTr" / f"p{number}{ending}", random_label(number, 4).astype(np.uint8))
    for channel in range(channels):
        write(folder / "imagesTs" / f"t0_{channel:04d}{ending}", random_image(50))
        write(folder / "imagesTs" / f"t1_{channel:04d}{ending}", random_image(51))
        write(folder / "imagesUn" / f"u0_{channel:04d}{ending}", random_image(52))
    write(folder / "labelsTs" / f"t0{ending}", random_label(50, 4).astype(np.uint8))
    content = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3},
        "regions_class_order": [1, 2, 3],
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


def run(script: str | Path, *arguments: object) -> None:
    """Runs a script in this process, which is quicker than :func:`run_as_user`."""
    path = SCRIPTS / script
    before = sys.argv, list(sys.path)
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))
    if "-np" not in sys.argv:
        sys.argv += ["-np", "1"]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def run_as_user(script: str | Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def split_of(folder: Path) -> dict:
    return json.loads((folder / "split.json").read_text())


def verify(folder: Path, monkeypatch) -> None:
    """nnU-Net's own check, with threads in the place of its processes.

    Some of those take seconds to start, and others are forked, which can hang in a process that has threads.
    """
    from nnunetv2.experiment_planning import verify_dataset_integrity as module
    from nnunetv2.utilities import utils

    with monkeypatch.context() as patch:
        patch.setattr(utils, "Pool", ThreadPool)
        threads = SimpleNamespace(Pool=ThreadPool)
        patch.setattr(module, "multiprocessing", SimpleNamespace(get_context=lambda method: threads))
        module.verify_dataset_integrity(str(folder), 1)


def assert_same_geometry(path: Path, geometry: dict) -> None:
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.GetSpacing(), geometry["spacing"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), geometry["direction"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), geometry["origin"], rtol=1e-6, atol=1e-6)


def test_left_atrium(tmp_path, raw, monkeypatch):
    source = left_atrium(tmp_path / "source", **OBLIQUE)
    done = run_as_user("left_atrium.py", source, "--dataset-id", 27, "--labeled", 2, "-np", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset027_LeftAtrium"
    train, test = ((source / name).read_text().split() for name in ("train.list", "test.list"))
    assert split_of(target) == {
        "labeled": sorted(train[:2]),
        "unlabeled": sorted(train[2:]),
        "test": sorted(test),
        "seed": None,
        "command": "left_atrium.py source --dataset-id 27 --labeled 2",
        "version": nnunet_caml.__version__,
    }
    expected = {"dataset.json", "split.json"}
    for folder, names in (("Tr", train[:2]), ("Un", train[2:]), ("Ts", test)):
        for name in names:
            image = target / f"images{folder}" / f"{name}_0000.nii.gz"
            expected.add(f"images{folder}/{name}_0000.nii.gz")
            np.testing.assert_array_equal(voxels(image), voxels(source / name / "lgemri.nrrd"))
            assert voxels(image).dtype == np.uint8
            assert_same_geometry(image, OBLIQUE)
            if folder != "Un":
                label = target / f"labels{folder}" / f"{name}.nii.gz"
                expected.add(f"labels{folder}/{name}.nii.gz")
                np.testing.assert_array_equal(255 * voxels(label), voxels(source / name / "laendo.nrrd"))
                assert_same_geometry(label, OBLIQUE)
    assert set(files_of(target)) == expected
    assert "2 labelled, 3 unlabelled, 2 test cases" in done.stdout
    assert "nnUNetv2_plan_and_preprocess -d 27 -c 3d_fullres --verify_dataset_integrity" in done.stdout
    assert "nnUNetv2_train 27 3d_fullres 0 -tr nnUNetTrainerCAML" in done.stdout
    verify(target, monkeypatch)


def test_left_atrium_in_the_folders_of_the_download(tmp_path, raw):
    source = left_atrium(tmp_path / "source")
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train.list", "test.list"):
        (source / name).rename(lists / name)
    for name in (lists / "train.list").read_text().split():
        (source / "Training Set").mkdir(exist_ok=True)
        (source / name).rename(source / "Training Set" / name)
    run("left_atrium.py", source, "--dataset-id", 1, "--labeled", 5, "--lists", lists)
    split = split_of(raw / "Dataset001_LeftAtrium")
    assert len(split["labeled"]) == 5
    assert split["unlabeled"] == []
    assert not (raw / "Dataset001_LeftAtrium" / "imagesUn").exists()


def test_left_atrium_h5(tmp_path, raw, monkeypatch):
    source = left_atrium_h5(tmp_path / "source")
    done = run_as_user("left_atrium_h5.py", source, "--dataset-id", 28, "--labeled", 1, "-np", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset028_LeftAtrium"
    assert [split_of(target)[role] for role in ("labeled", "unlabeled", "test")] == [["A"], ["B", "C"], ["D"]]
    image = sitk.ReadImage(str(target / "imagesUn" / "B_0000.nii.gz"))
    assert image.GetSpacing() == (0.625,) * 3
    assert image.GetSize() == SHAPE[::-1]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_image(1).astype(np.float32) / 7 - 5)
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "A.nii.gz"), random_label(0))
    np.testing.assert_array_equal(voxels(target / "labelsTs" / "D.nii.gz"), random_label(3))
    assert [path.name for path in sorted((target / "labelsTr").iterdir())] == ["A.nii.gz"]
    verify(target, monkeypatch)


def test_decathlon(tmp_path, raw, monkeypatch):
    source = decathlon(tmp_path / "Task07_Organ", **OBLIQUE)
    done = run_as_user("decathlon.py", source, "--dataset-id", 7, "--labeled", 2, "--test", 1, "--preview", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset007_Organ"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 3, 1]
    assert split["seed"] == 0
    for role, folder in (("labeled", "Tr"), ("unlabeled", "Un"), ("test", "Ts")):
        for name in split[role]:
            number = int(name[-3:])
            for channel in range(2):
                image = target / f"images{folder}" / f"{name}_{channel:04d}.nii.gz"
                np.testing.assert_array_equal(voxels(image), random_image(10 * number + channel))
                assert voxels(image).dtype == np.int16
                assert_same_geometry(image, OBLIQUE)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (folder != "Un")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), random_label(number, 3))
    content = json.loads((target / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "M0", "1": "M1"}
    assert content["labels"] == {"background": 0, "a": 1, "b": 2}
    assert (content["licence"], content["numTraining"]) == ("CC-BY-SA 4.0", 2)
    assert (target / "preview.png").read_bytes().startswith(b"\x89PNG")
    verify(target, monkeypatch)


def test_decathlon_test_images_only_on_request(tmp_path, raw):
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", "all", "--use-test-images")
    split = split_of(raw / "Dataset007_Organ")
    assert split["unlabeled"] == ["organ_900", "organ_901"]
    assert len(split["labeled"]) == 6
    assert split["seed"] is None


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_hide_labels(tmp_path, raw, monkeypatch, ending):
    source = raw_data_set(tmp_path / "Dataset050_Mine", ending=ending, channels=2)
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2, "--test", 1, "--preview")
    target = raw / "Dataset051_Mine"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 4, 3]
    assert {"t0", "t1"} < set(split["test"])
    assert "u0" in split["unlabeled"]
    original = {path.name: path.read_bytes() for path in source.rglob(f"*{ending}")}
    for path in target.rglob(f"*{ending}"):
        assert path.read_bytes() == original[path.name]
    assert {path.name for path in (target / "labelsTs").iterdir()} == {
        f"{name}{ending}" for name in split["test"] if name != "t1"
    }
    content = json.loads((target / "dataset.json").read_text())
    assert content["regions_class_order"] == [1, 2, 3]
    assert content["labels"]["whole"] == [1, 2, 3]
    verify(target, monkeypatch)


def test_hide_labels_run_by_a_user_on_its_own_output(tmp_path, raw):
    source = raw_data_set(raw / "Dataset050_Mine")
    first = run_as_user("hide_labels.py", source, "--dataset-id", 51, "--labeled", 4, "-np", 1, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run("hide_labels.py", raw / "Dataset051_Mine", "--dataset-id", 52, "--labeled", 2)
    assert len(split_of(raw / "Dataset052_Mine")["unlabeled"]) == 5


def test_hide_labels_where_dataset_json_lists_the_files(tmp_path, raw, monkeypatch):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    content = json.loads((source / "dataset.json").read_text())
    monkeypatch.setenv("ELSEWHERE", "../Dataset050_Mine/imagesTr")
    content["dataset"] = {
        f"q{n}": {"images": [f"$ELSEWHERE/p{n}_0000.nii.gz"], "label": f"labelsTr/p{n}.nii.gz"} for n in (1, 3, 4)
    }
    content["numTraining"] = 3
    (source / "dataset.json").write_text(json.dumps(content))
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    target = raw / "Dataset051_Mine"
    assert {*split_of(target)["labeled"], *split_of(target)["unlabeled"]} == {"q1", "q3", "q4", "u0"}
    assert "dataset" not in json.loads((target / "dataset.json").read_text())
    verify(target, monkeypatch)


def test_hide_labels_keeps_two_dimensional_colour_images(tmp_path, raw, monkeypatch):
    source = tmp_path / "Dataset050_Photos"
    for number in range(3):
        for folder in ("imagesTr", "labelsTr"):
            (source / folder).mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(number).integers(0, 255, (8, 9, 3)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(source / "imagesTr" / f"p{number}_0000.png"))
        label = np.arange(72, dtype=np.uint8).reshape(8, 9) % 2
        sitk.WriteImage(sitk.GetImageFromArray(label), str(source / "labelsTr" / f"p{number}.png"))
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "road": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    (source / "dataset.json").write_text(json.dumps(content))
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 1, "--preview")
    target = raw / "Dataset051_Photos"
    assert len(list((target / "imagesUn").glob("*.png"))) == 2
    verify(target, monkeypatch)


def test_hide_labels_takes_the_spacing_of_tiff_files_along(tmp_path, raw, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    for path in sorted(source.rglob("*.nii.gz")):
        stem = path.name[: -len(".nii.gz")]
        tifffile.imwrite(path.with_name(f"{stem}.tif"), voxels(path))
        path.with_name(f"{stem.removesuffix('_0000')}.json").write_text(json.dumps({"spacing": [3.0, 2.0, 1.0]}))
        path.unlink()
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**content, "file_ending": ".tif"}))
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    target = raw / "Dataset051_Mine"
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"):
        stems = {path.stem.removesuffix("_0000") for path in (target / folder).glob("*.tif")}
        assert {path.stem for path in (target / folder).glob("*.json")} == stems
    verify(target, monkeypatch)


def test_unlabeled_from(tmp_path, raw):
    source = decathlon(tmp_path / "Task07_Organ", channels=2)
    for name in ("amos_0004", "amos_0600"):  # what looks like a channel number is none here
        volumes = [image_of(random_image(number)) for number in range(2)]
        (tmp_path / "more").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "more" / f"{name}.nii.gz"))
    (tmp_path / "more" / "readme.txt").write_text("not an image")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--unlabeled-from", tmp_path / "more")
    target = raw / "Dataset007_Organ"
    assert split_of(target)["unlabeled"] == ["amos_0004", "amos_0600"]
    np.testing.assert_array_equal(voxels(target / "imagesUn" / "amos_0600_0001.nii.gz"), random_image(1))
    # and nnU-Net's own file names
    run("decathlon.py", source, "--dataset-id", 8, "--labeled", 6, "--unlabeled-from", target / "imagesUn")
    assert split_of(raw / "Dataset008_Organ")["unlabeled"] == ["amos_0004", "amos_0600"]


def test_left_atrium_unlabeled_from_another_download(tmp_path, raw):
    source = left_atrium(tmp_path / "source", cases=3)
    write(tmp_path / "more" / "Z1" / "lgemri.nrrd", random_image(9))
    write(tmp_path / "more" / "Z1" / "laendo.nrrd", random_label(9).astype(np.uint8))
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--unlabeled-from", tmp_path / "more")
    assert split_of(raw / "Dataset007_LeftAtrium")["unlabeled"] == ["Z1"]


def test_example_of_the_documentation_runs(tmp_path, raw):
    """The converter in the package's docstring, exactly as it is printed there."""
    text = nnunet_caml.conversion.__doc__.partition("is a label::\n\n")[2]
    lines = re.match(r"(?:(?:    .*)?\n)+", text).group().rstrip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 10
    script = tmp_path / "my_converter.py"
    script.write_text("\n".join(line[4:] for line in lines) + "\n")
    for number in range(4):
        write(tmp_path / "source" / f"case{number}" / "ct.nrrd", random_image(number), **OBLIQUE)
        if number != 1:
            write(tmp_path / "source" / f"case{number}" / "organ.nrrd", random_label(number).astype(np.uint8), **OBLIQUE)
    done = run_as_user(script, tmp_path / "source", "--dataset-id", 31, "--labeled", 2, "-np", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    split = split_of(raw / "Dataset031_Spleen")
    assert len(split["labeled"]) == 2
    assert len(split["unlabeled"]) == 2
    assert "case1" in split["unlabeled"]
    for name in split["unlabeled"]:
        image = raw / "Dataset031_Spleen" / "imagesUn" / f"{name}_0000.nii.gz"
        np.testing.assert_array_equal(voxels(image), random_image(int(name[-1])))


def test_documented_converters_run(tmp_path, raw):
    """The same for the converter in the documentation, which has to stay the docstring's."""
    text = (ROOT / "documentation" / "datasets" / "own_data.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    docstring = nnunet_caml.conversion.__doc__.partition("is a label::\n\n")[2]
    assert code.strip() == "\n".join(line[4:] for line in docstring.partition("\n\n``python")[0].splitlines()).strip()


@needs["left_atrium"]
@needs["left_atrium_h5"]
def test_both_left_atrium_layouts_agree_on_real_data(tmp_path, raw, monkeypatch):
    pytest.importorskip("h5py")
    lists = SHARED / "left_atrium_h5"
    run("left_atrium_h5.py", lists, "--dataset-id", 28, "--labeled", 4)
    run("left_atrium.py", SHARED / "left_atrium", "--lists", lists, "--dataset-id", 27, "--labeled", 4)
    h5, nrrd = raw / "Dataset028_LeftAtrium", raw / "Dataset027_LeftAtrium"
    verify(h5, monkeypatch)
    verify(nrrd, monkeypatch)
    images = sorted(path.relative_to(h5) for path in h5.glob("images*/*"))
    labels = sorted(path.relative_to(h5) for path in h5.glob("labels*/*"))
    assert (len(images), len(labels)) == (6, 6)
    for path in labels:
        np.testing.assert_array_equal(voxels(h5 / path), voxels(nrrd / path))
    for path in images:
        normalised, intensity = voxels(h5 / path), voxels(nrrd / path)
        assert (normalised.dtype, intensity.dtype) == (np.float32, np.uint8)
        slope, offset = np.polyfit(intensity.ravel()[::97], normalised.ravel()[::97], 1)
        assert slope > 0
        np.testing.assert_allclose(slope * intensity + offset, normalised, atol=1e-3)
        assert sitk.ReadImage(str(nrrd / path)).GetSpacing() == (0.625,) * 3


@needs["hippocampus"]
def test_hippocampus(tmp_path, raw, monkeypatch):
    run("decathlon.py", SHARED / "hippocampus" / "Task04_Hippocampus", "--dataset-id", 4, "--labeled", 10, "--test", 40)
    target = raw / "Dataset004_Hippocampus"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [10, 150, 40]
    name = split["labeled"][0]
    original = SHARED / "hippocampus" / "Task04_Hippocampus" / "labelsTr" / f"{name}.nii.gz"
    np.testing.assert_array_equal(voxels(target / "labelsTr" / f"{name}.nii.gz"), voxels(original))
    verify(target, monkeypatch)
