"""Pictures of studies: that they show what there is, apart from each other, and leave out what is not comparable."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib import rc_context, rcdefaults
from matplotlib.colors import to_hex
from study_helpers import study, write_figures

import learning_curves
import training_time
from study import figures, report
from study.commands import Workspace
from study.description import Arm, Run, StudyError
from study.kept import keep
from study.runs import measured_data, metrics_file

WORDS: dict[str, Any] = {
    "data": {"converter": "decathlon.py", "source": "x", "development": 2},
    "labeled": [4, 8],
    "configuration": {"name": "3d_fullres"},
    "iterations": 1000,
    "arms": {"plain": {"trainer": "nnUNetTrainer"}, "CAML": {"trainer": "nnUNetTrainerCAML"}},
}


@pytest.fixture(autouse=True)
def of_its_own() -> Iterator[None]:
    """nnU-Net's pictures of a training, which other tests draw, leave larger letters behind in the process."""
    with rc_context():
        rcdefaults()
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are drawn, to be looked at when they have been written."""
    found: list[Any] = []
    close = figures.plt.close
    monkeypatch.setattr(figures.plt, "close", found.append)
    yield found
    for figure in found:
        close(figure)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders ``studies`` and ``results`` in place of the repository's."""
    for constant, name in (("STUDIES", "studies"), ("KEPT", "results")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(learning_curves, constant, tmp_path / name)
    return tmp_path


def keep_study(folder: Path, name: str, change: dict[str, Any], file: bool = True, cases: int = 2) -> None:
    """Figures of all runs of a study, made up here, and its file unless it is to be missing."""
    path = folder / "studies" / f"{name.removesuffix('_again')}.json"
    path.write_text(json.dumps({**WORDS, **change}), encoding="utf-8")
    s = replace(learning_curves.read_study(path), name=name)
    work = Workspace(folder / "work" / name, folder)
    for run in s.runs():
        write_figures(work, run, [0.5] * cases)
    keep(s, work, folder / "results")
    if not file:
        path.unlink()


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    return module.main()


def curves(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def many_arms(count: int, subsets: int = 3) -> figures.Means:
    """Of as many arms; all labels have a level of their own."""
    means = {(f"arm {i}", n, k, 0): {"c": 0.5 + 0.01 * i} for i, n, k in product(range(count), (4, 8), range(subsets))}
    return means | {(f"all {i}", None, 0, 0): {"c": 0.9 + 0.001 * i} for i in range(12)}


def test_points_stand_at_their_number_of_labels_however_many_arms_there_are(tmp_path: Path, drawn):
    for count in (2, 30):
        figures.learning_curves([("a", many_arms(count))], tmp_path / "curves.png")
        marked = [line for line in drawn[-1].axes[0].get_lines() if line.get_marker() not in ("None", None, "")]
        places = np.concatenate([line.get_xdata() for line in marked])
        assert np.minimum(abs(places / 4 - 1), abs(places / 8 - 1)).max() < 0.081
        assert len(np.unique(places)) == 2 * count, "each arm beside the others"
        assert np.isclose(places.mean(), 6, rtol=0.005), "around it"


def test_arms_are_told_apart_by_more_than_ten_colours(tmp_path: Path, drawn):
    figures.learning_curves([("a", many_arms(40))], tmp_path / "curves.png")
    lines = curves(drawn[0].axes[0]).values()
    looks = [(to_hex(line.get_color()), line.get_marker(), str(line._dash_pattern)) for line in lines]
    assert len(set(looks)) == len(looks) == 52
    assert {line.get_marker() for line in list(lines)[:10]} == {"o"}


@pytest.mark.parametrize(("count", "panels"), [(2, 1), (22, 1), (45, 1), (4, 3)])
def test_the_legend_covers_no_point_and_is_whole(tmp_path: Path, drawn, count: int, panels: int):
    figures.learning_curves([("a", many_arms(count))] * panels, tmp_path / "curves.png")
    figure = drawn[0]
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["arm 0", "arm 1"]
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not legend.overlaps(axes.get_tightbbox())
        assert axes.get_window_extent().height > 250
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1


def test_arms_of_every_panel_are_in_the_legend(tmp_path: Path, drawn):
    panels: list[tuple[str, figures.Means]] = [(arm, {(arm, 4, 0, 0): {"c": 0.5}}) for arm in ("a", "b")]
    figures.learning_curves(panels, tmp_path / "curves.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b"]


def test_a_mean_over_fewer_runs_than_others_is_hollow(tmp_path: Path, drawn):
    means = {("a", n, k, 0): {"c": 0.5} for n in (4, 8) for k in range(3)}
    means |= {("b", 4, k, 0): {"c": 0.6} for k in range(3)} | {("b", 8, 0, 0): {"c": 0.7}}
    figures.learning_curves([("fewer", means)], tmp_path / "curves.png")
    figures.learning_curves([("as many", {k: v for k, v in means.items() if k[1] == 4})], tmp_path / "curves.png")
    hollow = [[line for line in f.axes[0].get_lines() if line.get_markerfacecolor() == "white"] for f in drawn]
    assert [list(line.get_ydata()) for line in hollow[0]] == [[0.7]]
    assert not hollow[1]
    said = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert said == [["a", "b", "hollow: fewer trainings"], ["a", "b"]]


def test_only_auxiliary_networks_are_left_out(tmp_path: Path, drawn, kept: Path):
    arms = (Arm("CAML", "nnUNetTrainerCAML", auxiliary=True), Arm("plain (A)", "nnUNetTrainer"))
    means: figures.Means = {(name, 4, 0, 0): {"c": 0.5} for name in ("CAML", "CAML (A)", "plain (A)")}
    figures.learning_curve(study(arms=arms), means, tmp_path / "curve.png")
    assert list(curves(drawn[0].axes[0])) == ["CAML", "plain (A)"]
    named = {"CAML": {"trainer": "nnUNetTrainerCAML", "auxiliary": True}, "plain (A)": {"trainer": "nnUNetTrainer"}}
    keep_study(kept, "mine", {"arms": named})
    for run in learning_curves.read_study(kept / "studies" / "mine.json").runs():
        if run.arm.auxiliary:
            own = kept / "results" / "mine" / f"{run.name}.csv"
            (own.parent / f"{run.name}-auxiliary.csv").write_bytes(own.read_bytes())
    assert {arm for arm, *_ in learning_curves.panel("mine")} == {"CAML", "plain (A)"}


def test_panels_may_have_the_same_title(tmp_path: Path, drawn, monkeypatch):
    folders = ["left_atrium_screen_test", "left_atrium_screen_test_largest"]
    assert call(learning_curves, monkeypatch, *folders, "--titles", "A", "A", "-o", tmp_path / "curves.png") == 0
    assert [axes.get_title() for axes in drawn[0].axes] == ["A", "A"]
    assert call(learning_curves, monkeypatch, *folders[:1] * 2, "-o", tmp_path / "curves.png") == 0
    assert len(drawn[1].axes) == 2


def test_logs_of_many_arms_are_told_apart(tmp_path: Path, drawn, monkeypatch):
    s = study(labeled=(4,), arms=tuple(Arm(f"arm {i}", "nnUNetTrainer") for i in range(25)))
    monkeypatch.setattr(figures, "_logs", lambda *_arguments: [(run, {"train_losses": [1.0, 0.5]}) for run in s.runs()])
    figures.training_curves(s, Workspace(tmp_path, tmp_path), tmp_path / "training.png")
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in drawn[0].axes[0].get_lines()}) == 25


