"""The local rules against sums done by hand, and against what each is known to find."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from bare import bare
from torch import Tensor
from torch.nn.functional import normalize

from hsae import registry
from hsae.learner import accumulate
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import by_latent
from hsae.rules.bcm import BCM
from hsae.rules.hebb import Hebb
from hsae.rules.instar import Instar
from hsae.rules.krotov_hopfield import KrotovHopfield
from hsae.rules.oja import Oja
from hsae.rules.sanger import Sanger, in_order
from hsae.rules.softhebb import SoftHebb
from hsae.rules.subspace import Subspace
from hsae.rules.tied_linear import TiedLinear
from hsae.rules.wta import WTA

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LINEAR = [Hebb, Oja, Sanger, Subspace, TiedLinear, BCM]
# Those that need more than a synapse on its own (tests/test_residual_hebb.py, tests/test_matrix.py have them).
TAUGHT = ("backprop", "delta", "residual")
DEFAULTS = [registry.find("hsae.rules", n, Rule)() for n in registry.names("hsae.rules") if n not in TAUGHT]
OPTIONS: list[Rule] = [
    *(kind(post=post) for kind in LINEAR for post in ("drive", "code")),
    *(KrotovHopfield(form=form, p=p, k=3) for form in ("fast", "exact") for p in (2.0, 3.0)),
    *(Instar(competition=competition, k=3) for competition in ("mask", "soft", "code")),
    *(SoftHebb(p=p, prior_signed=signed) for p in (2.0, 3.0) for signed in (True, False)),
    WTA(),
]


def encoder(x: Tensor, weights: Weights) -> Synapse:
    u = x @ weights.W.T + (0 if weights.b is None else weights.b)
    return bare(x, u, weights)


def decoder(x: Tensor, W: Tensor, u: Tensor) -> Synapse:
    return bare(x, u, Weights(W))


def change(rule: Rule, synapse: Synapse, state: State | None = None) -> Tensor:
    state = rule.start(synapse.weights) if state is None else state
    return rule.displacement(rule.statistics(synapse), synapse.weights, state)[0].W


def learn(rule: Rule, W: Tensor, batches: list[Tensor]) -> Tensor:
    """The weights after a step on each batch, from an encoder without bias."""
    weights = Weights(W, torch.zeros(len(W), dtype=W.dtype))
    state = rule.start(weights)
    for x in batches:
        moved, state = rule.displacement(rule.statistics(encoder(x, weights)), weights, state)
        weights = Weights(weights.W + moved.W, weights.b)
    return weights.W


def gaussian(tokens: int = 4000) -> tuple[Tensor, Tensor]:
    """Data with a clear order of principal components, and these, one per row, the first first."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    spread = torch.tensor([2.0, 1.6, 1.2, 0.8, 0.3, 0.2, 0.1, 0.1])
    x = torch.randn(tokens, 8, generator=generator) * spread @ basis.T
    return x, torch.linalg.eigh(x.T @ x).eigenvectors.T.flip(0)


