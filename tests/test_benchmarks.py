"""The measuring instrument: study files, the plans it makes, figures per case. Whole studies take hours: not run here."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from study_helpers import study, write_figures

import learning_curves
import memory_table
import process_memory
import step_cost
import training_time
from fixed_plans import SIZES, plans, prepare
from learning_curves import study_of
from nnunet_caml.conversion import read_list
from run_study import select
from study import report
from study.commands import Measurement, Workspace
from study.data import dataset_name
from study.description import Arm, Data, StudyError, read_study
from study.kept import kept_file
from study.metrics import METRICS, measure, measure_case, read_metrics
from study.runs import measured_data, metrics_file, mirrors, model_folder
from study.schedules import COST, trainer_classes, trainer_name, write_trainers

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def ball(centre: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(24),) * 3, indexing="ij"), -1)
    return (np.linalg.norm(grid - np.array(centre), axis=-1) <= radius).astype(np.uint8)


def write(array: np.ndarray, path: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "studies").glob("*.json")), ids=lambda f: f.stem)
def test_studies_of_the_repository(file: Path):
    found = read_study(file)
    assert found.name == file.stem
    assert len({run.name for run in found.runs()}) == len(found.runs()) > 1
    assert trainer_classes(found).keys() >= {trainer_name(run) for run in found.runs()}
    assert (BENCHMARKS.parent / "dataset_conversion" / found.data.converter).is_file()
    if found.data.source.startswith("hippocampus"):  # so that whoever has all 260 cases draws the same lots
        assert len(read_list(Path(found.data.only))) == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iteration": 3}, "'iteration' is unknown"),
        ({"arms": {}}, "no arms"),
        ({"arms": {"a b": {"trainer": "x"}, "a-b": {"trainer": "x"}}}, "punctuation"),
        ({"arms": {"a": {"trainer": "x", "pseudo_labels_from": "b"}}}, "pseudo_labels_from should name a plain arm"),
        ({"iterations": 99}, "no whole number of epochs"),
        ({"arms": {"a": {"trainer": "x", "iterations": 99}}}, "arm a: 99 iterations are no whole number of epochs"),
        ({"arms": {"a": {"trainer": "x", "by_labeled": {"5": {}}}}}, "by_labeled '5' is no number of labelled cases"),
        ({"configuration": {"name": "c", "patch": [3]}}, "configuration: 'patch' is unknown"),
    ],
)
def test_a_wrong_study_is_a_sentence(tmp_path: Path, change: dict, words: str):
    content = json.loads((BENCHMARKS / "studies" / "hippocampus_cpu.json").read_text(encoding="utf-8"))
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(StudyError, match=words):
        read_study(file)


def test_a_list_is_no_study(tmp_path: Path):
    file = tmp_path / "list.json"
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(StudyError, match="should be a JSON object"):
        read_study(file)


def test_an_entry_that_is_there_twice_is_a_sentence(tmp_path: Path):
    text = (BENCHMARKS / "studies" / "hippocampus_cpu.json").read_text(encoding="utf-8")
    file = tmp_path / "twice.json"
    file.write_text(text.replace('"CAML, paper"', '"CAML"'), encoding="utf-8")
    with pytest.raises(StudyError, match="'CAML' is there twice"):
        read_study(file)


def test_the_upper_bound_is_run_once_and_pseudo_labels_last():
    arms = (
        Arm("pseudo", "nnUNetTrainer", pseudo_labels_from="plain"),
        Arm("plain", "nnUNetTrainer"),
        Arm("all", "nnUNetTrainer", all_labels=True),
    )
    runs = study(arms=arms, subsets=(0, 1)).runs()
    assert [run.arm.name for run in runs] == ["plain"] * 4 + ["all"] + ["pseudo"] * 4
    assert {dataset_name(study(), run) for run in runs} == {"AllLabels"} | {
        f"Labeled{n}Subset{s}" for n in (4, 8) for s in (0, 1)
    }


def test_a_part_of_a_study():
    s = study(subsets=(0, 1))
    assert len(select(s)) == 8
    part = select(s, ["CAML"], [8], [1])
    assert [(run.arm.name, run.labeled, run.subset) for run in part] == [("CAML", 8, 1)]
    arms = (Arm("plain", "nnUNetTrainer"), Arm("other", "nnUNetTrainer"), Arm("p", "nnUNetTrainer", pseudo_labels_from="plain"))
    assert {run.arm.name for run in select(study(arms=arms), ["p"])} == {"plain", "p"}, "no labels without their teacher"
    with pytest.raises(StudyError, match="--labeled 5: the study s has 4, 8"):
        select(s, labeled=[5])


def test_figures_of_test_cases_are_apart(tmp_path: Path):
    """A model chosen on development cases is measured on the source's test cases, in files of their own."""
    s = study(data=Data("decathlon.py", "x", development=2))
    development, test = (Workspace(tmp_path, tmp_path, measurement=Measurement(test=test)) for test in (False, True))
    run = s.runs()[0]
    assert metrics_file(development, run) != metrics_file(test, run)
    assert kept_file(s, development, run) != kept_file(s, test, run)
    assert measured_data(s, development, run).name.endswith("_Labeled4Subset0")
    assert measured_data(s, test, run).name.endswith("_WholeSource")
    write_figures(test, run, [0.5, 0.7])
    assert report.collect(s, development) == {}
    assert ", test cases." in report.table(s, test, report.collect(s, test))
    mirrored = Workspace(tmp_path, tmp_path, measurement=Measurement(test=True, mirrored=True))
    assert report.collect(s, mirrored) == {}
    assert kept_file(s, mirrored, run).parent.name == "s_test_mirrored"
    write_figures(mirrored, run, [0.6, 0.7])
    assert ", test cases, mirrored in prediction." in report.table(s, mirrored, report.collect(s, mirrored))


