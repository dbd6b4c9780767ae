"""Adam's moments and move (Kingma & Ba, arXiv 1412.6980, Algorithm 1): the reference, and one pass in C."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.native import call, load

Moved = tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]


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
    """One step: what to add to the parameter, the new mean and the new mean square. Nothing is changed in place.

    Args:
        gradient: of the loss.
        mean: running mean of the gradient.
        square: running mean of its square.
        factor: multiplies the gradient first.
        step: how many steps there are with this one; the moments are freed of their bias towards 0 by it.
        lr: learning rate.
        betas: decay of the mean and of the mean square.
        eps: added to the root.
    """
    if gradient.is_cuda:
        from hsae.kernels import triton_adam

        if triton_adam.fused(gradient):
            return triton_adam.adam(gradient, mean, square, factor=factor, step=step, lr=lr, betas=betas, eps=eps)
    arrays = (gradient, mean, square)
    fast = all(a.device.type == "cpu" and a.dtype == torch.float32 and a.is_contiguous() for a in arrays)
    if not fast or load("adam") is None:
        return reference(gradient, mean, square, factor=factor, step=step, lr=lr, betas=betas, eps=eps)
    made, n = [torch.empty_like(a) for a in arrays], gradient.numel()
    debias1, debias2 = (1 - beta ** int(step) for beta in betas)
    numbers = (float(factor), float(betas[0]), float(betas[1]), lr / debias1, 1 / debias2, float(eps))
    call("adam", "adam", *arrays, n, *numbers, *made, torch.get_num_threads())
    return made[0], made[1], made[2]


def reference(
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
    """The same in PyTorch, on any device and without waiting for it."""
    power = step.to(gradient.device, torch.float32)
    debias1, debias2 = 1 - betas[0] ** power, 1 - betas[1] ** power
    gradient = gradient * factor
    mean = torch.lerp(mean, gradient, 1 - betas[0])
    square = betas[1] * square + (1 - betas[1]) * gradient.square()
    return -lr * (mean / debias1) / ((square / debias2).sqrt() + eps), mean, square
