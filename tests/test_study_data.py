"""The data sets of a study: their numbers, their plans, and what may be compared."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import blobs, write_image
from test_benchmarks import BENCHMARKS, study

from study.commands import Workspace
from study.data import _prepare, add_configuration, check_batch_sizes, plan_and_preprocess, prepare
from study.description import Arm, Configuration, Data, StudyError

PLANNED = {
    "patch_size": [40, 56, 40],
    "batch_size": 2,
    "architecture": {"arch_kwargs": {"n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]}},
}


def test_two_processes_share_a_study(tmp_path: Path):
    """Nobody does what another process does in the same folder; numbers of data sets are given once."""
    work = Workspace(tmp_path, tmp_path)
    code = "import sys; from pathlib import Path; from study.commands import Workspace\nfolder = Path(sys.argv[1])\n"
    code += "work = Workspace(folder, folder)"
    ids = f"{code}\n[print(work.dataset_id(sys.argv[2] + str(i))) for i in range(20)]"
    command = [sys.executable, "-c", ids, str(tmp_path)]
    both = [subprocess.Popen([*command, name], cwd=BENCHMARKS, stdout=subprocess.PIPE, encoding="utf-8") for name in "ab"]
    numbers = [int(line) for process in both for line in process.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 41))
    waiting = f"{code}\nwith work.alone('this'): print('done', flush=True)"
    with work.alone("this"):
        command = [sys.executable, "-c", waiting, str(tmp_path)]
        second = subprocess.Popen(command, cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        assert second.stderr is not None
        assert second.stderr.readline().startswith("Waiting for another process that works at this in ")
        assert second.poll() is None
    assert second.communicate()[0] == "done\n"


def test_plans_have_the_studys_name_whatever_the_planner_calls_them(tmp_path: Path):
    """nnU-Net's residual planners name theirs nnUNetResEncUNetMPlans and the like."""
    configuration = Configuration("3d_fullres", planner="nnUNetPlannerResEncM")
    s, work = study(configuration=configuration), Workspace(tmp_path, tmp_path)
    folder = work.raw / work.dataset("Blobs")
    for i in range(2):
        image, label = blobs(i)
        write_image(image, folder / f"imagesTr/b{i}_0000.nii.gz")
        write_image(label, folder / f"labelsTr/b{i}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "front": 1, "back": 2}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}), encoding="utf-8")
    plan_and_preprocess(s, work, "Blobs")
    planned = json.loads((work.preprocessed / folder.name / "nnUNetPlans.json").read_text(encoding="utf-8"))
    assert "ResidualEncoder" in planned["configurations"]["3d_fullres"]["architecture"]["network_class_name"]
    assert list((work.preprocessed / folder.name).glob("nnUNetPlans_3d_fullres/b*"))

    plan_and_preprocess(s, work, "Blobs")  # nothing is left to do
    other = replace(s, configuration=replace(configuration, planner="ExperimentPlanner"))
    with pytest.raises(StudyError, match="Blobs was prepared for another configuration"):
        plan_and_preprocess(other, work, "Blobs")

    more = work.preprocessed / work.dataset("MoreBlobs")
    more.mkdir()
    (more / "nnUNetPlans.json").write_text(json.dumps(planned), encoding="utf-8")
    check_batch_sizes(s, work, ["Blobs", "MoreBlobs"])
    planned["configurations"]["3d_fullres"]["batch_size"] += 2
    (more / "nnUNetPlans.json").write_text(json.dumps(planned), encoding="utf-8")
    with pytest.raises(StudyError, match=r"different sizes \(Blobs: \d+, MoreBlobs: \d+\).* Give inherits_from and batch_size"):
        check_batch_sizes(s, work, ["Blobs", "MoreBlobs"])
    check_batch_sizes(s, work, ["Blobs", "not planned yet"])


def test_parts_of_a_study_have_batches_of_the_same_size(tmp_path: Path, commands: list[list[str]]):
    """What was prepared before counts, though it is not selected now."""
    arms = (Arm("plain", "nnUNetTrainer"), Arm("all", "nnUNetTrainer", all_labels=True))
    s, work = study(labeled=(4,), arms=arms), Workspace(tmp_path, tmp_path)
    four, everything = s.runs()
    prepare(s, work, [four])
    plans = work.preprocessed / work.dataset("AllLabels") / "nnUNetPlans.json"
    plans.parent.mkdir(exist_ok=True)
    plans.write_text(json.dumps({"configurations": {"3d_fullres": {**PLANNED, "batch_size": 4}}}), encoding="utf-8")
    (plans.parent / ".ready").touch()
    for part in ([everything], [four]):
        with pytest.raises(StudyError, match=r"different sizes \(AllLabels: 4, Labeled4Subset0: 2\)"):
            prepare(s, work, part)


def test_smaller_configuration(tmp_path: Path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps({"plans_name": "p", "configurations": {"3d_fullres": PLANNED}}))
    add_configuration(
        file, Configuration("s", "3d_fullres", patch_size=(20, 32, 6), features=(4, 8, 16, 16), spacing=(2, 2, 2))
    )
    entry = json.loads(file.read_text(encoding="utf-8"))["configurations"]["s"]
    assert entry["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 1], [1, 2, 1]]
    assert entry["data_identifier"] == "p_s"
    assert len(entry["architecture"]["arch_kwargs"]["n_conv_per_stage_decoder"]) == 3


@pytest.mark.parametrize(
    ("configuration", "sentence"),
    [
        (Configuration("3d_fulres"), "configuration: name should be one of 2d, 3d_fullres, as planned in .*, not '3d_fulres'"),
        (
            Configuration("s", "3d_fulres"),
            "configuration: inherits_from should be one of 2d, 3d_fullres, as .*, not '3d_fulres'",
        ),
        (
            Configuration("s", "3d_fullres", patch_size=(20, 32)),
            r"patch_size should have 3 axes, as 3d_fullres.*, not \[20, 32\]",
        ),
        (Configuration("s", "3d_fullres", spacing=(2.0,)), r"spacing should have 3 axes, as 3d_fullres .*, not \[2.0\]"),
    ],
)
def test_a_configuration_that_the_plans_do_not_have(tmp_path: Path, configuration: Configuration, sentence: str):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps({"plans_name": "p", "configurations": {"2d": PLANNED, "3d_fullres": PLANNED}}))
    before = file.read_text(encoding="utf-8")
    with pytest.raises(StudyError, match=sentence):
        add_configuration(file, configuration)
    assert file.read_text(encoding="utf-8") == before


def test_a_configuration_that_inherits_itself(tmp_path: Path):
    """As nnU-Net's plans have the cascade's: a name, and what is different."""
    file = tmp_path / "plans.json"
    planned = {"3d_fullres": PLANNED, "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}}
    file.write_text(json.dumps({"plans_name": "p", "configurations": planned}))
    add_configuration(file, Configuration("s", "3d_cascade_fullres", features=(4, 8, 8)))
    entry = json.loads(file.read_text(encoding="utf-8"))["configurations"]["s"]
    assert entry["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 8]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Instead of running: the commands, by the file name where they name a script or a folder."""
    said: list[list[str]] = []

    def run(work: Workspace, label: str, command: list[str], *_more: object) -> None:
        said.append([Path(part).name for part in command])
        folder = (
            work.raw / work.dataset(label) / "imagesUn" if command[0] == "python" else work.preprocessed / work.dataset(label)
        )
        folder.mkdir(parents=True, exist_ok=True)
        if command[0] == "nnUNetv2_plan_experiment":
            plans = json.dumps({"configurations": {"3d_fullres": PLANNED}})
            (folder / "nnUNetPlans.json").write_text(plans, encoding="utf-8")

    monkeypatch.setattr(Workspace, "run", run)
    return said


def conversions(commands: list[list[str]]) -> list[str]:
    return [" ".join(command[1:]) for command in commands if command[0] == "python"]


def test_every_subset_is_a_lot_of_its_own(tmp_path: Path, commands: list[list[str]]):
    arms = (Arm("plain", "nnUNetTrainer"), Arm("all", "nnUNetTrainer", all_labels=True))
    s = study(labeled=(4,), subsets=(0, 1), arms=arms, data=Data("decathlon.py", "task", ("--test", "5")))
    work = Workspace(tmp_path, tmp_path)
    _prepare(s, work, s.runs())
    assert conversions(commands) == [
        "decathlon.py task --dataset-id 1 --name AllLabels --labeled all --test 5",
        "hide_labels.py Dataset001_AllLabels --dataset-id 2 --name Labeled4Subset0 --labeled 4 --seed 0 --link",
        "hide_labels.py Dataset001_AllLabels --dataset-id 3 --name Labeled4Subset1 --labeled 4 --seed 1 --link",
    ]
    preprocessed = [command for command in commands if command[:2] == ["nnunet-caml", "preprocess"]]
    assert [command[3] for command in preprocessed] == ["2", "3", "1"]
    assert all(command[4:8] == ["-c", "3d_fullres", "-p", "nnUNetPlans"] for command in preprocessed)
    before = len(commands)
    _prepare(s, work, s.runs())
    assert len(commands) == before, "nothing is left to do"


def test_development_cases_are_drawn_by_their_own_seed(tmp_path: Path, commands: list[list[str]]):
    s = study(labeled=(4,), subsets=(2,), data=Data("decathlon.py", "task", ("--test", "5"), "l.txt", 3, 7))
    _prepare(s, Workspace(tmp_path, tmp_path), s.runs())
    assert conversions(commands) == [
        "decathlon.py task --dataset-id 1 --name WholeSource --labeled all --test 5 --only l.txt",
        "hide_labels.py Dataset001_WholeSource --dataset-id 2 --name AllLabels --labeled all --without-test --test 3 --seed 7 "
        "--link",
        "hide_labels.py Dataset002_AllLabels --dataset-id 3 --name Labeled4Subset2 --labeled 4 --seed 2 --link",
    ]


def test_labels_in_the_order_of_the_source(tmp_path: Path, commands: list[list[str]]):
    arms = (Arm("plain", "nnUNetTrainer"), Arm("all", "nnUNetTrainer", all_labels=True))
    s = study(arms=arms, data=Data("left_atrium.py", "la", ("--literature",), order_of_source=True))
    _prepare(s, Workspace(tmp_path, tmp_path), s.runs())
    assert conversions(commands) == [
        "left_atrium.py la --dataset-id 1 --name Labeled4Subset0 --labeled 4 --literature",
        "left_atrium.py la --dataset-id 2 --name Labeled8Subset0 --labeled 8 --literature",
        "left_atrium.py la --dataset-id 3 --name AllLabels --labeled all --literature",
    ]
