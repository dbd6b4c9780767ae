"""The local rules of `residual-hebb` in closed form: what each signal is made of, and that they learn together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hsae.forward import Forward
from hsae.learner import Learner, Moment, accumulate
from hsae.rules import Weights
from hsae.rules.delta import Delta
from hsae.rules.residual import Residual
from hsae.sae.topk import TopK
from hsae.setup import resolve

# Two inputs, three latents; latents 0 and 1 see one input each, latent 2 the second against the first.
W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
D = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
X = torch.tensor([[2.0, 1.0]])


def forward(k: int = 1, x: torch.Tensor = X) -> Forward:
    return Forward(x, {"encoder": Weights(W, torch.zeros(3)), "decoder": Weights(D)}, TopK(k=k))


def state(rule: Delta, **changes: Any) -> dict[str, Any]:
    return rule.start(Weights(W, torch.zeros(3))) | changes


def test_the_signal_is_the_residual_as_the_winners_feedback_sees_it():
    # Drives 2, 1, -1: latent 0 wins with 2, the reconstruction is (2, 0), the residual (0, 1).
    rule = Delta(runner_up=0.0)
    F = torch.tensor([[0.5, 0.25], [3.0, 3.0], [7.0, 7.0]])
    signal = rule.signal(forward().synapse("encoder", state(rule, feedback=F)))
    assert torch.equal(signal, torch.tensor([[0.25, 0.0, 0.0]]))


@pytest.mark.parametrize(("feedback", "expected"), [("encoder", [0.0, 0.5, 0.0]), ("decoder", [0.0, 0.0, 0.5])])
def test_the_silent_latent_that_the_residual_drives_most_learns_at_its_share(feedback: Any, expected: list[float]):
    # The residual (0, 1) drives the silent latents 1 and 2 by 1 and 1 (encoder: the first wins), or .8 and 1 (decoder).
    rule = Delta(runner_up=0.5, feedback=feedback)
    assert torch.equal(rule.signal(forward().synapse("encoder", state(rule))), torch.tensor([expected]))


def test_a_silent_latent_that_the_residual_inhibits_does_not_learn():
    rule = Delta(runner_up=1.0, feedback="decoder")
    # Residual (0, -1): both silent latents are inhibited.
    x = torch.tensor([[2.0, -1.0]])
    assert torch.equal(rule.signal(forward(x=x).synapse("encoder", state(rule))), torch.zeros(1, 3))


def test_feedback_learns_what_the_decoder_sends_and_never_reads_more():
    rule = Delta(mirror_lr=0.25)
    statistics = rule.statistics(forward().synapse("encoder", state(rule)))
    assert torch.equal(statistics["mirrored"], D)
    _, after = rule.displacement(statistics, Weights(W, torch.zeros(3)), state(rule))
    torch.testing.assert_close(after["feedback"], 0.25 * D)
    _, later = rule.displacement(statistics, Weights(W, torch.zeros(3)), after)
    torch.testing.assert_close(later["feedback"], (1 - 0.75**2) * D)


def test_the_encoder_moves_along_the_decorrelated_input_by_its_rate():
    rule = Delta(lr=0.1, momentum=0.0, homeostasis=0.0, runner_up=0.0, feedback="decoder", ridge=0.5)
    x = torch.tensor([[2.0, 0.5], [1.0, -1.0], [3.0, 1.0]])
    statistics = rule.statistics(forward(k=2, x=x).synapse("encoder", state(rule)))
    weights = Weights(W, torch.zeros(3))
    change, _ = rule.displacement(statistics, weights, state(rule))
    C = x.T @ x / 3
    P = torch.linalg.inv(C + 0.5 * C.diagonal().mean() * torch.eye(2))
    direction = statistics["px"] @ P
    moved = direction.norm(dim=1) > 1e-6
    assert moved.any()
    torch.testing.assert_close(change.W[moved], 0.1 * torch.nn.functional.normalize(direction[moved], dim=1))
    assert change.W[~moved].abs().max() < 1e-6 if bool((~moved).any()) else True


def test_homeostasis_raises_the_silent_and_lowers_the_busy():
    rule = Delta(bias_lr=0.0, homeostasis=0.1, feedback="decoder")
    x = X.repeat(4, 1)
    statistics = rule.statistics(forward(x=x).synapse("encoder", state(rule)))
    change, _ = rule.displacement(statistics, Weights(W, torch.zeros(3)), state(rule))
    # Latent 0 fires on every token, three times the mean rate: 1 - 3 is cut at -1. One input's spread is √((4 + 1)/2).
    torch.testing.assert_close(change.b, 0.1 * 2.5**0.5 * torch.tensor([-1.0, 1.0, 1.0]))


def test_nothing_depends_on_the_scale_of_the_activations():
    changes = []
    for scale in (1.0, 0.02):
        rule = Delta(feedback="decoder")
        x = scale * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        statistics = rule.statistics(forward(k=2, x=x).synapse("encoder", state(rule)))
        change, _ = rule.displacement(statistics, Weights(W, torch.zeros(3)), state(rule))
        residual = Residual()
        sums = residual.statistics(forward(k=2, x=x).synapse("decoder"))
        moved, _ = residual.displacement(sums, Weights(D), residual.start(Weights(D)))
        assert change.b is not None
        changes.append((change.W, change.b / scale, moved.W))
    for one, other in zip(*changes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_dictionary_goes_to_the_mean_residual_across_its_rows():
    # Latent 0 alone wins with 2, the residual is (0, 1): y r = (0, 2), all of it across row (1, 0); y² = 4.
    rule = Residual(lr=0.3, momentum=0.0)
    sums = rule.statistics(forward().synapse("decoder"))
    change, _ = rule.displacement(sums, Weights(D), rule.start(Weights(D)))
    # The rate of row 0: 0.3 / √1 · 2 / (4 + 4/3).
    torch.testing.assert_close(change.W[0], torch.tensor([0.0, 0.3 * 2 / (4 + 4 / 3)]))
    assert torch.equal(change.W[1:], torch.zeros(2, 2))


def test_only_the_part_across_a_row_moves_it():
    rule = Residual(momentum=0.0)
    sums = {"yr": D * 5.0, "yy": torch.ones(3), "fired": torch.tensor(3.0), "tokens": torch.tensor(1.0)}
    change, _ = rule.displacement(sums, Weights(D), rule.start(Weights(D)))
    assert change.W.abs().max() < 1e-6


def test_with_exact_feedback_the_winners_signal_is_the_descent_of_the_error():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    whole = forward(k=2, x=x)
    rule = Delta(runner_up=0.0, feedback="decoder")
    px = rule.statistics(whole.synapse("encoder", state(rule)))["px"]
    torch.testing.assert_close(px, -whole.synapse("encoder").gradient().W * whole.width / 2)


def learn(name: str, x: torch.Tensor, steps: int, **changes: Any) -> tuple[Learner, float]:
    """A setup trained on the same batch again and again, and the share of variance that it explains."""
    setup = resolve([name], {name: {"sae": {"kind": "topk", "k": 2}, **changes}}, "test")[name]
    learner = Learner(name, setup, seed=0, latents=24, centre=x.mean(0))
    for step in range(1, steps + 1):
        moment = Moment(step, steps)
        learner.begin(x, moment, 100)
        total: dict[str, Any] = {}
        for block in x.split(100):
            accumulate(total, learner.statistics(learner.forward(block)))
        learner.update(total, moment)
    error = learner.forward(x).error.square().sum() / (x - x.mean(0)).square().sum()
    return learner, 1 - error.item()


def planted(seed: int = 3) -> torch.Tensor:
    """Tokens that are sums of two of twelve directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    chosen = torch.rand(600, 12, generator=generator).topk(2, dim=1).indices
    code = torch.zeros(600, 12).scatter_(1, chosen, torch.rand(600, 2, generator=generator) + 0.5)
    return code @ directions


