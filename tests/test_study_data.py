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
from study.data import add_configuration, check_batch_sizes, plan_and_preprocess
from study.description import Configuration, StudyError


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
    with pytest.raises(StudyError, match=r"different sizes \(Blobs: \d+, MoreBlobs: \d+\)"):
        check_batch_sizes(s, work, ["Blobs", "MoreBlobs"])


def test_smaller_configuration(tmp_path: Path):
    arguments = {"n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]}
    planned = {"patch_size": [40, 56, 40], "architecture": {"arch_kwargs": arguments}}
    file = tmp_path / "plans.json"
    file.write_text(json.dumps({"plans_name": "p", "configurations": {"3d_fullres": planned}}))
    add_configuration(
        file, Configuration("s", "3d_fullres", patch_size=(20, 32, 6), features=(4, 8, 16, 16), spacing=(2, 2, 2))
    )
    entry = json.loads(file.read_text(encoding="utf-8"))["configurations"]["s"]
    assert entry["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 1], [1, 2, 1]]
    assert entry["data_identifier"] == "p_s"
    assert len(entry["architecture"]["arch_kwargs"]["n_conv_per_stage_decoder"]) == 3