def clusters(centres: Tensor, batches: int, seed: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = [0.03 * torch.randn(64, centres.shape[1], generator=generator) for _ in range(batches)]
    return [centres[torch.randint(len(centres), (64,), generator=generator)] + n for n in noise]


def centres_and_start() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    centres = normalize(torch.randn(4, 12, generator=generator), dim=1)
    return centres, 0.05 * torch.randn(4, 12, generator=generator) + centres * 0.5


# x = (2, 1) drives the latents by y = (1, 1/2).
X = torch.tensor([[2.0, 1.0]])
W = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
# What each linear rule makes of it, without lr.
HAND = {
    Hebb(lr=1.0, decay=0.0, clamp=0.0): [[2.0, 1.0], [1.0, 0.5]],
    Hebb(lr=1.0, decay=0.5, clamp=0.0): [[1.75, 1.0], [1.0, 0.25]],
    Hebb(lr=1.0, decay=0.0, clamp=0.75): [[0.75, 0.75], [0.75, 0.5]],
    # y_k (x - y_k w_k)
    Oja(lr=1.0): [[1.5, 1.0], [1.0, 0.375]],
    # 1·(x - 1·w_1), then 1/2·(x - 1·w_1 - 1/2·w_2)
    Sanger(lr=1.0): [[1.5, 1.0], [0.75, 0.375]],
    # Wᵀy = (1/2, 1/4), so e = (3/2, 3/4)
    Subspace(lr=1.0): [[1.5, 0.75], [0.75, 0.375]],
    # W e = (3/4, 3/8), and (W e) xᵀ happens to equal y eᵀ
    TiedLinear(lr=1.0): [[3.0, 1.5], [1.5, 0.75]],
    # θ = (1/2, 1/8) after half the way from 0 to y²; y (y - θ) = (1/2, 3/16)
    BCM(lr=1.0, alpha=0.5): [[1.0, 0.5], [0.375, 0.1875]],
}


@pytest.mark.parametrize(("rule", "expected"), HAND.items(), ids=lambda v: str(v) if isinstance(v, Rule) else "")
def test_linear_rules_by_hand(rule: Rule, expected: list[list[float]]):
    hand = torch.tensor(expected)
    torch.testing.assert_close(change(rule, encoder(X, Weights(W))), hand)
    # A mean over tokens, and proportional to lr.
    repeated = encoder(X.repeat(5, 1), Weights(W))
    torch.testing.assert_close(change(dataclasses.replace(rule, lr=0.1), repeated), 0.1 * hand)
    # The drive has no bias in it, whatever the forward's has.
    biased = encoder(X, Weights(W, torch.tensor([-0.75, 3.0])))
    torch.testing.assert_close(change(rule, biased), hand)
    # A decoder's drive is its own, not the encoder's.
    torch.testing.assert_close(change(rule, decoder(X, W, torch.tensor([[-7.0, 9.0]]))), hand)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_linear_rules_on_the_code(kind: type, side: str):
    # With the code (2, 0) in place of the drive.
    hand = {
        Hebb: [[4.0, 2.0], [0.0, 0.0]],
        Oja: [[2.0, 2.0], [0.0, 0.0]],
        Sanger: [[2.0, 2.0], [0.0, 0.0]],
        Subspace: [[2.0, 2.0], [0.0, 0.0]],
        TiedLinear: [[3.0, 2.5], [1.0, 0.5]],  # e = (1, 1), W e = (1/2, 1/2)
        BCM: [[0.0, 0.0], [0.0, 0.0]],  # θ = 2
    }[kind]
    rule = kind(lr=1.0, post="code", **({"decay": 0.0, "clamp": 0.0} if kind is Hebb else {}))
    u = torch.tensor([[2.0, -3.0]])
    synapse = encoder(X, Weights(W, u[0] - torch.tensor([1.0, 0.5]))) if side == "encoder" else decoder(X, W, u)
    state = {"theta": torch.full((2,), 2 - 2 * 0.1 / 0.9)} if kind is BCM else {}
    torch.testing.assert_close(change(rule, synapse, state), torch.tensor(hand))


@pytest.mark.parametrize("rule", OPTIONS, ids=repr)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_statistics_are_linear_in_the_batch_and_the_rules_own(rule: Rule, side: str):
    generator = torch.Generator().manual_seed(4)
    x, W_enc, W_dec = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (30, 12, 12))
    b = torch.randn(12, generator=generator, dtype=torch.float64) * 0.1

    def synapse(rows: slice) -> Synapse:
        whole = encoder(x[rows], Weights(W_enc, b))
        return whole if side == "encoder" else decoder(x[rows], W_dec, whole.u)

    total: dict[str, Statistics] = {}
    for rows in (slice(0, 1), slice(1, 12), slice(12, 30)):
        accumulate(total, {side: rule.statistics(synapse(rows))})
    everything = synapse(slice(0, 30))
    statistics = rule.statistics(everything)
    for key, value in statistics.items():
        torch.testing.assert_close(total[side][key], value)
    # They are added to in place, so they must share no memory with what they were made from.
    given = (everything.x, everything.u, everything.y, everything.weights.W)
    before = [t.clone() for t in given]
    for value in statistics.values():
        value.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


