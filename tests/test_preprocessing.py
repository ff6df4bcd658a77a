"""Preprocessing of unlabelled cases where others are at work beside it, or where nothing can be written."""

import shutil
from pathlib import Path

from conftest import Workspace, blobs, write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_unlabeled import dataset

from nnunet_caml import preprocessing
from nnunet_caml.checks import labeled_content
from nnunet_caml.preprocessing import needs_work, preprocess, preprocess_case
from nnunet_caml.unlabeled import STATE_FOLDER


def test_a_case_that_another_run_has_finished_stays_usable(workspace: Workspace, monkeypatch):
    """Two folds do the same case at once; the first one already trains with it when the second is through."""
    d = dataset(workspace)
    files = d.raw_cases()["un_0"]
    real = preprocessing.check_images

    def finished_by_another(*arguments) -> None:
        real(*arguments)
        monkeypatch.setattr(preprocessing, "check_images", real)
        assert preprocess_case(d, "un_0", files) is None
        d.state_file("un_0").chmod(0o444)

    monkeypatch.setattr(preprocessing, "check_images", finished_by_another)
    gone = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **options: (gone.append(self), unlink(self, **options))[1])
    assert preprocess_case(d, "un_0", files) is None
    assert d.state_file("un_0") not in gone
    assert d.state_file("un_0").stat().st_mode & 0o777 == 0o444, "written again"
    assert d.done_cases() == ["un_0"]
    assert not list(workspace.preprocessed.rglob("tmp-*"))


def test_an_image_replaced_while_it_is_preprocessed_is_done_again(workspace: Workspace, monkeypatch):
    d = dataset(workspace)
    real = preprocessing.voxel_digest

    def replaced(data) -> str:
        write_image(blobs(500)[0], workspace.raw / "imagesUn/un_0_0000.nii.gz")
        monkeypatch.setattr(preprocessing, "voxel_digest", real)
        return real(data)

    monkeypatch.setattr(preprocessing, "voxel_digest", replaced)
    files = d.raw_cases()["un_0"]
    assert preprocess_case(d, "un_0", files) is None
    assert needs_work(d, "un_0", files)


def test_read_only_preprocessed_data_can_be_trained_from(workspace: Workspace, monkeypatch):
    """The digests of labelled cases are kept beside the unlabelled ones where that is possible, and made anew where not."""
    d = dataset(workspace)
    preprocess(d, 1)
    cases = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0", "tr_1"])
    expected = labeled_content(d, cases)
    shutil.rmtree(d.folder / STATE_FOLDER / "labeled")
    (d.folder / STATE_FOLDER / "labeled").touch()  # nothing can be written below, not even by root
    assert labeled_content(d, cases) == expected
