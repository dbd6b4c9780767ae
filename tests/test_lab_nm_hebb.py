"""NM-Hebb: its losses and measures by closed forms, its networks by their known sizes, its report end to end."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from hsae.cli import run
from hsae.errors import UserError
from hsae.forward import Forward
from hsae.intervals import Estimate, estimate
from hsae.lab.nm_hebb import NMHebbConfig
from hsae.lab.nm_hebb.backbones import BACKBONES, HOOKED, Basic, ConvNorm, Inverted, hooked, watched
from hsae.lab.nm_hebb.job import chapter, recipes
from hsae.lab.nm_hebb.losses import Gate, consolidation, effect, hebbian_term, pair_loss, partners
from hsae.lab.nm_hebb.measures import haf, hebbian_cosine, high_frequency, lag_one, measured, nmi, selectivity, speckle
from hsae.lab.nm_hebb.phases import Pupil, Recipe, train
from hsae.lab.nm_hebb.report import cell, claims, measures, verdict
from hsae.rules import Weights
from hsae.rules.hebb import Hebb
from hsae.sae.relu import ReLU

RECIPE = Recipe(
    reading="source", gate="monotone", first=1, second=1, lambda_h=1.0, lambda_c=0.01, margin=1.0, mu=1.0, lr=0.05,
    batch=64,
)  # fmt: skip


def trained(**changes: object) -> dict:
    """A small network on the digits."""
    recipe = asdict(replace(RECIPE, **changes))
    return train("", 256, "small", "", 0, "cpu", recipe, False, "")


@pytest.fixture
def pupil() -> Pupil:
    """A small network with four classes of grey noise."""
    torch.manual_seed(3)
    net, y = BACKBONES["small"](1, 4), torch.arange(40) % 4
    return Pupil(net, hooked(net, "small"), Gate("learned", 4), torch.randn(40, 1, 8, 8), y, torch.Generator())


# Networks


@pytest.mark.parametrize(
    ("backbone", "channels", "classes", "parameters"),
    [
        # A convolution k x k of i to o, its batch norm (2 o), and the classifier.
        ("small", 3, 10, 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 65 * 10),
        ("small", 1, 7, 9 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 65 * 7),
        ("resnet18", 3, 10, 11_173_962),
        # torchvision's for 1,000 classes have 11,689,512 and 3,504,872; ResNet's stem there is 7 x 7, here 3 x 3.
        ("resnet18", 3, 1000, 11_689_512 - (49 - 9) * 3 * 64),
        ("mobilenetv2", 3, 1000, 3_504_872),
        ("mobilenetv2", 1, 10, 3_504_872 - 1281 * 990 - 9 * 2 * 32),
    ],
)
def test_sizes(backbone: str, channels: int, classes: int, parameters: int):
    assert sum(p.numel() for p in BACKBONES[backbone](channels, classes).parameters()) == parameters


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_networks_take_small_images(backbone: str, channels: int, size: int):
    net = BACKBONES[backbone](channels, 5).eval()
    with watched(hooked(net, backbone)) as seen:
        pooled, logits = net(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 5)
    assert torch.equal(logits, net.head(pooled))
    # The hooked layers sit where the resolution was halved once, once and thrice.
    assert seen[0][1].shape[-1] == size // {"small": 2, "resnet18": 2, "mobilenetv2": 8}[backbone]
    assert pooled.shape[1] == {"small": 64, "resnet18": 512, "mobilenetv2": 1280}[backbone]


@pytest.mark.parametrize(
    ("backbone", "layer"), [("small", "conv1"), ("resnet18", "layer1.0.conv2"), ("mobilenetv2", "block2.depthwise")]
)
def test_what_is_watched_is_the_relu_of_batch_norm(backbone: str, layer: str):
    torch.manual_seed(1)
    net = BACKBONES[backbone](3, 4)
    conv, x = hooked(net, backbone, layer), torch.randn(4, 3, 16, 16) * 9
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=4)
    with watched(conv) as seen:
        net(x)
    inputs, activation = seen[0]
    raw = functional.conv2d(inputs, conv.weight, stride=conv[0].stride, padding=1, groups=conv[0].groups)
    std, mean = torch.std_mean(raw, (0, 2, 3), keepdim=True, unbiased=False)
    affine = [p.reshape(1, -1, 1, 1) for p in (conv[1].weight, conv[1].bias)]
    wanted = ((raw - mean) / (std.square() + 1e-5).sqrt() * affine[0] + affine[1]).clamp_min(0)
    if backbone == "mobilenetv2":
        assert wanted.max() > 6
        wanted = wanted.clamp_max(6)
    torch.testing.assert_close(activation, wanted, atol=1e-4, rtol=1e-4)
    net(x)
    assert len(seen) == 1  # nothing is watched any longer


def test_blocks_add_their_input_where_sizes_are_the_same():
    x = torch.rand(2, 8, 6, 6)
    for block, narrow in ((Inverted(8, 8, 1, 6), "project"), (Basic(8, 8, 1), "conv2")):
        nn.init.zeros_(block.get_submodule(narrow)[0].weight)
        assert torch.equal(block(x), x)
    assert Inverted(8, 12, 1, 6)(x).shape == (2, 12, 6, 6)
    assert Inverted(8, 8, 2, 1)(x).shape == (2, 8, 3, 3)
    other = Basic(8, 8, 2)
    nn.init.zeros_(other.conv2[0].weight)
    assert torch.equal(other(x), other.shortcut(x).relu())


def test_layers_that_are_not_there():
    net = BACKBONES["resnet18"](3, 10)
    for name, words in (("layer9", "is not there; nearest: layer"), ("layer2.0", "is no convolution there; nearest:")):
        with pytest.raises(UserError, match=rf"layer '{name}' of resnet18: {words}"):
            hooked(net, "resnet18", name)
    with pytest.raises(UserError, match="there is conv1, conv2, conv3"):
        hooked(BACKBONES["small"](3, 10), "small", "pool1")
    assert hooked(net, "resnet18").weight.shape == (128, 64, 3, 3)
    assert hooked(BACKBONES["mobilenetv2"](3, 10), "mobilenetv2", HOOKED["mobilenetv2"]).weight.shape == (960, 1, 3, 3)


# The Hebbian term and its gate


def test_the_hebbian_term_by_hand():
    activation = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).expand(5, 2, 4, 4)
    weight = torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1).expand(2, 3, 3, 3)
    # Differences .5 and 4; centred: -1 - .5 and 1 + 1.
    assert hebbian_term(activation, weight).item() == pytest.approx((0.5**2 + 4**2) / 2)
    assert hebbian_term(activation, weight, "centred").item() == pytest.approx((1.5**2 + 2**2) / 2)
    assert hebbian_term(activation, weight, "local").item() == pytest.approx((0.5**2 + 4**2) / 2)


@pytest.mark.parametrize("reading", ["source", "centred", "local"])
def test_the_hebbian_terms_gradient_by_hand(reading: str):
    generator = torch.Generator().manual_seed(0)
    activation = torch.rand(6, 4, 5, 5, generator=generator, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, generator=generator, requires_grad=True)
    hebbian_term(activation, weight, reading).backward()
    a, w = activation.detach().mean((0, 2, 3)), weight.detach().mean((1, 2, 3))
    gap = (a - a.mean() if reading == "centred" else a) - w
    # 2 / C_out (w̄ - ā) / (C_in k²), the same for all weights of a filter; for activations / (N H W).
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (-2 / 4 * gap / 27).reshape(4, 1, 1, 1).expand_as(weight))
    if reading == "local":
        assert activation.grad is None
    else:
        by_a = 2 / 4 * (gap - gap.mean() if reading == "centred" else gap) / (6 * 25)
        torch.testing.assert_close(activation.grad, by_a.reshape(1, 4, 1, 1).expand_as(activation))


def test_weights_follow_activations_up():
    """The critique of the source's form: no activation is below 0, so every filter's mean weight is pushed up."""
    activation = torch.rand(8, 16, 4, 4)
    for reading, drift in (("source", 1.0), ("centred", 0.0)):
        weight = torch.zeros(16, 3, 3, 3, requires_grad=True)
        hebbian_term(activation, weight, reading).backward()
        assert weight.grad is not None
        step = -weight.grad.mean((1, 2, 3))
        assert (step > 0).double().mean() == 1 if drift else step.mean().abs() < 1e-8


def test_the_learned_gate_can_only_close():
    """∂L/∂ν is the penalty, which is never below 0: φ that descends L takes ν to 0, step by step."""
    torch.manual_seed(0)
    gate, ce = Gate("learned", 10), torch.tensor(2.0, requires_grad=True)
    nu = gate(ce).detach().requires_grad_()
    (slope,) = torch.autograd.grad(gate.gated(nu, torch.tensor(0.3)), nu)
    assert slope.item() == pytest.approx(0.3)
    descent, path = torch.optim.SGD(gate.parameters(), 1.0), []
    for _ in range(150):
        descent.zero_grad()
        path.append(gate(ce))
        gate.gated(path[-1], torch.tensor(0.3)).backward()
        descent.step()
    assert all(b < a for a, b in itertools.pairwise(path))
    assert path[-1] < 0.02
    assert ce.grad is None  # nothing flows into the cross-entropy


def test_the_prior_keeps_the_gate_open():
    """λ R ν (1 - ν) = strength (prior - ν) at the optimum, here .3 ν² - .4 ν + .05 = 0."""
    torch.manual_seed(0)
    gate, ce, penalty = Gate("prior", 10, prior=0.5, strength=0.1), torch.tensor(1.0), torch.tensor(0.3)
    assert gate.gated(torch.tensor(0.5), penalty).item() == pytest.approx(0.15 + 0.1 * math.log(2))
    descent = torch.optim.Adam(gate.parameters(), 0.02)
    for _ in range(800):
        descent.zero_grad()
        gate.gated(gate(ce), penalty).backward()
        descent.step()
    nu = gate(ce).item()
    assert 0.3 * nu * (1 - nu) == pytest.approx(0.1 * (0.5 - nu), abs=1e-4)
    assert nu == pytest.approx((0.4 - math.sqrt(0.1)) / 0.6, abs=1e-3)


def test_the_monotone_gate_rises_with_the_loss_and_does_not_learn():
    gate = Gate("monotone", 10)
    nus = [gate(torch.tensor(ce)).item() for ce in (0.0, 0.5, math.log(10) / 2, 2.0, 5.0)]
    assert nus == sorted(nus)
    assert nus[2] == pytest.approx(0.5)
    assert nus[0] < 0.1 < 0.9 < nus[-1]
    assert not any(p.requires_grad for p in gate.parameters())
    assert Gate("constant", 10)(torch.tensor(3.0)).item() == 0.5
    assert sum(p.numel() for p in gate.parameters()) == 8 + 8 + 8 + 1


def test_the_meta_gate_learns_from_what_the_penalty_does_to_images_set_aside():
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))
    penalty, held = (theta * torch.tensor([1.0, 3.0])).sum(), (theta * torch.tensor([2.0, -1.0])).sum()
    other = nn.Parameter(torch.tensor(0.0))
    # Descending the penalty moves θ by -(1, 3), which changes the loss by -(2 - 3) = 1 for a rate of 1.
    assert effect(penalty, held, [theta, other]) == pytest.approx(1.0)
    for known, sign in ((1.0, -1), (-1.0, 1)):
        torch.manual_seed(0)
        gate, ce = Gate("meta", 10), torch.tensor(1.0)
        before = gate(ce)
        term = gate.gated(before, torch.tensor(5.0), known)
        assert term.item() == pytest.approx(5 * before.item())
        term.backward()
        with torch.no_grad():
            for p in gate.parameters():
                p -= 0.1 * p.grad
        assert (gate(ce) - before).sign().item() == sign


# Pairs and consolidation


def test_the_pair_loss_and_its_gradient_by_hand():
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0], [1.0, 1.0]], dtype=torch.float64)
    same = torch.tensor([True, False, False, True])
    # 25 for the same class at distance 5; (2 - .5)² within the margin; 0 beyond it; 0 for equal points.
    loss = pair_loss(z, other, same, 2.0)
    assert loss.item() == pytest.approx((25 + 2.25) / 4)
    loss.backward()
    # 2 (z - z') / 4 for the same; 2 (m - d) (z' - z) / d / 4 for the others: away from each other.
    wanted = [[-1.5, -2.0], [2 * 1.5 * 0.6 / 4, 2 * 1.5 * 0.8 / 4], [0, 0], [0, 0]]
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor(wanted, dtype=torch.float64))


def test_consolidation_by_hand():
    now = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    loss = consolidation(now, [torch.tensor([0.0, 2.0]), torch.tensor([[1.0]])])
    assert loss.item() == pytest.approx(0.5 * (1 + 4))
    loss.backward()
    assert [p.grad.tolist() for p in now] == [[1.0, 0.0], [[2.0]]]


def test_pairs_are_balanced_and_drawn_evenly():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 3, 0])
    generator = torch.Generator().manual_seed(0)
    anchors = torch.arange(9).repeat_interleave(2).repeat(3000)  # each as a same pair, then as another
    others, same = partners(anchors, labels, generator)
    assert same.tolist() == [True, False] * 27000
    assert torch.equal(labels[anchors] == labels[others], same)
    for image, label in enumerate(labels.tolist()):
        alone = label in (1, 3)
        for wanted in (True, False):
            got = others[(anchors == image) & (same == wanted)].bincount(minlength=9)
            open_to = ((labels == label) == wanted) & ((torch.arange(9) != image) | alone)
            assert (got > 0).tolist() == open_to.tolist()
            even = 3000 / open_to.sum()
            assert (got[open_to] - even).abs().max() < 5 * even.sqrt()


# Measures


def test_frequencies_of_known_kernels():
    constant, board = torch.ones(1, 2, 3, 3), (-1.0) ** (torch.arange(9).reshape(1, 1, 3, 3))
    # Of the checkerboard the mean is 1/9 around the centre and 0 around all others.
    assert high_frequency(constant).item() == 0
    assert high_frequency(board).item() == pytest.approx((8 + (8 / 9) ** 2) / 9)
    assert lag_one(constant).item() == 1
    ramp = torch.arange(3.0).expand(1, 1, 3, 3)
    # Of -1 0 1 in each row, 6 pairs one above the other have products 1 0 1, and 6 side by side 0.
    squares = 6 * 2 / 3 + 6 * (1 + 0) / 2
    assert lag_one(ramp).item() == pytest.approx(4 / squares)
    assert speckle(torch.cat([constant[:, :1], board, ramp])) == pytest.approx(1 / 3)
    assert speckle(torch.ones(4, 2, 1, 1)) is None
    # A mean hides the checkerboard from the first criterion; taking it away shows it.
    hidden = board + 5
    assert (speckle(hidden), speckle(hidden - hidden.mean())) == (0, 1)


def test_white_noise_is_speckle():
    noise = torch.randn(400, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert speckle(noise) > 0.8


def test_selectivity_and_haf_of_known_tables():
    means = torch.tensor([[4.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    assert selectivity(means).tolist() == pytest.approx([3 / 5, 0, 0, 1])
    a, w = torch.tensor([1.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, -1.0, 0.0, 1.0])
    assert haf(a, w).tolist() == pytest.approx([1, 0, 1, 0.5])


def test_nmi_of_perfect_and_of_useless_embeddings():
    labels = torch.arange(60) % 3
    at = functional.one_hot((labels + 1) % 3).float()  # clusters are found under other names
    assert nmi(at + 0.01 * torch.rand(60, 3, generator=torch.Generator().manual_seed(0)), labels) == pytest.approx(1)
    assert nmi(torch.rand(60, 2, generator=torch.Generator().manual_seed(0)), labels) < 0.2


@pytest.mark.parametrize("groups", [1, 4])
def test_the_step_is_held_against_hebbs_rule(groups: int):
    """The Hebbian direction is what `hsae.rules` has for patches, filter by filter; R's is the same for all weights."""
    torch.manual_seed(2)
    conv = ConvNorm(4, 8, stride=2, groups=groups)
    x, y = torch.randn(5, 4, 6, 6), torch.rand(5, 8, 3, 3)
    patches = functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(45, 4, 9)
    cosines = []
    for f in range(8):
        seen = patches if groups == 1 else patches[:, [f // 2]]
        seen, code = seen.reshape(45, -1), y[:, f].reshape(45, 1)
        forward = Forward(seen, {"encoder": Weights(torch.zeros(1, seen.shape[1]), torch.zeros(1))}, ReLU())
        forward.__dict__["u"] = code  # the rule's other side is our activation
        rule = Hebb(decay=0.0, clamp=0.0)
        hebb, _ = rule.displacement(rule.statistics(forward.synapse("encoder")), forward.encoder, {})
        weight = conv.weight[f].detach().requires_grad_()
        hebbian_term(y[:, [f]], weight[None]).backward()
        assert weight.grad is not None
        cosines.append(functional.cosine_similarity(hebb.W[0], -weight.grad.flatten(), dim=0))
    assert hebbian_cosine(conv, x, y) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)


def test_what_is_measured_is_that_of_the_test_images(pupil: Pupil):
    found, z = measured(pupil.net, pupil.conv, pupil.x, pupil.y)
    pooled, logits = pupil.net(pupil.x)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == pupil.y).float().mean().item())
    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, pupil.y).item(), rel=1e-5)
    torch.testing.assert_close(z, pooled / pooled.norm(dim=1, keepdim=True))
    with watched(pupil.conv) as seen:
        pupil.net(pupil.x)
    assert found["term"] == pytest.approx(hebbian_term(seen[0][1], pupil.conv.weight).item(), rel=1e-4)
    assert found["activation"] == pytest.approx(seen[0][1].mean().item(), rel=1e-5)


