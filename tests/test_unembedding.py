"""The unembedding, from a model's files and from the model: what a direction really does to the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_lm import make_model
from torch.nn.functional import layer_norm

from hsae.errors import UserError
from hsae.loading import BUNDLED, load_lm
from hsae.unembedding import Unembedding, _from_model, read_unembedding


def test_a_small_step_along_a_direction_changes_the_logits_as_the_lens_says():
    tensors = {name: value.double() for name, value in load_file(BUNDLED / "model.safetensors").items()}
    weight, bias = tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]

    def logits(x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape, weight, bias, 0.0) @ tensors["transformer.wte.weight"].T

    random = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, len(weight), generator=random, dtype=torch.float64) + 1
    # What lies along x itself is normalised away.
    centred = x - x.mean()
    d -= (d @ centred) / (centred @ centred) * centred
    step = (logits(x + 1e-6 * d) - logits(x)) / 1e-6 * x.std(correction=0)
    lens = read_unembedding("bundled").logits(d[None].float())[0]
    torch.testing.assert_close(lens.double(), step - step.mean(), rtol=1e-4, atol=1e-4)


def test_files_and_model_say_the_same(tmp_path: Path):
    make_model(tmp_path)
    for name in ("bundled", str(tmp_path)):
        by_files = read_unembedding(name)
        by_model = _from_model(load_lm(name, "cpu").bridge.original_model)
        torch.testing.assert_close(by_files.W, by_model.W)
        assert by_files.centred == by_model.centred


def test_without_a_mean_taken_off():
    W = torch.eye(3)
    assert Unembedding(W, centred=False).logits(torch.tensor([[3.0, 0.0, 0.0]]))[0].tolist() == [2.0, -1.0, -1.0]
    assert Unembedding(W, centred=True).logits(torch.tensor([[3.0, 3.0, 3.0]]))[0].tolist() == [0.0, 0.0, 0.0]


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nothing there"):
        read_unembedding("./absent")
