"""The steps that `gpu.py` times. Each maker gives a function that takes a batch [token, width] and learns from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Any]
DEVICE = "cuda"
LR, L1, STD, TEMPERATURE = 1e-2, 1e-2, 0.125, 50.0


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    width: int = 64
    latents: int = 3200
    batch: int = 16384
    k: int = 32
    batches: int = 32
    steps: int = 50
    rounds: int = 5


def activations(sizes: Sizes) -> Tensor:
    """Batches of sparse sums of planted directions, with the variance of the paper's, [batch, token, width]."""
    directions = torch.nn.functional.normalize(torch.randn(8 * sizes.width, sizes.width, device=DEVICE), dim=1)
    made = []
    for _ in range(sizes.batches):
        shape = (sizes.batch, len(directions))
        made.append((torch.rand(shape, device=DEVICE) < 0.02) * torch.rand(shape, device=DEVICE) @ directions)
    x = torch.stack(made)
    return x * (5.6e-4**0.5 / x.std())


def _precise(products: str) -> contextlib.AbstractContextManager[Any]:
    """Set how PyTorch multiplies; bf16: by autocast."""
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    return torch.autocast("cuda", torch.bfloat16) if products == "bf16" else contextlib.nullcontext()


def eager(sizes: Sizes, products: str, k: int = 0, wrap: Callable[[Any], Any] = lambda f: f) -> Step:
    """A plain SAE by autograd, clipped, with PyTorch's fused Adam: what one writes oneself."""
    shape = (sizes.latents, sizes.width)
    W_enc, W_dec = (torch.nn.Parameter(torch.randn(shape, device=DEVICE) * STD) for _ in range(2))
    b_enc = torch.nn.Parameter(torch.zeros(sizes.latents, device=DEVICE))
    parameters = [W_enc, W_dec, b_enc]
    optimiser = torch.optim.Adam(parameters, lr=LR, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        u = torch.nn.functional.linear(x, W_enc, b_enc)
        if k:
            top = u.topk(k, dim=1, sorted=False)
            code = torch.zeros_like(u).scatter(1, top.indices, top.values.relu())
            return torch.nn.functional.mse_loss(code @ W_dec, x)
        code = u.relu()
        return torch.nn.functional.mse_loss(code @ W_dec, x) + L1 * code.sum() / x.numel()

    loss = wrap(loss_of)

    def step(x: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with _precise(products):
            value = loss(x)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimiser.step()

    return step


def compiled(sizes: Sizes, products: str) -> Step:
    """The same with its loss through torch.compile."""
    return eager(sizes, products, wrap=torch.compile)


def softhebb_eager(sizes: Sizes, products: str) -> Step:
    """SoftHebb's rule as its paper writes it, on the whole batch at once."""
    W = torch.randn(sizes.latents, sizes.width, device=DEVICE) * STD
    b = torch.full((sizes.latents,), -0.16, device=DEVICE)

    def step(x: Tensor) -> None:
        nonlocal W, b
        with _precise(products):
            u = torch.addmm(b, x, W.T)
            y = torch.softmax(TEMPERATURE * u, 1)
            winner = u.argmax(1, keepdim=True)
            s = (-y).scatter(1, winner, y.gather(1, winner))
            change = s.T @ x - (s * u).sum(0)[:, None] * W
        rate = LR * ((W.norm(dim=1) - 1).abs() + 1e-10) ** 0.2
        prior = (TEMPERATURE * b).exp()
        change_b = (s.sum(0) - len(x) * prior) / prior
        W = W + rate[:, None] * change / (change.abs().max() + 1e-30)
        b = b + rate * (0.1 / TEMPERATURE) * change_b / (change_b.abs().max() + 1e-30)

    return step


def ours(name: str, sizes: Sizes, products: Any, mode: str, k: int = 0) -> Step:
    """A stock setup of hsae: plain, with fused kernels, or as a captured graph."""
    from hsae.graph import StepGraph
    from hsae.learner import Learner, Moment
    from hsae.setup import resolve

    changes: dict[str, Any] = {"init_std": STD} | ({"sae": {"kind": "topk", "k": k}} if k else {})
    setup = resolve([name], {name: changes}, "gpu")[name]
    learner = Learner(name, setup, 0, sizes.latents, torch.zeros(sizes.width, device=DEVICE))
    last = torch.zeros(sizes.latents, dtype=torch.int64, device=DEVICE)
    fixed, capture = mode != "", mode.endswith("graph")
    steps = StepGraph(learner, sizes.batch, last, products, fixed=fixed, capture=capture)
    moment = Moment(2, 1 << 30)

    def step(x: Tensor) -> None:
        if not fixed:
            _precise(products)
        steps.step(x, moment)

    step.tensors = learner.tensors  # pyright: ignore[reportFunctionMemberAccess]
    return step


def profile(step: Step, x: Tensor, steps: int = 10) -> str:
    """Where the device's time of a step goes: microseconds and launches by kernel, the most first."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
        for i in range(steps):
            step(x[i % len(x)])
        torch.cuda.synchronize()
    found = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)[:16]
    rows = [f"| {e.key[:70]} | {e.device_time_total / steps:.1f} | {e.count / steps:.0f} |" for e in found]
    return "\n".join(["| kernel | µs a step | launches |", "|---|---|---|", *rows])


def sweep(sizes: Sizes, products: str, left: Callable[[], float]) -> str:
    """M tokens/s of the captured step against the dictionary's size and the width."""
    widths, dictionaries = (64, 128, 256, 512, 1024), (1024, 3200, 16384, 65536)
    lines = ["| latents | " + " | ".join(f"d = {d}" for d in widths) + " |", "|---" * (len(widths) + 1) + "|"]
    for latents in dictionaries:
        cells = []
        for width in widths:
            if left() < 30:
                cells.append("-")
                continue
            here = replace(sizes, width=width, latents=latents, batches=2)
            x, step = activations(here), ours("bp", here, products, " fused+graph")
            times = []
            for i in range(10):
                torch.cuda.synchronize()
                began = time.perf_counter()
                step(x[i % 2])
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            cells.append(f"{sizes.batch / sorted(times[5:])[2] / 1e6:.1f}")
        lines.append(f"| {latents} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sae_lens(sizes: Sizes, x: Tensor) -> Step:
    """sae-lens' own training step, as shipped, where it is installed."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.standard_sae import (  # pyright: ignore[reportMissingImports]
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    common = {"d_in": sizes.width, "d_sae": sizes.latents, "device": DEVICE}
    config = StandardTrainingSAEConfig(l1_coefficient=L1, normalize_activations="expected_average_only_in", **common)
    settings = SAETrainerConfig(
        total_training_samples=1 << 40,
        train_batch_size_samples=sizes.batch,
        lr=3e-4,
        lr_end=3e-4,
        device=DEVICE,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, StandardTrainingSAE(config), data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = sizes.width**0.5 / x[0].norm(dim=1).mean().item()

    def step(x: Tensor) -> None:
        torch.set_float32_matmul_precision("highest")
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1

    return step
