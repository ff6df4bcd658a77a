"""What augmentation makes of unlabelled patches: the image alone, and the two views of it, up to the networks."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_caml.loading import labeled_loader, unlabeled_loader
from nnunet_caml.views import ImageAlone, TwoViews, image_needs_segmentation

PATCH = (8, 10, 12)


def transforms(trainer, **changes):
    """nnU-Net's, without rotation and scaling, so that voxels only move."""
    made = trainer.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), False, **changes)
    made.transforms[0].p_rotation = made.transforms[0].p_scaling = 0.0
    return made


def patch(channels: int = 1) -> dict:
    return {"image": torch.rand(channels, *PATCH), "segmentation": torch.randint(-1, 3, (1, *PATCH)).short()}


def applied_always(made: ComposeTransforms) -> ComposeTransforms:
    """With every transform that is left to chance."""
    for transform in made.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 1.0
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = transform.p_elastic_deform = 1.0
    return made


@pytest.mark.parametrize("variant", [nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerNoDA])
@pytest.mark.parametrize("settings", [{}, {"do_dummy_2d_data_aug": True}, {"regions": ((1, 2), (2,)), "ignore_label": 3}])
def test_the_image_alone_is_augmented_to_the_same_voxels(variant, settings):
    """To the bit, patch after patch: without a segmentation no other random numbers are drawn."""
    scales = [[1, 1, 1], [0.5, 0.5, 0.5]]
    rest = {"do_dummy_2d_data_aug": False} | settings
    made = applied_always(variant.get_training_transforms(PATCH, (-0.5, 0.5), scales, (0, 1, 2), **rest))
    assert not image_needs_segmentation(made)
    data, results = [patch(2) for _ in range(6)], []
    for kind in (made, ImageAlone(made)):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        results.append([kind(**copy.deepcopy(d)) for d in data])
    for whole, alone in zip(*results, strict=True):
        assert torch.equal(whole["image"], alone["image"])
        assert len(whole["segmentation"]) == 2
        assert alone["segmentation"].shape == (1,)


def test_where_the_image_needs_the_segmentation(make_trainer):
    """Masks, previous stages, and what nobody here knows."""
    for changes in ({"use_mask_for_norm": [True]}, {"is_cascaded": True, "foreground_labels": [1, 2]}):
        assert image_needs_segmentation(transforms(make_trainer(), **changes))
    assert not image_needs_segmentation(transforms(make_trainer(), use_mask_for_norm=[False]))

    class Unknown(MirrorTransform):
        pass

    for unknown in (Unknown((0,)), RandomTransform(Unknown((0,))), OneOfTransform([MirrorTransform((0,)), Unknown((0,))])):
        assert image_needs_segmentation(ComposeTransforms([MirrorTransform((0,)), unknown]))


@pytest.mark.parametrize("clean_view", [False, True])
def test_the_loader_leaves_out_what_it_can(make_trainer, clean_view):
    trainer = make_trainer()
    trainer.on_train_start()
    labeled = labeled_loader(trainer.dataloader_train.labeled)
    cases = labeled_loader(trainer.dataloader_train.unlabeled)._data
    loader = unlabeled_loader(labeled, cases, 3, clean_view)
    batches = []
    for kind in (loader.transforms, loader.transforms.transforms):
        loader.transforms = kind
        np.random.seed(1)
        torch.manual_seed(1)
        batches.append(next(loader))
    assert batches[0]["data"].shape[:2] == (3, 1 + clean_view)
    assert torch.equal(batches[0]["data"], batches[1]["data"])
    assert list(batches[0]["keys"]) == list(batches[1]["keys"])
    labeled.transforms = transforms(trainer, use_mask_for_norm=[True])
    assert not isinstance(unlabeled_loader(labeled, cases, 3, clean_view).transforms, ImageAlone)


@pytest.mark.parametrize("seed", range(8))
def test_the_first_view_is_what_nnunet_makes_of_the_patch(make_trainer, seed):
    """With the same random numbers, to the bit."""
    made, data = transforms(make_trainer()), patch()
    results = []
    for kind in (made, TwoViews(made)):
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(kind(**copy.deepcopy(data))["image"])
    assert results[1].shape == (2, *PATCH)
    assert torch.equal(results[0], results[1][:1])


def test_the_second_has_its_voxels_where_the_first_has_them(make_trainer):
    """Mirrored alike, and with the intensities that were read."""
    views, same = TwoViews(transforms(make_trainer())), 0
    for seed in range(40):
        np.random.seed(seed)
        torch.manual_seed(seed)
        data = patch()
        # in every corner another brightness, far beyond what augmentation does to voxels
        data["image"] += sum(
            2.0 ** (3 + axis) * torch.arange(n).reshape([-1 if i == axis else 1 for i in range(3)]).ge(n / 2)
            for axis, n in enumerate(PATCH)
        )
        read = data["image"].clone()
        augmented, clean = views(**data)["image"]
        torch.testing.assert_close(clean.flatten().sort().values, read.flatten().sort().values)
        assert np.corrcoef(augmented.flatten(), clean.flatten())[0, 1] > 0.6
        same += torch.equal(augmented, clean)
    assert 0 < same < 30