# Phases


def test_the_losses_of_both_phases(pupil: Pupil):
    """Phase 1 is CE + λ_h ν R; phase 2 is pairs + μ CE + λ_c ν L_cons, with nothing moved yet."""
    recipe = replace(RECIPE, gate="learned", lambda_h=2.0, mu=0.5, margin=0.7)
    loss, (ce, term, nu) = next(pupil.first(recipe, [torch.arange(40)], torch.arange(0)))
    assert loss.item() == pytest.approx((ce + 2 * nu * term).item(), rel=1e-6)
    pairs = []
    for mu, margin in ((0.5, 0.7), (0.0, 0.7), (0.0, 0.0)):
        pupil.chance.manual_seed(0)
        loss, (ce, moved, nu) = next(pupil.second(replace(recipe, mu=mu, margin=margin), [torch.arange(40)]))
        assert moved.item() == 0
        pairs.append(loss.item() - mu * ce.item())
    assert pairs[0] == pytest.approx(pairs[1], abs=1e-5)
    # The same pairs, drawn again by hand; with a margin of 0 only those of the same class count.
    pupil.chance.manual_seed(0)
    others, same = partners(torch.arange(20), pupil.y, pupil.chance)
    x, y = pupil.shown(torch.cat([torch.arange(20), others]))
    assert torch.equal(y, pupil.y[torch.cat([torch.arange(20), others])])
    z, other = functional.normalize(pupil.net(x)[0]).chunk(2)
    assert pairs[1:] == pytest.approx([pair_loss(z, other, same, margin).item() for margin in (0.7, 0.0)], abs=1e-5)
    plain = replace(recipe, reading="none")
    loss, (ce, _, _) = next(pupil.first(plain, [torch.arange(40)], torch.arange(0)))
    assert loss.item() == ce.item()


