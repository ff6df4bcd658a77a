"""Preprocessing of unlabelled cases where others are at work beside it, or where nothing can be written."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle, write_pickle
from conftest import Workspace, blobs, write_image
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_unlabeled import dataset

from nnunet_caml import preprocessing
from nnunet_caml.checks import cases_without_foreground, check_overlap, labeled_content
from nnunet_caml.errors import UserError, WorkerError
from nnunet_caml.images import check_images
from nnunet_caml.preprocessing import needs_work, preprocess, preprocess_case
from nnunet_caml.states import STATE_FOLDER
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset


class OneThread(ThreadPoolExecutor):
    """In the place of a pool of processes, whose workers take seconds to start; what goes there is pickled all the same."""

    def __init__(self, processes: int) -> None:
        super().__init__(1)
        assert processes == 2

    def submit(self, /, *call) -> Future:
        return super().submit(*pickle.loads(pickle.dumps(call)))


class DeadWorker(OneThread):
    """A pool whose worker for un_2 has been killed."""

    problem: BaseException = BrokenProcessPool()

    def submit(self, /, *call) -> Future:
        if call[2] != "un_2":
            return super().submit(*call)
        dead: Future = Future()
        dead.set_exception(self.problem)
        return dead


def test_broken_cases_are_named_by_several_processes_too(workspace: Workspace, monkeypatch):
    image = blobs(0)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    write_image(image, workspace.raw / "imagesUn/un_3_0000.nii.gz")
    monkeypatch.setattr(preprocessing, "pool", OneThread)
    sentence = r"1 of 5 unlabelled cases cannot be used; the others are preprocessed:\n  - .*un_3 has NaN or infinite voxels"
    with pytest.raises(UnlabeledDataError, match=sentence):
        preprocess(dataset(workspace), 2)
    assert dataset(workspace).done_cases() == ["un_0", "un_1", "un_2", "un_4"]


class InterruptedWorker(DeadWorker):
    """A pool whose worker for un_2 has heard of Ctrl-C."""

    problem = SystemExit(130)
    shut_down: ClassVar[list[dict]] = []

    def shutdown(self, **arguments: bool) -> None:
        self.shut_down.append(arguments)
        super().shutdown(**arguments)


def test_an_interrupted_worker_interrupts_the_whole(workspace: Workspace, monkeypatch):
    monkeypatch.setattr(preprocessing, "pool", InterruptedWorker)
    with pytest.raises(KeyboardInterrupt):
        preprocess(dataset(workspace), 2)
    assert InterruptedWorker.shut_down == [{"wait": True, "cancel_futures": True}], "the cases that wait are not done first"


def test_a_worker_that_died_is_said_with_the_way_out(workspace: Workspace, monkeypatch):
    monkeypatch.setattr(preprocessing, "pool", DeadWorker)
    with pytest.raises(
        WorkerError, match=r"worker process died .* 2 processes\. .*run `nnunet-caml preprocess` .* smaller -np"
    ):
        preprocess(dataset(workspace), 2)


@pytest.mark.parametrize(
    ("case", "images", "sentence"),
    [
        ("", ["imagesTs/ts_0_0000.nii.gz"], r"names a case '', which cannot name a file"),
        ("../out", ["imagesTs/ts_0_0000.nii.gz"], r"names a case '\.\./out', which cannot name a file"),
        ("..", ["imagesTs/ts_0_0000.nii.gz"], r"names a case '\.\.', which cannot name a file"),
        (".a", ["imagesTs/ts_0_0000.nii.gz"], r"names a case '\.a', which cannot name a file"),
        ("a/b", ["imagesTs/ts_0_0000.nii.gz"], r"names a case 'a/b', which cannot name a file"),
        ("a\nb", ["imagesTs/ts_0_0000.nii.gz"], r"names a case 'a\\nb', which cannot name a file"),
        ("un_0_seg", ["imagesTs/ts_0_0000.nii.gz"], r"case un_0_seg ends in _seg, as nnU-Net's"),
        ("far", [1], r"gives for case far \{'images': \[1\]\}; expected .* path of a file for each of the 1 channel"),
        ("far", [], r"gives for case far \{'images': \[\]\}; expected"),
        ("far", ["imagesTs/ts_0_0000.nii.gz"] * 2, r"gives for case far .*; expected"),
    ],
)
def test_entries_that_no_file_could_have(workspace: Workspace, case: str, images: list, sentence: str):
    file = workspace.raw / "dataset.json"
    entry = {case: {"images": images}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match=sentence):
        preprocess(dataset(workspace), 1)


@pytest.mark.parametrize("image", ["$ARCHIVE/{}.nii.gz", "${{ARCHIVE}}/{}.nii.gz"])
def test_a_variable_that_is_not_set_is_named_once(workspace: Workspace, monkeypatch, image: str):
    monkeypatch.delenv("ARCHIVE", raising=False)
    file = workspace.raw / "dataset.json"
    entry = {case: {"images": [image.format(case)]} for case in ("far", "farther")}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    shutil.rmtree(workspace.raw / "imagesUn")
    with pytest.raises(UnlabeledDataError) as error:
        preprocess(dataset(workspace), 1)
    first, line = str(error.value).splitlines()
    assert first == "2 of 2 unlabelled cases cannot be used:"
    assert "the environment variable ARCHIVE, which the entry" in line
    assert "is not set here. export ARCHIVE=FOLDER" in line


@pytest.mark.parametrize("image", ["$SCAN", "${SCAN}", "imagesTr/${SCAN}_0000.nii.gz"])
def test_a_variable_that_is_not_set_in_the_name_of_a_file(workspace: Workspace, monkeypatch, image: str):
    monkeypatch.delenv("SCAN", raising=False)
    file = workspace.raw / "dataset.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), "unlabeled": {"far": {"images": [image]}}}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnlabeledDataError, match=r"the environment variable SCAN, .* is not set here\. export SCAN=PATH"):
        preprocess(dataset(workspace), 1)


def test_a_label_beside_the_images(workspace: Workspace):
    shutil.copy(workspace.raw / "imagesUn/un_0_0000.nii.gz", workspace.raw / "imagesUn/un_0_seg_0000.nii.gz")
    with pytest.raises(UnlabeledDataError, match=r"un_0_seg ends in _seg, .*take it away if it is a label"):
        preprocess(dataset(workspace), 1)


def test_hidden_files_are_no_cases(workspace: Workspace):
    (workspace.raw / "imagesUn/._un_0_0000.nii.gz").write_bytes(b"macOS")
    assert list(dataset(workspace).raw_cases()) == [f"un_{i}" for i in range(5)]


def test_a_done_case_whose_image_is_gone_stays_done(workspace: Workspace):
    file = workspace.raw / "dataset.json"
    shutil.move(workspace.raw / "imagesUn", workspace.root / "archive")
    entry = {"far": {"images": [str(workspace.root / "archive/un_0_0000.nii.gz")]}}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "unlabeled": entry}), encoding="utf-8")
    assert preprocess(dataset(workspace), 1) == 1
    shutil.rmtree(workspace.root / "archive")
    assert preprocess(dataset(workspace), 1) == 0
    assert dataset(workspace).usable_cases() == ["far"]


def test_one_channel_may_be_empty(workspace: Workspace):
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json"))
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    d = UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {})
    files = [workspace.raw / f"imagesUn/un_0_000{channel}.nii.gz" for channel in range(2)]
    image = sitk.ReadImage(str(files[0]))
    sitk.WriteImage(image * 0, str(files[1]))
    check_images("un_0", files, d)
    sitk.WriteImage(image * 0, str(files[0]))
    with pytest.raises(UnlabeledDataError, match="is zero everywhere"):
        check_images("un_0", files, d)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_of_a_full_disk(tmp_path: Path, number: int):
    assert preprocessing.is_full(tmp_path, OSError(number, "full"))
    assert not preprocessing.is_full(tmp_path, OSError(errno.EACCES, "no rights"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"dataset\.json is no valid JSON \(Expecting value"),
        (b'{"unlabeled": {"a" 1}}', r"dataset\.json is no valid JSON \(Expecting ':' delimiter"),
        ('{"name": "Hüfte"}'.encode("latin-1"), r"dataset\.json is no valid JSON \(.*can't decode"),
        (b"[]", r'dataset\.json lacks the entry "file_ending"'),
        (b'{"channel_names": {"0": "CT"}}', r'dataset\.json lacks the entry "file_ending"'),
        (b'{"file_ending": 5, "channel_names": {"0": "CT"}}', r'dataset\.json lacks the entry "file_ending" as nnU-Net wants'),
        (b'{"file_ending": ".nii.gz", "channel_names": "CT"}', r'dataset\.json lacks the entry "channel_names"'),
        (b'{"file_ending": ".nii.gz"}', r'dataset\.json lacks the entry "channel_names"'),
    ],
)
def test_description_that_was_edited_by_hand(workspace: Workspace, content: bytes, sentence: str):
    (workspace.raw / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        preprocess(dataset(workspace), 1)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_channels_in_different_directions(workspace: Workspace, reader: str):
    plans = load_json(str(workspace.preprocessed / "nnUNetPlans.json")) | {"image_reader_writer": reader}
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    d = UnlabeledDataset.create(PlansManager(plans), "3d_tiny", {})
    files = [workspace.raw / f"imagesUn/un_0_000{channel}.nii.gz" for channel in range(2)]
    shutil.copy(*files)
    check_images("un_0", files, d)
    turned = sitk.ReadImage(str(files[0]))
    turned.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(turned, str(files[1]))
    with pytest.raises(UnlabeledDataError, match=r"un_0_0001\.nii\.gz are up to [0-9.]+ voxels apart .*Resample"):
        check_images("un_0", files, d)


def test_killed_while_files_are_moved_an_outdated_case_is_not_taken_for_done(workspace: Workspace, monkeypatch):
    """Not even if its old image comes back, whose voxels have been replaced."""
    d = dataset(workspace)
    files = d.raw_cases()["un_0"]
    assert preprocess_case(d, "un_0", files)
    old = files[0].rename(workspace.root / "old.nii.gz")
    write_image(blobs(77)[0], files[0])
    move = Path.replace

    def killed_after(self: Path, target: Path) -> None:
        move(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed_after)
    with pytest.raises(KeyboardInterrupt):
        preprocess_case(d, "un_0", files)
    monkeypatch.setattr(Path, "replace", move)
    old.rename(files[0])
    assert needs_work(d, "un_0", files)
    assert d.done_cases() == []


def test_what_a_killed_run_left_goes_even_where_nothing_is_left_to_do(workspace: Workspace):
    """Another run has done its case."""
    d = dataset(workspace)
    assert preprocess(d, 1) == 5
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    names = [f"tmp-un_0@12345678@{preprocessing.host()}@{pid}" for pid in (int(gone.stdout), os.getpid())]
    for name in names:
        (d.folder / STATE_FOLDER / name).mkdir()
    (d.folder / STATE_FOLDER / "tmp-un_1@12345678@elsewhere@99_seg.b2nd").touch()
    assert preprocess(d, 1) == 0
    assert [path.name for path in sorted((d.folder / STATE_FOLDER).glob("tmp-un_0*"))] == names[1:]


def test_a_folder_that_may_not_be_written_to_is_no_fault_of_the_cases(workspace: Workspace, monkeypatch):
    def refuse(self: Path, **_options) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    d = dataset(workspace)
    (d.folder / STATE_FOLDER).mkdir(parents=True)
    files = d.raw_cases()["un_0"]
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="nnUNetPlans_3d_fullres_unlabeled"):
        preprocess_case(d, "un_0", files)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_the_process_that_started_them(workspace: Workspace, number: signal.Signals):
    """Whatever ends it. Killed, it tells them nothing, and each keeps most of a gigabyte; Ctrl-C reaches all of them."""
    for i in range(300):  # enough until both workers have started
        write_image(blobs(500 + i)[0], workspace.raw / f"imagesUn/more_{i:03}_0000.nii.gz")
    state = dataset(workspace).folder / STATE_FOLDER
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        main = workspace.start("nnunet-caml", "preprocess", "-d", "101", "-c", "3d_tiny", "-np", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    seen: set[str] = set()
    while len(seen) < 2:  # folders of cases at work are named after their process
        time.sleep(0.005)
        seen |= {path.name.rsplit("@", 1)[1] for path in state.glob("tmp-*@*")}
        assert main.poll() is None
    workers = [Path("/proc", process) for process in seen]
    assert [parent_of(path / "stat") for path in workers] == [main.pid] * 2
    main.send_signal(number)
    if number == signal.SIGINT:
        for worker in workers:
            os.kill(int(worker.name), number)
    said, _ = main.communicate()
    until = time.monotonic() + 60
    while any(path.exists() for path in workers):
        assert time.monotonic() < until
        time.sleep(0.1)
    if number == signal.SIGINT:
        assert main.returncode == 130
        assert said.endswith("Interrupted. What is finished is kept.\n")
        assert "Traceback" not in said
        assert not list(state.glob("tmp-*@*"))


def parent_of(stat: Path) -> int | None:
    """The parent of a process by its ``/proc/PID/stat``; ``None`` if it has ended."""
    try:
        return int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_case_that_another_run_has_finished_stays_usable(workspace: Workspace, monkeypatch):
    """Two folds do the same case at once; the first one already trains with it when the second is through."""
    d = dataset(workspace)
    files = d.raw_cases()["un_0"]
    real = preprocessing.check_images

    def finished_by_another(*arguments) -> None:
        real(*arguments)
        monkeypatch.setattr(preprocessing, "check_images", real)
        assert preprocess_case(d, "un_0", files)
        d.state_file("un_0").chmod(0o444)

    monkeypatch.setattr(preprocessing, "check_images", finished_by_another)
    gone = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **options: (gone.append(self), unlink(self, **options))[1])
    assert not preprocess_case(d, "un_0", files)
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
    assert preprocess_case(d, "un_0", files)
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


def test_a_validation_case_that_was_preprocessed_again_is_still_found_among_the_unlabelled(workspace: Workspace):
    """The digests of labelled cases are kept between runs, but not longer than their voxels."""
    shutil.copy(workspace.raw / "imagesTr/tr_1_0000.nii.gz", workspace.raw / "imagesUn/copy_0000.nii.gz")
    d = dataset(workspace)
    preprocess(d, 1)
    validation = nnUNetDatasetBlosc2(str(d.labeled_folder), ["tr_0"])
    check_overlap(d, d.usable_cases(), validation)
    shutil.copy(d.labeled_folder / "tr_1.b2nd", d.labeled_folder / "tr_0.b2nd")
    with pytest.raises(UnlabeledDataError, match="case copy has the same voxels as labelled case tr_0"):
        check_overlap(d, d.usable_cases(), validation)


def test_annotated_voxels_without_any_foreground_are_none(workspace: Workspace):
    """With an ignore label nnU-Net lists all annotated voxels, background included, beside those of each class."""
    folder = dataset(workspace).labeled_folder
    empty = DefaultPreprocessor._sample_foreground_locations(np.zeros((1, 4, 4, 4), np.int8), [1, 2, [-1, 0, 1, 2]])
    properties = load_pickle(str(folder / "tr_0.pkl"))
    write_pickle(properties | {"class_locations": empty}, str(folder / "tr_0.pkl"))
    assert sum(map(len, empty.values())) > 0
    assert cases_without_foreground(nnUNetDatasetBlosc2(str(folder), ["tr_0", "tr_1"])) == ["tr_0"]
    with pytest.raises(UnlabeledDataError, match=r"None of the 1 labelled training cases \(tr_0\) has any foreground voxel"):
        cases_without_foreground(nnUNetDatasetBlosc2(str(folder), ["tr_0"]))
