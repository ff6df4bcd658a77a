#!/usr/bin/env python
"""BraTS 2019, as the semi-supervised literature shares it (SSL4MIS, github.com/HiLab-git/SSL4MIS, folder data/BraTS2019).

SOURCE holds data/BraTS19_*.h5 with the arrays image (FLAIR, float32) and label (whole tumour, 0 and 1), and the lists
train.txt (250 cases), val.txt (25) and test.txt (60). The files keep no spacing: it is 1 mm in all directions. Images stay
as they are, z-scored and cropped. The first cases of train.txt are the labelled ones, its other cases the unlabelled ones,
those of test.txt the test cases. Those of val.txt, on which the literature chooses checkpoints, are left out.
"""

from functools import partial

from brats import DATASET as OFFICIAL
from brats import LISTS
from nnunet_caml.conversion import Dataset, H5Cases, argument_parser, main, read_h5

CASES = H5Cases("data", ".h5", LISTS)
LABELED_HELP = (
    "how many cases keep their label, in the order of train.txt (default: 25; the literature on BraTS 2019 has 25 and 50 "
    "of 250, 10 and 20 %%)"
)
SPACING_MM = (1.0, 1.0, 1.0)
DATASET = Dataset(
    name="BraTS19",
    channel_names=["FLAIR"],
    labels={"background": 0, "whole tumor": 1},
    # the axes come from a program whose arrays are z, y, x; with equal spacings, their order changes no distance
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM, axes="zyx"),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM, axes="zyx"),
    ordered=True,
    reference=OFFICIAL.reference,
)

if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=25, labeled_help=LABELED_HELP, draws_test=False)
    CASES.lists.add_option(parser)
    main(CASES.find, DATASET, parser, find_unlabeled=CASES.find_unlabeled)