def test_batches_are_whole_and_hold_every_image_once(pupil: Pupil):
    batches = pupil.batches(torch.arange(40), 2, 10)
    assert [len(batch) for batch in batches] == [10] * 8
    for epoch in (batches[:4], batches[4:]):
        assert torch.cat(epoch).sort()[0].tolist() == list(range(40))
    assert [len(batch) for batch in pupil.batches(torch.arange(40), 2, 64)] == [40, 40]


def test_images_are_shifted_and_colour_is_mirrored(pupil: Pupil):
    x, y = pupil.shown(torch.tensor([5, 7]))
    assert y.tolist() == [1, 3]
    padded = functional.pad(pupil.x[[5, 7]], [1] * 4)
    assert any(torch.equal(x, padded[..., i : i + 8, j : j + 8]) for i in range(3) for j in range(3))
    colour = replace(pupil, x=torch.arange(8.0).expand(40, 3, 8, 8))
    first = torch.cat([colour.shown(torch.arange(40))[0][:, 0, 4, 3] for _ in range(10)])
    assert 0.3 < (first > 3.5).float().mean() < 0.7  # 2, 3 or 4; mirrored 3, 4 or 5


def test_training_learns_and_is_the_same_again():
    once = trained(first=3, second=1)
    assert once["second"]["accuracy"] > 0.5
    assert once == trained(first=3, second=1)
    assert once["curves"][0][-1][0] < once["curves"][0][0][0]
    assert len(once["curves"][0]) == 12
    assert len(once["curves"][1]) == 4
    # The sample in phase 1 begins at the same ν, and R falls with the term, more than without.
    none = trained(first=3, second=0, reading="none")
    much = trained(first=3, second=0, lambda_h=20.0)
    assert much["first"]["term"] < none["first"]["term"] / 2
    assert "second" not in none