def test_it_learns_to_reconstruct_and_its_feedback_becomes_the_decoder():
    learner, explained = learn("residual-hebb", planted(), 150)
    assert explained > 0.9
    F, decoder = learner.state["encoder"]["feedback"], learner.weights["decoder"].W
    assert torch.nn.functional.cosine_similarity(F, decoder).min() > 0.99
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("sae", [{"kind": "relu"}, {"kind": "batchtopk", "k": 2.0}, {"kind": "matryoshka", "k": 2.0}])
def test_it_trains_other_variants_too(sae: dict[str, Any]):
    learner, explained = learn("residual-hebb", planted(), 60, sae=sae)
    assert explained > 0.5
    assert all(bool(torch.isfinite(value).all()) for value in learner.tensors().values())


def test_a_winner_keeps_its_signal_where_no_silent_latent_is_driven():
    rule = Delta(runner_up=0.5)
    F = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, -1.0]])
    signal = rule.signal(forward().synapse("encoder", state(rule, feedback=F)))
    assert torch.equal(signal, torch.tensor([[2.0, 0.0, 0.0]]))


def test_a_latent_that_starts_anew_is_taken_for_an_average_one():
    rule, dead = Delta(), torch.tensor([True, False, False])
    before = state(rule, size=torch.tensor([9.0, 1.0, 3.0]), rate=torch.tensor([0.0, 0.2, 0.4]), px=torch.ones(3, 2))
    after = rule.forget(before, dead, "encoder")
    torch.testing.assert_close(after["size"], torch.tensor([2.0, 1.0, 3.0]))
    torch.testing.assert_close(after["rate"], torch.tensor([0.3, 0.2, 0.4]))
    assert torch.equal(after["px"], torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    assert torch.equal(after["P"], before["P"])
    assert torch.equal(after["xx"], before["xx"])