@pytest.mark.parametrize("rule", DEFAULTS, ids=registry.name_of)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("spread", [1.0, 3.0, 0.05])
def test_defaults_stay_finite(rule: Rule, side: str, spread: float):
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(2, 64, 8, generator=generator) / 8**0.5
    fixed = Weights(start[0], rule.bias(64))
    moving = fixed if side == "encoder" else Weights(start[1])
    state = rule.start(moving)
    for _ in range(300):
        x = torch.randn(128, 8, generator=generator) * torch.tensor([spread, *[min(spread, 1.0)] * 7])
        synapse = encoder(x, moving if side == "encoder" else fixed)
        synapse = synapse if side == "encoder" else decoder(x, moving.W, synapse.u)
        moved, state = rule.displacement(rule.statistics(synapse), moving, state)
        moving = moving.plus(moved)
    assert bool(torch.isfinite(moving.W).all())
    assert moving.W.norm(dim=1).max() < 30


def test_hebb_is_bounded_by_clamp_over_decay():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 2
    end = learn(Hebb(lr=0.5, decay=0.1, clamp=0.3), torch.eye(3), [x] * 500)
    assert end.abs().max().item() == pytest.approx(3.0, rel=1e-3)
    free = learn(Hebb(lr=0.5, decay=0.1, clamp=0.0), torch.eye(3), [x] * 50)
    assert free.abs().max() > 1e6


def test_oja_finds_the_first_principal_component():
    x, components = gaussian()
    end = learn(Oja(lr=0.05), torch.randn(3, 8, generator=torch.Generator().manual_seed(3)) / 3, [x] * 400)
    assert (normalize(end, dim=1) @ components[0]).abs().min() > 0.999
    assert (end.norm(dim=1) - 1).abs().max() < 1e-2


