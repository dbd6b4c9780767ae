"""On a GPU, training gives what it gives on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_cuda_agrees_with_cpu(planted: Callable[..., Store], kind: str):
    planted()
    runs = {}
    for device in ("cpu", "cuda"):
        table = {"latents": 48, "batch_tokens": 128, "held_out": 256, "steps": 10, "device": device, "name": device}
        changes = {name: {"sae": {"kind": kind}} for name in ("bp", "bp-tied", "bp-dec", "hebb-tied")}
        runs[device] = train(TrainConfig.from_table(table | {"setup": changes}, "test"))
    for cpu, cuda in zip(runs["cpu"].result.rows, runs["cuda"].result.rows, strict=True):
        assert (cuda.mse, cuda.l1, cuda.l0) == pytest.approx((cpu.mse, cpu.l1, cpu.l0), rel=1e-2)
