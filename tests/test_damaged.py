"""What is missing or damaged among the unlabelled data once they are preprocessed, and what is said of it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from conftest import Workspace
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_unlabeled import dataset

from nnunet_caml import states
from nnunet_caml.checks import of_other_spacing, orientation
from nnunet_caml.cli import main
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import CaseState
from nnunet_caml.unlabeled import UnlabeledDataError


def spoil(file: Path, how: str) -> None:
    """As after a copy that was broken off, or a clean-up of the disk."""
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("how", ["missing", "cut short"])
@pytest.mark.parametrize("name", ["un_1.b2nd", "un_1_seg.b2nd", "un_1.pkl"])
def test_a_file_that_is_not_whole_is_made_again(workspace: Workspace, name: str, how: str):
    d = dataset(workspace)
    preprocess(d, 1)
    whole = (d.folder / name).read_bytes()
    spoil(d.folder / name, how)
    assert d.done_cases() == ["un_0", "un_2", "un_3", "un_4"]
    assert preprocess(d, 1) == 1
    assert len(d.done_cases()) == 5
    assert name.endswith(".pkl") or (d.folder / name).read_bytes() == whole


def test_a_file_that_is_not_whole_where_no_raw_data_is(workspace: Workspace, make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    preprocess(trainer.unlabeled, 1)
    shutil.rmtree(workspace.raw)
    spoil(trainer.unlabeled.folder / "un_1.b2nd", "missing")
    spoil(trainer.unlabeled.folder / "un_3.b2nd", "cut short")
    said = r"2 preprocessed unlabelled case\(s\) .*_unlabeled are missing or damaged: un_1\.b2nd, un_3\.b2nd\. Copy them again"
    with pytest.raises(UnlabeledDataError, match=said):
        trainer.prepare_unlabeled()
    for case in ("un_1", "un_3"):
        trainer.unlabeled.state_file(case).unlink()
    trainer.prepare_unlabeled()
    assert trainer._unlabeled_names == ["un_0", "un_2", "un_4"]


def test_a_case_of_which_no_sizes_were_recorded_counts_as_done(workspace: Workspace):
    """As before sizes were recorded: nothing is preprocessed again for it."""
    d = dataset(workspace)
    preprocess(d, 1)
    for file in d.folder.glob(".state/*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        del content["files"]
        file.write_text(json.dumps(content), encoding="utf-8")
    assert len(d.done_cases()) == 5
    assert preprocess(d, 1) == 0
    state = CaseState.read(d.state_file("un_0"))
    assert state is not None
    assert state.files == {}


def test_cases_of_other_plans_where_no_raw_data_is(workspace: Workspace, make_trainer, capsys: pytest.CaptureFixture):
    """As when preprocessing with new plans was broken off, or was that of a part of the cases only."""
    trainer = make_trainer()
    trainer.initialize()
    preprocess(trainer.unlabeled, 1)
    shutil.rmtree(workspace.raw)
    for case in ("un_1", "un_3"):
        file = trainer.unlabeled.state_file(case)
        file.write_text(file.read_text(encoding="utf-8").replace(trainer.unlabeled.fingerprint(), "other"), encoding="utf-8")
    trainer.prepare_unlabeled()
    said = capsys.readouterr().out
    assert (
        "WARNING: 2 preprocessed unlabelled case(s) are not used, because they were made with other plans: un_1, un_3." in said
    )


def test_a_validation_image_whose_voxels_its_label_has_changed(workspace: Workspace, make_trainer):
    """As a label does with masked normalisation, where it reaches beyond what is nonzero."""
    shutil.copy(workspace.raw / "imagesTr/tr_0_0000.nii.gz", workspace.raw / "imagesUn/copy_0000.nii.gz")
    trainer = make_trainer(fold=0)
    (workspace.preprocessed / "splits_final.json").write_text(
        json.dumps([{"train": ["tr_1", "tr_2"], "val": ["tr_0", "tr_3"]}]), encoding="utf-8"
    )
    trainer.initialize()
    preprocess(trainer.unlabeled, 1)
    state = CaseState.read(trainer.unlabeled.state_file("copy"))
    assert state is not None
    replace(state, content="other voxels").write(trainer.unlabeled.state_file("copy"))
    with pytest.raises(UnlabeledDataError, match=r"Unlabelled case copy is the same image as tr_0_0000\.nii\.gz, byte by byte"):
        trainer.prepare_unlabeled()


def test_workers_that_die_before_unlabelled_patches_are_wanted(make_trainer, monkeypatch):
    """It is said at once, not when unlabelled patches are wanted first."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer()
    trainer.rampup_start_fraction = 0.5
    trainer.on_train_start()
    pair = trainer.dataloader_train
    try:
        assert "unlabeled" not in next(pair), "none is wanted yet"
        for process in pair.unlabeled._processes:
            process.terminate()
        ended = [process.join(10) or process.exitcode for process in pair.unlabeled._processes]
        assert all(code is not None for code in ended)
        sleep(0.5)  # nnU-Net's thread looks after them every few hundredths of a second
        with pytest.raises(RuntimeError, match="process that loads unlabelled patches has ended"):
            next(pair)
    finally:
        pair.finish()
        trainer.dataloader_val._finish()