def test_sanger_finds_the_principal_components_in_order():
    x, components = gaussian()
    end = learn(Sanger(lr=0.05), torch.randn(4, 8, generator=torch.Generator().manual_seed(3)) / 3, [x] * 800)
    assert (normalize(end, dim=1) * components[:4]).sum(1).abs().min() > 0.99
    assert (end.norm(dim=1) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_sanger_by_chunks_is_the_dense_formula(chunk: int):
    generator = torch.Generator().manual_seed(8)
    x, y, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 5), (9, 7), (7, 5)))
    kept = x.clone()
    dense = y.T @ x - torch.tril(y.T @ y) @ rows
    torch.testing.assert_close(in_order(x, y, rows, chunk), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(in_order(x, y, rows), dense, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


def test_subspace_finds_an_orthonormal_basis_of_the_principal_subspace():
    x, components = gaussian()
    end = learn(Subspace(lr=0.05), torch.randn(3, 8, generator=torch.Generator().manual_seed(3)) / 3, [x] * 800)
    torch.testing.assert_close(end @ end.T, torch.eye(3), rtol=0, atol=1e-3)
    sine = torch.linalg.matrix_norm(end - end @ components[:3].T @ components[:3], ord=2)
    assert math.asin(sine.item()) < 1e-2
    # A basis, not the components themselves: that is Sanger's.
    assert (end * components[:3]).sum(1).abs().min() < 0.95


@pytest.mark.parametrize("latents", [3, 11])
def test_tied_linear_is_autograds_gradient(latents: int):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    parameter = torch.randn(latents, 6, generator=generator, dtype=torch.float64).requires_grad_()
    loss = 0.5 * (x - x @ parameter.T @ parameter).square().sum(1).mean()
    loss.backward()
    got = change(TiedLinear(lr=1.0), encoder(x, Weights(parameter.detach())))
    assert parameter.grad is not None
    torch.testing.assert_close(got, -parameter.grad, rtol=1e-6, atol=1e-9)


def test_tied_linear_reconstructs_by_the_principal_subspace():
    x, components = gaussian()
    end = learn(TiedLinear(lr=0.02), torch.randn(3, 8, generator=torch.Generator().manual_seed(3)) / 3, [x] * 800)
    torch.testing.assert_close(end.T @ end, components[:3].T @ components[:3], rtol=0, atol=1e-2)


def test_bcm_latents_become_selective_for_one_pattern_each():
    patterns = torch.tensor([[1.0, 0.3], [0.2, 1.0]])
    start = torch.tensor([[0.5, 0.3], [0.2, 0.6], [0.4, 0.3]])
    end = learn(BCM(lr=0.05, alpha=0.5), start, [patterns] * 2000)
    # Half of the tokens are answered to, by 2: then θ = E y² = 2, and y (y - θ) = 0 on both.
    torch.testing.assert_close(end @ patterns.T, torch.tensor([[2.0, 0], [0, 2.0], [2.0, 0]]), rtol=0, atol=1e-3)


def test_bcm_threshold_goes_to_the_mean_square():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    rule, weights = BCM(alpha=0.25), Weights(W)
    state = rule.start(weights)
    assert state["theta"].tolist() == [0, 0]
    statistics = rule.statistics(encoder(x, weights))
    square = (x @ W.T).square().mean(0)
    _, once = rule.displacement(statistics, weights, state)
    torch.testing.assert_close(once["theta"], 0.25 * square)
    for _ in range(60):
        _, state = rule.displacement(statistics, weights, state)
    torch.testing.assert_close(state["theta"], square)


# A second token, (0, 3), is won by the second latent: u = (0, 3/2).
TWO = torch.tensor([[2.0, 1.0], [0.0, 3.0]])


def test_wta_by_hand():
    # x - u w of each winner: (2, 1) - 1·(1/2, 0) and (0, 3) - 3/2·(0, 1/2).
    hand = torch.tensor([[1.5, 1.0], [0.0, 2.25]])
    plain = WTA(lr=0.1, adaptive=False)
    torch.testing.assert_close(change(plain, encoder(TWO, Weights(W))), 0.1 * hand / 2.25)
    by_row = dataclasses.replace(plain, normalise="row")
    torch.testing.assert_close(change(by_row, encoder(TWO, Weights(W))), 0.1 * hand / torch.tensor([[1.5], [2.25]]))
    by_mean = dataclasses.replace(plain, normalise="mean")
    torch.testing.assert_close(change(by_mean, encoder(TWO, Weights(W))), 0.1 * hand / 2)
    adaptive = WTA(lr=0.1, power=0.5)
    torch.testing.assert_close(change(adaptive, encoder(TWO, Weights(W))), 0.1 * 0.5**0.5 * hand / 2.25)


def test_wta_bias_and_decoder():
    # With the bias, u = (0, 3/2): the second wins, and the decay is by 3/2.
    rule = WTA(lr=1.0, adaptive=False, normalise="mean")
    hand = torch.tensor([[0.0, 0.0], [2.0, 0.25]])
    torch.testing.assert_close(change(rule, encoder(X, Weights(W, torch.tensor([-1.0, 1.0])))), hand)
    # A decoder's winner is the encoder's, and its decay is by its own drive, 1/2. Ties go to the first.
    hand = torch.tensor([[0.0, 0.0], [2.0, 0.75]])
    torch.testing.assert_close(change(rule, decoder(X, W, torch.tensor([[0.0, 9.0]]))), hand)
    tied = change(rule, decoder(X, W, torch.tensor([[3.0, 3.0]])))
    torch.testing.assert_close(tied, torch.tensor([[1.5, 1.0], [0.0, 0.0]]))


def test_wta_winners_find_the_means_of_clusters_with_unit_rows():
    centres, start = centres_and_start()
    end = learn(WTA(lr=0.02, power=0.5), start, clusters(centres, 400))
    assert (normalize(end, dim=1) * centres).sum(1).min() > 0.99
    assert (end.norm(dim=1) - 1).abs().max() < 0.05


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_sums_by_latent_are_a_one_hot_product(device: str):
    generator = torch.Generator().manual_seed(1)
    x, latent = torch.randn(50, 3, generator=generator), torch.randint(7, (50,), generator=generator)
    one_hot = torch.nn.functional.one_hot(latent, 9).float()
    torch.testing.assert_close(by_latent(x.to(device), latent.to(device), 9).cpu(), one_hot.T @ x)


# u = (2, 1/2, -1) for p = 2, (2, 1/4, -1/2) for p = 3: the first wins, the second follows, the third is last.
THREE = torch.tensor([[1.0, 0.0], [0.0, 0.5], [-0.5, 0.0]])


@pytest.mark.parametrize(
    ("p", "k", "hand"),
    [
        (2.0, 2, [[0.0, 1.0], [-0.8, -0.3], [0.0, 0.0]]),  # x - 2·w_1; -0.4·(x - 1/2·w_2)
        (2.0, 3, [[0.0, 1.0], [0.0, 0.0], [-0.6, -0.4]]),  # -0.4·(x + 1·w_3)
        (2.0, 4, [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]),
        (3.0, 2, [[0.0, 1.0], [-0.8, -0.35], [0.0, 0.0]]),  # -0.4·(x - 1/4·w_2)
    ],
)
def test_krotov_hopfield_fast_by_hand(p: float, k: int, hand: list[list[float]]):
    rule = KrotovHopfield(lr=0.02, p=p, k=k, delta=0.4)
    synapse = encoder(X * 3, Weights(THREE, torch.zeros(3)))
    # The largest entry is scaled away, and with it the length of x.
    torch.testing.assert_close(change(rule, synapse), 0.02 * torch.tensor(hand))
    repeated = encoder(X.repeat(7, 1), Weights(THREE, torch.zeros(3)))
    torch.testing.assert_close(change(rule, repeated), 0.02 * torch.tensor(hand))


def test_krotov_hopfield_fast_moves_the_largest_entry_by_the_rate():
    generator = torch.Generator().manual_seed(3)
    for p in (2.0, 2.5, 4.0):
        rows = torch.randn(20, 6, generator=generator)
        x = torch.randn(90, 6, generator=generator)
        synapse = encoder(x, Weights(rows, torch.zeros(20)))
        u = x @ (rows.sign() * rows.abs() ** (p - 1)).T
        order = u.argsort(dim=1, descending=True)
        g = torch.zeros(90, 20).scatter_(1, order[:, :1], 1.0).scatter_(1, order[:, 2:3], -0.4)
        D = g.T @ x - (g * u).sum(0)[:, None] * rows
        moved = change(KrotovHopfield(p=p, k=3), synapse)
        torch.testing.assert_close(moved, 0.02 * D / D.abs().max(), rtol=1e-4, atol=1e-6)
        assert moved.abs().max().item() == pytest.approx(0.02, rel=1e-5)
        assert moved.abs().argmax() == D.abs().argmax()


def test_krotov_hopfield_exact_by_hand():
    # R^p = 8: 8 x - 2 w_1 and -0.4·(8 x - 1/4·w_2), a mean over tokens and by lr alone.
    hand = torch.tensor([[14.0, 8.0], [-6.4, -3.15], [0.0, 0.0]])
    rule = KrotovHopfield(lr=0.1, form="exact", p=3.0, radius=2.0)
    torch.testing.assert_close(change(rule, encoder(X.repeat(5, 1), Weights(THREE, torch.zeros(3)))), 0.1 * hand)
    with pytest.raises(ValueError, match="radius must be 1 with form fast"):
        KrotovHopfield(radius=2.0)


def test_krotov_hopfield_decoder_is_ranked_by_the_encoder():
    rule = KrotovHopfield(lr=1.0, form="exact", delta=0.5)
    moved = change(rule, decoder(X, THREE, torch.tensor([[0.0, 1.0, 2.0]])))
    # The third wins: x + 1·w_3. The second follows: -1/2·(x - 1/2·w_2).
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0], [-1.0, -0.375], [1.5, 1.0]]))


