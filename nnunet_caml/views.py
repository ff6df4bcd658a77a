"""Augmentation of unlabelled patches: nnU-Net's, of the image alone, and for two views if they are wanted.

Nobody looks at the segmentation that comes with an unlabelled patch, and with nnU-Net's patches augmenting it takes two fifths
of the time. So it is left out, unless what happens to the image depends on it.

Two views have the same geometry, with intensities augmented for V and left alone for A. A then gives V labels of an image that
is easier to read than the one which V has to learn from, as in the weak and strong augmentation of FixMatch (Sohn et al.,
NeurIPS 2020, arXiv:2001.07685). Labelled patches are augmented for both alike.
"""

import copy
import random
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from torch import Tensor

from nnunet_caml.errors import UnsupportedError

__all__ = ["ImageAlone", "TwoViews", "image_needs_segmentation"]

#: what moves image and segmentation alike, by numbers that depend on neither
MOVES_BOTH = {
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
    MirrorTransform,
    Rot90Transform,
    SpatialTransform,
    TransposeAxesTransform,
}


class ImageAlone:
    """Augments the image of a patch to the same voxels as ``transforms``, without its segmentation.

    Args:
        transforms: Those of which :func:`image_needs_segmentation` says no, or :class:`TwoViews` of such.
    """

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, image: Tensor, segmentation: Tensor) -> dict:
        """As ``transforms``, with a single voxel as segmentation, because nnU-Net's loader collects one of each patch."""
        return {**self.transforms(image=image), "segmentation": segmentation.new_zeros(1)}


def image_needs_segmentation(transform: Any) -> bool:
    """Whether the image that a transform makes may depend on the segmentation; of those that are not known it may.

    It does for images that were normalised within a mask, and for the previous stage's labels in a cascade.
    """
    if parts := parts_of(transform):
        return any(map(image_needs_segmentation, parts))
    if type(transform).__module__.startswith("batchgeneratorsv2."):
        return not (isinstance(transform, ImageOnlyTransform | SegOnlyTransform) or type(transform) in MOVES_BOTH)
    return True


def parts_of(transform: Any) -> list[Any]:
    """The transforms that a transform strings together, or chooses from, or may apply; empty if it is a single one."""
    parts = getattr(transform, "list_of_transforms", None) or getattr(transform, "transforms", None)
    return parts or [part for part in [getattr(transform, "transform", None)] if part is not None]


class TwoViews:
    """nnU-Net's augmentation for two views of an image.

    What changes the image alone (intensities; in a cascade, errors put into the previous stage's labels) is applied to the
    first view, or to each by itself; all else draws the same numbers for both.

    Args:
        transforms: nnU-Net's.
        clean: The second view keeps its intensities.

    Raises:
        UnsupportedError: One of them changes the image alone in a part of it only.
    """

    def __init__(self, transforms: ComposeTransforms, clean: bool = True) -> None:
        self.transforms = [(transform, changes_image_only(transform)) for transform in transforms.transforms]
        self.clean = clean

    def __call__(self, **data: Any) -> dict:
        """As ``transforms``, but ``image`` ``(C, *patch)`` becomes ``(2 C, *patch)``, the second view behind the first."""
        second = None  # until they differ, one does for both
        for transform, image_only in self.transforms:
            if image_only:
                if second is None:
                    second = copy.deepcopy(data)  # transforms work in place
                if not self.clean:
                    second = transform(**second)
            elif second is not None:
                state = random.getstate(), np.random.get_state(), torch.get_rng_state()
                second = transform(**second)
                random.setstate(state[0])
                np.random.set_state(state[1])
                torch.set_rng_state(state[2])
            data = transform(**data)
        return {**data, "image": torch.cat((data["image"], (second or data)["image"]))}


def changes_image_only(transform: Any) -> bool:
    """Whether a transform leaves the segmentation alone, also one that chooses from, or strings together, such ones.

    Raises:
        UnsupportedError: Some of its parts do, others do not.
    """
    if not (parts := parts_of(transform)):
        return isinstance(transform, ImageOnlyTransform)
    answers = {changes_image_only(part) for part in parts}
    if len(answers) > 1:
        raise UnsupportedError(
            f"clean_view needs to know what augments intensities, and {type(transform).__name__} holds transforms of the "
            f"image alone beside others ({', '.join(type(part).__name__ for part in parts)}). Take them apart, or set "
            f"clean_view = False."
        )
    return answers.pop()