def test_images_that_are_gone_altogether(workspace: Workspace, make_trainer, capsys: pytest.CaptureFixture):
    """They may have been moved to save space, or be meant to be trained with no more: both can be done."""
    trainer = make_trainer()
    trainer.initialize()
    trainer.prepare_unlabeled()
    (workspace.raw / "imagesUn").rename(workspace.root / "elsewhere")
    capsys.readouterr()
    trainer.prepare_unlabeled()
    said = capsys.readouterr().out
    assert "WARNING: the 5 unlabelled cases are used as they were preprocessed before: there are no raw ones in" in said
    assert "make an empty folder imagesUn" in said
    workspace.raw.rename(workspace.root / "raw elsewhere")  # a training node without raw data
    trainer.prepare_unlabeled()
    assert "WARNING" not in capsys.readouterr().out


def test_one_scan_under_two_names(workspace: Workspace, make_trainer, capsys: pytest.CaptureFixture):
    """As of an archive in which a scan was stored again, or a list that names a file twice."""
    images, description = workspace.raw / "imagesUn", workspace.raw / "dataset.json"
    shutil.copy(images / "un_2_0000.nii.gz", images / "vn_0000.nii.gz")
    content = {
        **json.loads(description.read_text(encoding="utf-8")),
        "unlabeled": {"wn": {"images": ["imagesUn/un_4_0000.nii.gz"]}},
    }
    description.write_text(json.dumps(content), encoding="utf-8")
    trainer = make_trainer()
    trainer.initialize()
    trainer.prepare_unlabeled()
    said = "WARNING: 2 unlabelled case(s) have exactly the voxels of another one: vn (un_2), wn (un_4)."
    assert said in capsys.readouterr().out


def test_a_test_case_among_the_unlabelled_ones(workspace: Workspace, make_trainer, capsys: pytest.CaptureFixture):
    """Whatever its name is; it may be meant so, and is an advantage over those who train without test images."""
    tests = workspace.raw / "imagesTs"
    tests.mkdir(exist_ok=True)
    shutil.copy(workspace.raw / "imagesUn/un_2_0000.nii.gz", tests / "new_0000.nii.gz")
    shutil.copy(workspace.raw / "imagesTr/tr_0_0000.nii.gz", tests / "other_0000.nii.gz")
    trainer = make_trainer()
    trainer.initialize()
    trainer.prepare_unlabeled()
    said = capsys.readouterr().out
    assert "WARNING: 1 unlabelled case(s) have the files of test cases in" in said
    assert "imagesTs: un_2 (new_0000.nii.gz)" in said


@pytest.mark.parametrize("key", ["unlabelled", "Unlabeled", "un-labelled"])
def test_a_misspelt_entry(workspace: Workspace, key: str):
    file = workspace.raw / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), key: {}}), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match=f'dataset.json has an entry "{key}".*called "unlabeled"'):
        dataset(workspace).raw_cases()


def test_a_folder_in_the_list_is_no_image(workspace: Workspace, capsys: pytest.CaptureFixture):
    (workspace.root / "dicom").mkdir()
    file = workspace.raw / "dataset.json"
    entry = {"unlabeled": {"scan": {"images": [str(workspace.root / "dicom")]}}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **entry}), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match=r"dicom of unlabelled case scan is a folder, not an image"):
        preprocess(dataset(workspace), 1)