@pytest.mark.parametrize(("p", "radius"), [(2.0, 1.0), (2.0, 1.5), (3.0, 0.7)])
def test_krotov_hopfield_exact_draws_the_norm_to_the_radius(p: float, radius: float):
    centres, start = centres_and_start()
    rule = KrotovHopfield(lr=0.2, form="exact", p=p, radius=radius, delta=0.1)
    end = learn(rule, start, clusters(centres, 1500))
    assert (end.norm(p=p, dim=1) - radius).abs().max() < 0.02 * radius
    # Where Σ g (R^p x - ⟨w, x⟩ w) is zero, w is along the mean of what it won.
    if p == 2:
        assert (normalize(end, dim=1) * centres).sum(1).min() > 0.98


def test_instar_by_hand():
    # Of the two tokens each latent wins one. x - w:
    first, second = [1.5, 1.0], [0.0, 2.5]
    mask = change(Instar(lr=1.0), encoder(TWO, Weights(W)))
    torch.testing.assert_close(mask, torch.tensor([first, second]))
    by_tokens = change(Instar(lr=1.0, normalise="tokens"), encoder(TWO, Weights(W)))
    torch.testing.assert_close(by_tokens, torch.tensor([first, second]) / 2)
    both = change(Instar(lr=1.0, k=2, normalise="tokens"), encoder(TWO, Weights(W)))
    torch.testing.assert_close(both, TWO.mean(0) - W)
    # One that wins nothing stays; k may be more than there are.
    alone = change(Instar(lr=1.0), encoder(X, Weights(W)))
    torch.testing.assert_close(alone, torch.tensor([first, [0.0, 0.0]]))
    torch.testing.assert_close(change(Instar(lr=1.0, k=9), encoder(X, Weights(W))), X - W)


