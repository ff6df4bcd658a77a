#!/usr/bin/env python
"""NIH Pancreas-CT, as the semi-supervised literature shares it (MC-Net, Wu et al., github.com/ycwu1997/MC-Net).

SOURCE holds Pancreas_h5/image0001_norm.h5, ... with the arrays image (float32) and label (0 and 1), axes x, y, z, and the
lists train.list (62 cases) and test.list (20). The files keep no spacing: they were resampled to 1 mm in all directions.
Images stay as they are: cut to -125 to 275 HU, z-scored and cropped around the pancreas. The first cases of train.list
are the labelled ones, its other cases the unlabelled ones, those of test.list the test cases.
"""

from functools import partial

from nnunet_caml.conversion import CaseLists, Dataset, H5Cases, argument_parser, main, read_h5

CASES = H5Cases("Pancreas_h5", "_norm.h5", CaseLists())
LABELED_HELP = (
    "how many cases keep their label, in the order of train.list (default: 12, about 20 %%; the literature has 6 and 12, "
    "about 10 and 20 %% of 62)"
)
SPACING_MM = (1.0, 1.0, 1.0)
DATASET = Dataset(
    name="Pancreas",
    channel_names=["windowed CT"],  # not "CT": nnU-Net would take the z-scores for Hounsfield units
    labels={"background": 0, "pancreas": 1},
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM),
    ordered=True,
    licence="CC BY 3.0",
    reference="NIH Pancreas-CT, The Cancer Imaging Archive, https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
)

if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=12, labeled_help=LABELED_HELP, draws_test=False)
    CASES.lists.add_option(parser)
    main(CASES.find, DATASET, parser, find_unlabeled=CASES.find_unlabeled)
