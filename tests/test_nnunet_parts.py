"""Guards of documentation/nnunet_parts.md: each private part of nnU-Net that is relied on is still what it was."""

import inspect
import itertools

import numpy as np
import pytest
import skimage.io
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities import find_objects
from torch._dynamo import OptimizedModule

from nnunet_caml.cascade import PREDICTED
from nnunet_caml.preparation import NUM_FOLDS, SPLIT_SEED
from nnunet_caml.states import source_files
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.unlabeled import NORMALIZED_BY_IMAGE


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def test_look_up():
    assert "nnUNet_extTrainer.get().split(os.pathsep)" in source(find_objects.recursive_find_trainer_class_by_name)


def test_constructor_signature_is_nnunets():
    assert inspect.signature(nnUNetTrainerCAML.__init__) == inspect.signature(nnUNetTrainer.__init__)


def test_initialize():
    text = source(nnUNetTrainer.initialize)
    for part in ("self.network =", "self.optimizer, self.lr_scheduler = self.configure_optimizers()", "self.loss ="):
        assert part in text


def test_spacing_beside_tiff_images(tmp_path):
    skimage.io.imsave(tmp_path / "a_0000.tif", np.zeros((3, 4, 5), np.uint8), check_contrast=False)
    (tmp_path / "a.json").write_text('{"spacing": [3, 2, 1]}', encoding="utf-8")
    assert source_files([tmp_path / "a_0000.tif"]) == [tmp_path / "a_0000.tif", tmp_path / "a.json"]
    assert Tiff3DIO().read_images([str(tmp_path / "a_0000.tif")])[1]["spacing"] == [3, 2, 1]


def test_folds_and_seed():
    assert f"seed={SPLIT_SEED}, n_splits={NUM_FOLDS}" in source(nnUNetTrainer.do_split)


def test_augmenters(make_trainer, monkeypatch):
    for processes, kind in (("0", SingleThreadedAugmenter), ("1", NonDetMultiThreadedAugmenter)):
        monkeypatch.setenv("nnUNet_n_proc_DA", processes)
        trainer = make_trainer()
        trainer.on_train_start()
        batches = trainer.dataloader_train
        assert type(batches.labeled) is kind
        assert type(batches.unlabeled) is kind
        batch = next(batches)
        assert batch["unlabeled"].shape == batch["data"].shape
        workers = [p for part in (batches.labeled, batches.unlabeled) for p in getattr(part, "_processes", [])]
        assert len(workers) == 2 * int(processes)
        batches.finish()
        for worker in workers:
            worker.join(30)  # they have been told to end, which takes a moment
        assert not any(worker.is_alive() for worker in workers)
        if processes == "1":
            trainer.dataloader_val._finish()


def test_loader():
    text = source(nnUNetDataLoader)
    for part in (
        "self.indices = data.identifiers",
        "self.has_ignore =",
        "self.get_do_oversample = self._oversample_last_XX_percent",
        "self._data.load_case(i)",
        "properties['class_locations']",
        "sample_idx < round(self.batch_size * (1 - self.oversample_foreground_percent))",
    ):
        assert part in text


def test_transforms(make_trainer):
    made = make_trainer().get_training_transforms((8, 8, 8), (-0.5, 0.5), None, (0, 1, 2), False)
    kinds = [getattr(transform, "transform", transform) for transform in made.transforms]
    of_image = {type(kind).__name__.removesuffix("Transform") for kind in kinds if isinstance(kind, ImageOnlyTransform)}
    assert of_image == {
        *("GaussianNoise", "GaussianBlur", "MultiplicativeBrightness", "Contrast", "SimulateLowResolution", "Gamma")
    }
    assert {type(kind).__name__ for kind in kinds if not isinstance(kind, ImageOnlyTransform)} >= {
        "SpatialTransform",
        "MirrorTransform",
    }
    assert isinstance(kinds[0], SpatialTransform)


def test_logger_and_checkpoint():
    assert isinstance(LocalLogger().my_fantastic_logging["train_losses"], list)
    assert "'current_epoch': self.current_epoch + 1" in source(nnUNetTrainer.save_checkpoint)


def test_preprocessor_takes_a_case_without_a_label():
    assert list(inspect.signature(DefaultPreprocessor.run_case_save).parameters)[1:4] == [
        "output_filename_truncated",
        "image_files",
        "seg_file",
    ]


def test_cascade():
    text = source(nnUNetTrainer.perform_actual_validation)
    assert f"join(self.output_folder_base, '{PREDICTED}', n)" in text
    assert "resample_and_save, (" in text
    assert f"self.configuration_manager.previous_stage_name, '{PREDICTED}', self.configuration_name)" in source(nnUNetTrainer)
    assert list(inspect.signature(resample_and_save).parameters) == [
        *("predicted", "target_shape", "output_file", "plans_manager", "configuration_manager", "properties_dict"),
        *("dataset_json_dict_or_file", "num_threads_torch", "dataset_class"),
    ]


def test_deep_supervision_keeps_the_loss_of_one_resolution():
    def whole(x: float, y: float) -> float:
        return x * y

    assert DeepSupervisionWrapper(whole, [1]).loss is whole
    assert "DeepSupervisionWrapper(loss, weights)" in source(nnUNetTrainer._build_loss)


def test_sizes_of_the_outputs(make_trainer):
    trainer = make_trainer()
    scales = trainer._get_deep_supervision_scales()
    assert scales[0] == [1.0] * 3, "highest resolution first"
    assert all(np.all(np.array(coarse) <= fine) for fine, coarse in itertools.pairwise(scales))
    trainer.enable_deep_supervision = False
    assert trainer._get_deep_supervision_scales() is None


def test_compiled_modules():
    import torch

    module = torch.nn.Linear(1, 1)
    compiled = torch.compile(module)
    assert isinstance(compiled, OptimizedModule)
    assert compiled._orig_mod is module


@pytest.mark.parametrize("scheme", sorted(NORMALIZED_BY_IMAGE))
def test_schemes_that_look_at_the_image_alone(scheme: str):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    kind = getattr(default_normalization_schemes, scheme)
    one, other = (kind(False, properties).run(image.copy(), None) for properties in ({}, {"mean": 5.0, "std": 2.0}))
    assert np.array_equal(one, other)