def test_one_configuration_is_no_obstacle_to_the_next(workspace: Workspace, capsys: pytest.CaptureFixture):
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    coarse = {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_coarse", "spacing": [3.0, 2.0, 2.0]}
    plans["configurations"]["3d_coarse"] = coarse
    file.write_text(json.dumps(plans), encoding="utf-8")
    (workspace.raw / "imagesUn/un_1_0000.nii.gz").write_bytes(b"no image")
    assert main(["preprocess", "-d", "101", "-c", "3d_coarse", "3d_tiny", "-np", "1"]) == 1
    said = capsys.readouterr().err
    for configuration in ("3d_coarse", "3d_tiny"):
        assert f"{configuration}: 1 of 5 unlabelled cases cannot be used; the others are preprocessed" in said
        assert len(dataset(workspace, configuration).done_cases()) == 4


def test_a_fold_that_few_cases_do_not_have(make_trainer):
    """nnU-Net would train it on a split at random, and validate a case that another fold validates."""
    said = r"There is no fold 4: 4 labelled cases are split into 4 folds, 0 to 3\."
    with pytest.raises(UnlabeledDataError, match=said):
        make_trainer(fold=4).initialize()
    make_trainer(fold=3).initialize()
    with pytest.raises(UnlabeledDataError, match=said):
        make_trainer(fold=4).initialize()  # now that the others are written down


def test_raw_files_that_have_other_times_are_read_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """As after a copy of the raw data, which may be hundreds of gigabytes."""
    d = dataset(workspace)
    preprocess(d, 1)
    before = {file: file.stat().st_mtime_ns for file in d.folder.glob(".state/*.json")}
    for file in (workspace.raw / "imagesUn").iterdir():
        os.utime(file, ns=(10**18, 10**18))
    read: list[str] = []
    digest = states.file_digest
    monkeypatch.setattr(states, "file_digest", lambda file: read.append(file.name) or digest(file))
    assert preprocess(d, 1) == 0
    assert sorted(read) == [f"un_{i}_0000.nii.gz" for i in range(5)]
    assert preprocess(d, 1) == 0
    assert len(read) == 5, "and not at every start"
    assert {file: file.stat().st_mtime_ns for file in before} == before, "predictions of a first stage are not outdated by it"


def test_a_stray_file_among_the_preprocessed_cases(workspace: Workspace, make_trainer):
    """As file managers leave; nnU-Net says that it is unable to infer a variant."""
    preprocess(dataset(workspace), 1)
    (dataset(workspace).folder / ".DS_Store").touch()
    trainer = make_trainer()
    trainer.initialize()
    with pytest.raises(UnlabeledDataError, match=r"_unlabeled holds \.DS_Store beside the preprocessed cases.* Remove it"):
        trainer.get_dataloaders()


def turn(file: Path, direction: tuple[float, ...]) -> None:
    image = sitk.ReadImage(str(file))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(file))