def test_masks_and_previous_stages_are_those_of_the_view(make_trainer):
    """Voxels outside of the mask are 0 in both; in a cascade A sees the previous stage as it is, V with errors put into it."""
    np.random.seed(0)
    torch.manual_seed(0)
    masked = transforms(make_trainer(), use_mask_for_norm=[True])
    for _ in range(10):
        data = patch()
        both = TwoViews(masked)(**data)["image"]
        assert torch.equal(both[0] == 0, both[1] == 0)
        assert 0.05 < (both[1] == 0).float().mean() < 0.6
    cascaded = transforms(make_trainer(), is_cascaded=True, foreground_labels=[1, 2])
    same = 0
    for _ in range(20):
        data = patch() | {"segmentation": torch.randint(0, 3, (2, *PATCH)).short()}
        voxels = [int((data["segmentation"][1] == label).sum()) for label in (1, 2)]
        both = TwoViews(cascaded)(**data)["image"]
        assert both.shape == (6, *PATCH)
        assert both[4:].flatten(1).sum(1).tolist() == voxels
        same += torch.equal(both[1:3], both[4:])
    assert 0 < same < 20


def test_nnunets_other_augmentation_too():
    """That of nnUNetTrainerDA5 chooses one of several transforms of intensities, and strings some together."""
    made = nnUNetTrainerDA5.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), False)
    made.transforms = [t for t in made.transforms if not isinstance(t, SpatialTransform)]
    views, differ = TwoViews(made), 0
    for seed in range(60):
        np.random.seed(seed)
        torch.manual_seed(seed)
        data = patch()
        read = data["image"].clone()
        augmented, clean = views(**data)["image"]
        torch.testing.assert_close(clean.flatten().sort().values, read.flatten().sort().values)
        differ += not torch.equal(augmented, clean)
    assert differ > 30
    mixed = ComposeTransforms([OneOfTransform([GaussianNoiseTransform(), MirrorTransform((0,))])])
    with pytest.raises(NotImplementedError, match=r"clean_view .*OneOfTransform .*\(GaussianNoiseTransform, MirrorTransform\)"):
        TwoViews(mixed)


def test_transforms_of_the_image_strung_together_leave_the_clean_view_alone():
    nested = ComposeTransforms([OneOfTransform([ComposeTransforms([GaussianNoiseTransform()])])])
    data = patch()
    read = data["image"].clone()
    augmented, clean = TwoViews(nested)(**data)["image"]
    assert torch.equal(clean, read[0])
    assert not torch.equal(augmented, clean)


class Shift(MirrorTransform):
    """Moves voxels by numbers of all three generators that transforms draw from."""

    def __call__(self, **data):
        steps = [np.random.randint(1, 8), random.randint(1, 8), int(torch.randint(1, 8, ()))]
        return {**data, "image": data["image"].roll(steps, (1, 2, 3))}


def test_both_views_are_moved_by_the_same_numbers():
    views, unlike = TwoViews(ComposeTransforms([GaussianNoiseTransform((1e-6, 2e-6)), Shift((0,)), Shift((0,))])), 0
    for _ in range(10):
        augmented, clean = views(**patch())["image"]
        torch.testing.assert_close(augmented, clean, rtol=0, atol=1e-2)
        unlike += not torch.equal(augmented, clean)
    assert unlike


def test_no_augmentation_no_difference(make_trainer):
    made = make_trainer().get_validation_transforms(None)
    both = TwoViews(made)(**patch())["image"]
    assert torch.equal(both[0], both[1])


def test_each_network_gets_its_view(make_trainer):
    trainer = make_trainer()
    trainer.clean_view = True
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = 10**6  # after the ramp-up
    loader = labeled_loader(trainer.dataloader_train.unlabeled)
    assert isinstance(pickle.loads(pickle.dumps(loader)).transforms.transforms, TwoViews), "workers get it"
    assert not isinstance(labeled_loader(trainer.dataloader_train.labeled).transforms, TwoViews)
    inputs = []
    for network in (trainer.network, trainer.caml.auxiliary):
        network.encoder.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
    differ = 0
    for _ in range(6):
        inputs.clear()
        batch = next(trainer.dataloader_train)
        assert np.isfinite(trainer.train_step(batch)["consistency"])
        for view, images in enumerate(inputs):
            assert torch.equal(images, torch.cat((batch["data"], batch["unlabeled"][:, view : view + 1])))
        differ += not torch.equal(*inputs)
    assert differ
