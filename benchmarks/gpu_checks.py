"""The Triton kernels against their references in float64, on the GPU: what `gpu.py` does first.

python benchmarks/gpu_checks.py                         # all, in processes side by side
python benchmarks/gpu_checks.py 300 500 130 1 tf32      # tokens, latents, width, setups, products
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from gpu_steps import DEVICE
from torch import Tensor

DTYPES = {"ieee": torch.float32, "tf32": torch.float32, "tf32x3": torch.float32, "bf16": torch.bfloat16}
# Tokens, latents, width, setups that kernels are checked at.
SHAPES = ((4096, 3200, 64, 1), (333, 257, 100, 3), (300, 500, 130, 1), (500, 400, 768, 1), (1, 40, 17, 2))
# Largest relative error against float64.
NEAR = {"ieee": 1e-5, "tf32": 5e-3, "tf32x3": 1e-4, "bf16": 2e-2}


def inputs(T: int, K: int, D: int, products: str, S: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, W_enc, W_dec, b, l1: small multiples of 1/8 times a power of 2, so that drives are exact in every format.

    So which latents fire, win and are chosen must agree to the last, and no error hides behind a drive near 0.
    """
    dtype, scale = DTYPES[products], 0.5 ** (D.bit_length() // 2)
    grid = lambda *shape: torch.randint(-8, 9, shape, device=DEVICE) / 8  # noqa: E731
    W_enc, W_dec = ((grid(S, K, D) * scale).to(dtype) for _ in range(2))
    return grid(T, D).to(dtype), W_enc, W_dec, grid(S, K) - 1, torch.rand(S, device=DEVICE)


def check(T: int, K: int, D: int, products: str, S: int = 1, k: int = 16) -> dict[str, float]:
    """The largest relative error, ‖found - wanted‖ / ‖wanted‖, of each kernel's results."""
    from hsae.kernels import triton_relu as relu
    from hsae.kernels import triton_softhebb as softhebb
    from hsae.kernels import triton_sparse as sparse
    from hsae.kernels import triton_topk as topk

    x, W_enc, W_dec, b, l1 = inputs(T, K, D, products, S)
    wide, W, bias, W_out = x.double(), W_enc.double(), b.double(), W_dec.double()
    precision: Any = {"precision": "ieee" if products == "bf16" else products}
    made, wanted = relu.forward(x, W_enc, b, W_dec, **precision), relu.forward_reference(wide, W, bias, W_out)
    error, exact = wanted.error.to(x.dtype), topk.reference(wide, W, bias, k)
    chosen, there = topk.choose(x, W_enc, b, k, **precision), topk.Chosen(exact.latent, exact.code.float())
    pairs = {
        "relu forward": (made, wanted),
        "relu gradients": (
            relu.gradients(x, error, W_enc, b, W_dec, l1, **precision),
            relu.gradients_reference(wide, error.double(), W, bias, W_out, l1.double()),
        ),
        "softhebb": (softhebb.statistics(x, W_enc, b, 3.0, **precision), softhebb.reference(wide, W, bias, 3.0)),
        "topk": (chosen, exact),
        "topk decode": (sparse.decode(x, there, W_dec), sparse.decode_reference(wide, exact, W_out)),
        "topk gradients": (
            sparse.gradients(x, error, there, W_dec),
            sparse.gradients_reference(wide, error.double(), exact, W_out),
        ),
    }
    return {
        name: max(
            float((getattr(found, key).double() - value.double()).norm() / (value.double().norm() + 1e-30))
            for key, value in vars(right).items()
            if value is not None
        )
        for name, (found, right) in pairs.items()
    }


def checks() -> dict[str, float]:
    """Every check's error, as a share of what may be; in processes side by side, since compiling takes longest."""

    def one(case: tuple[str, ...]) -> dict[str, float]:
        command = [sys.executable, __file__, *case]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {f"{' '.join(case)} {done.stderr.strip().splitlines()[-1][:300]}": float("inf")}
        return {f"{' '.join(case)} {name}": error for name, error in json.loads(done.stdout).items()}

    cases = [(*map(str, shape), products) for products in DTYPES for shape in SHAPES]
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) - 2)) as pool:
        return {name: error for found in pool.map(one, cases) for name, error in found.items()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        *shape, products = sys.argv[1:]
        T, K, D, S = map(int, shape)
        found = {name: error / NEAR[products] for name, error in check(T, K, D, products, S).items()}
    else:
        found = checks()
    print(json.dumps(found, indent=None if len(sys.argv) > 1 else 1))
