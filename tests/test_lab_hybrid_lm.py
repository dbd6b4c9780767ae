"""The hybrid language model: the source's recipe by hand, its bound, the repairs, BDH's two forms, and the chapter."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from hsae import cli, config
from hsae.errors import UserError
from hsae.harvesting.text import BUNDLED
from hsae.lab.hybrid_lm import HybridLMConfig
from hsae.lab.hybrid_lm.arms import ARMS, BACKPROP, SOURCE, Plasticity
from hsae.lab.hybrid_lm.bdh import BDH, parallel, recurrent, rope
from hsae.lab.hybrid_lm.claims import WITHIN, claims
from hsae.lab.hybrid_lm.job import arms_of, chapter, units
from hsae.lab.hybrid_lm.model import GPT, Size
from hsae.lab.hybrid_lm.plasticity import Plastic, bound
from hsae.lab.hybrid_lm.text import read
from hsae.lab.hybrid_lm.training import collapse, schedule, train
from hsae.lab.units import Unit

TINY = Size(vocabulary=11, width=8, heads=2, mlp=12, layers=2, context=6, dropout=0.0)


BPE = str(BUNDLED.parent / "bundled")
SIZE_OF_THE_SOURCE = Size(vocabulary=50257, width=512, heads=8, mlp=1024, layers=6, context=256, dropout=0.1)


def of(arm: Plasticity = SOURCE, **changes: Any) -> Plasticity:
    return dataclasses.replace(arm, **changes)


class One(nn.Module):
    """A model of one linear layer, whose inputs are the rows of a table."""

    def __init__(self, inputs: torch.Tensor, outputs: int = 3) -> None:
        super().__init__()
        self.inputs, self.layer = inputs, nn.Linear(inputs.shape[1], outputs)
        with torch.no_grad():
            self.layer.bias.copy_(torch.arange(outputs) * 0.5 - 0.3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.inputs[ids])

    def plastic(self, layers: str = "all") -> dict[str, nn.Linear]:
        return {"layer": self.layer}


def one(arm: Plasticity, rows: int = 4, micro: int = 1, scale: float = 1.0) -> tuple[Any, ...]:
    """A model of one layer after its forward pass: plastic, ids, the last rows' x and y [token, _], and W before."""
    torch.manual_seed(3)
    model = One(torch.randn(9, 5) * scale)
    plastic, ids = Plastic(model, arm, micro), torch.randint(9, (rows, 7))
    y = model(ids).detach()
    seen = slice(None) if arm.batches == "all" else slice(-micro, None)
    x, y = model.inputs[ids][seen].flatten(0, 1), y[seen].flatten(0, 1)
    return plastic, ids, x, y, model.layer.weight.detach().clone()


# The source's recipe


@pytest.mark.parametrize("batches", ["last", "all"])
def test_hebb_is_the_mean_product_with_the_bias_of_the_rows_that_it_sees(batches: Any):
    plastic, ids, x, y, W = one(of(batches=batches), rows=6, micro=2)
    plastic.update(ids, torch.zeros(6, 7))
    delta = (y.T @ x / len(x)).clamp(-1, 1)
    assert len(x) == (14 if batches == "last" else 42)
    assert delta.abs().max() < 1
    torch.testing.assert_close(plastic.weights[0], 0.9999 * (W + 1e-3 * delta), rtol=0, atol=1e-7)


def test_products_above_one_are_clamped_and_the_change_is_the_rate():
    plastic, ids, x, y, W = one(SOURCE, scale=30)
    plastic.update(ids, torch.zeros(4, 7))
    delta = y.T @ x / len(x)
    large = delta.abs() > 1
    assert large.sum() == 14
    wanted = 0.9999 * (W + 1e-3 * delta.sign())
    torch.testing.assert_close(plastic.weights[0][large], wanted[large], rtol=0, atol=1e-7)


