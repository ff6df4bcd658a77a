"""What would make trainings or figures worse without a word if it broke."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace, blobs, write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_benchmarks import write
from test_learning import caml_of, correlate
from test_networks import network
from test_unlabeled import dataset

from nnunet_caml import attention, checkpoints, footprint, learning
from nnunet_caml.correlation import Selection
from nnunet_caml.loading import UnlabeledCases
from nnunet_caml.networks import SharedEncoderAuxiliary, copy_matching, make_auxiliary
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.unlabeled import UnlabeledDataError
from study import report
from study.metrics import measure_case


def test_occ_does_not_see_what_fills_a_selection_up_on_a_gpu(monkeypatch):
    """Neither its loss and gradients, nor the statistics of the heads' normalisation."""
    real, results = learning.select_voxels, []

    def filled_up(*arguments) -> Selection:
        chosen = real(*arguments)
        filler = torch.arange(9)
        return Selection(torch.cat((chosen.positions, filler)), torch.cat((chosen.valid, filler < 0)))

    for select in (real, filled_up):
        monkeypatch.setattr(learning, "select_voxels", select)
        torch.manual_seed(0)
        caml = caml_of("x", temperature=1.0)
        found = correlate(caml)
        found.loss.backward()
        assert found.loss > 0
        gradients = [p.grad for head in caml.heads() for p in head.parameters()]
        results.append([*found, *gradients, *(b for head in caml.heads() for b in head.buffers())])
    for plain, filled in zip(*results, strict=True):
        torch.testing.assert_close(filled, plain)


@pytest.mark.parametrize("most", [65535, 7])
def test_dropout_reaches_attention_however_many_calls_it_takes(monkeypatch, most: int):
    rates: list[float] = []
    monkeypatch.setattr(attention, "MOST_SEQUENCES", most)
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda q, k, v, dropout_p=0.0: rates.append(dropout_p) or v
    )
    attention.dropout_attention(*torch.randn(3, 7, 2, 4, 3), 0.001)  # too small for our own way on a CPU
    assert set(rates) == {0.001}


def test_a_shared_encoder_gives_what_the_same_encoder_gives_alone():
    """What follows CMA in the encoder reads what CMA gives, and the decoder too."""
    vanilla = network()
    whole = make_auxiliary(network(), 4, 0.0, True, 8.0)
    copy_matching(vanilla, whole)
    shared = SharedEncoderAuxiliary(copy.deepcopy(whole), vanilla.encoder)
    x = torch.randn(2, 2, 32, 32, 32)
    for ours, expected in zip(shared(vanilla.encoder(x)), whole(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_the_mask_of_an_unlabelled_case_reaches_the_loader(workspace: Workspace):
    """nnU-Net's augmentation leaves what lies outside of it at zero, where the plans say so."""
    image = blobs(0)[0].clip(1)
    image[:10, :12, :11] = 0
    write_image(image, workspace.raw / "imagesUn/un_0_0000.nii.gz")
    d = dataset(workspace)
    preprocess(d, 1)
    outside = UnlabeledCases(nnUNetDatasetBlosc2(str(d.folder), ["un_0"])).load_case("un_0")[1][:] < 0
    assert 0.1 < outside.mean() < 0.2


def test_unknown_settings_are_told_in_the_log(make_trainer, capsys: pytest.CaptureFixture):
    trainer = make_trainer()
    trainer.__class__ = type("nnUNetTrainerCAML_mine", (type(trainer),), {"lamda_c": 3.0})
    trainer.on_train_start()
    assert "nnUNetTrainerCAML_mine.lamda_c: neither" in capsys.readouterr().out


def test_surface_distances_of_a_single_false_voxel(tmp_path):
    """The 95 % Hausdorff distance does not see it; the mean distance is that of the prediction's surface to the truth's."""
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    prediction = truth.copy()
    prediction[17, 4, 4] = 1  # ten voxels from the box, whose surface has 152
    write(prediction, tmp_path / "prediction.nii.gz")
    write(truth, tmp_path / "truth.nii.gz")
    (row,) = measure_case(tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz", {"box": 1})
    assert row["hd95_voxels"] == 0
    assert row["asd_voxels"] == pytest.approx(10 / 153)


def test_p_is_of_a_signed_rank_test():
    """Of six cases that all gain it is 2 / 2^6, whatever they gain."""
    gains = {f"c{i}": 0.5 + 0.01 * (i + 1) for i in range(6)}
    assert report.paired(gains, dict.fromkeys(gains, 0.5)) == "0.031"


def test_a_final_checkpoint_that_cannot_be_written_leaves_the_latest_pair(make_trainer, monkeypatch):
    save = checkpoints.save

    def full(checkpoint: Path, *rest) -> None:
        if checkpoint.stem == "checkpoint_final":
            raise OSError(28, "No space left on device")
        save(checkpoint, *rest)

    monkeypatch.setattr(checkpoints, "save", full)
    trainer = make_trainer()
    with pytest.raises(OSError, match="No space left"):
        trainer.run_training()
    again = make_trainer(resume=True)
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert again._companion_problem is None


def test_a_second_step_under_a_gradient_scaler(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for _ in range(2):
        trainer.update(sum(p.sum() for p in (*trainer.network.parameters(), *trainer.caml.parameters())))


def test_what_replaces_parts_of_the_decoder_is_initialised_as_nnunet_does():
    auxiliary = make_auxiliary(network(), 4, 0.5, True, 8.0)
    assert not any(up.conv.bias.any() for up in auxiliary.decoder.transpconvs)


def test_activations_on_a_gpu_take_two_bytes(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    whole = footprint.lower_bound(trainer).activations
    trainer.device = torch.device("cuda")
    assert 0.3 < footprint.lower_bound(trainer).activations / whole < 0.51


@pytest.mark.parametrize(
    ("value", "where", "spacing", "sentence"),
    [
        (-3.4028235e38, slice(4), 1.0, "has NaN or infinite voxels once it is preprocessed"),
        (7.0, slice(None), 1.0, "has one value everywhere once it is preprocessed"),
        (0.0, slice(4), 0.06, "has one value everywhere once it is preprocessed"),
    ],
    ids=["no-data value", "constant", "micrometres"],
)
def test_an_image_of_which_preprocessing_leaves_nothing(workspace: Workspace, value, where, spacing, sentence: str):
    """NaN in one unlabelled patch would end both networks, hours after the beginning of a training."""
    image = blobs(0)[0].astype(np.float32)
    image[where] = value
    write_image(image, workspace.raw / "imagesUn/un_0_0000.nii.gz", spacing=(spacing,) * 3)
    with pytest.raises(UnlabeledDataError, match=rf"un_0 \(.*un_0_0000\.nii\.gz, shape \(20, 24, 22\), .* {sentence}"):
        preprocess(dataset(workspace), 1)
    assert dataset(workspace).done_cases() == ["un_1", "un_2", "un_3", "un_4"]