def test_instar_by_softmax_and_by_code():
    # At temperature 2 ln 3 the softmax of u = (1, 1/2) is (3/4, 1/4).
    away = X - W
    soft = Instar(lr=1.0, competition="soft", temperature=2 * math.log(3), normalise="tokens")
    torch.testing.assert_close(change(soft, encoder(X, Weights(W))), torch.tensor([[0.75], [0.25]]) * away)
    code = Instar(lr=1.0, competition="code", normalise="tokens")
    u = torch.tensor([[3.0, -1.0]])
    torch.testing.assert_close(change(code, decoder(X, W, u)), torch.tensor([[3.0], [0.0]]) * away)
    of_use = Instar(lr=1.0, competition="code")
    torch.testing.assert_close(change(of_use, decoder(X, W, u)), torch.tensor([[1.0], [0.0]]) * away)


def test_instar_finds_the_means_of_clusters():
    centres, start = centres_and_start()
    end = learn(Instar(lr=0.1), start, clusters(centres, 300))
    assert (end - centres).abs().max() < 0.02


# For p = 3 the rule's u on (2, 1) is (1/2, 1/4): at temperature 4 ln 3 the softmax is (3/4, 1/4).
def test_softhebb_with_another_lebesgue_exponent():
    rule = SoftHebb(lr=1.0, temperature=4 * math.log(3), p=3.0, adaptive=False, prior=False, normalise="mean")
    hand = torch.tensor([[0.75 * 1.75, 0.75], [-0.5, -0.25 * 0.875]])
    torch.testing.assert_close(change(rule, encoder(X, Weights(W, torch.zeros(2)))), hand)
    # With the bias, u = (1/2, 1/2): halves, the first wins the tie, and both decay by 1/2.
    hand = torch.tensor([[0.5 * 1.75, 0.5], [-1.0, -0.5 * 0.75]])
    torch.testing.assert_close(change(rule, encoder(X, Weights(W, torch.tensor([0.0, 0.25])))), hand)
    # The rate goes by the p-norm: that of (0.6, 0.8) is 0.728^(1/3), where the 2-norm is 1.
    rows = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    adaptive = SoftHebb(lr=1.0, p=3.0, power=1.0, prior=False)
    moved = change(adaptive, encoder(X, Weights(rows, torch.zeros(2))))
    assert moved.abs().max().item() == pytest.approx(1 - 0.728 ** (1 / 3), rel=1e-4)