def test_without_a_clamp_the_whole_product_counts():
    plastic, ids, x, y, W = one(of(clamp=0.0), scale=30)
    plastic.update(ids, torch.zeros(4, 7))
    torch.testing.assert_close(plastic.weights[0], 0.9999 * (W + 1e-3 * y.T @ x / len(x)))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_layer_whose_product_is_not_finite_is_left_as_it_is(broken: float):
    plastic, ids, _, _, W = one(SOURCE)
    plastic.caught["layer"][0][0, 0, 0] = broken
    plastic.update(ids, torch.zeros(4, 7))
    assert torch.equal(plastic.weights[0], W)


def test_no_weight_ever_passes_the_bound_and_most_reach_it():
    torch.manual_seed(0)
    model = One(torch.randn(1, 5) * 3)
    nn.init.normal_(model.layer.weight, std=0.02)
    start, arm = model.layer.weight.detach().abs().max(), of(rate=0.05, keep=0.95)
    plastic, ids = Plastic(model, arm, 1), torch.zeros(1, 2, dtype=torch.long)
    for step in range(1, 200):
        model(ids)
        plastic.update(ids, torch.zeros(1, 2))
        limit = 0.95**step * start + bound(0.05, 0.95, step)
        assert plastic.weights[0].abs().max() <= limit + 1e-6
    assert plastic.weights[0].abs().min() > 0.99 * bound(0.05, 0.95, 200)
    assert collapse(plastic.weights) == {"share": pytest.approx(1, abs=1e-3), "signs": 1.0}


def test_the_bound_is_the_sum_of_the_steps():
    total = 0.0
    for step in range(1, 51):
        total = 0.9 * (total + 0.2)
        assert bound(0.2, 0.9, step) == pytest.approx(total)
    assert bound(1e-3, 0.9999, 3000) == pytest.approx(2.59, abs=5e-3)  # SPEC: t = 3000
    assert bound(1e-3, 0.9999, 10**7) == pytest.approx(10, abs=2e-3)
    assert bound(0.1, 1.0, 7) == pytest.approx(0.7)


def test_pruning_cuts_below_a_hundredth_and_scaling_waits_for_the_tenth_call():
    plastic, *_, W = one(BACKPROP)
    with torch.no_grad():
        plastic.weights[0].mul_(0.03)
    W = W * 0.03
    cut = W.abs() <= 0.01
    assert 0 < cut.sum() < cut.numel()
    assert [plastic.prune() for _ in range(9)] == [False] * 9
    assert torch.equal(plastic.weights[0], W.masked_fill(cut, 0))
    assert plastic.prune()
    assert plastic.weights[0].abs().mean().item() == pytest.approx(0.5)


def test_pruning_by_activity_cuts_as_many_but_the_least_used():
    plastic, _, x, y, W = one(of(BACKPROP, prune="activity"))
    with torch.no_grad():
        plastic.weights[0].mul_(0.03)
    score = (W * 0.03).abs() * x.abs().mean(0) * y.abs().mean(0)[:, None]
    count = int(((W * 0.03).abs() <= 0.01).sum())
    plastic.prune()
    zero = plastic.weights[0] == 0
    assert zero.sum() == count
    assert score[zero].max() <= score[~zero].min()


@pytest.mark.parametrize("steps", [10, 57])
def test_the_schedule_is_that_of_transformers(steps: int):
    from transformers import get_cosine_schedule_with_warmup

    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(adam, 4, steps)
    for step in range(steps):
        assert schedule(step, 4, steps) == pytest.approx(theirs.get_last_lr()[0])
        assert schedule(step, 4, steps, "constant") == min(1.0, step / 4)
        adam.step()
        theirs.step()
    assert schedule(steps, 4, steps) == 0


# The repairs


