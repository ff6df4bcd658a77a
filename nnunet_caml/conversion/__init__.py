"""Brings data sets into nnU-Net's raw format, with the cases that have no label in ``imagesUn/``.

One writer serves all converters, so that they share their face, checks, files and error sentences. A converter only
says where the files of a case are. This is a whole one, for folders ``<case>/ct.nrrd`` with ``organ.nrrd`` where there
is a label::

    from nnunet_caml.conversion import Case, Dataset, main

    def find(source, options):
        for folder in sorted(path for path in source.iterdir() if path.is_dir()):
            label = folder / "organ.nrrd"
            yield Case(folder.name, [folder / "ct.nrrd"], label if label.exists() else None)

    if __name__ == "__main__":
        main(find, Dataset(name="Spleen", channel_names=["CT"], labels={"background": 0, "spleen": 1}))

``python my_converter.py SOURCE --dataset-id 31 --labeled 8`` then writes ``$nnUNet_raw/Dataset031_Spleen``:

- ``imagesTr`` and ``labelsTr``, the labelled cases; ``imagesTs`` and ``labelsTs``, the test cases; ``imagesUn``, the
  unlabelled cases, whose labels are not even read;
- ``dataset.json``, and ``split.json`` with the cases of each kind, the seed, the command and the package's version.

What holds for every data set written:

- It is there whole or not at all, and the same command writes the same bytes.
- Every file is read and checked: that it is complete, finite, on the same grid as the other files of the case, and
  that labels hold expected values only.
- Nothing is resampled or normalised. A source file that is already what the data set needs is copied byte for byte
  (or linked, with ``--link``); any other is written anew with its own voxel type, spacing, origin and direction.
- Files end in ``.nii.gz``. NIfTI keeps geometry in float32: spacing and direction are within 1e-6, an origin is within
  1e-6 of itself or 1e-6 mm, whichever is more; a direction matrix of few decimals becomes the nearest with right angles,
  and is an error if that moves a corner by more than 0.01 voxels. With ``--link``, where all source
  files share one other ending that nnU-Net reads (``.nrrd``, ``.mha``, ...), the data set takes that ending instead,
  because nnU-Net wants the same one for all images and labels and a link cannot change it.
- Where a converter says so (``Dataset.in_place``), ``--link`` names unlabelled files in the entry ``unlabeled`` of
  ``dataset.json`` and leaves them where they are.
"""

from nnunet_caml.conversion.cases import Case, ConversionError, Dataset, Split, draw_split, find_images, of_one_kind, read_list
from nnunet_caml.conversion.commandline import argument_parser, main
from nnunet_caml.conversion.listed import CaseLists, H5Cases, required_folder
from nnunet_caml.conversion.reading import read_h5, read_image
from nnunet_caml.conversion.searching import find_files, outside
from nnunet_caml.conversion.writer import Summary, convert

__all__ = [
    "Case",
    "CaseLists",
    "ConversionError",
    "Dataset",
    "H5Cases",
    "Split",
    "Summary",
    "argument_parser",
    "convert",
    "draw_split",
    "find_files",
    "find_images",
    "main",
    "of_one_kind",
    "outside",
    "read_h5",
    "read_image",
    "read_list",
    "required_folder",
]
