"""The command line that all converters share, and the converter in the documentation."""

import re
import signal

import numpy as np
from conversion_helpers import (
    OBLIQUE,
    ROOT,
    SCRIPTS,
    nothing_left,
    random_image,
    random_label,
    run_as_user,
    sentence,
    split_of,
    voxels,
    write,
)
from conversion_sources import decathlon, left_atrium

import nnunet_caml.conversion
from nnunet_caml.conversion.commandline import command_line


def test_example_of_the_documentation_runs(tmp_path, raw):
    """The converter in the package's docstring, exactly as it is printed there."""
    text = nnunet_caml.conversion.__doc__.partition("is a label::\n\n")[2]
    lines = re.match(r"(?:(?:    .*)?\n)+", text).group().rstrip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 10
    script = tmp_path / "my_converter.py"
    script.write_text("\n".join(line[4:] for line in lines) + "\n", encoding="utf-8")
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


def test_the_documented_converter_is_the_docstrings():
    """Which runs, see above."""
    text = (ROOT / "documentation" / "datasets" / "own_data.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    docstring = nnunet_caml.conversion.__doc__.partition("is a label::\n\n")[2]
    assert code.strip() == "\n".join(line[4:] for line in docstring.partition("\n\n``python")[0].splitlines()).strip()


def test_all_scripts_explain_themselves(tmp_path):
    for script in sorted(SCRIPTS.glob("*.py")):
        done = run_as_user(script.name, "--help", cwd=tmp_path)
        assert done.returncode == 0
        for option in ("--dataset-id", "--labeled", "--seed", "--unlabeled-from", "--link", "--overwrite", "--preview"):
            assert option in done.stdout


def test_unset_variable(tmp_path, raw, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in sentence(capsys, "left_atrium.py", tmp_path, "--dataset-id", 7)


def test_wrong_folders(tmp_path, raw, capsys):
    (tmp_path / "empty").mkdir()
    assert "is no folder" in sentence(capsys, "left_atrium.py", tmp_path / "nowhere", "--dataset-id", 7)
    assert "mri_norm2" not in sentence(capsys, "left_atrium_h5.py", tmp_path / "empty", "--dataset-id", 7)
    for script in ("decathlon.py", "hide_labels.py"):
        complaint = sentence(capsys, script, tmp_path / "empty", "--dataset-id", 7, "--labeled", 2)
        assert "dataset.json is not the description of" in complaint
    for content in ("[]", "{}", "{", '{"labels": 1, "modality": 2, "training": 3, "channel_names": 4, "file_ending": 5}'):
        (tmp_path / "empty" / "dataset.json").write_text(content, encoding="utf-8")
        for script in ("decathlon.py", "hide_labels.py"):
            assert "dataset.json" in sentence(capsys, script, tmp_path / "empty", "--dataset-id", 7, "--labeled", 2)
    assert nothing_left(raw)


def test_more_labels_than_there_are(tmp_path, raw, capsys):
    source = left_atrium(tmp_path / "source", cases=3)
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 4)
    assert "--labeled 4 is not possible" in complaint
    assert "1 to 3" in complaint
    task = decathlon(tmp_path / "Task07_Organ", channels=1)
    complaint = sentence(capsys, "decathlon.py", task, "--dataset-id", 7, "--labeled", 2, "--test", 5)
    assert "1 to 1" in complaint
    assert "--test 7" in sentence(capsys, "decathlon.py", task, "--dataset-id", 7, "--labeled", 2, "--test", 7)


def test_command_is_recorded_without_folders_and_without_what_changes_nothing():
    arguments = ["/a/x.py", "/b/src dir", "--dataset-id=4", "--lists=/c/d", "-np", "3", "--overwrite", "-np4", "--link"]
    assert command_line(arguments) == "x.py 'src dir' --dataset-id=4 --lists=d --link"


def test_sigterm_is_the_callers_again_afterwards(tmp_path, raw, capsys):
    """Workers that are forked later would inherit the handler, and a pool that terminates them can then wait for ever."""
    before = signal.getsignal(signal.SIGTERM)
    assert "is no folder" in sentence(capsys, "left_atrium.py", tmp_path / "nowhere", "--dataset-id", 7)
    assert signal.getsignal(signal.SIGTERM) == before