def updated(arm: Plasticity, losses: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """What one update adds to W, at rate 1 and without a bound; and x, y, W before it."""
    plastic, ids, x, y, W = one(of(arm, rate=1.0, clamp=0.0, keep=1.0))
    plastic.update(ids, torch.zeros(4, 7) if losses is None else losses)
    return plastic.weights[0].detach() - W, x, y, W


def test_oja_decays_by_the_square_of_the_output():
    change, x, y, W = updated(of(rule="oja"))
    torch.testing.assert_close(change, (y.T @ x - (y**2).sum(0)[:, None] * W) / len(x))


def test_bcm_has_a_sliding_threshold():
    change, x, y, _ = updated(of(rule="bcm"))
    theta = 0.1 * (y**2).mean(0)
    torch.testing.assert_close(change, (y * (y - theta)).T @ x / len(x))


def test_subspace_and_sanger_see_what_other_neurons_explain():
    change, x, y, W = updated(of(rule="subspace"))
    torch.testing.assert_close(change, (y.T @ x - y.T @ y @ W) / len(x))
    change, x, y, W = updated(of(rule="sanger"))
    torch.testing.assert_close(change, (y.T @ x - (y.T @ y).tril() @ W) / len(x))


def test_centred_is_the_covariance():
    change, x, y, _ = updated(of(signal="centred"))
    torch.testing.assert_close(change, torch.from_numpy(np.cov(y.T, x.T, bias=True)[:3, 3:]).float())


def test_predictive_learns_what_the_token_before_did_not_tell():
    change, x, y, _ = updated(of(signal="predictive"))
    wanted = torch.zeros_like(change)
    for k in range(3):
        share = np.linalg.lstsq(y[:-1, k : k + 1].numpy(), y[1:, k].numpy(), rcond=None)[0][0]
        wanted[k] = ((y[1:, k] - share * y[:-1, k])[:, None] * x[1:]).mean(0)
    torch.testing.assert_close(change, wanted)


def test_three_factors_reward_what_beats_the_running_loss():
    losses = torch.rand(4, 7)
    change, x, y, _ = updated(of(signal="advantage"), losses)
    gain = losses[-1].mean() - losses[-1]
    torch.testing.assert_close(change, (gain[:, None] * y).T @ x / 7)


def test_the_running_loss_forgets_slowly():
    plastic, ids, *_ = one(of(signal="advantage"))
    plastic.update(ids, torch.full((4, 7), 2.0))
    plastic.update(ids, torch.full((4, 7), 1.0))
    assert plastic.expected.item() == pytest.approx(0.99 * 2 + 0.01 * 1)


def test_contrastive_takes_away_what_shuffled_tokens_give():
    # A layer that sees one token at a time cannot tell an order: the two phases cancel.
    change, *_ = updated(of(signal="contrastive"))
    assert change.abs().max() < 1e-5
    # Attention can.
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(11, (4, 6))
    plastic = Plastic(model, of(signal="contrastive", rate=1.0), 1)
    before = plastic.layers["1.q"].weight.detach().clone()
    model(ids)
    plastic.update(ids, torch.zeros(4, 6))
    assert not torch.allclose(0.9999 * before, plastic.layers["1.q"].weight)


def test_a_rate_that_is_tied_or_trusted():
    plastic, ids, x, y, W = one(SOURCE)
    plastic.update(ids, torch.zeros(4, 7), factor=0.25)
    wanted = 0.9999 * (W + 0.25e-3 * (y.T @ x / 7).clamp(-1, 1))
    torch.testing.assert_close(plastic.weights[0], wanted, rtol=0, atol=1e-7)
    plastic, ids, x, y, W = one(of(trust=True, keep=1.0))
    plastic.update(ids, torch.zeros(4, 7))
    change = plastic.weights[0] - W
    assert change.norm().item() == pytest.approx(1e-3 * W.norm().item(), rel=1e-3)
    assert torch.cosine_similarity(change.flatten(), (y.T @ x).flatten(), dim=0) > 0.999


def test_rows_that_are_turned_keep_their_norm():
    plastic, ids, x, y, W = one(of(turning=True, keep=1.0, rate=0.1))
    plastic.update(ids, torch.zeros(4, 7))
    torch.testing.assert_close(plastic.weights[0].norm(dim=1), W.norm(dim=1))
    moved = W + 0.1 * y.T @ x / 7
    assert torch.cosine_similarity(plastic.weights[0], moved, dim=1).min() > 0.9999


def test_homeostasis_brings_activity_to_one():
    plastic, ids, _, y, W = one(of(homeostasis=0.1, rate=1e-9, keep=1.0))
    plastic.update(ids, torch.zeros(4, 7))
    torch.testing.assert_close(plastic.weights[0], W * y.abs().mean(0)[:, None] ** -0.1, rtol=1e-4, atol=1e-6)
    layer = plastic.model.layer
    layer.bias.data.zero_()
    for _ in range(800):
        y = plastic.model(ids)[-1:]
        plastic.update(ids, torch.zeros(4, 7))
    torch.testing.assert_close(y.abs().mean((0, 1)), torch.ones(3), rtol=0.05, atol=0)


def test_attention_alone_leaves_the_mlp():
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(11, (2, 6))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(ids)
    Plastic(model, of(layers="attention"), 1)
    plastic = Plastic(model, of(layers="attention"), 1)
    model(ids)
    plastic.update(ids, torch.zeros(2, 6))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in "qkvo"}
    plastic.prune()
    assert all((W == 0).any() for W in model.plastic()["1.fc2"].weight)