@pytest.mark.parametrize("says", [True, False])
def test_prediction_is_mirrored_as_the_study_says_unless_it_is_asked_otherwise(tmp_path: Path, says: bool):
    s = study(test_time_augmentation=says)
    works = {asked: Workspace(tmp_path, tmp_path, measurement=Measurement(mirrored=asked)) for asked in (None, True, False)}
    assert {asked: mirrors(s, work) for asked, work in works.items()} == {None: says, True: True, False: False}
    files = {kept_file(s, work, s.runs()[0]).parent.name for work in works.values()}
    assert files == {"s", "s_mirrored", "s_not_mirrored"}


@pytest.mark.parametrize(
    ("name", "study_name", "measurement"),
    [
        ("hippocampus_long", "hippocampus_long", Measurement()),
        ("hippocampus_long_test_mirrored", "hippocampus_long", Measurement(test=True, mirrored=True)),
        ("left_atrium_paper_gpu", "left_atrium_paper_gpu", Measurement()),
        ("left_atrium_paper_gpu_largest", "left_atrium_paper_gpu", Measurement(largest=True)),
        ("left_atrium_paper_gpu_not_mirrored", "left_atrium_paper_gpu", Measurement(mirrored=False)),
    ],
)
def test_a_folder_of_kept_figures_says_what_they_are(name: str, study_name: str, measurement: Measurement):
    s, how = study_of(name)
    assert (s.name, how) == (study_name, measurement)
    assert learning_curves.panel(name)


def test_trainers_are_what_the_study_says(tmp_path: Path, monkeypatch):
    by_labeled = {"4": {"rampup_fraction": 0.25}}
    arm = Arm("CAML", "nnUNetTrainerCAML", {"lambda_c": 0.5, "rampup_fraction": 0.125}, auxiliary=True, by_labeled=by_labeled)
    s = study(seeds=(3,), arms=(Arm("labelled only", "nnUNetTrainer", iterations=250), arm))
    write_trainers(s, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import study_trainers

    run = next(run for run in s.runs() if run.arm.name == "CAML" and run.labeled == 8)
    trainer = getattr(study_trainers, trainer_name(run))
    assert (trainer.lambda_c, trainer.study_seed, trainer.study_epochs, trainer.study_iterations) == (0.5, 3, 2, 50)
    longer = getattr(study_trainers, trainer_name(replace(run, arm=s.arms[0])))
    assert (longer.study_epochs, longer.study_iterations) == (5, 50)
    assert [base.__name__ for base in trainer.__mro__[1:3]] == ["Scheduled", "nnUNetTrainerCAML"]
    assert issubclass(getattr(study_trainers, f"{trainer_name(run)}_auxiliary"), trainer)
    four = getattr(study_trainers, trainer_name(replace(run, labeled=4)))
    assert (trainer.rampup_fraction, four.rampup_fraction, four.lambda_c) == (0.125, 0.25, 0.5)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (Arm("a", "nnUNetTrainerCMAL"), "trainer 'nnUNetTrainerCMAL' is unknown; there are .*nnUNetTrainerCAML_noOCC"),
        (Arm("a", "nnUNetTrainerCAML", {"lambda_C": 5}), "arm a: nnUNetTrainerCAML has no attribute 'lambda_C'"),
        (Arm("a", "nnUNetTrainer", by_labeled={"4": {"lambda_c": 5}}), "arm a: nnUNetTrainer has no attribute 'lambda_c'"),
    ],
)
def test_a_trainer_that_does_not_exist_is_a_sentence(tmp_path: Path, arm: Arm, words: str):
    with pytest.raises(StudyError, match=words):
        write_trainers(study(arms=(arm,)), tmp_path)


