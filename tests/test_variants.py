"""The SAE's variants: gradients against autograd of a loss written anew, codes in closed form, scale and sparsity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsae import registry
from hsae.config import build
from hsae.errors import UserError
from hsae.forward import Auxiliary, Forward
from hsae.learner import Learner, Moment, accumulate
from hsae.rules import Weights
from hsae.rules.backprop import Backprop
from hsae.sae import SAE, Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.matryoshka import Matryoshka
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.setup import Setup

NAMES = registry.names("hsae.sae")
TOKENS, LATENTS, WIDTH = 30, 16, 5
# Settings under which every term of the loss weighs in at the size of the numbers here.
STRONG: dict[str, dict[str, Any]] = {
    "relu": {"l1": 0.3},
    "topk": {"k": 3},
    "batchtopk": {"k": 2.5},
    "matryoshka": {"k": 2.5},
    "gated": {"l1": 0.3},
    "jumprelu": {"l0": 0.4, "threshold": 0.3, "bandwidth": 0.5},
}
VARIANTS: list[Variant] = [build(Variant, {"kind": name, **STRONG.get(name, {})}, "test") for name in NAMES]  # pyright: ignore
AUXILIARY = Auxiliary(torch.tensor([2, 5, 7]), k=2, weight=0.7)
Loss = tuple[Tensor, Tensor]


def drawn(variant: Variant, generator: torch.Generator, latents: int = LATENTS) -> dict[str, Tensor]:
    """Parameters near those that training starts from, above them and different for every latent."""
    start = variant.parameters(latents).items()
    return {key: value.double() + 0.5 * torch.rand(value.shape, generator=generator).double() for key, value in start}


def random_sae(variant: Variant, seed: int = 0, scale: float = 1.0, latents: int = LATENTS) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(latents, WIDTH, generator=generator).double() for _ in range(2))
    b_enc, b_dec = (torch.randn(size, generator=generator).double() for size in (latents, WIDTH))
    own = variant.inference(drawn(variant, generator, latents))
    return SAE(W_enc, b_enc, W_dec, b_dec, variant, scale, own)


class Jump(torch.autograd.Function):
    """JumpReLU with equation 11 of arXiv 2407.14435 as its derivative for the threshold."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        z, theta = ctx.saved_tensors
        inside = ((z - theta) / ctx.width).abs() < 0.5
        return gradient * (z > theta), (gradient * -(theta / ctx.width) * inside).sum(0), None


