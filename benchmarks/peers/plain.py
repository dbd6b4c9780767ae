"""Plain PyTorch: autograd and fused Adam, or (option `compile`) the loss through torch.compile.

The loss, the start and the clipping of the gradient are those of hsae's `bp`, so that both learn the same: the mean
over tokens of ‖x̂ - x‖² / width + l1 · Σ|code| / width. SoftHebb is the signed rule written down step by step, with
the whole [token, latent] matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, held, serve

VARIANCE = 5.6e-4
CLIP = 1.0


class Plain(Trainee):
    """ReLU with an L1 penalty, or TopK."""

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        self.job, width = job, rows.shape[1]
        self.scale = (VARIANCE / float(np.var(rows[:65536], axis=0, dtype=np.float64).mean())) ** 0.5
        generator = torch.Generator().manual_seed(job.seed)
        self.W_enc = torch.randn(job.latents, width, generator=generator).mul_(width**-0.5).requires_grad_()
        # hsae draws a bias here that this start does not use.
        self.b_enc = torch.rand(job.latents, generator=generator).zero_().requires_grad_()
        self.W_dec = torch.randn(job.latents, width, generator=generator).mul_(width**-0.5).requires_grad_()
        self.parameters = [self.W_enc, self.b_enc, self.W_dec]
        self.adam = torch.optim.Adam(self.parameters, lr=job.lr or 1e-2, fused=True)
        self.loss = torch.compile(self._loss) if job.options.get("compile") else self._loss

    def _encode(self, x: Tensor) -> Tensor:
        code = torch.relu(torch.addmm(self.b_enc, x, self.W_enc.T))
        if self.job.task == "topk":
            top = code.topk(self.job.k, dim=1, sorted=False)
            code = torch.zeros_like(code).scatter(1, top.indices, top.values)
        return code

    def _loss(self, x: Tensor) -> Tensor:
        code = self._encode(x)
        loss = (code @ self.W_dec - x).square().mean()
        return loss + self.job.l1 * code.sum() / x.numel() if self.job.task == "relu" else loss

    def step(self, batch: Tensor) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss(batch * self.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.adam.step()

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self._encode(x * self.scale)
        return code @ self.W_dec / self.scale, code

    def tensors(self) -> dict[str, int]:
        return held(self.parameters, self.adam)


class Naive(Trainee):
    """SoftHebb on one matrix, signed. No bias, nothing reconstructed, no metrics: less work than hsae's step does."""

    TEMPERATURE, LR, POWER = 50.0, 1e-2, 0.2

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        self.job, width = job, rows.shape[1]
        self.scale = (VARIANCE / float(np.var(rows[:65536], axis=0, dtype=np.float64).mean())) ** 0.5
        generator = torch.Generator().manual_seed(job.seed)
        self.W = torch.randn(job.latents, width, generator=generator) * (2 * width**-0.5)
        self.update = torch.compile(self._update) if job.options.get("compile") else self._update

    def _update(self, x: Tensor) -> Tensor:
        u = x @ self.W.T
        y = torch.softmax(self.TEMPERATURE * u, dim=1)
        winner = torch.nn.functional.one_hot(u.argmax(1), u.shape[1]).bool()
        s = torch.where(winner, y, -y)
        direction = s.T @ x - (s * u).sum(0)[:, None] * self.W
        direction = direction / (direction.abs().max() + 1e-30)
        rate = self.LR * ((self.W.norm(dim=1) - 1).abs() + 1e-10) ** self.POWER
        return rate[:, None] * direction

    def step(self, batch: Tensor) -> None:
        self.W = self.W + self.update(batch * self.scale)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.relu(x * self.scale @ self.W.T)
        return code @ self.W / self.scale, code


def make(job: Job, rows: np.ndarray) -> Trainee:
    """What a job's task asks for."""
    return Naive(job, rows) if job.task == "softhebb" else Plain(job, rows)


if __name__ == "__main__":
    serve(make)
