"""Makes nnU-Net find our trainers without the user setting anything.

nnU-Net looks up ``-tr NAME`` in its own package and then in the folders of the environment variable
``nnUNet_extTrainer``. Our wheel places ``nnunet_caml.pth`` in the root of site-packages; Python reads such files at
start and so imports this module, which appends :data:`DISCOVERY_FOLDER` to that variable. The folder goes last: trainers
of the user's own folders are found first, and nothing they set is lost. It holds a single file that re-exports our
classes, because nnU-Net drops every module it imported from under a searched folder from ``sys.modules`` afterwards:
classes defined there could not be pickled.

Python does not read ``.pth`` files in folders of ``PYTHONPATH`` (``pip install --target``). There, set the variable to
the output of ``nnunet-caml trainers``.

This runs at every start of the interpreter: keep it free of imports beyond the standard library.
"""

import os
from pathlib import Path

DISCOVERY_FOLDER = str(Path(__file__).resolve().parent / "discovery")
VARIABLE = "nnUNet_extTrainer"
#: what the variable was before this module was imported
GIVEN = os.environ.get(VARIABLE, "")


def add_discovery_folder() -> None:
    """Appends :data:`DISCOVERY_FOLDER` to ``nnUNet_extTrainer`` unless it is there already."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    if DISCOVERY_FOLDER not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, DISCOVERY_FOLDER])


add_discovery_folder()
