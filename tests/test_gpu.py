"""On a GPU, what cannot be known without one: `pytest -m gpu`."""

import copy
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Workspace
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_caml.footprint import lower_bound
from nnunet_caml.loading import on_device
from nnunet_caml.trainer import nnUNetTrainerCAML

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

TRAIN = "nnUNetv2_train 101 3d_tiny"
SHORT = ["nnUNetTrainerCAMLShort", "nnUNetTrainerCAMLShort_paper", "nnUNetTrainerCAMLShort_sharedEncoder"]


@pytest.fixture
def on_gpu(make_trainer, monkeypatch):
    """Makes trainers that are ready for their first step on the GPU; networks are not compiled."""
    monkeypatch.setenv("nnUNet_compile", "F")
    started = []

    def make(name: str = "nnUNetTrainerCAMLShort", **attributes):
        trainer = make_trainer(name, device="cuda")
        for key, value in attributes.items():
            setattr(trainer, key, value)
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        started.append(trainer)
        return trainer

    yield make
    for trainer in started:
        trainer.dataloader_train.finish()


def test_trains_continues_and_predicts_as_users_do_it(workspace: Workspace, tmp_path: Path):
    """With compiled networks, as nnU-Net has it on a GPU; what comes out is a stock network, on a CPU as well."""
    process = workspace.start(*TRAIN.split(), "all", "-tr", "nnUNetTrainerCAMLShort")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Epoch 1" in line:  # the first epoch's checkpoint is on disk
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert any("Epoch 1" in line for line in lines), "".join(lines)
    assert "torch.compile" in "".join(lines)
    output = workspace.run(*TRAIN.split(), "all", "-tr", "nnUNetTrainerCAMLShort", "--c")
    assert "Epoch 0\n" not in output
    assert "nan" not in output.replace("nnUNet", "").split()
    fold = workspace.fold("nnUNetTrainerCAMLShort", "all")
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False, map_location="cpu")
    plans = PlansManager(str(workspace.preprocessed / "nnUNetPlans.json"))
    network = nnUNetTrainerCAML.build_network_architecture(plans, plans.get_configuration("3d_tiny"), 1, 3, True)
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    predicted = {}
    for device in ("cuda", "cpu"):
        images = [
            "-i",
            workspace.raw / "imagesTs",
            "-o",
            tmp_path / device,
            "-device",
            device,
            "-npp",
            1,
            "-nps",
            1,
            "-f",
            "all",
        ]
        workspace.run("nnUNetv2_predict", "-d", 101, "-c", "3d_tiny", "-tr", "nnUNetTrainerCAMLShort", *images)
        files = sorted((tmp_path / device).glob("*.nii.gz"))
        predicted[device] = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files])
    assert len(predicted["cuda"]) == 2
    assert (predicted["cuda"] == predicted["cpu"]).mean() > 0.99


@pytest.mark.parametrize("name", SHORT)
def test_losses_and_gradients_are_those_of_a_cpu(on_gpu, make_trainer, name):
    """In float32, with the same weights, batch and memory."""
    gpu = on_gpu(name, attention_dropout=0.0)  # whose random numbers would differ
    cpu = make_trainer(name)
    cpu.attention_dropout = 0.0
    cpu.initialize()
    for module in (cpu.network, cpu.caml, gpu.caml):
        module.train()
    batch = next(gpu.dataloader_train)
    images, target = on_device(batch, gpu.device)
    gpu.losses(images, target, list(batch["keys"]))  # fills the memory
    cpu.network.load_state_dict(gpu.network.state_dict())
    cpu.caml.load_state_dict(gpu.caml.state_dict())
    seen = []
    for trainer in (gpu, cpu):
        torch.manual_seed(0)
        images, target = on_device(batch, trainer.device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            losses, counts = trainer.losses(images, target, list(batch["keys"]))
            compared = {k: losses[k] for k in ("loss", "loss_a", "consistency")}
            sum(compared.values()).backward()
        parameters = (*trainer.network.parameters(), *trainer.caml.auxiliary.parameters())
        norm = torch.stack([p.grad.norm().cpu() for p in parameters if p.grad is not None])
        seen.append(({k: v.item() for k, v in compared.items()}, counts.cpu(), norm))
    (loss_gpu, counts_gpu, norm_gpu), (loss_cpu, counts_cpu, norm_cpu) = seen
    assert loss_gpu == pytest.approx(loss_cpu, rel=1e-3, abs=1e-5)
    assert (counts_gpu - counts_cpu).abs().max() <= 0.001 * counts_cpu.sum()
    torch.testing.assert_close(norm_gpu, norm_cpu, rtol=0.02, atol=1e-3 * float(norm_cpu.max()))


@pytest.mark.parametrize("name", SHORT)
def test_mixed_precision_learns(on_gpu, name):
    """Fifty steps: finite all the way, the gradient scaler does not collapse, the loss falls, both networks move."""
    trainer = on_gpu(name, num_epochs=1, num_iterations_per_epoch=50)
    assert trainer.grad_scaler is not None
    before = copy.deepcopy({**trainer.network.state_dict(), **trainer.caml.state_dict()})
    steps = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(50)]
    for key in ("loss", "loss_a", "consistency", "correlation", "memory"):
        values = np.array([step[key] for step in steps])
        assert np.isfinite(values).all(), (key, values)
    assert np.mean([s["loss"] for s in steps[-10:]]) < np.mean([s["loss"] for s in steps[:10]]) - 0.1
    assert trainer.grad_scaler.get_scale() >= 1024
    after = {**trainer.network.state_dict(), **trainer.caml.state_dict()}
    still = [k for k in before if before[k].is_floating_point() and torch.equal(before[k], after[k])]
    # the segmentation layer of the lowest resolution has no weight in nnU-Net's loss
    assert all("seg_layers" in k for k in still), still


def test_a_gpu_that_is_too_small_is_told_before_the_training(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "F")
    trainer = make_trainer(device="cuda")
    trainer.initialize()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
        with pytest.raises(RuntimeError, match="too little memory for a step of both networks"):
            trainer.on_train_start()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        if trainer.dataloader_train is not None:
            trainer.dataloader_train.finish()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_needs_at_least_what_was_calculated(on_gpu, checkpointing):
    trainer = on_gpu(activation_checkpointing=checkpointing, batch_size=2)
    trainer.iteration = 10**9
    batch = next(trainer.dataloader_train)
    for _ in range(3):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step(batch)
    assert torch.cuda.max_memory_allocated() >= sum(lower_bound(trainer))
