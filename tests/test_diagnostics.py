"""Diagnostics of a local rule: closed forms, and cosines of directions that are known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hsae.diagnostics import Diagnosis, Diagnostics, cosine, entropy, gini
from hsae.forward import Forward
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._rates import decayed
from hsae.rules.oja import Oja
from hsae.rules.softhebb import SoftHebb
from hsae.sae import Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

TOKENS, LATENTS, WIDTH = 40, 12, 5


def test_entropy_in_closed_form():
    assert entropy(torch.full((8,), 3.0)) == pytest.approx(1)
    assert entropy(torch.tensor([0.0, 7.0, 0.0])) == 0
    assert entropy(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5)
    assert entropy(torch.tensor([3.0, 1.0])) == pytest.approx(2 - 0.75 * math.log2(3))
    assert entropy(torch.tensor([5.0])) == 0
    assert entropy(torch.zeros(4)) == 0


def test_gini_in_closed_form():
    assert gini(torch.full((8,), 3.0)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 9.0])) == pytest.approx(3 / 4)
    assert gini(torch.tensor([3.0, 1.0])) == pytest.approx(1 / 4)
    counts = torch.tensor([4.0, 0.0, 1.0, 7.0, 7.0])
    assert gini(counts) == pytest.approx((counts[:, None] - counts).abs().mean().item() / counts.mean().item() / 2)
    assert gini(torch.zeros(4)) == 0


def test_cosine_in_closed_form():
    a = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert cosine(a, 2 * a) == pytest.approx(1)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == 0
    assert cosine(a, torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(0.6)
    assert cosine(a, torch.zeros(2, 2)) == 0
    assert cosine(a * 1e-30, a * 1e-30) == pytest.approx(1)


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """A stub whose post-synaptic signal is given."""

    given: tuple[tuple[float, ...], ...] | None = None

    def signal(self, synapse: Synapse) -> Tensor | None:
        return None if self.given is None else torch.tensor(self.given, dtype=synapse.x.dtype)

    def statistics(self, synapse: Synapse) -> Statistics:
        return {}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        return weights, state


def forward(variant: Variant, tied: bool, bias: bool = False, seed: int = 3) -> Forward:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5

    x = draw(TOKENS, WIDTH)
    own = {key: value.double() for key, value in variant.parameters(LATENTS).items()}
    encoder = Weights(draw(LATENTS, WIDTH), draw(LATENTS), own)
    decoder = Weights(draw(LATENTS, WIDTH), draw(WIDTH) if bias else None)
    return Forward(x, {"encoder": encoder} if tied else {"encoder": encoder, "decoder": decoder}, variant)


def part(whole: Forward, rows: slice) -> Forward:
    weights = {"encoder": whole.encoder} if whole.tied else {"encoder": whole.encoder, "decoder": whole.decoder}
    return Forward(whole.x[rows], weights, whole.variant)


def moved(weights: Weights, change: Tensor) -> Weights:
    return dataclasses.replace(weights, W=weights.W + change)


def told(whole: Forward, change: Tensor, rule: Rule | None = None) -> Diagnostics:
    assert whole.encoder.b is not None
    diagnosis = Diagnosis(rule or Fixed(), whole.encoder.b)
    diagnosis.add(whole)
    return diagnosis.result(whole.encoder, moved(whole.encoder, change))


def descent(whole: Forward, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The negative gradient, for the encoder's matrix, of a function of the code and of the error."""
    W = whole.encoder.W.clone().requires_grad_()
    code = whole.variant.activate(whole.x @ W.T + whole.encoder.b, whole.encoder.extra)
    W_dec = W if whole.tied else whole.decoder.W
    back = code @ W_dec + (0 if whole.b_dec is None else whole.b_dec)
    loss(code, back - whole.x).backward()
    assert W.grad is not None
    return -W.grad


@pytest.mark.parametrize("variant", [ReLU(l1=0.3), TopK(k=3), BatchTopK(k=3.0)])
@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (False, True)])
def test_a_step_down_a_loss_has_cosine_1_with_it(variant: Variant, tied: bool, bias: bool):
    whole = forward(variant, tied, bias)
    mse = descent(whole, lambda code, error: error.square().sum())
    l1 = descent(whole, lambda code, error: code.abs().sum())
    l2 = descent(whole, lambda code, error: code.square().sum() / 2)
    for change, name in ((mse, "cos_mse"), (l1, "cos_l1"), (l2, "cos_l2")):
        assert getattr(told(whole, 0.3 * change), name) == pytest.approx(1)
        assert getattr(told(whole, -0.1 * change), name) == pytest.approx(-1)
    assert told(whole, mse).cos_l1 == pytest.approx(cosine(mse, l1))
    assert told(whole, l1).cos_mse < 0.999
    assert told(whole, 0 * mse).cos_mse == 0


def test_a_rule_without_a_signal_has_no_hebbian_and_anti_hebbian_part():
    found = told(forward(ReLU(), tied=True), torch.ones(LATENTS, WIDTH, dtype=torch.float64))
    assert (found.anti_share, found.hebbian_cos_mse, found.anti_cos_l1, found.anti_cos_l2) == (None,) * 4


