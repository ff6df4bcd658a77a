"""What a user can mend is said in a sentence, without the places in the code where it was noticed."""

import shutil
import subprocess
import sys

from conftest import Workspace


def test_a_command_of_nnunet_ends_with_a_sentence(workspace: Workspace):
    shutil.rmtree(workspace.raw / "imagesUn")
    command = "nnUNetv2_train 101 3d_tiny 0 -tr nnUNetTrainerCAMLShort -device cpu"
    said = workspace.run(*command.split(), status=1).splitlines()
    assert said[-1].startswith("ERROR: There are no unlabelled cases for Dataset101_Tiny. Put images into ")
    assert not [line for line in said if line.startswith(("Traceback", "  File"))]


def test_other_errors_are_shown_as_before():
    code = "from nnunet_caml.errors import UserError, show_sentences; show_sentences(); show_sentences(); raise {}"
    for raised, said in (("UserError('Mend it.')", "ERROR: Mend it."), ("ValueError('A fault.')", "ValueError: A fault.")):
        done = subprocess.run([sys.executable, "-c", code.format(raised)], capture_output=True, encoding="utf-8")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == said
        assert ("Traceback" in done.stderr) == (raised.startswith("Value"))