class Step(torch.autograd.Function):
    """Heaviside's step with equation 12 as its derivative for the threshold."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        z, theta = ctx.saved_tensors
        inside = ((z - theta) / ctx.width).abs() < 0.5
        return torch.zeros_like(z), (gradient * -(1 / ctx.width) * inside).sum(0), None


def squared(error: Tensor) -> Tensor:
    return error.square().sum() / WIDTH


def relu_loss(v: ReLU, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    code = torch.relu(u)
    return code, squared(code @ W + b - x) + v.l1 * code.abs().sum() / WIDTH


def topk_loss(v: TopK, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    lowest = u.sort(dim=1, descending=True).values[:, v.k - 1 : v.k]
    code = torch.relu(torch.where(u >= lowest, u, 0.0))
    return code, squared(code @ W + b - x)


def highest_of_batch(u: Tensor, k: float) -> Tensor:
    wanted = round(k * len(u))
    rank = torch.empty(u.numel(), dtype=torch.long)
    rank[u.detach().flatten().argsort(descending=True)] = torch.arange(u.numel())
    return torch.relu(u * (rank < wanted).view(u.shape))


def batchtopk_loss(v: BatchTopK, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    code = highest_of_batch(u, v.k)
    return code, squared(code @ W + b - x)


def matryoshka_loss(v: Matryoshka, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    code = highest_of_batch(u, v.k)
    ends = [1, 2, 4, 8, 16]
    return code, sum(squared(code[:, :end] @ W[:end] + b - x) for end in ends) / len(ends)  # pyright: ignore


def gated_loss(v: Gated, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    code = (u > 0) * torch.relu(own["log_gain"].exp() * u + own["magnitude_bias"])
    gate = torch.relu(u)
    alone = squared(gate @ W.detach() + b.detach() - x)
    return code, squared(code @ W + b - x) + alone + v.l1 * gate.sum() / WIDTH


def jumprelu_loss(v: JumpReLU, u: Tensor, own: Mapping[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> Loss:
    theta = own["log_threshold"].exp()
    code: Tensor = Jump.apply(u, theta, v.bandwidth)  # pyright: ignore
    active: Tensor = Step.apply(u, theta, v.bandwidth)  # pyright: ignore
    return code, squared(code @ W + b - x) + v.l0 * active.sum() / WIDTH


LOSSES: dict[str, Callable[..., Loss]] = {
    "relu": relu_loss,
    "topk": topk_loss,
    "batchtopk": batchtopk_loss,
    "matryoshka": matryoshka_loss,
    "gated": gated_loss,
    "jumprelu": jumprelu_loss,
}


def dead_loss(u: Tensor, code: Tensor, W: Tensor, b: Tensor, x: Tensor, aux: Auxiliary) -> Tensor:
    left = (x - code @ W - b).detach()
    some = u[:, aux.dead]
    kept = some >= some.sort(dim=1, descending=True).values[:, aux.k - 1 : aux.k]
    return aux.weight * squared(torch.relu(some * kept) @ W[aux.dead] - left)


def test_every_variant_has_its_loss_written_anew_here():
    assert sorted(LOSSES) == NAMES


@pytest.mark.parametrize("auxiliary", [None, AUXILIARY], ids=["plain", "auxk"])
@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (False, True)], ids=["tied", "free", "bias"])
@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_gradients_and_loss_equal_autograd(variant: Variant, tied: bool, bias: bool, auxiliary: Auxiliary | None):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5

    x = draw(TOKENS, WIDTH)
    own = drawn(variant, generator)
    encoder = Weights(draw(LATENTS, WIDTH), draw(LATENTS), own)
    decoder = Weights(draw(LATENTS, WIDTH), draw(WIDTH) if bias else None)
    if variant.whole_batch:
        drive = x @ encoder.W.T + encoder.b
        encoder = dataclasses.replace(encoder, extra=variant.settle(lambda floor: drive[drive > floor], TOKENS, own))
    weights = {"encoder": encoder} if tied else {"encoder": encoder, "decoder": decoder}
    forward = Forward(x, weights, variant, auxiliary)

    leaves = {key: value.clone().requires_grad_() for key, value in encoder.items().items()}
    W_dec = leaves["W"] if tied else decoder.W.clone().requires_grad_()
    b_dec = (draw(WIDTH) * 0 if decoder.b is None else decoder.b.clone()).requires_grad_()
    u = x @ leaves["W"].T + leaves["b"]
    code, loss = LOSSES[registry.name_of(variant)](variant, u, leaves, W_dec, b_dec, x)
    if auxiliary is not None:
        loss = loss + dead_loss(u, code, W_dec, b_dec, x, auxiliary)
    loss.backward()

    assert 0.05 < (code > 0).double().mean() < 0.6
    torch.testing.assert_close(forward.code, code.detach())
    torch.testing.assert_close(squared(forward.error) + forward.beside, loss.detach())
    got = forward.synapse("encoder").gradient().items()
    assert set(got) == {"W", "b"} | (set(own) if variant.trained else set())
    for key, value in got.items():
        grad = leaves[key].grad
        assert grad is not None
        assert grad.abs().max() > 0
        torch.testing.assert_close(value, grad)
    if not tied:
        got = forward.synapse("decoder").gradient().items()
        assert set(got) == ({"W", "b"} if bias else {"W"})
        torch.testing.assert_close(got["W"], W_dec.grad)
        if bias:
            torch.testing.assert_close(got["b"], b_dec.grad)


def blocks(u: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    return lambda floor: torch.cat([block[block > floor] for block in u.split(size)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.integers(1, 40),
    k=st.floats(0.01, 6),
    last=st.sampled_from([0.0, 0.01, 0.5, 2.0, 50.0]),
    size=st.integers(1, 40),
    shift=st.floats(-1, 1),
)
@example(seed=0, tokens=1, k=2.0, last=2.0, size=1, shift=0.0)  # above last / 2 are just as many as wanted
@example(seed=0, tokens=1, k=0.01, last=0.0, size=1, shift=0.0)  # k · tokens rounds to 0
def test_the_cut_is_that_of_a_dense_sort(seed: int, tokens: int, k: float, last: float, size: int, shift: float):
    u = torch.randn(tokens, LATENTS, generator=torch.Generator().manual_seed(seed)) + shift
    before = {"threshold": torch.tensor(0.3), "cut": torch.tensor(last)}
    settled = BatchTopK(k=k).settle(blocks(u, size), tokens, before)
    wanted, ordered = max(1, round(k * tokens)), u.flatten().sort(descending=True).values
    code = BatchTopK(k=k).activate(u, settled)
    assert int((code > 0).sum()) == min(wanted, int((u > 0).sum()))
    assert torch.equal(code.flatten().sort(descending=True).values[:wanted], torch.relu(ordered[:wanted]))
    assert torch.equal(code[code > 0], u[code > 0])
    if int((u > 0).sum()) > wanted:
        # Neither is on the cut, where another kernel's last bit would decide.
        assert ordered[wanted] < settled["cut"] < ordered[wanted - 1]


def test_with_fewer_positive_drives_than_wanted_all_of_them_are_active():
    u = torch.tensor([[1.0, -1.0, 0.0], [-2.0, 0.5, -0.1]])
    variant = BatchTopK(k=2.0)
    settled = variant.settle(blocks(u, 1), 2, {"threshold": torch.tensor(9.0), "cut": torch.tensor(9.0)})
    assert torch.equal(variant.activate(u, settled), torch.relu(u))


def test_the_threshold_is_the_running_average_of_the_cuts():
    variant = BatchTopK(k=1.0, memory=0.75)
    parameters = variant.parameters(3)
    for cut in (4.0, 8.0, 2.0):
        u = torch.tensor([[cut, cut / 2, -1.0]])
        parameters = variant.settle(blocks(u, 1), 1, parameters)
        assert parameters["cut"] == 0.75 * cut
    assert parameters["threshold"].item() == pytest.approx(0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 2)
    assert variant.inference(dict(parameters)).keys() == {"threshold"}


def taught(variant: Variant, steps: int, micro: int = 200) -> tuple[Learner, int]:
    """A learner after some steps of backpropagation, and how many latents fired in its last batch, over all tokens."""
    setup = Setup(Backprop(lr=3e-3), Backprop(lr=3e-3), sae=variant)
    learner = Learner("x", setup, seed=0, latents=40, centre=torch.zeros(12))
    generator, fired = torch.Generator().manual_seed(5), 0
    for step in range(1, steps + 1):
        x, fired = torch.randn(200, 12, generator=generator), 0
        moment, statistics = Moment(step, steps), {}
        learner.begin(x, moment, micro)
        for block in x.split(micro):
            forward = learner.forward(block)
            fired += int((forward.code > 0).sum())
            accumulate(statistics, learner.statistics(forward))
        learner.update(statistics, moment)
    return learner, fired


@pytest.mark.parametrize("kind", [BatchTopK, Matryoshka])
def test_training_uses_exactly_k_latents_a_token_whatever_the_micro_batch(kind: type[BatchTopK]):
    for micro in (200, 64, 7):
        assert taught(kind(k=3.5), steps=4, micro=micro)[1] == 700


@pytest.mark.parametrize("kind", [BatchTopK, Matryoshka])
def test_after_training_the_threshold_gives_k_latents_on_new_tokens_one_by_one(kind: type[BatchTopK]):
    sae = taught(kind(k=3.5, memory=0.9), steps=150)[0].sae(1.0)
    x = torch.randn(3000, 12, generator=torch.Generator().manual_seed(77))
    code = sae.encode(x)
    assert (code > 0).sum().item() / len(x) == pytest.approx(3.5, rel=0.1)
    torch.testing.assert_close(sae.encode(x[7]), code[7])


def test_matryoshkas_prefixes_are_shares_of_the_dictionary():
    assert Matryoshka().prefixes(3200) == (200, 400, 800, 1600, 3200)
    assert Matryoshka(shares=(0.01, 0.02, 1.0)).prefixes(40) == (1, 40)
    assert BatchTopK().prefixes(3200) == (3200,)
    assert issubclass(Matryoshka, BatchTopK)


def test_matryoshkas_loss_by_hand():
    one = torch.eye(2)
    x = torch.tensor([[3.0, 4.0]])
    weights = {"encoder": Weights(one, torch.zeros(2), BatchTopK().parameters(2)), "decoder": Weights(one)}
    forward = Forward(x, weights, Matryoshka(shares=(0.5, 1.0)))
    # The first latent alone leaves 4² = 16, both nothing: mean 8, over a width of 2.
    assert forward.error.abs().max() == 0
    assert forward.beside.item() == pytest.approx(16 / 2 / 2)


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (0.5, 2.0)])
def test_matryoshkas_shares_must_rise_to_one(shares: tuple[float, ...]):
    with pytest.raises(UserError, match="shares must be rising, above 0, the last 1"):
        build(Variant, {"kind": "matryoshka", "shares": list(shares)}, "test")  # pyright: ignore


def test_a_gated_code_equals_the_papers_two_paths():
    generator = torch.Generator().manual_seed(1)
    W_gate, r_mag, b_mag, b_gate = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((LATENTS, WIDTH), (LATENTS,), (LATENTS,), (LATENTS,))
    )
    x = torch.randn(200, WIDTH, generator=generator, dtype=torch.float64)
    gate = x @ W_gate.T + b_gate > 0
    magnitude = torch.relu(x @ (W_gate * r_mag.exp()[:, None]).T + b_mag)
    own = {"log_gain": r_mag, "magnitude_bias": b_mag - r_mag.exp() * b_gate}
    sae = SAE(W_gate, b_gate, W_gate, torch.zeros(WIDTH).double(), Gated(), 1.0, own)
    torch.testing.assert_close(sae.encode(x), gate * magnitude)
    assert bool((gate & (magnitude == 0)).any())
    assert bool((~gate & (magnitude > 0)).any())


def test_jumprelu_keeps_drives_strictly_above_their_threshold_as_they_are():
    parameters = {"log_threshold": torch.tensor([0.5, 1.0, 2.0]).log()}
    u = torch.tensor([[0.5, 1.5, 1.5], [0.6, -3.0, 2.5]])
    assert torch.equal(JumpReLU().activate(u, parameters), torch.tensor([[0.0, 1.5, 0.0], [0.6, 0.0, 2.5]]))
    code = torch.tensor([[0.0, 1.5, 0.0], [0.6, 0.0, 2.5]])
    assert JumpReLU(l0=0.5).penalty(u, code, width=4).item() == pytest.approx(0.5 * 3 / 4)
    start = JumpReLU(threshold=0.03).parameters(2)["log_threshold"]
    torch.testing.assert_close(start.exp(), torch.tensor([0.03, 0.03]))


@pytest.mark.parametrize("scale", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_folding_the_scale_keeps_the_function_whatever_the_parameters(variant: Variant, scale: float):
    sae = random_sae(variant, scale=scale)
    x = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(4)).double() / scale
    folded = sae.folded()
    assert folded.scale == 1
    torch.testing.assert_close(folded(x), sae(x))
    torch.testing.assert_close(folded.encode(x) * scale, sae.encode(x))
    assert 0 < (sae.encode(x) > 0).double().mean() < 1


@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_some_latents_are_those_of_the_whole_code_in_the_order_asked_for(variant: Variant):
    sae = random_sae(variant, scale=2.0)
    x = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(4)).double()
    torch.testing.assert_close(sae.encode_latents(x, [9, 0, 3]), sae.encode(x)[:, [9, 0, 3]])


@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_a_variant_is_pointwise_just_when_latents_do_not_see_each_other(variant: Variant):
    sae = random_sae(variant)
    u = torch.randn(200, LATENTS, generator=torch.Generator().manual_seed(4)).double()
    raised = torch.cat([u[:, :4], u[:, 4:] + 5], 1)
    alone = torch.equal(variant.activate(u, sae.parameters)[:, :4], variant.activate(raised, sae.parameters)[:, :4])
    assert alone == variant.pointwise


@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_a_code_is_never_negative_and_0_where_the_drive_is(variant: Variant):
    u = torch.randn(200, LATENTS, generator=torch.Generator().manual_seed(4)) - 2
    own = variant.parameters(LATENTS)
    code = variant.activate(u, variant.settle(blocks(u, 50), len(u), own))
    assert code.min() == 0
    assert code.max() > 0
    assert code[u <= 0].abs().max() == 0


def cost(variant: Variant, u: Tensor) -> float:
    code = variant.activate(u, variant.parameters(LATENTS))
    return variant.penalty(u, code, WIDTH).item()


@pytest.mark.parametrize("variant", VARIANTS, ids=registry.name_of)
def test_sparsity_is_bought_by_a_weighted_penalty_or_set_outright(variant: Variant):
    u = torch.randn(200, LATENTS, generator=torch.Generator().manual_seed(4))
    if variant.penalised:
        assert cost(variant, u) > 0
        assert cost(variant.weighted(3.0), u) == pytest.approx(3 * cost(variant, u))
        assert cost(variant.weighted(0.0), u) == 0
        assert variant.aimed(2.0) == variant
    else:
        assert cost(variant, u) == 0
        assert variant.weighted(3.0) == variant
        aimed = variant.aimed(2.0)
        own = aimed.settle(blocks(u, 50), len(u), aimed.parameters(LATENTS))
        assert (aimed.activate(u, own) > 0).sum().item() / len(u) == pytest.approx(2)


def test_topk_aims_at_a_whole_number_and_batchtopk_at_any():
    assert TopK().aimed(3.4) == TopK(k=3)
    assert TopK().aimed(0.2) == TopK(k=1)
    assert BatchTopK().aimed(3.4) == BatchTopK(k=3.4)
    shares = (0.5, 1.0)
    assert Matryoshka(shares=shares).aimed(3.4) == Matryoshka(k=3.4, shares=shares)


def test_only_trained_variants_have_parameters_that_learn():
    assert {registry.name_of(v) for v in VARIANTS if v.trained} == {"gated", "jumprelu"}
    assert {registry.name_of(v) for v in VARIANTS if v.penalised} == {"relu", "gated", "jumprelu"}
    assert math.isclose(JumpReLU().parameters(1)["log_threshold"].item(), math.log(JumpReLU().threshold), rel_tol=1e-6)
