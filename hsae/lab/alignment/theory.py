"""The theorems as exact identities, and linear regression under noise, where the phase boundary has a closed form."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.alignment import cosine, inner


def weak(g: Float[Tensor, "sample out in"], h_a: Float[Tensor, "sample in"], gamma: float) -> tuple[float, float]:
    """⟨E[g], E[H]⟩ and γE‖h_b‖², equal for any signal g at the weights where its mean is at rest, W = E[g]/γ."""
    G = g.mean(0)
    h_b = h_a @ G.T / gamma
    return (G * (h_b.T @ h_a / len(h_a))).sum().item(), gamma * h_b.square().sum(1).mean().item()


def strong(
    signal: Float[Tensor, "sample out"], h_a: Float[Tensor, "sample in"], gamma: float
) -> tuple[float, float, float]:
    """E⟨g_n, H_n⟩, γE‖h_a‖²‖W‖² and Cov(‖h_a‖², s·h_b) at rest: the first is the sum of the others.

    The paper takes ‖h_a‖² as constant, so that its theorem has no covariance.
    """
    W = signal.T @ h_a / (len(h_a) * gamma)
    h_b, size = h_a @ W.T, h_a.square().sum(1)
    along = (signal * h_b).sum(1)
    covariance = ((size - size.mean()) * (along - along.mean())).mean().item()
    return inner(signal, h_b, h_a), gamma * size.mean().item() * W.square().sum().item(), covariance


def ridge(x: Float[Tensor, "sample in"], y: Float[Tensor, "sample out"], gamma: float) -> tuple[float, float]:
    """cos(E[g], E[H]) of linear regression's real gradients at exact rest, and cos(W, WΣ_a): equal, without γ."""
    sigma = x.T @ x / len(x)
    W = torch.linalg.solve(sigma + gamma * torch.eye(len(sigma)).to(x), x.T @ y / len(x)).T
    h_b = x @ W.T
    return cosine((y - h_b).T @ x, h_b.T @ x), cosine(W, W @ sigma)


def alignment_under_noise(gamma: float, sigma: float, size: float, inputs: int, outputs: int = 1) -> float:
    """E⟨g, H⟩ of linear regression y = W*x, x ~ N(0, I), loss ½‖error‖², noise N(0, σ²) on each weight at each step.

    The mean weights rest at W*/(1 + γ), so that A = (d + 2)[‖W*‖² γ/(1 + γ)² - σ²dm]: 0 on the parabola
    γ ≈ σ²dm/‖W*‖², and greatest at γ = 1.

    Args:
        size: ‖W*‖²_F.
        inputs: d.
        outputs: m.
    """
    return (inputs + 2) * (size * gamma / (1 + gamma) ** 2 - sigma**2 * inputs * outputs)


def descend(
    *,
    gammas: list[float],
    sigmas: list[float],
    inputs: int,
    outputs: int,
    steps: int,
    batch: int = 64,
    lr: float = 0.02,
) -> dict[str, Any]:
    """SGD on that regression, ‖W*‖ = 1, over a grid of γ and σ: mean ⟨g, H⟩ after a quarter of the steps.

    Returns:
        The grid, and `measured` and `predicted` [γ][σ].
    """
    g = torch.Generator().manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(inputs * outputs, generator=g), dim=0).view(outputs, inputs)
    gamma, sigma = (
        t.reshape(-1, 1, 1) for t in torch.meshgrid(torch.tensor(gammas), torch.tensor(sigmas), indexing="ij")
    )
    V, total = target.repeat(len(gamma), 1, 1), torch.zeros(len(gamma))
    for step in range(steps):
        x = torch.randn(batch, inputs, generator=g)
        W = V + sigma * torch.randn(V.shape, generator=g)
        signal, h_b = x @ (target - W).transpose(1, 2), x @ W.transpose(1, 2)
        V = V + lr * (signal.transpose(1, 2) @ x / batch - gamma * V)
        if step >= steps // 4:
            total += ((signal * h_b).sum(2) * x.square().sum(1)).mean(1)
    measured = (total / (steps - steps // 4)).view(len(gammas), len(sigmas)).tolist()
    predicted = [[alignment_under_noise(c, s, 1.0, inputs, outputs) for s in sigmas] for c in gammas]
    grid = {"gammas": gammas, "sigmas": sigmas, "inputs": inputs, "outputs": outputs}
    return {**grid, "measured": measured, "predicted": predicted}
