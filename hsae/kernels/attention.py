"""Causal attention without the square of scores: a C kernel on the CPU, PyTorch's SDPA elsewhere."""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hsae.kernels import native

# For heads of more numbers than these SDPA's matrix products are as fast or faster, by the floats in a vector of the
# processor (AVX-512, AVX2, NEON).
LARGEST_HEAD = {16: 128, 8: 32, 4: 16}


def reference(
    q: Float[Tensor, "sequence position head d_head"],
    k: Float[Tensor, "sequence position kv_head d_head"],
    v: Float[Tensor, "sequence position kv_head d_head"],
    scale: float,
    window: int = 0,
) -> Float[Tensor, "sequence position head d_head"]:
    """What attention is: softmax(scale * q·k) over the keys that a query sees, applied to the values.

    Args:
        q: queries.
        k: keys; each of its heads serves as many heads of q, in their order.
        v: values, as keys.
        scale: what scores are multiplied with.
        window: how many keys a query sees, its own the last of them; 0: all up to its own.
    """
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("sqhd,skhd->shqk", q, k) * scale
    scores = scores.masked_fill(~_seen(q.shape[1], window or q.shape[1], q.device), -torch.inf)
    return torch.einsum("shqk,skhd->sqhd", scores.softmax(-1), v)


def attend(
    q: Float[Tensor, "sequence position head d_head"],
    k: Float[Tensor, "sequence position kv_head d_head"],
    v: Float[Tensor, "sequence position kv_head d_head"],
    out: Float[Tensor, "sequence position head d_head"],
    scale: float,
    window: int = 0,
) -> None:
    """`reference`, by the fastest way there is here, into `out`.

    All in float32. On the CPU each position's heads must lie together and positions at equal distances, as in slices
    of one buffer [sequence, position, numbers].
    """
    own = q.device.type == "cpu" and lanes(q.shape[3])
    (native_attend if own else sdpa)(q, k, v, out, scale, window)


def lanes(d_head: int) -> int:
    """Floats in a vector of the C kernel, if that computes heads of so many numbers on a CPU; 0 where SDPA does."""
    library = _library()
    found = 0 if library is None else library.hsae_attention_lanes()
    return found if found and d_head <= LARGEST_HEAD[found] else 0


def sdpa(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int = 0) -> None:
    """`attend` by PyTorch's scaled_dot_product_attention."""
    length = q.shape[1]
    mask = _seen(length, window, q.device) if 0 < window < length else None
    found = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    out.copy_(found.transpose(1, 2))


def native_attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int = 0) -> None:
    """`attend` by the C kernel."""
    library, (sequences, length, heads, d_head) = _library(), q.shape
    assert library is not None
    for x in (q, k, v, out):
        assert x.dtype == torch.float32
        assert x.stride() == (length * x.stride(1), x.stride(1), d_head, 1)
    failed = library.hsae_attention(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(sequences, length, heads, k.shape[2], d_head),
        *(x.stride(1) for x in (q, k, v, out)),
        window,
        scale,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("attention: no memory for one head's keys and values")


@cache
def _library() -> ctypes.CDLL | None:
    library = native.load("attention")
    if library is not None:
        pointers, sizes = [ctypes.c_void_p] * 4, [ctypes.c_int64] * 10
        library.hsae_attention.argtypes = [*pointers, *sizes, ctypes.c_float, ctypes.c_int]
    return library


@lru_cache(maxsize=4)
def _seen(length: int, window: int, device: torch.device) -> Bool[Tensor, "query key"]:
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)
