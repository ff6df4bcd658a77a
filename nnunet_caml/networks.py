"""The auxiliary network, made from nnU-Net's plans, and access to the last decoder features of any network of the plans.

The vanilla network V is built by nnU-Net and never changed. The auxiliary network A starts as a second network of the same
plans, and two things in it are replaced:

- the encoder stage nearest to 1/8 resolution is followed by CMA, whose output goes to the next stage *and* to the skip
  connection (:func:`attention_stage`);
- the transposed convolutions of the decoder are replaced by interpolation (:class:`InterpolatingUpsample`).

So A follows the plans in everything else (plain and residual encoders, 2-D and 3-D, kernels and strides per axis, deep
supervision), whatever they are.
"""

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from nnunet_caml.attention import CrossSampleMutualAttention
from nnunet_caml.errors import UnsupportedError


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, out of the wrappers of ``DistributedDataParallel`` and ``torch.compile``."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def network_of_plans(trainer: Any) -> Any:
    """A new network of ``trainer``, an ``nnUNetTrainer``, built as its ``initialize`` builds the one that it trains."""
    build, configuration = trainer.build_network_architecture, trainer.configuration_manager
    plans: tuple = (trainer.plans_manager, configuration)
    if "plans_manager" not in inspect.signature(build).parameters:  # the older signature, which nnU-Net 2.8 still takes
        plans = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    outputs = trainer.label_manager.num_segmentation_heads
    return build(*plans, trainer.num_input_channels, outputs, trainer.enable_deep_supervision)


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` is among its wrappers."""
    return any(isinstance(module, OptimizedModule) for module in network.modules())


def compile_for_each_size(recomputed_by_several: bool = False) -> None:
    """Settings of ``torch.compile`` for batches of two sizes, labelled patches alone and with unlabelled ones.

    Args:
        recomputed_by_several: Activations are recomputed, and several processes train.
    """
    dynamo: Any = torch._dynamo.config
    # kernels that are to fit any size do without the better layout of convolutions
    dynamo.automatic_dynamic_shapes = False
    # nnU-Net's Dice loss is compiled as well, for each resolution, with and without gradients; beyond 8 it would not be
    dynamo.cache_size_limit = max(64, dynamo.cache_size_limit)
    if recomputed_by_several:
        # torch 2.3 cannot split graphs with recomputed parts into DistributedDataParallel's buckets
        dynamo.optimize_ddp = False


def require_unet(network: nn.Module) -> None:
    """Raises ``UnsupportedError`` unless ``network`` has the parts of nnU-Net's U-Nets that CAML builds on."""
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    missing = [
        f"{name}.{part}"
        for name, module, parts in (
            ("encoder", encoder, ("stages", "strides", "output_channels", "conv_op")),
            ("decoder", decoder, ("stages", "transpconvs", "seg_layers")),
        )
        for part in parts
        if not hasattr(module, part)
    ]
    if missing:
        raise UnsupportedError(
            f"CAML needs a U-Net with an encoder and a decoder of stages, as nnU-Net's default and residual encoder "
            f"plans have; the network {type(network).__name__} of these plans has no {', '.join(missing)}. "
            f"Use the plans of nnUNetv2_plan_experiment (any -pl of the ResEnc presets works too)."
        )


def attention_stage(strides: Sequence[Sequence[int]], downsampling: float = 8.0) -> int:
    """The encoder stage whose number of tokens is nearest to that at 1/8 resolution in every axis.

    Counting tokens rather than voxels per axis makes the choice meaningful for anisotropic plans, whose strides differ
    between axes.

    Args:
        strides: Per stage and axis, as in the plans.
        downsampling: The paper's 8 (the 4th of V-Net's 5 stages).

    Returns:
        The stage's index; of two equally near ones the deeper, which is cheaper.
    """
    dim = len(strides[0])
    wanted = dim * math.log(downsampling)
    distances, reduction = [], 0.0
    for stride in strides:
        reduction += sum(math.log(s) for s in stride)
        distances.append(abs(reduction - wanted))
    nearest = min(distances)
    return max(i for i, distance in enumerate(distances) if distance <= nearest + 1e-9)


class InterpolatingUpsample(nn.Module):
    """(Tri-, bi-)linear interpolation and a convolution, in place of a transposed convolution.

    The convolution has kernel size 1 and is applied first: it commutes with linear interpolation, and at the low
    resolution it is cheaper by the product of the strides.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        in_channels: Of the stage below.
        out_channels: Of the skip connection.
        stride: Factor per axis.
        bias: Of the convolution.
    """

    def __init__(self, conv_op: type, in_channels: int, out_channels: int, stride: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.conv = conv_op(in_channels, out_channels, 1, bias=bias)
        self.scale = [float(s) for s in stride]
        self.mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(stride)]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, in_channels, *spatial)`` to ``(B, out_channels, *(spatial * stride))``."""
        x = self.conv(x)
        # with mixed precision CUDA interpolates in float32; what the stage joins with the skip connection and keeps need not be
        return F.interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=False).to(x.dtype)


def interpolate_instead_of_transposed_convolutions(network: nn.Module) -> None:
    """Replaces the upsampling of every decoder stage of ``network``, in place."""
    encoder: Any = network.encoder
    decoder: Any = network.decoder
    for s, transposed in enumerate(decoder.transpconvs):
        decoder.transpconvs[s] = InterpolatingUpsample(
            encoder.conv_op,
            transposed.in_channels,
            transposed.out_channels,
            transposed.stride,
            transposed.bias is not None,
        )


def make_auxiliary(network: nn.Module, heads: int, dropout: float, attention: bool, downsampling: float) -> nn.Module:
    """Turns a fresh network of the plans into the auxiliary network A, in place.

    Args:
        network: As nnU-Net builds it; initialised anew where parts are replaced.
        heads: Attention heads of CMA.
        dropout: Dropout of CMA.
        attention: ``False`` leaves CMA out (the ablation).
        downsampling: Where CMA sits, see :func:`attention_stage`.

    Returns:
        ``network``.

    Raises:
        UnsupportedError: If the network is not one of nnU-Net's U-Nets.
    """
    require_unet(network)
    interpolate_instead_of_transposed_convolutions(network)
    encoder: Any = network.encoder
    decoder: Any = network.decoder
    if hasattr(network, "initialize"):
        decoder.transpconvs.apply(network.initialize)
    if attention:
        s = attention_stage(encoder.strides, downsampling)
        cma = CrossSampleMutualAttention(encoder.output_channels[s], heads, dropout)
        encoder.stages[s] = nn.Sequential(encoder.stages[s], cma)
    return network


def checkpoint_activations(network: nn.Module) -> None:
    """Makes every stage of encoder and decoder forget its inner activations and compute them again for the gradient.

    In place, and without a trace in the state dict. Dropout is drawn alike both times, and running statistics of batch
    normalisation are written the first time only.

    Args:
        network: One that :func:`require_unet` accepts, A included.
    """
    stages: list[Any] = [
        *network.get_submodule("encoder.stages").children(),
        *network.get_submodule("decoder.stages").children(),
    ]
    for stage in stages:
        stage.forward = _Recomputed(stage)


class _Recomputed:
    """A forward method that keeps its input only."""

    def __init__(self, stage: nn.Module) -> None:
        self.stage, self.forward = stage, stage.forward

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(x)
        if torch.compiler.is_compiling():  # generated code writes statistics once by itself
            return checkpoint(self.forward, x, use_reentrant=False)
        return checkpoint(self.forward, x, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[Any, Any]:
        return nullcontext(), _StatisticsUntouched(self.stage)


class _StatisticsUntouched:
    """A context in which batch normalisation normalises as ever, and writes its running statistics to copies of them.

    Not without any: autograd keeps them for the gradient, and what is computed again has to keep as much as the first time.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers: list[tuple[_BatchNorm, dict[str, Tensor]]] = []

    def __enter__(self) -> None:
        layers = [m for m in self.module.modules() if isinstance(m, _BatchNorm) and m.training]
        self.buffers = [(layer, dict(layer.named_buffers())) for layer in layers]
        for layer, buffers in self.buffers:
            for name, values in buffers.items():
                setattr(layer, name, values.clone())

    def __exit__(self, *_: object) -> None:
        for layer, buffers in self.buffers:
            for name, values in buffers.items():
                setattr(layer, name, values)


class SharedEncoderAuxiliary(nn.Module):
    """A on the encoder of V: own CMA and own decoder, for the cheaper variant with one shared encoder.

    The stages down to CMA are those that V has just computed. CMA goes, as ever, to the skip connection and to the next stage,
    so the stages below it, the cheapest ones, run once more. Where they have batch normalisation, its running statistics are of
    V's pass alone.

    Args:
        auxiliary: A network made by :func:`make_auxiliary`; its encoder is discarded, its CMA and decoder kept.
        encoder: V's. Held without being registered: its parameters stay V's alone.
    """

    def __init__(self, auxiliary: Any, encoder: nn.Module) -> None:
        super().__init__()
        stages: Any = auxiliary.encoder.stages
        found = [(i, m) for i, s in enumerate(stages) for m in s.children() if isinstance(m, CrossSampleMutualAttention)]
        self.attention: nn.Module
        self.stage, self.attention = found[0] if found else (len(stages) - 1, nn.Identity())
        self.decoder: Any = auxiliary.decoder
        self.decoder.encoder = None
        self._encoder: list[Any] = [encoder]

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """From the skips of V's encoder to the same outputs as any network of the plans."""
        skips = [*skips[: self.stage], self.attention(skips[self.stage])]
        below = self._encoder[0].stages[self.stage + 1 :]
        with _StatisticsUntouched(below):
            for stage in below:
                skips.append(stage(skips[-1]))
        return self.decoder(skips)


class FeatureTap:
    """Keeps the last decoder features before the segmentation layer, and the encoder's skips, while training.

    The network itself, its outputs and its state dict stay untouched. Features are handed over once and then forgotten, so
    that nothing is kept alive between steps.

    Args:
        network: One with a decoder as :func:`require_unet` wants it; of the wrapped ones, the innermost.
        skips: Keep the skips as well.
    """

    def __init__(self, network: Any, skips: bool = False) -> None:
        self._features: Tensor | None = None
        self._skips: list[Tensor] | None = None
        network.decoder.seg_layers[-1].register_forward_pre_hook(self._keep_features)
        if skips:
            network.encoder.register_forward_hook(self._keep_skips)

    def _keep_features(self, module: nn.Module, args: tuple) -> None:
        if module.training and torch.is_grad_enabled():
            self._features = args[0]

    def _keep_skips(self, module: nn.Module, args: tuple, output: list[Tensor]) -> None:
        if module.training and torch.is_grad_enabled():
            self._skips = output

    def take(self) -> Tensor:
        """Features ``(B, C, *spatial)`` of the last forward pass in training mode."""
        features, self._features = self._features, None
        assert features is not None, "no forward pass in training mode since the last call"
        return features

    def take_skips(self) -> list[Tensor]:
        """Skips of the last forward pass in training mode, highest resolution first."""
        skips, self._skips = self._skips, None
        assert skips is not None, "no forward pass in training mode since the last call"
        return skips


def copy_matching(source: nn.Module, target: nn.Module) -> int:
    """Copies weights of V into A wherever names and shapes fit, for ``-pretrained_weights``.

    Args:
        source: V, a network of the plans.
        target: A, made by :func:`make_auxiliary`. Its CMA shifts the names of one stage, which is undone here.

    Returns:
        How many parameters and buffers were copied. Segmentation layers stay as they are, as with nnU-Net's own V.
    """
    there = source.state_dict()
    shifted = {
        f"{name}.0."
        for name, m in target.named_modules()
        if isinstance(m, nn.Sequential) and len(m) == 2 and isinstance(m[1], CrossSampleMutualAttention)
    }
    copied = 0
    with torch.no_grad():
        # nnU-Net's modules hold one tensor under several names, of which a state dict lists them all
        for name, value in (*target.named_parameters(), *target.named_buffers()):
            prefix = next((p for p in shifted if name.startswith(p)), None)
            original = name if prefix is None else prefix[: -len("0.")] + name[len(prefix) :]
            found = there.get(original)
            if found is not None and found.shape == value.shape and ".seg_layers." not in name:
                value.copy_(found)
                copied += 1
    return copied
