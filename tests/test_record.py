"""What tells the SAEs of a run apart: every weight and setting of one, and nothing of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from damage import agree, edit
from safetensors.torch import load_file, save_file

from hsae.errors import UserError
from hsae.record import CONFIG, RESULT, WEIGHTS, Record, Result, Row
from hsae.run import RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Setups bp and bp-tied, and hebb-tied, which diverged."""
    generator = torch.Generator().manual_seed(0)
    W, V, U = (torch.randn(5, 3, generator=generator) for _ in range(3))
    saes = {
        ("bp", 0): SAE(W, torch.randn(5, generator=generator), V, torch.randn(3, generator=generator), ReLU()),
        ("bp-tied", 0): SAE(U, torch.ones(5), U, torch.zeros(3), ReLU()),
    }
    setups = {"bp": {"decoder": "backprop"}, "bp-tied": {"tied": True}, "hebb-tied": {"tied": True}}
    rows = (Row("bp", 0), Row("bp-tied", 0), Row("hebb-tied", 0, diverged="at step 1: MSE is NaN"))
    facts = {"store": "s", "store_fingerprint": "f", "model": {}, "hook": "h", "width": 3, "latents": 5, "scale": 0.5}
    counts = {"steps": 1, "tokens": 1, "held_out": 1, "dead_window": 1}
    RunWriter(tmp_path / "run", {"setup": setups}).finish(
        saes, Result(version=1, folded=False, rows=rows, **facts, **counts)
    )
    return tmp_path / "run"


def prints(folder: Path) -> list[str]:
    record = Record(folder)
    return [record.fingerprint(record.row(name)) for name in ("bp", "bp-tied")]


@pytest.mark.parametrize("key", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("place", [0, -1])
def test_any_weight_changes_the_fingerprint_of_its_sae_alone(folder: Path, key: str, place: int):
    before = prints(folder)
    assert len(set(before)) == 2
    assert all(len(one) == 16 for one in before)
    tensors = load_file(folder / WEIGHTS)
    tensors[f"bp/0/{key}"].view(-1)[place] += 1
    save_file(tensors, folder / WEIGHTS)
    after = prints(folder)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_so_does_a_setting_and_the_scale(folder: Path):
    before = prints(folder)
    config = folder / CONFIG
    config.write_text(config.read_text().replace('decoder = "backprop"', 'decoder = "backprop"\ncentre = "mean"'))
    agree(folder)
    assert prints(folder)[0] != before[0]
    assert prints(folder)[1] == before[1]
    edit(folder / RESULT, lambda result: result.update(scale=0.25))
    scaled = prints(folder)
    assert scaled[1] != before[1]
    # Folded weights take activations as they are, whatever the scale was.
    edit(folder / RESULT, lambda result: result.update(folded=True, scale=0.5))
    folded = prints(folder)
    edit(folder / RESULT, lambda result: result.update(scale=0.25))
    assert prints(folder) == folded
    assert folded[1] not in (before[1], scaled[1])


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, (1 << 60).to_bytes(8, "little") + b"{}"])
def test_what_cannot_be_told_apart_is_one_line(folder: Path, damage: bytes):
    record = Record(folder)
    with pytest.raises(UserError, match="hebb-tied \\(seed 0\\) diverged at step 1"):
        record.fingerprint(record.row("hebb-tied"))
    (folder / WEIGHTS).write_bytes(damage)
    with pytest.raises(UserError, match="damaged or unreadable"):
        record.fingerprint(record.row("bp"))


def test_the_first_sae_that_has_weights(folder: Path):
    edit(folder / RESULT, lambda result: result["rows"][0].update(diverged="at step 3: MSE is NaN"))
    record = Record(folder)
    assert record.whole().setup == "bp-tied"
    assert record.whole("bp").setup == "bp"
