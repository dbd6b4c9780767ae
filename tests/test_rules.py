"""What every rule in the folder must be: linear in the batch, pure, finite. Backpropagation and Oja in closed form."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsae import registry
from hsae.forward import Forward
from hsae.learner import Learner, accumulate
from hsae.rules import Part, Rule, State, Weights
from hsae.rules.oja import Oja
from hsae.sae import Variant
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.setup import Setup, resolve, stock

RULES = [registry.find("hsae.rules", name, Rule)() for name in registry.names("hsae.rules")]
VARIANTS = [registry.find("hsae.sae", name, Variant)() for name in registry.names("hsae.sae")]


def forward(tokens: int, seed: int, latents: int = 12, width: int = 5, tied: bool = False) -> Forward:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weights = {"encoder": Weights(torch.randn(latents, width, generator=generator, dtype=torch.float64) * 0.5)}
    weights["encoder"] = Weights(
        weights["encoder"].W, torch.randn(latents, generator=generator, dtype=torch.float64) * 0.1
    )
    if not tied:
        weights["decoder"] = Weights(torch.randn(latents, width, generator=generator, dtype=torch.float64) * 0.5)
    return Forward(x, weights, ReLU(l1=0.3))


def slice_of(whole: Forward, rows: slice) -> Forward:
    weights = {"encoder": whole.encoder} if whole.tied else {"encoder": whole.encoder, "decoder": whole.decoder}
    return Forward(whole.x[rows], weights, whole.variant)


def begun(rule: Rule, whole: Forward, side: str) -> State:
    """A rule's state after one step: before it, a rule may have nothing to go by."""
    weights = whole.encoder if side == "encoder" else whole.decoder
    state = rule.start(weights)
    statistics = rule.statistics(whole.synapse(side, state))
    return rule.step({side: Part(rule, statistics, weights, state)})[side][1]


@pytest.mark.parametrize("rule", RULES, ids=registry.name_of)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(2, 40), cut=st.floats(0.01, 0.99), seed=st.integers(0, 2**16))
def test_statistics_are_linear_in_the_batch(rule: Rule, side: str, tokens: int, cut: float, seed: int):
    whole = forward(tokens, seed)
    at = min(max(1, int(cut * tokens)), tokens - 1)
    if rule.encoder_only and side == "decoder":
        return
    state = begun(rule, whole, side)
    total: dict = {}
    for part in (slice(0, at), slice(at, None)):
        accumulate(total, {side: rule.statistics(slice_of(whole, part).synapse(side, state))})
    for key, value in rule.statistics(whole.synapse(side, state)).items():
        torch.testing.assert_close(total[side][key].double(), value.double())


@pytest.mark.parametrize("rule", RULES, ids=registry.name_of)
def test_a_rule_changes_nothing_that_it_is_given(rule: Rule):
    whole = forward(20, seed=1)
    weights = whole.encoder
    before = [t.clone() for t in (whole.x, whole.u, whole.code, weights.W)]
    state = begun(rule, whole, "encoder")
    kept_state = {key: value.clone() for key, value in state.items()}
    statistics = rule.statistics(whole.synapse("encoder", state))
    kept = {key: value.clone() for key, value in statistics.items()}
    change, _ = rule.step({"encoder": Part(rule, statistics, weights, state)})["encoder"]
    assert bool(torch.isfinite(change.W).all())
    assert change.W.abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, (whole.x, whole.u, whole.code, weights.W), strict=True))
    assert all(torch.equal(kept[key], statistics[key]) for key in kept)
    assert all(torch.equal(kept_state[key], state[key]) for key in state)


@pytest.mark.parametrize("variant", [ReLU(l1=0.3), TopK(k=3)], ids=registry.name_of)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_autograd(variant: Variant, tied: bool):
    hand = forward(30, seed=4, tied=tied)
    hand.variant = variant
    W_enc = hand.encoder.W.clone().requires_grad_()
    assert hand.encoder.b is not None
    b_enc = hand.encoder.b.clone().requires_grad_()
    W_dec = W_enc if tied else hand.decoder.W.clone().requires_grad_()
    u = hand.x @ W_enc.T + b_enc
    if isinstance(variant, TopK):
        kept = u >= u.topk(variant.k, dim=1).values[:, -1:]
        code, cost = torch.relu(u * kept), 0.0
    else:
        code = torch.relu(u)
        cost = 0.3 * code.abs().sum(1).mean() / hand.width
    loss = torch.nn.functional.mse_loss(code @ W_dec, hand.x) + cost
    loss.backward()
    got = hand.synapse("encoder").gradient()
    assert got.b is not None
    torch.testing.assert_close(got.W / 30, W_enc.grad)
    torch.testing.assert_close(got.b / 30, b_enc.grad)
    if not tied:
        torch.testing.assert_close(hand.synapse("decoder").gradient().W / 30, W_dec.grad)


