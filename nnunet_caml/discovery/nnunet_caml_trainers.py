"""The one file that nnU-Net searches for our trainers: see nnunet_caml/startup.py for why it only re-exports."""

from nnunet_caml.trainer import *  # noqa: F403
from nnunet_caml.variants import *  # noqa: F403