def test_weights_alone_follow_in_the_local_reading():
    none, local, source = (
        trained(first=2, second=0, reading=reading, lambda_h=200.0)["first"] for reading in ("none", "local", "source")
    )
    assert local["weight"] > none["weight"] + 0.02
    assert local["activation"] > source["activation"] * 2
    assert source["weight"] < none["weight"] + 0.01


def test_consolidation_holds_weights_back():
    assert trained(lambda_c=20.0)["moved"] < trained(lambda_c=0.0)["moved"] / 2


def test_a_training_that_diverges_says_so():
    with pytest.raises(UserError, match="a training diverged: smaller --lambda-h"):
        trained(lambda_h=1e30, second=0)


def test_the_meta_gate_trains():
    nus = [row[2] for row in trained(gate="meta", first=4, second=0, batch=32)["curves"][0]]
    assert len(nus) == 4 * 7  # a tenth of 256 images is set aside: seven batches an epoch
    assert nus[0] != nus[-1]


# The report


def made(value: float) -> dict:
    names = ("accuracy", "loss", "nmi", "selectivity", "speckle", "speckle_centred", "haf", "term", "activation")
    first = dict.fromkeys((*names, "weight", "hebb"), value)
    return {"first": first, "second": first | {"nmi": value + 0.1}, "curves": [[[1.0, 0.1, 0.6], [0.5, 0.2, 0.4]]]}