def test_softhebb_signed_bias_falls_where_the_unsigned_one_becomes_the_share_of_tokens():
    centres, _ = centres_and_start()
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(torch.tensor([0.6, 0.2, 0.15, 0.05]), 4000, replacement=True, generator=generator)
    x = centres[which] + 0.1 * torch.randn(4000, 12, generator=generator)
    logs = {}
    for signed in (True, False):
        rule = SoftHebb(lr=1.0, temperature=3.0, bias_lr=0.01, adaptive=False, prior_signed=signed)
        weights = Weights(centres, rule.bias(4))
        for _ in range(600):
            moved, _ = rule.displacement(rule.statistics(encoder(x, weights)), weights, {})
            assert weights.b is not None
            assert moved.b is not None
            weights = Weights(centres, weights.b + moved.b)
        assert weights.b is not None
        share = torch.softmax(3 * (x @ centres.T + weights.b), dim=1).mean(0)
        logs[signed] = (3 * weights.b, share.log())
    prior, share = logs[False]
    assert (prior - share).abs().max() < 0.05
    assert prior.min() > -4
    assert logs[True][0].min() < -6


def test_softhebb_unsigned_bias_by_hand():
    # e^(temperature·b) = (1/2, 1/4), Σ y = (3/4, 1/4) over one token: (3/4)/(1/2) - 1 = 1/2, (1/4)/(1/4) - 1 = 0.
    rule = SoftHebb(lr=0.01, temperature=50.0, bias_lr=0.1, adaptive=False, prior_signed=False)
    weights = Weights(torch.zeros(2, 2), torch.tensor([0.5, 0.25]).log() / 50)
    signed, y = torch.tensor([0.75, -0.25]), torch.tensor([0.75, 0.25])
    sums = {"sx": torch.zeros(2, 2), "s": signed, "y": y, "tokens": torch.tensor(1.0)}
    moved, _ = rule.displacement(sums, weights, {})
    assert moved.b is not None
    torch.testing.assert_close(moved.b, 0.01 * 0.1 / 50 * torch.tensor([1.0, 0.0]), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((kind, "lr", 0.0) for kind in (*LINEAR, WTA, KrotovHopfield, Instar)),
        (Hebb, "decay", -1.0),
        (Hebb, "clamp", -1.0),
        (BCM, "alpha", 0.0),
        (BCM, "alpha", 1.1),
        (WTA, "power", -0.1),
        (KrotovHopfield, "p", 0.5),
        (KrotovHopfield, "k", 1),
        (KrotovHopfield, "delta", -0.1),
        (KrotovHopfield, "radius", 0.0),
        (Instar, "k", 0),
        (Instar, "temperature", 0.0),
        (SoftHebb, "p", 0.9),
    ],
)
def test_values_out_of_range_are_refused(kind: type, field: str, value: float):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        kind(**{field: value})
