"""The demo's parts, each in seconds; and, marked slow, the whole of it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from fixed_plans import plans
from nnunet_caml.cli import main
from nnunet_caml.demo import commands, evaluation, figure
from nnunet_caml.demo.commands import CommandError, CommandLine, PredictionWatch, TrainingWatch
from nnunet_caml.demo.configuration import CONFIGURATION, FEATURES, add_configuration
from nnunet_caml.demo.dataset import TEST_IMAGES, TEST_LABELS, write_dataset
from nnunet_caml.demo.main import LONGER, MARKER, TRAINERS, claim_folder, environment, longer_epochs
from nnunet_caml.demo.schedules import EPOCHS, ITERATIONS_PER_EPOCH, LONGER_EPOCHS
from nnunet_caml.demo.synthetic import EVERYONE, LABELS, NARROW, draw_case
from nnunet_caml.unlabeled import RAW_FOLDER, list_folder

# ---------------------------------------------------------------- data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("raw"), labeled=2, unlabeled=3, test=2, seed=7)


@pytest.mark.parametrize("population", [NARROW, EVERYONE])
def test_a_seed_gives_a_case(population):
    first, again, other = (draw_case(np.random.default_rng(seed), population) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("population", [NARROW, EVERYONE])
def test_cases_hold_all_organs(population):
    for seed in range(12):
        case = draw_case(np.random.default_rng(seed), population)
        assert case.image.shape == case.label.shape
        assert case.image.dtype == np.float32
        assert np.isfinite(case.image).all()
        for value in LABELS.values():
            # few enough voxels would be a case that nobody can segment
            assert (case.label == value).sum() > 50


def test_labelled_cases_may_be_unlike_the_others(tmp_path: Path):
    """Those are drawn from the narrow part, and nothing else changes."""
    for narrow, population in ((False, EVERYONE), (True, NARROW)):
        folder = write_dataset(tmp_path / str(narrow), labeled=1, unlabeled=1, test=0, seed=7, narrow=narrow)
        for file, number, expected in (("imagesTr/labeled_000", 0, population), (f"{RAW_FOLDER}/unlabeled_000", 1, EVERYONE)):
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{file}_0000.nii.gz")))
            np.testing.assert_array_equal(written, draw_case(np.random.default_rng([7, number, 0]), expected).image)


def test_the_narrow_part_is_part_of_everyone():
    for name, (low, high) in vars(NARROW).items():
        widest_low, widest_high = getattr(EVERYONE, name)
        assert widest_low <= low < high <= widest_high
        assert high - low < widest_high - widest_low


def test_organs_fade_with_the_phase():
    def contrast(population) -> float:
        case = draw_case(np.random.default_rng(0), population)
        return float(np.median(case.image[case.label == 1]) / np.median(case.image[case.image > 300]))

    assert contrast(NARROW) > contrast(type(NARROW)(**{**vars(NARROW), "phase": (1.0, 1.0)}))


def test_dataset_is_as_nnunet_wants_it(dataset):
    verify_dataset_integrity(str(dataset), num_processes=1)
    assert len(list_folder(dataset / RAW_FOLDER, ".nii.gz", 1)) == 3
    assert len(list((dataset / TEST_IMAGES).iterdir())) == len(list((dataset / TEST_LABELS).iterdir())) == 2


def test_geometry_of_image_and_label(dataset):
    for images, labels in (("imagesTr", "labelsTr"), (TEST_IMAGES, TEST_LABELS)):
        for file in (dataset / labels).iterdir():
            label = sitk.ReadImage(str(file))
            image = sitk.ReadImage(str(dataset / images / file.name.replace(".nii.gz", "_0000.nii.gz")))
            for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(image, get)() == getattr(label, get)()


def test_no_case_twice_and_no_truth_of_unlabelled_ones(dataset):
    images = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(dataset.glob("images*/*.nii.gz"))]
    assert len({image.tobytes() for image in images}) == 7
    assert not list(dataset.glob("labels*/unlabeled*"))


def test_more_unlabelled_cases_leave_the_others_as_they_are(dataset, tmp_path):
    other = write_dataset(tmp_path, labeled=1, unlabeled=0, test=1, seed=7)
    for file in other.glob("*/*.nii.gz"):
        one, two = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (file, dataset / file.relative_to(other)))
        np.testing.assert_array_equal(one, two)


# ---------------------------------------------------------------- plans, folder, environment


def test_configuration_is_built_by_nnunet(tmp_path):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    full = plans({"patch": [40] * 3, "features": [32, 64]})["configurations"]["cost"] | {
        "data_identifier": "nnUNetPlans_3d_fullres"
    }
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps({"configurations": {"3d_fullres": full}}))
    add_configuration(file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["configurations"]["3d_fullres"] == full
    configuration = PlansManager(written).get_configuration(CONFIGURATION)
    assert configuration.data_identifier == "nnUNetPlans_3d_fullres"
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        3,
    )
    assert network.encoder.output_channels == list(FEATURES)


def test_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert "not from an earlier demo" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        claim_folder(tmp_path / "file")


def test_earlier_demo_is_cleared_and_nothing_else(tmp_path):
    folder = tmp_path / "demo"
    assert not claim_folder(folder)
    (folder / "logs").mkdir()
    write_dataset(folder / "nnUNet_raw", labeled=1, unlabeled=0, test=0)
    (folder / "nnUNet_raw" / "Dataset001_Mine").mkdir()
    (folder / "notes.txt").touch()
    assert claim_folder(folder)
    assert sorted(f.name for f in folder.iterdir()) == [MARKER, "nnUNet_raw", "notes.txt"]
    assert [f.name for f in (folder / "nnUNet_raw").iterdir()] == ["Dataset001_Mine"]


def test_folders_of_trainers_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "mine")
    first, last = environment(tmp_path, "cpu")["nnUNet_extTrainer"].split(":" if sys.platform != "win32" else ";")
    assert first == "mine"
    assert [f.name for f in Path(last).glob("*.py")] == ["nnunet_caml_demo_trainers.py"]


# ---------------------------------------------------------------- commands


@pytest.fixture
def terminal(tmp_path, monkeypatch) -> CommandLine:
    monkeypatch.setattr(commands, "find_command", lambda name: sys.executable)
    return CommandLine({"OURS": "set"}, tmp_path, silence_s=0.3)


def test_ctrl_c_while_a_command_is_being_started(terminal, monkeypatch):
    """It runs already, but nobody has heard of it yet, as on a machine with more to do than it can."""
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **settings)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt):
            terminal.run(["python", "-c", "import time; time.sleep(60)"], "log.txt", lambda line: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_failing_command_is_one_sentence(terminal, tmp_path):
    with pytest.raises(CommandError, match="python failed with exit status 3; its output is in") as error:
        terminal.run(["python", "-c", "print('why it failed'); raise SystemExit(3)"], "log.txt", lambda line: None)
    assert str(tmp_path / "log.txt") in str(error.value)
    assert str(error.value).endswith("why it failed")


def test_a_killed_command_does_not_wait_for_the_workers_it_leaves(terminal, tmp_path):
    """They hold the other end of its output, and nobody ends them."""
    program = (
        "import os, signal, time\n"
        "if (worker := os.fork()) == 0: time.sleep(300)\n"
        "open({!r}, 'w').write(str(worker)); print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    worker = tmp_path / "worker"
    try:
        with pytest.raises(CommandError, match="killed by signal SIGKILL") as error:
            terminal.run(["python", "-c", program.format(str(worker))], "killed.log", lambda line: None)
        assert str(error.value).endswith("\n    last words")
    finally:
        os.kill(int(worker.read_text()), signal.SIGKILL)  # fails if it is gone


def test_a_command_that_is_ended_leaves_no_worker_behind(terminal, tmp_path):
    """As nnUNetv2_predict would, whose workers wait for ever for a process that was told to end."""
    program = "import os, time\nworker = os.fork()\nif worker: print(worker, flush=True)\ntime.sleep(300)"
    worker = None

    def watch(line: str) -> None:
        nonlocal worker
        if line.strip():
            worker = int(line)
            terminal.stop.set()

    with pytest.raises(CommandError, match="stopped"):
        terminal.run(["python", "-c", program], "stopped.log", watch)
    assert worker is not None
    try:
        end = time.monotonic() + 60
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_news_silence_and_log(terminal, tmp_path, capsys):
    code = "import os, time; print('news', os.environ['OURS']); print('a\\rb'); time.sleep(0.8); print(os.environ['MORE'])"
    terminal.run(["python", "-c", code], "log.txt", lambda line: line.strip() if "news" in line else None, {"MORE": "too"})
    shown = capsys.readouterr().out
    assert shown.startswith("\n$ MORE=too python -c ")
    assert "] news set\n" in shown
    assert "... still running, for 0 s on this" in shown
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "news set\na\nb\ntoo\n"


def test_missing_command(monkeypatch):
    with pytest.raises(CommandError, match="nnUNetv2_nonsense is neither beside"):
        commands.find_command("nnUNetv2_nonsense")


def test_news_of_a_training():
    watch = TrainingWatch(epochs=8)
    stamp = "2024-01-02 03:04:05.678901: "
    lines = ["Epoch 0", "Current learning rate: 0.01", "train_loss -0.12", "Epoch time: 9.77 s", "Epoch 1", "Epoch time: 9.0 s"]
    assert [news for line in lines if (news := watch(f"{stamp}{line}\n"))] == [
        "training, 8 epochs",
        "epoch 1 of 8: loss -0.12, 9.77 s",
        "epoch 2 of 8: loss -0.12, 9.0 s",
    ]
    assert watch.trained_s == pytest.approx(18.77)


def test_longer_training_takes_as_much_time():
    assert longer_epochs({"nnU-Net": 100.0, "CAML": 250.0}) == EPOCHS * 5 // 2
    assert longer_epochs({"nnU-Net": 100.0, "CAML": 40.0}) == EPOCHS  # nnU-Net had been held up by other work


def test_longer_training_has_the_epochs_of_the_environment(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", environment(tmp_path, "cpu")["nnUNet_extTrainer"])
    monkeypatch.setenv(LONGER_EPOCHS, "37")
    trainer = make_trainer(TRAINERS[LONGER], "all")
    trainer.initialize()
    trainer.on_train_epoch_start()
    assert trainer.num_epochs == 37
    assert trainer.lr_scheduler.max_steps == 37


def test_news_of_a_prediction():
    watch = PredictionWatch(cases=2)
    assert watch("Predicting test_000:\n") == "case 1 of 2: test_000"
    assert watch("perform_everything_on_device: False\n") is None


# ---------------------------------------------------------------- results


def test_dice_and_statistics():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert evaluation.dice(a, b) == 0.5
    assert evaluation.dice(~a & a, ~b & b) == 1
    scores = {"one": {"liver": 1.0, "kidney": 0.5}, "two": {"liver": 0.5, "kidney": 0.0}}
    assert evaluation.statistics(scores) == {
        "liver": {"mean": 0.75, "std": 0.25},
        "kidney": {"mean": 0.25, "std": 0.25},
        "mean": {"mean": 0.5, "std": 0.25},
    }
    assert figure.best_median_worst(scores) == {"best": "one", "median": "two", "worst": "two"}
    assert "0.750 ± 0.25" in evaluation.table({"CAML": scores})


def test_score_names_a_missing_prediction(dataset, tmp_path):
    truth = dataset / TEST_LABELS
    perfect = evaluation.score(truth, truth)
    assert all(value == 1 for case in perfect.values() for value in case.values())
    with pytest.raises(FileNotFoundError, match="test_000"):
        evaluation.score(tmp_path, truth)


def test_figure_is_written(tmp_path):
    case = draw_case(np.random.default_rng(0), EVERYONE)
    predictions = {"nnU-Net": np.zeros_like(case.label), "CAML": case.label}
    rows = [figure.Row("case", case.image, case.label, predictions)] * 2
    figure.write_figure(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- all of it


@pytest.mark.slow
def test_whole_demo(tmp_path, capfd):
    folder = tmp_path / "demo"
    assert main(["demo", "-o", str(folder), "-device", "cpu", "--longer"]) == 0
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["iterations"]["nnU-Net"] == results["iterations"]["CAML"] == EPOCHS * ITERATIONS_PER_EPOCH
    assert results["iterations"][LONGER] % ITERATIONS_PER_EPOCH == 0
    # no longer at all where other work held up plain nnU-Net's first training
    assert results["iterations"][LONGER] >= EPOCHS * ITERATIONS_PER_EPOCH
    assert results["data"] == {"seed": 2023, "narrow": False}
    for trainer in TRAINERS:
        dice = results["dice"][trainer]
        assert len(dice["cases"]) == len(list((folder / "predictions" / trainer).glob("*.nii.gz"))) == 12
        # far above what a network that has learned nothing gets
        assert dice["liver"]["mean"] > 0.5
    assert (folder / "comparison.png").is_file()
    shown = capfd.readouterr().out
    assert "$ nnUNetv2_plan_and_preprocess -d 990 -c 3d_fullres" in shown
    assert str(folder / "predictions") in shown
