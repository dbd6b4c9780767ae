"""Fast causal self-attention for heads of width 4 on the CPU, used to train the bundled model.

With heads this narrow torch's own attention spends most of its time on overhead.  `attention` calls a small C++ kernel
(narrow_attention.cpp, compiled on first use with g++ into the folder given to `load_kernel`) and falls back to torch's
scaled_dot_product_attention where there is no compiler.  Both give the same numbers up to rounding.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

_kernel: ctypes.CDLL | None = None


def load_kernel(folder: Path) -> bool:
    """Compiles the kernel into `folder` and loads it; False where that fails (torch's attention is used then)."""
    global _kernel
    source, library = Path(__file__).with_suffix(".cpp"), folder / "narrow_attention.so"
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC"]
    try:
        subprocess.run(["g++", *flags, "-o", str(library), str(source)], check=True)
        _kernel = ctypes.CDLL(str(library.resolve()))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, n_heads: int, window: int) -> torch.Tensor:
        assert _kernel is not None
        b, t, width = qkv.shape
        out, lse = qkv.new_empty(b, t, width // 3), qkv.new_empty(b, n_heads, t)
        _kernel.attention_forward(*_pointers(qkv, out, lse), b, t, n_heads, window)
        ctx.save_for_backward(qkv, out, lse)
        ctx.n_heads, ctx.window = n_heads, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assert _kernel is not None
        qkv, out, lse = ctx.saved_tensors
        b, t, _ = qkv.shape
        d_qkv, d_out = torch.empty_like(qkv), grads[0].contiguous()
        _kernel.attention_backward(*_pointers(qkv, out, lse, d_out, d_qkv), b, t, ctx.n_heads, ctx.window)
        return d_qkv, None, None


def attention(qkv: torch.Tensor, n_heads: int, window: int) -> torch.Tensor:
    """Unscaled causal attention; each token sees at most the `window` newest tokens, itself among them.

    qkv: (batch, time, 3 * width), queries, keys and values side by side.  Returns (batch, time, width).
    """
    b, t, width = qkv.shape
    if _kernel is not None and width == 12 * n_heads and t % 16 == 0 and t <= 512:
        return _Kernel.apply(qkv.contiguous(), n_heads, window)
    q, k, v = qkv.view(b, t, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
    if t <= window:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    else:
        visible = torch.ones(t, t, dtype=torch.bool).tril().triu(1 - window)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=1.0)
    return z.transpose(1, 2).reshape(b, t, -1)


def attention_step(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Unscaled attention of one query per row, (rows, 4), to the cached keys and values first ... last - 1.

    The caches are (rows, 4, 512).  Returns (rows, 4).
    """
    if _kernel is not None and keys.is_contiguous() and values.is_contiguous() and keys.shape[1:] == (4, 512):
        q = q.contiguous()
        out = torch.empty_like(q)
        _kernel.attention_step(*_pointers(q, keys, values, out), len(q), first, last)
        return out
    p = torch.softmax(torch.bmm(q[:, None], keys[:, :, first:last]), dim=-1)
    return torch.bmm(p, values[:, :, first:last].transpose(1, 2))[:, 0]