# The models


def test_the_source_s_size_has_64_million_parameters():
    with torch.device("meta"):
        model = GPT(SIZE_OF_THE_SOURCE)
    d, f = 512, 1024
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    count = sum(p.numel() for p in model.parameters())
    assert count == 50257 * d + 256 * d + 6 * block + 2 * d + 50257 * d
    assert f"{count / 1e6:.2f}" == "64.21"


def test_full_scale_is_the_source_s(tmp_path: Path):
    text = stories(tmp_path, 800)
    made = units(HybridLMConfig(scale="full", text=text, tokenizer=BPE, device="cpu", parts=()))[0].arguments
    assert Size(vocabulary=50257, **made["size"]) == SIZE_OF_THE_SOURCE
    recipe = {"steps": 5000, "rows": 32, "micro": 4, "lr": 3e-4, "decay": 0.01}
    assert {key: made["recipe"][key] for key in recipe} == recipe
    assert made["arm"]["mode"] == "backprop"


def test_a_bpe_s_tokens_go_there_and_back(tmp_path: Path):
    path = stories(tmp_path, 60)
    text = read(path, BPE, 8)
    assert (text.vocabulary, text.decode([text.end])) == (4096, "<|endoftext|>")
    assert text.decode(text.held.tolist()).split("<|endoftext|>")[1].startswith("Once upon a time there were 20 cats")
    found = trained("hybrid", text={"path": path, "tokenizer": BPE})
    assert found["vocabulary"] == 4096
    assert found["samples"][0].startswith("Once upon a time")


@pytest.mark.parametrize("kind", [GPT, BDH])
def test_no_token_sees_the_future(kind: Any):
    torch.manual_seed(0)
    model = kind(Size(vocabulary=11, width=8, heads=2, mlp=16, layers=2, context=6, dropout=0.5)).eval()
    ids = torch.randint(11, (1, 6))
    before = model(ids)
    for at in range(6):
        other = ids.clone()
        other[0, at] = (ids[0, at] + 1) % 11
        after = model(other)
        torch.testing.assert_close(after[:, :at], before[:, :at], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, at], before[:, at])


@hypothesis_settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 3), heads=st.integers(1, 3), positions=st.integers(1, 9), pairs=st.integers(1, 6))
def test_bdh_in_parallel_is_bdh_by_synapses(rows: int, heads: int, positions: int, pairs: int):
    torch.manual_seed(positions)
    q = rope(torch.rand(rows, heads, positions, 2 * pairs, dtype=torch.float64))
    v = torch.randn(rows, heads, positions, 4, dtype=torch.float64)
    torch.testing.assert_close(parallel(q, v), recurrent(q, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "neurons", "layers"), [(1, 8, 1), (2, 16, 3), (4, 32, 6)])
def test_the_whole_model_is_the_same_in_both_forms(heads: int, neurons: int, layers: int):
    torch.manual_seed(0)
    model = BDH(Size(vocabulary=11, width=8, heads=heads, mlp=neurons, layers=layers, context=7, dropout=0.0)).double()
    ids = torch.randint(11, (2, 7))
    together = model(ids)
    model.attend = recurrent
    torch.testing.assert_close(model(ids), together, rtol=0, atol=1e-10)
    assert ((model.active > 0) & (model.active < 1)).all()
    assert sum(p.numel() for p in model.parameters()) == 3 * 8 * neurons + 2 * 11 * 8  # shared by all layers