def test_what_is_there_is_not_announced_as_work(tmp_path: Path):
    """Models that are trained, and are only to be measured on other cases, take no hours of training."""
    s, work = study(data=Data("decathlon.py", "x", development=2), labeled=(4,)), Workspace(tmp_path, tmp_path)
    trained, untrained = s.runs()
    for run in (trained, untrained):
        folder = model_folder(s, work, run) / "fold_all"
        folder.mkdir(parents=True)
        (folder / COST).write_text(json.dumps({"iteration_s": 99.0, "training_s": 3600.0, "iterations": 100}), encoding="utf-8")
    (model_folder(s, work, trained) / "fold_all" / "checkpoint_final.pth").touch()
    text = report.plan(s, work, [trained, untrained], 1)
    assert "1 trained models are left to be measured." in text
    assert "About 1.0 hours" in text
    assert "About 0.5 hours of training with 2 side by side" in report.plan(s, work, [untrained], 2)
    assert "2 runs of 100 iterations, 0" in text
    longer = replace(s, arms=(s.arms[0], replace(s.arms[1], iterations=300)))
    text = report.plan(longer, work, longer.runs(), 2)
    assert "2 runs of 100 iterations (CAML: 300), 0" in text
    assert "About 1.5 hours" in text


def test_figures_per_case(tmp_path: Path):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    spacing = (1.0, 1.0, 2.0)
    for case, moved, other in (("same", 0, 2), ("moved", 3, 2), ("missed", 0, 0)):
        write(ball((10, 12, 12), 5) + 2 * ball((18, 3, 3), 2), truth / f"{case}.nii.gz", spacing)
        write(ball((10 + moved, 12, 12), 5) + other * ball((18, 3, 3), 2), predictions / f"{case}.nii.gz", spacing)
    measure(predictions, truth, {"big": 1, "small": 2}, ".nii.gz", tmp_path / "m.csv")
    rows = {(row["case"], row["class"]): row for row in read_metrics(tmp_path / "m.csv")}
    assert rows["same", "big"]["dice"] == rows["same", "small"]["jaccard"] == 1
    assert rows["same", "big"]["hd95_mm"] == rows["same", "big"]["asd_voxels"] == 0
    moved = rows["moved", "big"]
    # three slices of 2 mm
    assert moved["hd95_mm"] == pytest.approx(2 * moved["hd95_voxels"], rel=0.35)
    assert 4 <= moved["hd95_mm"] <= 6
    assert moved["jaccard"] == pytest.approx(moved["dice"] / (2 - moved["dice"]))
    assert rows["missed", "small"]["dice"] == 0
    assert math.isnan(rows["missed", "small"]["hd95_mm"])
    (predictions / "same.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="nnUNetv2_predict did not write it"):
        measure(predictions, truth, {"big": 1}, ".nii.gz", tmp_path / "n.csv")
    assert not (tmp_path / "n.csv").exists()


def test_overlap_of_boxes(tmp_path: Path):
    """Counted by hand; a class that neither has is no success, one that only one of them has is a failure."""
    prediction, truth = np.zeros((2, 8, 8, 8), np.uint8)
    prediction[2:4, 2:4, 2:4] = truth[2:4, 2:4, 2:7] = 1
    prediction[6, 6, 6] = 2
    write(prediction, tmp_path / "p.nii.gz")
    write(truth, tmp_path / "la_1.nii.gz")
    classes: dict[str, int | list[int]] = {"box": 1, "only predicted": 2, "nowhere": 3, "either": [1, 2]}
    rows = {row["class"]: row for row in measure_case(tmp_path / "p.nii.gz", tmp_path / "la_1.nii.gz", classes)}
    assert {row["case"] for row in rows.values()} == {"la_1"}
    assert (rows["box"]["dice"], rows["box"]["jaccard"]) == (16 / 28, 8 / 20)
    assert (rows["either"]["dice"], rows["either"]["jaccard"]) == (16 / 29, 8 / 21)
    assert rows["only predicted"]["dice"] == rows["only predicted"]["jaccard"] == 0
    assert math.isnan(float(rows["only predicted"]["hd95_mm"]))
    assert all(math.isnan(float(rows["nowhere"][metric])) for metric in METRICS)


def test_a_prediction_of_another_size_is_a_sentence(tmp_path: Path):
    write(np.ones((2, 2, 2), np.uint8), tmp_path / "p.nii.gz")
    write(np.ones((2, 2, 3), np.uint8), tmp_path / "la_1.nii.gz")
    with pytest.raises(StudyError, match=r"p\.nii\.gz has the size \(2, 2, 2\), but .*: remove the predictions, and start"):
        measure_case(tmp_path / "p.nii.gz", tmp_path / "la_1.nii.gz", {"box": 1})


def test_learning_curves_of_kept_figures(tmp_path: Path, monkeypatch, capsys):
    """The README's picture: panels of several studies, from figures in the repository. Not every study has every arm."""
    picture = tmp_path / "curves.png"
    command = [str(BENCHMARKS / "learning_curves.py"), "-o", str(picture)]
    monkeypatch.setattr(
        sys, "argv", [*command, "hippocampus_screen_test", "left_atrium_cpu", "--arms", "CAML, start at 0.4", "all labels"]
    )
    assert learning_curves.main() == 0
    width, height = matplotlib.image.imread(picture).shape[1::-1]
    assert width > 2 * height, "two panels side by side"
    for arguments, sentence in (
        (["hippocampus"], "hippocampus is no folder of kept figures: there are "),
        (["left_atrium_cpu", "--arms", "CMAL"], "--arms CMAL: the study left_atrium_cpu has labelled only, "),
        (["left_atrium_cpu", "--arms", "all labels", "CMAL"], "--arms CMAL: none of these folders has figures of it."),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        assert learning_curves.main() == 1
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "left_atrium_cpu", "--titles", "a", "b"])
    with pytest.raises(SystemExit):
        learning_curves.main()
    assert "--titles has 2 titles for 1 folders" in capsys.readouterr().err


