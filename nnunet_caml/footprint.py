"""How much memory a training step needs at least, known before the first step.

Both networks are built once more of PyTorch's fake tensors, which have shapes and no numbers, and what autograd would keep
for the backward pass is added up. Left out is what depends on the device: workspaces of convolutions, gradients of
activations in flight, fragmentation. So the figure is a lower bound, and a device that has less cannot do the training. On an
H100 with torch 2.11, steps took 1.2 to 1.3 times as much.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_caml.attention import AttentionLayer
from nnunet_caml.networks import checkpoint_activations, network_of_plans

__all__ = ["LowerBound", "advice", "available_bytes", "describe", "lower_bound", "ways_out"]


class LowerBound(NamedTuple):
    """Memory of a step in bytes.

    Attributes:
        weights: Weights, gradients and momentum of both networks, float32.
        activations: What the backward pass needs.
    """

    weights: int
    activations: int


def lower_bound(trainer: Any) -> LowerBound:
    """Memory that a step of ``trainer`` needs at least.

    Args:
        trainer: An initialised :class:`nnunet_caml.trainer.nnUNetTrainerCAML`, for its plans, attributes and batch size.

    Returns:
        See :class:`LowerBound`. Activations count two bytes an element on CUDA, where nnU-Net trains with mixed precision, and
        four elsewhere.
    """
    kept: dict[int, Tensor] = {}
    inputs: dict[nn.Module, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x  # held, so that no later storage has the same address
        return x

    def keep_input(module: nn.Module, args: tuple) -> None:
        inputs[module] = keep(args[0])

    with FakeTensorMode():
        vanilla = network_of_plans(trainer)
        if trainer.activation_checkpointing:
            checkpoint_activations(vanilla)
        auxiliary = trainer.build_auxiliary(vanilla)
        for module in (vanilla, auxiliary):
            for name, stages in module.named_modules():
                if name in ("encoder.stages", "decoder.stages"):
                    for stage in stages:
                        # recomputed stages keep their inputs where autograd's hooks do not see them
                        stage.register_forward_pre_hook(keep_input)
        if trainer.device.type != "cpu":
            for module in auxiliary.modules():
                if isinstance(module, AttentionLayer):
                    module.attention_dropout = 0.0  # takes the fused kernel, which keeps no attention weights, here too
        patches = trainer.batch_size + trainer.unlabeled_per_batch(trainer.batch_size)
        images = torch.empty(patches, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
        skips: list[Tensor] = []
        vanilla.encoder.register_forward_hook(lambda _module, _args, output: skips.extend(output))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outputs = [vanilla(images), auxiliary(skips if trainer.share_encoder else images)]
            if trainer.activation_checkpointing:
                # the backward pass begins with A's last stage, which is computed again while all else is still kept
                last: Any = auxiliary.get_submodule("decoder.stages")[-1]
                outputs.append(last.forward.forward(inputs[last]))
        parameters = [*vanilla.parameters(), *auxiliary.parameters()]
        owned = {p.untyped_storage()._cdata for p in parameters}
        activations = sum(x.untyped_storage().nbytes() // x.element_size() for a, x in kept.items() if a not in owned)
        del outputs
    return LowerBound(
        weights=3 * 4 * sum(p.numel() for p in parameters),
        activations=activations * (2 if trainer.device.type == "cuda" else 4),
    )


def advice(trainer: Any) -> str:
    """A line for the log of a training that is about to start: what a step needs at least, and what the device has."""
    try:
        return describe(lower_bound(trainer), available_bytes(trainer.device), ways_out(trainer))
    except Exception as problem:  # a subclass's network that fake tensors cannot run trains all the same
        return f"The memory that a step needs is not known: {type(problem).__name__}: {problem}"


def available_bytes(device: torch.device) -> int | None:
    """Memory of the GPU, or of the machine for a CPU; ``None`` where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def ways_out(trainer: Any) -> str:
    """A sentence: what makes a step of an initialised trainer need less memory, but for what it does already."""
    ways = {
        "attention_downsampling = 8": trainer.attention and trainer.attention_downsampling < 8,
        "-tr nnUNetTrainerCAML_lessMemory (activation_checkpointing = True)": not trainer.activation_checkpointing,
        "unlabeled_per_labeled = 1": trainer.unlabeled_per_labeled > 1,
        "-tr nnUNetTrainerCAML_halfUnlabeled (unlabeled_per_labeled = 0.5)": (
            0.5 < trainer.unlabeled_per_labeled <= 1 and trainer.batch_size > 1
        ),
        # whose A has no view of its own
        "-tr nnUNetTrainerCAML_sharedEncoder (share_encoder = True)": not (trainer.share_encoder or trainer.clean_view),
        "plans with a smaller batch or patch (nnUNetv2_plan_experiment -gpu_memory_target)": True,
    }
    return f"Ways out, best first: {'; '.join(way for way, is_left in ways.items() if is_left)}."


def describe(needed: LowerBound, available: int | None, way_out: str) -> str:
    """A line for the log; a warning with the ways out if a step cannot fit.

    Args:
        needed: From :func:`lower_bound`.
        available: From :func:`available_bytes`.
        way_out: From :func:`ways_out`.
    """
    total = sum(needed)
    text = f"A training step of both networks needs at least {_gib(total)}"
    if available is None:
        return f"{text}."
    text = f"{text}, and this device has {_gib(available)}"
    if total <= available:
        return f"{text}."
    return f"WARNING: {text}: it will most likely run out of memory. {way_out}"


def _gib(size: int) -> str:
    value = size / 2**30
    return f"{value:.1f} GiB" if value >= 1 else f"{value:.2g} GiB"
