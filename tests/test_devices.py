"""A step on a GPU, without one: shapes, devices and precisions of every tensor, by torch's fake tensors."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def move(module: nn.Module, device: str) -> None:
    """Puts (fake) parameters and buffers of the same shapes on a device; ``module.to`` cannot do it to fake ones."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerCAMLShort", "nnUNetTrainerCAMLShort_sharedEncoder"])
@pytest.mark.parametrize("half", [False, True])
def test_all_of_a_step_is_on_the_gpu_and_its_losses_in_float32(make_trainer, monkeypatch, trainer, half):
    trainer = make_trainer(trainer)
    trainer.occ_similarity = "cosine" if half else "dot"
    trainer.initialize()
    trainer.network.train()
    trainer.caml.train()
    patch, cases = trainer.configuration_manager.patch_size, trainer.do_split()[0][:2]
    # torch disables autocast where it sees no GPU
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    seen = set()
    trainer.network.encoder.register_forward_hook(lambda _m, _a, skips: seen.update(x.dtype for x in skips))
    # CUDA's autocast interpolates in float32, and joining a skip connection to that would keep it all in float32
    for stage in trainer.caml.auxiliary.decoder.stages:
        stage.register_forward_pre_hook(lambda _m, joined: seen.update(x.dtype for x in joined))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cuda") if half else nullcontext():
        try:
            torch.empty(1, device="cuda")
        except RuntimeError as error:
            pytest.skip(f"torch {torch.__version__} has no fake tensors on a GPU without one: {error}")
        move(trainer.network, "cuda")
        move(trainer.caml, "cuda")
        images = torch.empty(4, 1, *patch, device="cuda")
        scales = trainer._get_deep_supervision_scales()
        sizes = [[round(n * f) for n, f in zip(patch, scale, strict=True)] for scale in scales]
        target = [torch.empty(2, 1, *size, device="cuda") for size in sizes]
        losses, counts = trainer.losses(images, target, list(cases))
        memory = trainer.caml.memory
        assert {x.device.type for x in (*losses.values(), counts, memory.embeddings, memory.fill())} == {"cuda"}
    assert {x.dtype for x in losses.values()} == {torch.float32}
    assert seen == {torch.float16 if half else torch.float32}  # autocast was at work
