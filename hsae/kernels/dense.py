"""What lies between the attentions of a transformer, products and GPT-2's GELU: C beside PyTorch."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hsae.kernels import native

# The kernel keeps a copy of the weights in an order of its own: not of more than these in one product.
MOST_WEIGHTS = 1 << 22


class Affine:
    """x @ weight + bias, the weights laid out for the C kernel where that is used.

    Args:
        weight: never changed; the kernel keeps a copy, made at the first use.
        bias: None for zero.
    """

    def __init__(self, weight: Float[Tensor, "into out"], bias: Float[Tensor, " out"] | None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: tuple[Tensor, Tensor] | None = None

    @property
    def own(self) -> bool:
        """Whether the C kernel computes it, on a CPU."""
        return _library() is not None and self.weight.numel() <= MOST_WEIGHTS

    def into(self, out: Float[Tensor, "row out"], x: Float[Tensor, "row into"]) -> Float[Tensor, "row out"]:
        """Compute into `out`, and return it."""
        library = _library()
        if x.device.type != "cpu" or library is None or not self.own:
            return affine(out, x, self.weight, self.bias)
        packed, bias = self._packed = self._packed or self._pack(library)
        assert x.is_contiguous()
        assert out.stride(1) == 1
        failed = library.hsae_affine(
            *(part.data_ptr() for part in (x, packed, bias, out)),
            *(len(x), *self.weight.shape, out.stride(0)),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("products: no memory for some rows")
        return out

    def _pack(self, library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
        (into, out), panel = self.weight.shape, library.panel()
        weight = self.weight.t().contiguous()
        bias = torch.zeros(out) if self.bias is None else self.bias.contiguous()
        room = -(-out // panel) * panel
        packed, biases = torch.empty(room * into), torch.empty(room)
        library.pack(weight.data_ptr(), bias.data_ptr(), out, into, packed.data_ptr(), biases.data_ptr())
        return packed, biases


def affine(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The reference of `Affine.into`."""
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)


def gelu(x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """The reference of `gelu_`: x (1 + tanh √(2/π) (x + 0.044715 x³)) / 2."""
    return functional.gelu(x, approximate="tanh")


def gelu_(x: Float[Tensor, "row width"]) -> None:
    """`gelu` in place; `x` must be contiguous."""
    library = _library() if x.device.type == "cpu" else None
    if library is None:
        x.copy_(gelu(x))
    else:
        assert x.is_contiguous()
        library.hsae_gelu(x.data_ptr(), x.numel(), torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL | None:
    library = native.load("dense")
    if library is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.hsae_affine.argtypes = [pointer] * 4 + [size] * 4 + [ctypes.c_int]
        library.hsae_gelu.argtypes = [pointer, size, ctypes.c_int]
        library.pack.argtypes = [pointer, pointer, size, size, pointer, pointer]
        library.panel.restype = size
    return library