def test_measures_are_of_the_end_unless_another_time_is_named():
    names = ("accuracy", "loss", "nmi", "selectivity", "speckle", "speckle_centred", "haf", "term", "activation")
    first = {name: float(i) for i, name in enumerate((*names, "weight", "hebb"))}
    run = {"first": first, "curves": [[[1.0, 0.1, 0.6], [0.5, 0.2, 0.4]], [[1.0, 0.1, 0.3]]]}
    found = measures(run | {"second": {name: value + 20 for name, value in first.items()}, "moved": 0.25})
    heads = (
        "accuracy",
        "test CE",
        "NMI",
        "selectivity",
        "speckle",
        "speckle less means",
        "HAF",
        "R",
        "ā",
        "w̄",
        "cos Hebb",
    )
    wanted = {head: i + 20.0 for i, head in enumerate(heads)} | {"test CE after phase 1": 1.0, "NMI after phase 1": 2.0}
    gates = {"ν, at first": 0.6, "ν, end of phase 1": 0.4, "ν, end of phase 2": 0.3}
    assert found == wanted | gates | {"‖θ - θ⁻‖ / ‖θ⁻‖": 0.25}
    assert measures(run)["NMI"] == 2


def test_verdicts():
    inf = math.inf
    assert verdict(estimate([0.10, 0.11, 0.12]), 0.07, 0.15) == "agrees"
    assert verdict(estimate([0.04, 0.05, 0.06]), 0.07, 0.15) == "agrees"  # ± .025
    assert verdict(estimate([0.01, 0.02, 0.015]), 0.07, 0.15) == "**disagrees**"
    assert verdict(estimate([0.30, 0.31, 0.32]), 0.07, 0.15) == "**disagrees**"
    assert verdict(estimate([0.0, 0.1, 0.2]), 0.07, 0.15) == "undecided"
    assert verdict(estimate([-0.3, -0.2, -0.25]), -inf, 0.0) == "agrees"
    assert verdict(estimate([-0.3, -0.2, -0.25]), 0.0, inf) == "**disagrees**"
    assert verdict(estimate([1.0]), 0.0, inf) == "one seed"
    assert verdict(None, 0.0, inf) == "not measured"


