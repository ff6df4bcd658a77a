"""The meaning of outputs and labels, against nnU-Net's own label manager."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_caml.labels import LabelSpace

PLAIN = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def manager(regions: bool, ignore: bool) -> LabelManager:
    labels = {**(REGIONS if regions else PLAIN), **({"ignore": 4} if ignore else {})}
    # not 1, 2, 3: the last region that holds wins, whatever it is called
    return LabelManager(labels, [2, 1, 3] if regions else None)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_predictions_are_nnunets_label_map(regions, ignore):
    nnunet = manager(regions, ignore)
    space = LabelSpace.from_label_manager(nnunet)
    logits = 3 * torch.randn(2, nnunet.num_segmentation_heads, 6, 5, 4)
    predicted = space.predicted(logits)
    values = torch.tensor([0, *nnunet.regions_class_order]) if regions else torch.arange(space.num_classes)
    for sample, classes in zip(logits, predicted, strict=True):
        expected = nnunet.convert_logits_to_segmentation(sample)
        assert torch.equal(values[classes], torch.as_tensor(expected).long())
    assert len(predicted.unique()) == space.num_classes == 4
    logits = logits.double()
    if regions:
        p = torch.sigmoid(logits)
        wanted = torch.stack([torch.stack((x, 1 - x)).amax(0) for x in p.unbind(1)]).amin(0)
    else:
        wanted = torch.softmax(logits, 1).amax(1)
    torch.testing.assert_close(space.confidence(logits), torch.log(wanted / (1 - wanted)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("regions", [False, True])
def test_confidence_tells_voxels_apart_whose_probability_is_1(regions: bool, dtype: torch.dtype):
    """As much of a trained network's background is: else the most confident of it would be the first of the batch."""
    space = LabelSpace.from_label_manager(manager(regions, False))
    logits = torch.zeros(1, space.num_outputs, 40, dtype=dtype)
    logits[:, 0] = torch.linspace(18, 360, 40)  # beyond 104, exp in float32 gives 0 for the other classes
    if regions:
        logits[:, 1:] = -400
    assert (torch.softmax(logits.float(), 1).amax(1) > 1 - 1e-7).all()
    confidence = space.confidence(logits)
    assert confidence.isfinite().all()
    assert (confidence.diff() > 8).all()


def test_ignored_voxels_are_not_annotated():
    space = LabelSpace.from_label_manager(manager(False, True))
    labels = torch.randint(0, 5, (2, 1, 6, 5, 4))
    classes, annotated = space.target(labels.float())
    assert torch.equal(annotated, labels[:, 0] != 4)
    assert torch.equal(classes[annotated], labels[:, 0][annotated])


def test_ignored_voxels_of_regions_are_not_annotated():
    space = LabelSpace.from_label_manager(manager(True, True))
    member = torch.rand(2, 4, 6, 5, 4) < 0.5  # three regions, and what is ignored
    classes, annotated = space.target(member)
    assert torch.equal(annotated, ~member[:, 3])
    wins = torch.where(member[:, 2], 3, torch.where(member[:, 1], 2, torch.where(member[:, 0], 1, 0)))
    assert torch.equal(classes, wins)


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_do_not_enter_the_memory(regions):
    """With predictions that are right everywhere, the memory holds the annotated voxels and no others."""
    from torch import nn

    from nnunet_caml.learning import MutualLearning

    space = LabelSpace.from_label_manager(manager(regions, True))
    caml = MutualLearning(nn.Identity(), 5, space, ["x"], per_class=4)
    ignored = torch.rand(1, 6, 5, 4) < 0.5
    if regions:
        target = torch.cat((torch.rand(1, 3, 6, 5, 4) < 0.5, ignored[:, None]), 1)
        predicted = space.target(target)[0]
    else:
        predicted = torch.randint(0, 4, (1, 6, 5, 4))
        target = torch.where(ignored, 4, predicted)[:, None].float()
    features = torch.randn(1, 5, 6, 5, 4)
    caml.remember(["x"], features, features, predicted, predicted, target)
    expected = [((predicted == k) & ~ignored).sum().item() for k in range(4)]
    assert caml.memory.counts[0].tolist() == expected