def test_rope_depends_on_distances_alone():
    torch.manual_seed(0)
    q, k = (torch.rand(1, 1, 1, 6, dtype=torch.float64).expand(1, 1, 9, 6) for _ in range(2))
    scores = (rope(q) @ rope(k).mT)[0, 0]
    for distance in range(9):
        torch.testing.assert_close(scores.diagonal(-distance), scores[distance, 0].expand(9 - distance))
    assert scores[0, 0] == pytest.approx((q[0, 0, 0] @ k[0, 0, 0]).item())
    assert not torch.allclose(scores[3, 0], scores[0, 0])


# The text


def stories(folder: Path, count: int, mark: str = "\n<|endoftext|>\n", name: str = "made.txt") -> str:
    path = folder / name
    path.write_text(mark.join(f"Once upon a time there were {i} cats. They sat." for i in range(count)))
    return str(path)


@pytest.mark.parametrize("mark", ["\n<|endoftext|>\n", "\n\n"])
def test_every_twentieth_story_is_held_out(tmp_path: Path, mark: str):
    text = read(stories(tmp_path, 60, mark), "", 8)
    held = text.decode(text.held.tolist())
    assert held == "".join(f"Once upon a time there were {i} cats. They sat.\0" for i in (0, 20, 40))
    assert text.decode(text.train.tolist()).count("\0") == 57
    assert text.vocabulary == len(set("Once upon a time there were cats. They sat.0123456789\0"))
    assert text.coherence(["upon a dog", "a time there"]) == {"words": 5 / 6, "pairs": 3 / 4}


def test_rows_are_tokens_and_those_that_follow(tmp_path: Path):
    text = read(stories(tmp_path, 60), "", 8)
    whole = text.train.tolist()
    for ids, labels in (text.batch(5, 8, np.random.default_rng(0)), text.validation(5, 8)):
        assert ids.shape == labels.shape == (5, 8)
        assert torch.equal(ids[:, 1:], labels[:, :-1])
    ids, _ = text.batch(5, 8, np.random.default_rng(0))
    assert all(any(whole[i : i + 8] == row for i in range(len(whole))) for row in ids.tolist())


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        cli.run(["lab", "hybrid-lm", *words])
    message = str(error.value)
    assert "\n" not in message
    return message


def test_mistakes_are_one_line(tmp_path: Path, cache: Path):
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 99)
    assert "no such file" in refused("--text", str(tmp_path / "none.txt"))
    assert "byte 3" in refused("--text", str(tmp_path / "latin.txt"))
    assert "at least 40" in refused("--text", stories(tmp_path, 39))
    assert "too short" in refused("--text", stories(tmp_path, 40, name="short.txt"))
    (tmp_path / "a.csv").write_text("x")
    assert ".csv" in refused("--text", str(tmp_path / "a.csv"))
    assert "ordering" in refused("orderign")
    assert "multiple of 10" in refused("--steps", "15")
    fine = ("--text", stories(tmp_path, 60, name="fine.txt"), "--scale", "tiny")
    assert "cannot be loaded" in refused(*fine, "--tokenizer", str(tmp_path))
    assert "'cuda:99' is not there" in refused(*fine, "--device", "cuda:99")
    assert "homeostasis must be" in refused("own", "--own.homeostasis", "2")


# Trainings and the chapter


def trained(name: str, **changes: Any) -> dict[str, Any]:
    unit = next(u for u in units(HybridLMConfig(scale="tiny", parts=(name,))) if u.name == f"{name} 0")
    return train(**(unit.arguments | changes))


def test_a_training_repeats_itself_and_its_last_state_is_the_model_s():
    first, again = trained("hybrid"), trained("hybrid")
    assert json.dumps(first) == json.dumps(again)
    assert [p["step"] for p in first["curve"]] == list(range(0, 21, 2))
    assert first["calls"] == 5
    assert not first["scaled"]
    assert first["curve"][0]["small"] == pytest.approx(WITHIN, abs=0.03)
    assert first["curve"][0]["loss"] == pytest.approx(math.log(first["vocabulary"]), abs=0.1)
    assert trained("hybrid", seed=1)["curve"] != first["curve"]


