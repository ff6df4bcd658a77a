"""Which preprocessed unlabelled cases are trained with, and what is recorded of them."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import Workspace
from test_unlabeled import dataset

from nnunet_caml.cli import main
from nnunet_caml.errors import StorageError
from nnunet_caml.preparation import split_few_cases
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import CaseState, read_sources, renewed_sources
from nnunet_caml.unlabeled import UnlabeledDataError


def test_cases_taken_out_of_the_raw_data_are_not_used(workspace: Workspace):
    preprocess(dataset(workspace), 1)
    (workspace.raw / "imagesUn/un_2_0000.nii.gz").unlink()
    assert dataset(workspace).usable_cases() == ["un_0", "un_1", "un_3", "un_4"]


def test_cases_taken_out_stay_out_where_no_raw_data_is(workspace: Workspace, capsys: pytest.CaptureFixture):
    """As on a training node, after a test case was noticed among the unlabelled ones."""
    raw, aside = workspace.raw / "imagesUn/un_2_0000.nii.gz", workspace.root / "un_2_0000.nii.gz"
    preprocess(dataset(workspace), 1)
    raw.rename(aside)
    assert preprocess(dataset(workspace), 1) == 0
    said = "1 preprocessed case(s) are no longer among the raw ones and are not used any more: un_2."
    assert said in capsys.readouterr().out
    workspace.raw.rename(workspace.root / "elsewhere")
    assert dataset(workspace).usable_cases() == ["un_0", "un_1", "un_3", "un_4"]
    (workspace.root / "elsewhere").rename(workspace.raw)
    assert preprocess(dataset(workspace), 1) == 0
    assert said not in capsys.readouterr().out
    aside.rename(raw)  # a change of mind, which costs nothing
    assert preprocess(dataset(workspace), 1) == 0
    assert dataset(workspace).usable_cases() == [f"un_{i}" for i in range(5)]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_cases_taken_out_are_no_obstacle_where_the_folder_may_not_be_written_to(workspace: Workspace, monkeypatch, number: int):
    preprocess(dataset(workspace), 1)
    (workspace.raw / "imagesUn/un_2_0000.nii.gz").unlink()

    def refuse(*_args: object, **_settings: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert preprocess(dataset(workspace), 1) == 0
    assert dataset(workspace).usable_cases() == ["un_0", "un_1", "un_3", "un_4"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_new_case_where_the_folder_may_not_be_written_to(workspace: Workspace, monkeypatch, capsys, number: int):
    preprocess(dataset(workspace), 1)
    for i in range(5):
        shutil.copy(workspace.raw / f"imagesUn/un_{i}_0000.nii.gz", workspace.raw / f"imagesUn/new_{i}_0000.nii.gz")

    def refuse(path: Path, *_args: object, **_settings: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert main(["preprocess", "-d", "101", "-c", "3d_fullres", "-np", "1"]) == 1
    said = capsys.readouterr().err
    assert (
        "5 unlabelled case(s) (new_0, new_1, new_2, ...) are not preprocessed yet, or have changed since, and nothing" in said
    )
    assert f"{os.strerror(number)}). Run `nnunet-caml preprocess` on a machine, or as a user, that may write there" in said
    assert "Errno" not in said
    assert "nnUNetPlans_3d_fullres_unlabeled" in said
    assert preprocess(dataset(workspace), 1) == 5
    assert not list(dataset(workspace).folder.glob(".state/tmp-*"))


def test_a_list_that_names_another_file_which_is_not_there(workspace: Workspace, capsys: pytest.CaptureFixture):
    """The case is not what was preprocessed under its name; one whose own file has gone is, which is said."""
    listed = workspace.root / "archive"
    (workspace.raw / "imagesUn").rename(listed)
    description = workspace.raw / "dataset.json"
    content = json.loads(description.read_text(encoding="utf-8"))
    content["unlabeled"] = {f"un_{i}": {"images": [str(listed / f"un_{i}_0000.nii.gz")]} for i in range(5)}
    description.write_text(json.dumps(content), encoding="utf-8")
    preprocess(dataset(workspace), 1)
    (listed / "un_3_0000.nii.gz").unlink()
    assert preprocess(dataset(workspace), 1) == 0
    assert "WARNING: raw files of 1 unlabelled case(s) are missing" in (said := capsys.readouterr().out)
    assert "before: un_3. Remove" in said
    content["unlabeled"]["un_1"] = {"images": [str(listed / "typo.nii.gz")]}
    description.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match=r"typo\.nii\.gz of unlabelled case un_1 does not exist"):
        preprocess(dataset(workspace), 1)


def test_an_emptied_folder_is_not_filled_from_what_was_preprocessed(workspace: Workspace):
    preprocess(dataset(workspace), 1)
    for file in (workspace.raw / "imagesUn").iterdir():
        file.unlink()
    assert dataset(workspace).usable_cases() == []
    # taken away altogether, as where the training node has no raw images
    (workspace.raw / "imagesUn").rmdir()
    assert len(dataset(workspace).usable_cases()) == 5


def test_a_case_that_has_got_its_label_is_no_longer_unlabelled(workspace: Workspace):
    """As on a node without raw data, to which the preprocessed labelled case was copied after the unlabelled one."""
    d = dataset(workspace)
    preprocess(d, 1)
    (workspace.raw / "imagesUn").rename(workspace.raw / "elsewhere")
    shutil.copy(d.labeled_folder / "tr_0.pkl", d.labeled_folder / "un_3.pkl")
    assert d.usable_cases() == ["un_0", "un_1", "un_2", "un_4"]


def test_a_file_of_another_size_is_another_file_whatever_its_time(workspace: Workspace):
    file = workspace.raw / "imagesUn/un_0_0000.nii.gz"
    recorded, time = read_sources([file]), file.stat().st_mtime_ns
    assert renewed_sources(recorded, [file])
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(time, time))
    assert not renewed_sources(recorded, [file])


def test_a_state_that_could_not_be_written_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a full disk: a state of earlier stays, and there is no half of the new one."""
    file, write_text = tmp_path / "un_0.json", Path.write_text
    CaseState("old", {}, "voxels").write(file)

    def half(path: Path, text: str, **kwargs: str) -> int:
        write_text(path, text[:5], **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        CaseState("new", {}, "voxels").write(file)
    assert CaseState.read(file) == CaseState("old", {}, "voxels")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_split_that_names_a_case_without_its_label(workspace: Workspace, make_trainer, part: str):
    """Its label was taken away, and the labelled cases preprocessed again."""
    split = {"train": ["tr_0", "tr_2"], "val": ["tr_3"]}
    split[part].append("tr_1")
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps([split]), encoding="utf-8")
    for file in (workspace.preprocessed / "nnUNetPlans_3d_fullres").glob("tr_1*"):
        file.unlink()
    file = workspace.preprocessed / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "numTraining": 3}), encoding="utf-8")
    trainer = make_trainer(fold=0)
    trainer.initialize()
    with pytest.raises(UnlabeledDataError, match=r"splits_final.json names tr_1 \(1 such case\(s\)\), which is not among"):
        trainer.prepare_unlabeled()