def test_dice_over_the_time_of_training(tmp_path: Path, monkeypatch, capsys):
    """Means of the subsets, each at its iterations times what one costs; trials and other numbers of labels are left out."""
    command = [str(BENCHMARKS / "training_time.py"), "-o", str(tmp_path / "time.png")]
    folders = ["hippocampus_screen_test_mirrored", "hippocampus_long_test_mirrored"]
    monkeypatch.setattr(sys, "argv", [*command, *folders, "--labeled", "8"])
    assert training_time.main() == 0
    assert matplotlib.image.imread(tmp_path / "time.png").ndim == 3
    said = capsys.readouterr().out.splitlines()
    assert said == [  # the figures of README.md
        "8 labelled cases, plain nnU-Net: 4.0: 0.819 (3), 8.0: 0.830 (3), 10.0: 0.833 (3), 20.0: 0.835 (3), 64.0: 0.839 (3)",
        "8 labelled cases, CAML: 15.1: 0.826 (3)",
        "8 labelled cases, CAML, start at 0.4: 12.7: 0.825 (3), 25.4: 0.834 (3), 63.5: 0.841 (3)",
        "8 labelled cases, plain nnU-Net, all labels: 4.0: 0.839 (1), 8.0: 0.851 (1), 20.0: 0.864 (1)",
    ]
    monkeypatch.setattr(sys, "argv", [*command, *folders, "--labeled", "8", "--subsets", "0"])
    assert training_time.main() == 0
    assert (
        capsys.readouterr().out.splitlines()[2]
        == "8 labelled cases, CAML, start at 0.4: 12.7: 0.817 (1), 25.4: 0.827 (1), 63.5: 0.832 (1)"
    )
    monkeypatch.setattr(sys, "argv", [*command, *folders, "--labeled", "5"])
    assert training_time.main() == 1
    assert "no figures of nnU-Net or CAML with 5 labelled cases" in capsys.readouterr().err


