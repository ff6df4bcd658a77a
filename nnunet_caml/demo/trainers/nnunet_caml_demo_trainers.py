"""The one file that nnU-Net searches for the demo's trainers: see nnunet_caml/startup.py for why it only re-exports."""

from nnunet_caml.demo.schedules import *  # noqa: F403