def test_modes_change_what_they_say():
    backprop, hebbian, warm = trained("backprop"), trained("hebbian"), trained("warm-start")
    # Hebb alone: the embeddings and the output layer stay, so that the loss is that of a random reading.
    assert abs(hebbian["curve"][-1]["loss"] - hebbian["curve"][0]["loss"]) < 0.05
    assert backprop["curve"][-1]["loss"] < backprop["curve"][0]["loss"] - 0.2
    assert warm["curve"][1]["loss"] == trained("hebbian")["curve"][1]["loss"]
    assert warm["curve"][-1]["loss"] < warm["curve"][0]["loss"] - 0.2


def test_a_tied_rate_ends_with_adamw_s():
    # The cosine's mean is a half: so much less, and later less still, does Hebb add to the weights.
    arms = {name: config.table(of(ARMS[name], rate=0.02, prune="none")) for name in ("hybrid", "tied")}
    drift = {name: trained("hybrid", arm=arm)["curve"][-1]["mean"] - 0.0161 for name, arm in arms.items()}
    assert 0 < drift["tied"] < 0.8 * drift["hybrid"]


def test_scaling_that_runs_puts_the_mean_weight_at_a_half():
    calls = trained("backprop-scaling-runs")["scaled"]
    assert len(calls) == 5
    assert all(call["after"]["mean"] == pytest.approx(0.5, rel=1e-5) for call in calls)
    assert calls[0]["before"]["mean"] < 0.03


