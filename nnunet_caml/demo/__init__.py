"""``nnunet-caml demo``: plain nnU-Net and CAML on a synthetic data set, by nnU-Net's own commands, in minutes on a CPU."""

from pathlib import Path

__all__ = ["run"]


def run(output_folder: Path, device: str | None = None, seed: int = 2023, narrow: bool = False, longer: bool = False) -> int:
    """Runs the whole demo; see :func:`nnunet_caml.demo.main.run`."""
    from nnunet_caml.demo import main  # imports torch and nnU-Net, which takes seconds

    return main.run(output_folder, device, seed, narrow, longer)