def test_unlabelled_cases_that_are_stored_in_another_orientation(workspace: Workspace, make_trainer, capsys):
    """nnU-Net takes voxels as they are stored, so to the networks they are mirrored or turned."""
    images = workspace.raw / "imagesUn"
    turn(images / "un_1_0000.nii.gz", (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    turn(images / "un_3_0000.nii.gz", (0, 1, 0, 0, 0, 1, 1, 0, 0))
    turn(images / "un_4_0000.nii.gz", (0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1))  # oblique, as many a scan is
    trainer = make_trainer()
    trainer.initialize()
    trainer.prepare_unlabeled()
    said = capsys.readouterr().out
    assert "WARNING: 2 unlabelled case(s) are stored in another orientation than the labelled ones (LPS): " in said
    assert "un_1 (RPS), un_3 (" in said
    assert "un_4" not in said
    for case in ("un_1", "un_3"):
        (images / f"{case}_0000.nii.gz").unlink()
    trainer.prepare_unlabeled()
    assert "orientation" not in capsys.readouterr().out


@pytest.mark.parametrize(("reader", "code"), [(SimpleITKIO, "RPS"), (NibabelIO, "RPS"), (NibabelIOWithReorient, "RAS")])
def test_orientation_as_each_reader_keeps_it(workspace: Workspace, reader: type, code: str):
    turn(file := workspace.raw / "imagesUn/un_1_0000.nii.gz", (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert orientation(reader().read_images([str(file)])[1]) == code
    assert orientation({"spacing": (999, 1, 1)}) is None, "as of a PNG file"


@pytest.mark.parametrize("spacing", [1e-5, 1e4])
def test_a_spacing_that_cannot_be(workspace: Workspace, spacing: float):
    """As in an image whose geometry was lost; what numpy says of it names no case."""
    image = sitk.ReadImage(str(file := workspace.raw / "imagesUn/un_2_0000.nii.gz"))
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, str(file))
    said = r"un_2_0000\.nii\.gz, shape \(20, 24, 22\), spacing .* mm\) cannot be preprocessed to the spacing .* of the plans"
    with pytest.raises(UnlabeledDataError, match=said):
        preprocess(dataset(workspace), 1)


def test_labelled_cases_that_were_preprocessed_before_the_plans_were_changed(workspace: Workspace, make_trainer):
    """Unlabelled cases follow the plans by themselves, labelled ones do not, so the two would be of different scale."""
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["spacing"][-1] *= 2
    file.write_text(json.dumps(plans), encoding="utf-8")
    (trainer := make_trainer()).initialize()
    said = r"such as tr_0, are not preprocessed at the spacing of .* Run `nnUNetv2_preprocess -d 101 .*` again"
    with pytest.raises(UnlabeledDataError, match=said):
        trainer.prepare_unlabeled()
    for kind in ("data", "seg"):  # as nnU-Net's planner for no resampling has it
        configuration |= {f"resampling_fn_{kind}": "no_resampling_hack", f"resampling_fn_{kind}_kwargs": {}}
    file.write_text(json.dumps(plans), encoding="utf-8")
    (trainer := make_trainer()).initialize()
    trainer.prepare_unlabeled()


def test_shape_of_cases_at_the_spacing_of_the_plans(workspace: Workspace):
    d = dataset(workspace)
    cases = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0", "tr_1"])
    assert of_other_spacing(d, cases) == []
    assert of_other_spacing(dataset(workspace, "2d"), cases) == [], "which says nothing of the distance of slices"
    shutil.copy(d.labeled_folder / "tr_0.pkl", d.labeled_folder / "tr_1.pkl")
    properties = load_pickle(str(d.labeled_folder / "tr_0.pkl"))
    write_pickle({**properties, "spacing": [1.5, 1, 2]}, str(d.labeled_folder / "tr_0.pkl"))
    write_pickle({}, str(d.labeled_folder / "tr_1.pkl"))  # as of a preprocessor that keeps no such thing
    assert of_other_spacing(d, cases) == ["tr_0"]


def test_several_files_with_other_names(workspace: Workspace):
    for name in ("README.txt", "case.nii.gz", "other_0000.nrrd"):
        (workspace.raw / "imagesUn" / name).touch()
    with pytest.raises(
        UnlabeledDataError, match=r"imagesUn/README\.txt \(and 2 more: case\.nii\.gz, other_0000\.nrrd\) is not"
    ):
        dataset(workspace).raw_cases()


def test_numbers_are_of_all_cases(workspace: Workspace):
    """Not of those that are left to do."""
    file = workspace.raw / "imagesUn/un_2_0000.nii.gz"
    preprocess(dataset(workspace), 1)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UnlabeledDataError, match="1 of 5 unlabelled cases cannot be used; the others are preprocessed"):
        preprocess(dataset(workspace), 1)


def test_where_no_raw_data_is_the_log_says_so(workspace: Workspace, make_trainer, capsys: pytest.CaptureFixture):
    """Which may be a slip in nnUNet_raw."""
    trainer = make_trainer()
    trainer.initialize()
    trainer.prepare_unlabeled()
    assert "5 unlabelled training cases (5 preprocessed now)." in capsys.readouterr().out
    shutil.rmtree(workspace.raw)
    trainer.prepare_unlabeled()
    assert f"5 unlabelled training cases (0 preprocessed now; no raw ones in {workspace.raw})." in capsys.readouterr().out


def test_a_validation_image_that_lies_elsewhere(workspace: Workspace, make_trainer):
    """Named in nnU-Net's entry ``dataset``; with masked normalisation its label has changed its voxels."""
    archive = workspace.root / "archive"
    archive.mkdir()
    shutil.move(workspace.raw / "imagesTr/tr_0_0000.nii.gz", archive / "scan.nii.gz")
    shutil.copy(archive / "scan.nii.gz", workspace.raw / "imagesUn/leak_0000.nii.gz")
    for file in (workspace.raw / "dataset.json", workspace.preprocessed / "dataset.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["dataset"] = {"tr_0": {"images": ["../../archive/scan.nii.gz"], "label": "labelsTr/tr_0.nii.gz"}}
        file.write_text(json.dumps(content), encoding="utf-8")
    trainer = make_trainer()
    trainer.initialize()
    trainer.do_split = lambda: (["tr_1", "tr_2", "tr_3"], ["tr_0"])
    preprocess(trainer.unlabeled, 1)
    state = CaseState.read(trainer.unlabeled.state_file("leak"))
    assert state is not None
    replace(state, content="other voxels").write(trainer.unlabeled.state_file("leak"))
    with pytest.raises(UnlabeledDataError, match=r"leak is the same image as scan\.nii\.gz, byte by byte"):
        trainer.prepare_unlabeled()