def test_one_step_of_backpropagation_is_the_source_s(tmp_path: Path):
    """The mean over eight micro-batches by accumulation; AdamW, clipping; the first steps of the warm-up."""
    path = stories(tmp_path, 60)
    text, size = {"path": path, "tokenizer": ""}, dataclasses.asdict(dataclasses.replace(TINY, layers=1, context=8))
    del size["vocabulary"]
    recipe = {"steps": 100, "rows": 8, "micro": 1, "lr": 1e-2, "decay": 0.01, "held": 4, "length": 1}
    found = train(text, "gpt", size, config.table(of(BACKPROP, prune="none")), recipe, 5, "cpu", "")
    torch.manual_seed(5)
    data, draws = read(path, "", 8), np.random.default_rng(5)
    model = GPT(Size(vocabulary=data.vocabulary, **size))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, betas=(0.9, 0.999))
    for step in range(10):
        adam.param_groups[0]["lr"] = 1e-2 * schedule(step, 4, 100)
        adam.zero_grad()
        ids, labels = data.batch(8, 8, draws)
        for i in range(8):
            (nn.functional.cross_entropy(model(ids[i : i + 1])[0], labels[i]) / 8).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    ids, labels = data.validation(4, 8)
    loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
    assert found["curve"][1]["loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_arms_go_from_words_to_trainings():
    assert set(arms_of(HybridLMConfig(parts=("tied", "own")))) == {"backprop", "hybrid", "hebbian", "tied", "own"}
    assert set(arms_of(HybridLMConfig())) == set(ARMS)
    names = [unit.name for unit in units(HybridLMConfig(parts=("tied", "bdh"), seeds=(4, 5)))]
    assert names == [*(f"{m} {s}" for m in ("backprop", "hybrid", "hebbian") for s in (4, 5)), "tied 4", "bdh 4"]
    assert config.build(Plasticity, config.table(ARMS["oja-tied"]), "") == of(rule="oja", tied=True)


def run(losses: list[float], **more: Any) -> dict[str, Any]:
    point = {"mean": 0.1, "max": 0.2, "bound": 0.3, "at_bound": 0.0, "small": 0.38}
    curve = [point | {"step": i, "loss": float(loss)} for i, loss in enumerate(losses)]
    base = {"curve": curve, "scaled": [], "calls": 5, "sparsity": {"all": 0.08, "layers": 0.4}}
    return base | {"collapse": {"share": 0.2, "signs": 0.5}} | more


def test_verdicts_follow_the_numbers():
    def so(hybrid: list[float], tied: list[float]) -> dict[str, bool]:
        runs = {"backprop": {0: run([4, 2, 1])}, "hybrid": {0: run(hybrid)}, "hebbian": {0: run([4, 4, 4])}}
        return {row[0][:18]: row[3] for row in claims(runs | {"tied": {0: run(tied)}})}

    rising, falling = so([4, 2, 3], [4, 3, 2]), so([4, 3, 0.5], [4, 2, 3])
    for key in ("Backpropagation le", "Hybrid passes its "):
        assert (rising[key], falling[key]) == (True, False)
    assert not rising["That is overfittin"]
    assert not falling["That is overfittin"]
    assert so([4, 2, 3], [4, 2, 3.5])["That is overfittin"]


@pytest.mark.parametrize("broken", ["hybrid", "backprop", "hebbian", "tied", "bdh"])
def test_an_arm_that_diverges_is_told_and_the_report_goes_on(
    broken: str, cache: Path, tmp_path: Path, monkeypatch: Any
):
    nan = {"coherence": None, "collapse": None, "samples": [], "active": [None, None]}
    point = {"loss": None, "mean": None, "max": None}

    def made(todo: list[Unit], *_: Any) -> dict[str, Any]:
        """All arms learn, but for one, which is NaN from step 1 on."""
        base = {"tokens": 1000, "vocabulary": 9, "parameters": 99, "active": [0.1, 0.2], "samples": ["Once"]}
        found = {u.name: run([3, 2, 2.5], coherence={"words": 0.5, "pairs": 0.1}) | base for u in todo}
        bad = found[f"{broken} 0"]
        bad |= {"curve": [bad["curve"][0], bad["curve"][1] | point]} | nan
        return found

    monkeypatch.setattr("hsae.lab.hybrid_lm.job.computed", made)
    body = chapter(HybridLMConfig(scale="tiny", parts=("tied", "all-batches", "bdh")), tmp_path).body
    if broken == "bdh":
        assert "loss 3.000 → diverged. Of its codes x_s, y_s – and – are" in body
    else:
        assert re.search(rf"^\| `{broken}` .*\| \*\*diverged by step 1\*\* \|$", body, re.MULTILINE)
    assert ("the rise is no smaller with η_h tied" in body) == (broken in ("hebbian", "bdh"))
    assert ("Pruning leaves" in body) == (broken not in ("hybrid", "backprop"))


def test_the_chapter_is_computed_once_and_says_the_same_again(cache: Path, tmp_path: Path):
    settings = HybridLMConfig(scale="tiny", parts=("tied", "rate-1e-2-no-clamp", "bdh"), seeds=(0, 1))
    first = chapter(settings, tmp_path)
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "units").iterdir()}
    again = chapter(settings, tmp_path)
    assert len(files) == 9
    assert files == {f: f.stat().st_mtime_ns for f in (tmp_path / "units").iterdir()}
    assert first == again
    for figure in ("curves", "arms"):
        assert f"(hybrid-lm-{figure}.svg)" in first.body
        assert (tmp_path / f"hybrid-lm-{figure}.svg").stat().st_size > 5000
    runs = first.numbers["runs"]
    assert f"{runs['backprop'][1]['curve'][-1]['loss']:.3f}" in first.body
    assert first.command.startswith("hsae lab hybrid-lm tied rate-1e-2-no-clamp bdh --scale tiny")
    json.dumps(first.numbers)


def test_the_verb_takes_an_arm_of_one_s_own(cache: Path, tmp_path: Path):
    words = ("own", "--scale", "tiny", "--steps", "10", "--seeds", "3", "--own.rule", "oja", "--own.tied", "true")
    assert cli.run(["lab", "hybrid-lm", *words, "--model", "bdh", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    for part in ("--own.rule oja --own.tied True", "`own`", "## BDH"):
        assert part in text
    assert (tmp_path / "report.html").stat().st_size > 10_000