def test_bars_have_no_empty_rows_around_them(tmp_path: Path, drawn):
    figures.arms(study(), many_arms(20), tmp_path / "arms.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert -1 <= low < -0.4
    assert 51.4 < high <= 52


def test_a_folder_without_the_file_of_its_study_is_said_to_be_so(kept: Path):
    keep_study(kept, "known", {})
    keep_study(kept, "other", {}, file=False)
    (kept / "results" / "notes.txt").touch()
    with pytest.raises(StudyError, match=r"other: the file of its study is missing.*put other\.json into .*studies"):
        learning_curves.study_of("other")
    with pytest.raises(StudyError, match=r"nothing is no folder of kept figures: there are known\.$"):
        learning_curves.study_of("nothing")


def test_second_trainings_are_drawn_with_the_study_that_they_are_of(kept: Path):
    keep_study(kept, "mine", {})
    keep_study(kept, "mine_again", {})
    s, _ = learning_curves.study_of("mine_again")
    assert s.name == "mine_again"
    assert len(learning_curves.panel("mine_again")) == 4


def test_second_trainings_of_the_repository():
    again = {("CAML, start at 0.4", 8, 0, 0), ("CAML", 8, 1, 0), ("CAML", 8, 2, 0)}
    assert set(learning_curves.panel("hippocampus_screen_again")) == again
    assert set(learning_curves.panel("left_atrium_screen_again")) == {("CAML, start at 0.4", 4, 2, 0)}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["hippocampus_screen_test_mirrored", "left_atrium_screen_test"], "left_atrium_screen_test .* their data differ"),
        (["hippocampus_screen_test_mirrored", "hippocampus_screen"], "and hippocampus_screen .* development or test cases"),
        (["hippocampus_screen_test", "hippocampus_screen_test_mirrored"], "mirrored or not"),
        (["left_atrium_screen_test", "left_atrium_screen_test_largest"], "all components or the largest"),
    ],
)
def test_what_is_not_comparable_is_not_averaged(tmp_path: Path, monkeypatch, capsys, folders: list[str], words: str):
    assert call(training_time, monkeypatch, *folders, "--labeled", "4", "8", "-o", tmp_path / "time.png") == 1
    said = capsys.readouterr()
    assert not said.out
    with pytest.raises(StudyError, match=words):
        training_time.points(folders, 4)
    assert not (tmp_path / "time.png").exists()