@pytest.mark.parametrize(("part", "kind"), [("train", "training"), ("val", "validation")])
def test_a_split_of_which_a_part_is_empty(workspace: Workspace, make_trainer, part: str, kind: str):
    split = {"train": ["tr_0", "tr_2"], "val": ["tr_3"], part: []}
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps([split]), encoding="utf-8")
    trainer = make_trainer(fold=0)
    trainer.initialize()
    with pytest.raises(UnlabeledDataError, match=rf'^splits_final\.json names no {kind} case for this fold.* under "{part}"'):
        trainer.prepare_unlabeled()


def test_a_split_of_few_cases_that_cannot_be_written(workspace: Workspace):
    """As where preprocessed data are shared and may only be read."""
    folder, file = workspace.preprocessed / "nnUNetPlans_3d_fullres", workspace.root / "nowhere" / "splits_final.json"
    with pytest.raises(StorageError, match=r"cannot be written \(No such file or directory\).* fold `all`") as error:
        split_few_cases(str(folder), file, 0, lambda line: None)
    assert str(file) in str(error.value)


def test_a_variable_that_some_of_the_listed_cases_lack(workspace: Workspace, monkeypatch):
    """They are used as they were preprocessed, and nobody is told to remove them."""
    (workspace.raw / "imagesUn" / "un_0_0000.nii.gz").rename(workspace.root / "scan.nii.gz")
    file = workspace.raw / "dataset.json"
    entry = {"un_0": {"images": ["$ARCHIVE/scan.nii.gz"]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    monkeypatch.setenv("ARCHIVE", str(workspace.root))
    assert preprocess(dataset(workspace), 1) == 5
    monkeypatch.delenv("ARCHIVE")
    said: list[str] = []
    assert preprocess(dataset(workspace), 1, say=said.append) == 0
    (line,) = [line for line in said if "un_0" in line]
    assert "Set and export ARCHIVE" in line
    assert "Remove" not in line


@pytest.mark.parametrize("changed", [0, 1])
def test_channels_of_one_name_in_several_folders(tmp_path: Path, changed: int):
    """As in an archive with a folder for each sequence, which the entry ``unlabeled`` of ``dataset.json`` names."""
    files = [tmp_path / name / "case.nii" for name in ("t1", "t2")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"1234")
    recorded = read_sources(files)
    assert renewed_sources(recorded, files)
    files[changed].write_bytes(b"other and longer")
    assert not renewed_sources(recorded, files)


def test_a_link_to_a_disk_that_is_not_there(workspace: Workspace, capsys):
    preprocess(dataset(workspace), 1)
    folder, disk = workspace.raw / "imagesUn", workspace.root / "disk"
    folder.rename(disk)
    folder.symlink_to(disk)
    assert list(dataset(workspace).raw_cases()) == [f"un_{i}" for i in range(5)]
    disk.rename(workspace.root / "unmounted")
    # as on a node without raw data
    assert preprocess(dataset(workspace), 1) == 0
    assert dataset(workspace).usable_cases() == [f"un_{i}" for i in range(5)]
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny"]) == 1
    assert f"{folder} is a link to {disk}, which is not there" in capsys.readouterr().err
    # its cases would be withdrawn for those of the list alone
    file = workspace.raw / "dataset.json"
    entry = {"near": {"images": ["imagesTs/ts_0_0000.nii.gz"]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match="which is not there"):
        preprocess(dataset(workspace), 1)
    (workspace.root / "unmounted").rename(disk)
    assert preprocess(dataset(workspace), 1) == 1
    assert len(dataset(workspace).usable_cases()) == 6