def test_cells():
    assert cell(Estimate(3, 0.5678, 0.1, 0.0123)) == ".568 ± .012"
    assert cell(Estimate(3, -0.5678, 0.1, 1.5)) == "-.568 ± 1.500"
    assert cell(Estimate(1, 56.78)) == "56.8"
    assert cell(None) == "–"


def test_claims_compare_seed_by_seed():
    arms = {
        "phases 1, 2": [0.5, 0.7, 0.9],
        "plain": [0.4, 0.59, 0.81],
        "phase 1": [0.5] * 3,
        "plain, phase 2": [0.5] * 3,
    }
    found = claims({"comparison": {label: [made(v) for v in values] for label, values in arms.items()}})
    assert len(found) == 5
    first = found[0] | {}
    assert (first["compared"], first["in"], first["here"][:4]) == ("phases 1, 2 - plain", "accuracy", ".100")


def test_recipes_see_as_many_images_each():
    settings = NMHebbConfig(scale="full", reading="local", margin=0.5)
    parts = recipes(settings)
    assert list(parts) == ["comparison", "sanity", "gate", "margin", "consolidation"]
    every = [recipe for part in parts.values() for recipe in part.values()]
    assert {recipe.first + recipe.second for recipe in every} == {140}
    assert parts["comparison"]["phases 1, 2"].reading == "local"
    assert parts["margin"]["0.5"] == parts["comparison"]["phases 1, 2"]
    assert [r.lambda_c for r in parts["consolidation"].values()] == [0.01, 0, 0.01, 0]
    assert [r.mu for r in parts["consolidation"].values()] == [1, 1, 0, 0]