@pytest.mark.parametrize(
    ("change", "cases", "words"),
    [
        ({"configuration": {"name": "2d"}}, 2, "one and two cannot be compared: their configurations differ"),
        ({"data": {**WORDS["data"], "development": 3}}, 2, "their data differ"),
        ({"test_time_augmentation": False}, 2, "mirrored or not"),
        ({"iterations": 2000}, 3, r"two \(plain\) has other cases than one \(plain\)"),
        ({}, 2, "one and two both have a training of plain, 4 labelled cases, subset 0, seed 0"),
    ],
)
def test_studies_are_averaged_only_where_all_but_the_arms_is_the_same(kept: Path, change: dict, cases: int, words: str):
    keep_study(kept, "one", {})
    keep_study(kept, "two", change, cases=cases)
    with pytest.raises(StudyError, match=words):
        training_time.points(["one", "two"], 4)
    assert training_time.points(["one", "one"], 4) == training_time.points(["one"], 4), "named twice is there once"


def test_longer_trainings_of_the_same_are_further_points(kept: Path):
    keep_study(kept, "one", {})
    keep_study(kept, "two", {"iterations": 2000, "labeled": [4]})
    assert list(training_time.points(["one", "two"], 4)["plain nnU-Net"]) == [1.0, 2.0]


def test_an_arm_whose_settings_depend_on_the_labels_has_the_defaults_with_other_numbers_only(kept: Path):
    named = {**WORDS["arms"], "CAML": {"trainer": "nnUNetTrainerCAML", "by_labeled": {"4": {"rampup_fraction": 0.4}}}}
    keep_study(kept, "one", {"arms": named})
    assert list(training_time.points(["one"], 4)) == ["plain nnU-Net"]
    assert list(training_time.points(["one"], 8)) == ["plain nnU-Net", "CAML"]


def test_a_curve_has_its_colour_where_another_one_is_missing(tmp_path: Path, drawn):
    panels = {"4": {"a": {1.0: [0.5]}, "b": {1.0: [0.6]}}, "8": {"b": {1.0: [0.7]}}}
    figures.training_time(panels, "", tmp_path / "time.png")
    left, right = drawn[0].axes
    assert curves(left)["b"].get_color() == curves(right)["b"].get_color()
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(("module", "more"), [(learning_curves, []), (training_time, ["--labeled", "8"])])
@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("missing/x.png", "there is no folder {folder}/missing; make it"),
        ("x.docx", "pictures end in .*png.*, not in .docx"),
        (".", "is a folder; name a file in it"),
    ],
)
def test_a_picture_that_cannot_be_written_is_a_sentence_before_it_is_drawn(
    tmp_path: Path, monkeypatch, capsys, module: Any, more: list[str], output: str, sentence: str
):
    for name in ("learning_curves", "training_time"):
        monkeypatch.setattr(figures, name, lambda *_arguments: pytest.fail("drawn"))
    assert call(module, monkeypatch, "hippocampus_screen_test", *more, "-o", tmp_path / output) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{module.__name__}.py: -o {tmp_path / output}: ")
    assert re.search(sentence.format(folder=tmp_path), said)


