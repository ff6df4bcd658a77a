"""Semi-supervised nnU-Net v2 by Correlation-Aware Mutual Learning (Gao et al., MICCAI 2023, arXiv:2307.06312).

The package is used through nnU-Net's own commands (``nnUNetv2_train ... -tr nnUNetTrainerCAML``). Importing it is
cheap on purpose: it happens at every start of Python (see :mod:`nnunet_caml.startup`), so nothing heavy is imported here.
"""

__version__ = "0.1.0"