def test_the_chapter_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["lab", "nm-hebb", "comparison", "sanity", "gate", "--scale", "tiny", "--workers", "1", "--device", "cpu"]
    assert run([*words, "--out", str(tmp_path), "--epochs", "1", "1"]) == 0
    said = capsys.readouterr().out
    assert "report.md" in said
    text = (tmp_path / "report.md").read_text()
    assert "24,058 parameters" in text
    assert "one seed" in text
    for name in ("comparison", "sanity", "gate"):
        assert f"(nm-hebb-small-{name}.svg)" in text
        assert (tmp_path / f"nm-hebb-small-{name}.svg").stat().st_size > 1000
    numbers = json.loads((tmp_path / "report.json").read_text())["NM-Hebb"]
    plain = numbers["small"]["measures"]["comparison"]["plain"][0]
    assert f"| accuracy | {cell(Estimate(1, plain['accuracy']))} |" in text
    assert "margin" not in numbers["small"]["measures"]
    before = {file.name for file in (tmp_path / "units").iterdir()}
    run([*words, "--out", str(tmp_path), "--epochs", "1", "1"])
    assert {file.name for file in (tmp_path / "units").iterdir()} == before
    assert (tmp_path / "report.md").read_text() == text


def test_mistakes_are_one_line(tmp_path: Path):
    for i, kind in enumerate("aabb"):
        (tmp_path / "six" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 6), i).save(tmp_path / "six" / kind / f"{i}.png")
    for settings, words in (
        (NMHebbConfig(images=str(tmp_path / "none")), "no such file or folder"),
        (NMHebbConfig(images=str(tmp_path / "six")), "images of 9 x 6; at least 8 x 8"),
        (NMHebbConfig(layer="layer2.0.conv1"), "layer 'layer2.0.conv1' of small: is not there"),
    ):
        with pytest.raises(UserError, match=words) as error:
            chapter(settings, tmp_path)
        assert "\n" not in str(error.value)
    for flags, words in (
        (["moon"], "parts must be a part .there is comparison"),
        (["--epochs", "3"], "epochs must be two, above 0"),
        (["--gate", "open"], "gate"),
        (["--margin", "-1"], "margin must be 0 or above"),
        (["--device", "abacus"], "device 'abacus' is not there"),
    ):
        with pytest.raises(UserError, match=words):
            run(["lab", "nm-hebb", *flags, "--scale", "tiny", "--out", str(tmp_path)])