class Pictured:
    """A study whose figures, images and predictions are made up, all of one shape."""

    def __init__(self, folder: Path, ending: str, shape: tuple[int, ...]) -> None:
        self.study = study(labeled=(4,), arms=(Arm("plain", "nnUNetTrainer"), Arm("CAML", "nnUNetTrainerCAML")))
        self.work, self.ending, self.picture = Workspace(folder, folder), ending, folder / "gallery.png"
        self.raw = measured_data(self.study, self.work, self.study.runs()[0])
        self.raw.mkdir(parents=True)
        (self.raw / "dataset.json").write_text(json.dumps({"file_ending": ending}), encoding="utf-8")
        label = np.zeros(shape[:3] if ending == ".nii.gz" else shape[:2], np.uint8)
        label[..., 2:4, 2:6] = 1
        label[..., 5:7, 2:6] = 11
        image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        for case in ("c0", "c1", "c2"):
            self.write(image, self.raw / "imagesTs" / f"{case}_0000{ending}", vector=len(shape) > label.ndim)
            self.write(label, self.raw / "labelsTs" / f"{case}{ending}")
            for run in self.study.runs():
                self.write(label, self.predictions(run) / f"{case}{ending}")
        for run in self.study.runs():
            write_figures(self.work, run, [0.5, 0.6, 0.7])

    @staticmethod
    def write(array: np.ndarray, path: Path, vector: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path))

    def predictions(self, run: Run) -> Path:
        return self.work.measured("predictions") / metrics_file(self.work, run).stem

    def draw(self) -> None:
        means = report.case_means(report.collect(self.study, self.work))
        figures.gallery(self.study, self.work, means, self.picture)


@pytest.mark.parametrize(
    ("ending", "shape"), [(".nii.gz", (3, 8, 8)), (".png", (8, 8)), (".png", (8, 8, 3))], ids=["3-D", "2-D", "2-D in colour"]
)
def test_cases_of_three_and_of_two_dimensions(tmp_path: Path, drawn, ending: str, shape: tuple[int, ...]):
    Pictured(tmp_path, ending, shape).draw()
    axes = drawn[0].axes
    assert [one.get_title() for one in axes[:4]] == ["image", "truth", "plain", "CAML"]
    assert len(axes) == 12
    assert axes[0].images[0].get_array().shape[:2] == (8, 8)
    shown = axes[1].images[1]
    colours = shown.cmap(shown.norm(shown.get_array()))
    assert not colours[0, 0, 3], "nothing where no label is"
    assert (colours[3, 3] == colours[6, 3]).all(), "ten colours, again from the first one on"
    assert shown.get_array().max() <= 9


def test_labels_above_nine_are_told_apart(tmp_path: Path, drawn):
    made = Pictured(tmp_path, ".nii.gz", (1, 8, 8))
    label = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) % 13
    for case in ("c0", "c1", "c2"):
        made.write(label, made.raw / "labelsTs" / f"{case}.nii.gz")
    made.draw()
    shown = drawn[0].axes[1].images[1]
    colours = shown.cmap(shown.norm(shown.get_array())).reshape(-1, 4)
    assert len({tuple(colours[i]) for i in range(1, 11)}) == 10
    assert tuple(colours[11]) == tuple(colours[1])


def test_arms_without_predictions_are_left_out_of_the_gallery(tmp_path: Path, drawn):
    """Predictions are large: whoever deletes them still has the figures."""
    made = Pictured(tmp_path, ".nii.gz", (3, 8, 8))
    plain, caml = made.study.runs()
    (made.predictions(caml) / "c0.nii.gz").unlink()
    made.draw()
    assert [one.get_title() for one in drawn[0].axes[:3]] == ["image", "truth", "plain"]
    assert drawn[0].axes[0].get_ylabel().startswith("best of plain")
    made.picture.unlink()
    (made.predictions(plain) / "c2.nii.gz").unlink()
    made.draw()
    assert not made.picture.exists()


@pytest.mark.parametrize("lost", ["imagesTs/c1_0000.nii.gz", "labelsTs/c1.nii.gz", "dataset.json"])
def test_there_is_no_gallery_without_the_images(tmp_path: Path, drawn, lost: str):
    made = Pictured(tmp_path, ".nii.gz", (3, 8, 8))
    (made.raw / lost).unlink()
    made.draw()
    assert not made.picture.exists()
