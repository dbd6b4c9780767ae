"""The parts of a transformer, read from TransformerLens' bridge. Weights are the model's own.

The bridge gives every architecture's modules the same names, so one reader finds the weights of all. What the modules
do not say (how scores are scaled, which layers look back only so far, what the residual stream looks like) is read from
the model's config, by one short function for each architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hsae.kernels.dense import Affine, gelu_


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where there is no mean to take off."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"] | None
    eps: float
    rms: bool

    def __call__(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        if self.rms:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Block:
    """One layer. `window`: how many keys a query sees, 0 for all. `gate` is None where the MLP has none."""

    norm1: Norm
    q: Affine
    k: Affine
    v: Affine
    o: Affine
    norm2: Norm
    up: Affine
    gate: Affine | None
    down: Affine
    scale: float
    window: int


@dataclass(frozen=True)
class Parts:
    """A transformer up to its last block.

    Attributes:
        embed: a row for each token.
        positions: a row for each position; None where positions are told by rotation.
        rotary: position ids -> cos and sin, [1, position, rotated dimension] each; None without rotation.
        activate: the MLP's nonlinearity, in place.
        parallel: attention and MLP read the same residual stream.
        d_head: numbers in a head; the heads of q are q's width over it, those of keys and values k's.
        blocks: the layers.
    """

    embed: Float[Tensor, "token width"]
    positions: Float[Tensor, "position width"] | None
    rotary: Callable[[Tensor, Int[Tensor, "1 position"]], tuple[Tensor, Tensor]] | None
    activate: Callable[[Tensor], Any]
    parallel: bool
    d_head: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Traits:
    """What a config says beyond the weights. `scales` and `windows`: one for each layer."""

    activation: str
    scales: list[float]
    windows: list[int]
    parallel: bool = False


def _gpt_neo(config: Any, d_head: int) -> Traits:
    windows = [config.window_size if kind == "local" else 0 for kind in config.attention_layers]
    return Traits(config.activation_function, [1.0] * len(windows), windows)


def _gpt2(config: Any, d_head: int) -> Traits | None:
    if not config.scale_attn_weights:
        return None  # the bridge scales all the same
    inverse = config.scale_attn_by_inverse_layer_idx
    scales = [d_head**-0.5 / (layer + 1 if inverse else 1) for layer in range(config.n_layer)]
    return Traits(config.activation_function, scales, [0] * config.n_layer)


def _rotated(config: Any, d_head: int) -> Traits:
    layers = config.num_hidden_layers
    parallel = getattr(config, "use_parallel_residual", False)
    return Traits(config.hidden_act, [d_head**-0.5] * layers, [0] * layers, parallel)


ARCHITECTURES: dict[str, Callable[[Any, int], Traits | None]] = {
    "gpt_neo": _gpt_neo,
    "gpt2": _gpt2,
    "gpt_neox": _rotated,
    "llama": _rotated,
}

# PyTorch computes numbers that fill no vector of the processor by another formula, and shares out larger tensors.
VECTORS, ALONE = 64, 1 << 14


def _alike(function: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """A function of single numbers, in place, with one result for a number wherever it stands and for any threads."""

    def apply(x: Float[Tensor, "row width"]) -> None:
        if x.device.type != "cpu":
            function(x)
            return
        # What is left behind the last whole vector is computed in room of its own.
        whole, end = x.view(-1).split([x.numel() // VECTORS * VECTORS, x.numel() % VECTORS])
        for part in whole.split(ALONE):
            function(part)
        room = functional.pad(end, (0, VECTORS - len(end)))
        function(room)
        end.copy_(room[: len(end)])

    return apply


ACTIVATIONS: dict[str, Callable[[Tensor], Any]] = {
    "gelu": _alike(torch.ops.aten.gelu_),
    "gelu_new": gelu_,
    "gelu_pytorch_tanh": gelu_,
    "relu": torch.relu_,
    "silu": _alike(torch.ops.aten.silu_),
}

# Rotations of these kinds depend on what the module saw before.
MOVING_ROTATIONS = ("dynamic", "longrope")


def read_parts(bridge: Any) -> Parts | None:
    """The parts of a bridge's model; None if its architecture, or something in it, is not known here exactly.

    Args:
        bridge: a `TransformerBridge` whose weights were not rewritten.
    """
    config = bridge.original_model.config
    traits_of = ARCHITECTURES.get(config.model_type)
    if traits_of is None or any(p.dtype != torch.float32 for p in bridge.original_model.parameters()):
        return None
    try:
        d_head = _affine(bridge.blocks[0].attn.q).weight.shape[1] // config.num_attention_heads
        traits = traits_of(config, d_head)
        rotary = _bare(bridge.rotary_emb) if hasattr(bridge, "rotary_emb") else None
        if (
            traits is None
            or traits.activation not in ACTIVATIONS
            or getattr(rotary, "rope_type", "") in MOVING_ROTATIONS
        ):
            return None
        return Parts(
            embed=_bare(bridge.embed).weight,
            positions=_bare(bridge.pos_embed).weight if hasattr(bridge, "pos_embed") else None,
            rotary=rotary,
            activate=ACTIVATIONS[traits.activation],
            parallel=traits.parallel,
            d_head=d_head,
            blocks=tuple(map(_block, bridge.blocks, traits.scales, traits.windows)),
        )
    except AttributeError:
        # Another version of the libraries, with other names: the bridge itself computes as ever.
        return None


def _bare(module: Any) -> Any:
    return getattr(module, "_original_component", module)


def _affine(module: Any) -> Affine:
    bare = _bare(module)
    # GPT-2's Conv1D keeps the transpose of what Linear keeps.
    weight = bare.weight.t() if isinstance(bare, torch.nn.Linear) else bare.weight
    return Affine(weight.detach(), None if bare.bias is None else bare.bias.detach())


def _norm(module: Any) -> Norm:
    bare = _bare(module)
    if isinstance(bare, torch.nn.LayerNorm):
        return Norm(bare.weight.detach(), bare.bias.detach(), bare.eps, rms=False)
    return Norm(bare.weight.detach(), None, bare.variance_epsilon, rms=True)


def _block(block: Any, scale: float, window: int) -> Block:
    mlp = block.mlp
    return Block(
        norm1=_norm(block.ln1),
        q=_affine(block.attn.q),
        k=_affine(block.attn.k),
        v=_affine(block.attn.v),
        o=_affine(block.attn.o),
        norm2=_norm(block.ln2),
        up=_affine(getattr(mlp, "in")),
        gate=_affine(mlp.gate) if hasattr(mlp, "gate") else None,
        down=_affine(mlp.out),
        scale=scale,
        window=window,
    )
