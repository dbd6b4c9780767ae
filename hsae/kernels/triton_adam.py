"""Adam's moments and move in one pass by Triton: on a GPU the reference's dozen small operations cost more than a step.

The reference is `hsae.kernels.adam.reference`.
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_tiles import cdiv, jit, tl, usable

Moved = tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]
BLOCK = 1024


def fused(gradient: Float[Tensor, "..."]) -> bool:
    """Whether `adam` can take this gradient."""
    return usable(gradient) and gradient.dtype == torch.float32


def adam(
    gradient: Float[Tensor, "..."],
    mean: Float[Tensor, "..."],
    square: Float[Tensor, "..."],
    *,
    factor: Float[Tensor, ""],
    step: Int[Tensor, ""],
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> Moved:
    """See `hsae.kernels.adam.adam`; `step` may lie on the host, unless the step is captured in a graph."""
    made, n = [torch.empty_like(mean) for _ in range(3)], gradient.numel()
    # In float64 here: 1 - beta and log beta lose digits in float32.
    rest, logs = (1 - beta for beta in betas), (math.log(beta) if beta else -math.inf for beta in betas)
    _adam[(cdiv(n, BLOCK),)](
        gradient.contiguous(), mean.contiguous(), square.contiguous(), factor, step.to(gradient.device), *made,
        n, lr, float(betas[1]), *rest, *logs, eps, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return made[0], made[1], made[2]


@jit
@no_type_check
def _lacking(x):
    """1 - eˣ for x below 0: by its series where the difference would lose digits."""
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.2, series, 1 - tl.exp(x))


@jit
@no_type_check
def _adam(
    gradient, mean, square, factor, step, move, new_mean, new_square, n, lr, beta2, rest1, rest2, log1, log2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, power = at < n, tl.load(step).to(tl.float32)
    g = tl.load(gradient + at, mask=inside, other=0.0) * tl.load(factor)
    m = tl.load(mean + at, mask=inside, other=0.0)
    m += (g - m) * rest1
    s = beta2 * tl.load(square + at, mask=inside, other=0.0) + rest2 * g * g
    debias1, debias2 = _lacking(power * log1), _lacking(power * log2)
    tl.store(move + at, -lr * (m / debias1) / (tl.sqrt(s / debias2) + eps), mask=inside)
    tl.store(new_mean + at, m, mask=inside)
    tl.store(new_square + at, s, mask=inside)