@pytest.mark.parametrize(("clip", "decoder_lr"), [(1.0, 1e-2), (0.01, 1e-2), (0.01, 3e-3)])
def test_backprop_steps_equal_torch_adam_with_clipping_over_the_whole_sae(clip: float, decoder_lr: float):
    rules = {"encoder": {"clip": clip}, "decoder": {"clip": clip, "lr": decoder_lr}}
    setup = resolve(["bp"], {"bp": rules}, "test")["bp"]
    learner = Learner("bp", setup, seed=0, latents=10, centre=torch.zeros(6))
    encoder = torch.nn.Linear(6, 10)
    with torch.no_grad():
        encoder.weight.copy_(learner.weights["encoder"].W)
        encoder.bias.zero_()
    W_dec = torch.nn.Parameter(learner.weights["decoder"].W.clone())
    parameters = [*encoder.parameters(), W_dec]
    adam = torch.optim.Adam([{"params": [*encoder.parameters()]}, {"params": [W_dec], "lr": decoder_lr}], lr=1e-2)
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        x = torch.randn(64, 6, generator=generator)
        statistics: dict = {}
        for block in x.split(20):
            accumulate(statistics, learner.statistics(learner.forward(block)))
        learner.update(statistics)
        code = torch.relu(encoder(x))
        loss = torch.nn.functional.mse_loss(code @ W_dec, x) + 1e-2 * code.sum(1).mean() / 6
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        adam.step()
    torch.testing.assert_close(learner.weights["encoder"].W, encoder.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(learner.weights["encoder"].b, encoder.bias.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(learner.weights["decoder"].W, W_dec.detach(), rtol=1e-4, atol=1e-6)


def test_the_l1_penalty_is_divided_by_the_width():
    code = torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    assert ReLU(l1=0.5).penalty(code, code, width=4).item() == pytest.approx(0.5 * 8 / 4)


def test_topk_keeps_the_highest_positive_drives():
    u = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-5.0, -1.0, -2.0, 0.5]])
    expected = torch.tensor([[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.5]])
    assert torch.equal(TopK(k=2).activate(u), expected)


def test_oja_finds_the_first_principal_component():
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    spread = torch.tensor([2.0, 1.0, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1])
    x = torch.randn(4000, 8, generator=generator) * spread @ basis.T
    first = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    setup = Setup(encoder=Oja(lr=0.05), decoder=None, tied=True)
    learner = Learner("oja", setup, seed=0, latents=3, centre=torch.zeros(8))
    for _ in range(400):
        learner.update(learner.statistics(learner.forward(x)))
    W = learner.weights["encoder"].W
    assert (W @ first).abs().min() > 0.999
    assert (W.norm(dim=1) - 1).abs().max() < 1e-2


def test_setups_under_one_seed_start_from_one_encoder():
    setups = resolve(stock(), {}, "test")
    made = {n: Learner(n, s, 3, 11, torch.zeros(7)).weights["encoder"].W for n, s in setups.items()}
    assert len(made) == len(stock())
    assert all(torch.equal(W, made["bp"]) for W in made.values())
    assert not torch.equal(made["bp"], Learner("bp", setups["bp"], 4, 11, torch.zeros(7)).weights["encoder"].W)


def test_kaiming_is_pytorchs_default_scale():
    setup = dataclasses.replace(resolve(["bp"], {}, "test")["bp"], init="kaiming")
    weights = Learner("bp", setup, 0, 500, torch.zeros(64)).weights["encoder"]
    assert weights.b is not None
    for value in (weights.W, weights.b):
        assert value.abs().max() <= 1 / 8
        assert value.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