def test_panels_are_told_apart_by_their_folder():
    """Development and test cases, with and without mirroring, are figures of the same trained models."""
    suffixes = ("", "_mirrored", "_test", "_test_mirrored")
    panels = [learning_curves.panel(f"hippocampus_screen{suffix}", ["all labels"]) for suffix in suffixes]
    key = ("all labels", None, 0, 0)
    assert len({float(np.mean(list(panel[key].values()))) for panel in panels}) == 4
    assert set(panels[0][key]) == set(panels[1][key]), "the same development cases"
    assert set(panels[2][key]) == set(panels[3][key]), "the same test cases"
    assert not set(panels[0][key]) & set(panels[2][key])


@pytest.fixture
def costs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the plans of the benchmarks of cost."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_compile", "nnUNet_wandb_enabled"):
        monkeypatch.setenv(name, "")  # to be restored
    monkeypatch.setitem(SIZES, "tiny", {"patch": [16, 16, 16], "features": [4, 8, 8]})
    prepare(tmp_path)
    return tmp_path


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    ballast = np.ones(1 << 29, np.uint8)
    command = [sys.executable, "-c", "from process_memory import peak_bytes; print(peak_bytes())"]
    child = int(subprocess.run(command, cwd=BENCHMARKS, capture_output=True, check=True, encoding="utf-8").stdout)
    assert 1 << 20 < child < ballast.nbytes < process_memory.peak_bytes()


def test_every_row_of_the_step_cost_runs(costs_folder: Path):
    options = Namespace(size="tiny", device="cpu", rounds=1, rows=step_cost.ROWS, no_memory=True, compiled=False)
    *_, result = step_cost.measure(options, 3)
    assert list(result["seconds"]) == step_cost.ROWS
    assert result["ratio_to_floor"]["floor"] == 1
    assert "| CAML |" in step_cost.table(result)


def test_table_of_memory(costs_folder: Path):
    small, default = (
        memory_table.make_plans(row, costs_folder) for row in ("`-gpu_memory_target 4`", "nnU-Net's default (made for 8 GB)")
    )
    least = {way: memory_table.lower_bound_bytes(small, attributes) for way, attributes in memory_table.WAYS.items()}
    assert least["both"] < least["recomputed activations"] < least["shared encoder"] < least["two networks"]
    assert least["1 unlabelled for 2 labelled"] < least["two networks"] < memory_table.lower_bound_bytes(default, {})
    for way in ("both", "1 unlabelled for 2 labelled"):
        memory_table.take_steps(plans(SIZES["tiny"]), memory_table.WAYS[way], "cpu")


def test_voxels_that_nobody_annotated_count_for_nothing(tmp_path: Path):
    """As in nnU-Net's own figures."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 8, 9, 10)).astype(np.uint8)
    prediction[prediction == 3] = 1
    for name, array in (("a", truth), ("b", prediction)):
        write(array, tmp_path / f"{name}.nii.gz")
    rows = {r["class"]: r for r in measure_case(tmp_path / "b.nii.gz", tmp_path / "a.nii.gz", {"x": 1, "y": 2}, ignore=3)}
    files = str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")
    expected = compute_metrics(*files, SimpleITKIO(), [1, 2], 3)["metrics"]
    assert [rows["x"]["dice"], rows["y"]["dice"]] == pytest.approx([expected[1]["Dice"], expected[2]["Dice"]])


def test_cases_with_dots_in_their_names_stay_apart(tmp_path: Path):
    """As DICOM's identifiers have them."""
    for folder in ("truth", "predictions"):
        for case in ("1.2.840", "1.2.841"):
            write(ball((10, 12, 12), 5), tmp_path / folder / f"{case}.nii.gz")
    measure(tmp_path / "predictions", tmp_path / "truth", {"big": 1}, ".nii.gz", tmp_path / "m.csv")
    assert [row["case"] for row in read_metrics(tmp_path / "m.csv")] == ["1.2.840", "1.2.841"]
