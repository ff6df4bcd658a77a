#!/usr/bin/env python
"""Left Atrium, as the semi-supervised literature shares it (UA-MT, Yu et al., MICCAI 2019).

SOURCE holds "2018LA_Seg_Training Set/<case>/mri_norm2.h5" with the arrays image (float32) and label (0 and 1), axes
x, y, z, and the lists train.list and test.list. The files keep no spacing: it is 0.625 mm in all directions. Images
stay as they are, z-scored and cropped. The first cases of train.list are the labelled ones, its other cases the
unlabelled ones, those of test.list the test cases.
"""

from dataclasses import replace
from functools import partial

from left_atrium import DATASET, LABELED_HELP, LISTS
from nnunet_caml.conversion import H5Cases, argument_parser, main, read_h5

CASES = H5Cases("2018LA_Seg_Training Set", "/mri_norm2.h5", LISTS)
SPACING_MM = (0.625, 0.625, 0.625)
DATASET_H5 = replace(
    DATASET,
    label_map=None,
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM),
)

if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=8, labeled_help=LABELED_HELP, draws_test=False)
    CASES.lists.add_option(parser)
    main(CASES.find, DATASET_H5, parser, find_unlabeled=CASES.find_unlabeled)