def test_the_signals_halves_are_told_apart():
    whole = forward(ReLU(), tied=False)
    code = whole.code
    # Hebbian: what descends the error. Anti-Hebbian: the code's sign, so that it descends Σ|code|, at a third the mass.
    back = -(whole.error @ whole.decoder.W.T) * code.sign()
    positive = back.clamp(min=0)
    negative = -code.sign() * (positive == 0)
    signal = positive / positive.sum() * 3 + negative / -negative.sum()
    rule = Fixed(tuple(map(tuple, signal.tolist())))
    found = told(whole, torch.zeros_like(whole.encoder.W), rule)
    assert found.anti_share == pytest.approx(1 / 4)
    mse = descent(whole, lambda code, error: error.square().sum())
    l1 = descent(whole, lambda code, error: code.abs().sum())
    l2 = descent(whole, lambda code, error: code.square().sum() / 2)
    assert found.hebbian_cos_mse == pytest.approx(cosine(positive.T @ whole.x, mse))
    assert found.anti_cos_l1 == pytest.approx(cosine(negative.T @ whole.x, l1))
    assert found.anti_cos_l2 == pytest.approx(cosine(negative.T @ whole.x, l2))
    silent = told(whole, torch.zeros_like(whole.encoder.W), Fixed(tuple(map(tuple, (0 * signal).tolist()))))
    assert silent.anti_share == 0


@pytest.mark.parametrize("signed", [True, False])
def test_softhebbs_losers_are_its_anti_hebbian_share(signed: bool):
    whole = forward(ReLU(), tied=True)
    rule = SoftHebb(temperature=2.0, signed=signed)
    found = told(whole, torch.zeros_like(whole.encoder.W), rule)
    # Softmax sums to 1 a token: what the winner does not hold is the losers'.
    lost = 1 - torch.softmax(2 * whole.u, 1).max(1).values.mean().item()
    assert found.anti_share == pytest.approx(lost if signed else 0)
    assert lost > 0.1


def test_winners_and_use_are_counted():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    whole = Forward(x, {"encoder": Weights(W, torch.zeros(3))}, ReLU())
    after = Weights(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 3.0]]), torch.tensor([0.0, -0.5, 0.2]))
    diagnosis = Diagnosis(Oja(), torch.tensor([0.1, 0.1, 0.1]))
    diagnosis.add(whole)
    found = diagnosis.result(whole.encoder, after)
    # Highest drives: the first twice, the second once, the third (-0.5, against -1) once. Fired: 2, 1 and 2 times.
    assert found.winner_entropy == pytest.approx(1.5 / math.log2(3))
    assert found.usage_gini == pytest.approx(gini(torch.tensor([2.0, 1.0, 2.0])))
    assert found.norm_distance == pytest.approx(2 / 3)
    assert found.norm_converged == pytest.approx(2 / 3)
    assert found.bias_drift == pytest.approx(-0.1 - 0.1)
    assert found.bias_lowest == pytest.approx(-0.5)


@pytest.mark.parametrize("rule", [Oja(), SoftHebb(temperature=2.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_diagnostics_do_not_depend_on_micro_batches(rule: Rule, tied: bool):
    whole = forward(ReLU(), tied)
    change = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    assert whole.encoder.b is not None
    diagnosis = Diagnosis(rule, whole.encoder.b)
    for begin in range(0, TOKENS, 7):
        diagnosis.add(part(whole, slice(begin, begin + 7)))
    split = dataclasses.asdict(diagnosis.result(whole.encoder, moved(whole.encoder, change)))
    assert split == pytest.approx(dataclasses.asdict(told(whole, change, rule)))


def test_a_run_tells_local_rules_diagnostics_and_no_others(planted: Callable[..., Store]):
    planted()
    small = {"latents": 48, "batch_tokens": 128, "held_out": 256, "steps": 5, "log_every": 2}
    run = train(TrainConfig.from_table(small | {"setups": ["bp", "bp-dec"]}, "test"))
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    local = [record["rule"] for record in records if record["setup"] == "bp-dec" and "rule" in record]
    # The first step and the last: the logged ones between are too few for another.
    assert len(local) == 2
    assert all(set(rule) == {f.name for f in dataclasses.fields(Diagnostics)} for rule in local)
    assert not any("rule" in record for record in records if record["setup"] == "bp")
    assert run.row("bp").rule is None
    assert run.row("bp-dec").rule == pytest.approx(local[-1])
    assert 0 < local[0]["winner_entropy"] <= 1
    assert 0 < local[0]["anti_share"] < 1


def test_both_parts_of_softhebbs_update_are_all_of_it_with_its_decay():
    whole = forward(ReLU(), tied=True, bias=True)
    rule = SoftHebb(temperature=2.0)
    diagnosis = Diagnosis(rule, torch.zeros(LATENTS, dtype=torch.float64))
    diagnosis.add(whole)
    sums = rule.statistics(whole.synapse("encoder"))
    both = diagnosis._sums["hebbian"] + diagnosis._sums["anti"]
    torch.testing.assert_close(both, decayed(sums["sx"], sums["s"], whole.encoder), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, sums["sx"], atol=1e-3)
