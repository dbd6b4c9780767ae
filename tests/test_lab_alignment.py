"""`hsae lab alignment`: the probe, the students, the theorems, the report."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hsae import cli
from hsae.alignment import Alignment
from hsae.errors import UserError
from hsae.lab.alignment import EXPERIMENTS, AlignmentConfig, report, saes, theory
from hsae.lab.alignment.job import chapter
from hsae.lab.alignment.plan import Students, units
from hsae.lab.alignment.probe import AlignmentProbe
from hsae.lab.alignment.students import _Bank, train
from hsae.store import Store


def by_hand(signal: Tensor, h_a: Tensor, W: Tensor) -> tuple[float, float, float]:
    """A1, A2, A3 by every sample's outer products."""
    g = torch.stack([torch.outer(s, a) for s, a in zip(signal, h_a, strict=True)])
    H = torch.stack([torch.outer(W @ a, a) for a in h_a])
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in zip(g, H, strict=True)]
    batch = F.cosine_similarity(g.sum(0).flatten(), H.sum(0).flatten(), 0).item()
    return batch, sum(cosines) / len(cosines), (g * H).sum((1, 2)).mean().item()


def slope(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad.clone()


def told(one: Alignment) -> tuple[float | None, ...]:
    return one.batch_cos, one.sample_cos, one.inner


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_the_probe_sees_every_sample(lead: list[int], inputs: int, outputs: int, bias: bool):
    torch.manual_seed(1)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    x, weight = torch.randn(*lead, inputs).double(), torch.randn(*lead, outputs).double()
    with AlignmentProbe(nn.Sequential(layer), ["0"]) as probe:
        (layer(x).tanh() * weight).sum().backward()
        found = probe.step()["0"]
    z = layer(x)
    signal = -(weight * (1 - z.tanh() ** 2)).reshape(-1, outputs).detach()
    wanted = by_hand(signal, x.reshape(-1, inputs), layer.weight.detach())
    assert told(found) == pytest.approx(wanted, abs=1e-5)


def test_the_probe_adds_micro_batches_and_calls():
    torch.manual_seed(2)
    layer, x = nn.Linear(4, 4), torch.randn(12, 4)
    whole, parts, twice = (AlignmentProbe(layer, [""]) for _ in range(3))
    for probe in (parts, twice):
        probe.detach()
    layer(x).square().sum().backward()
    one = whole.step()[""]
    whole.detach()
    with AlignmentProbe(layer, [""]) as parts:
        for part in x.split(5):
            layer(part).square().sum().backward()
        two = parts.step()[""]
    with AlignmentProbe(layer, [""]) as twice:
        (layer(x[:7]).square().sum() + layer(input=x[7:]).square().sum()).backward()
        three = twice.step()[""]
    assert told(one) == pytest.approx(told(two), abs=1e-5)
    assert told(one) == pytest.approx(told(three), abs=1e-5)
    # The signal of ‖h_b + b‖² points against h_b.
    assert one.batch_cos < 0


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_the_optimisers_step_without_its_decay(kind: str):
    torch.manual_seed(3)
    layer, x = nn.Linear(5, 3), torch.randn(20, 5)
    optimiser = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, weight_decay=0.5)
    with AlignmentProbe(layer, [""]) as probe:
        before = layer.weight.detach().clone()
        layer(x).exp().sum().backward()
        gradient = slope(layer.weight)
        optimiser.step()
        found = probe.step(decay=0.1 * 0.5)[""]
        with pytest.raises(UserError, match="no backward pass"):
            probe.step()
    H = before @ (x.T @ x)
    # AdamW's first step is the gradient's sign.
    step = -gradient if kind == "SGD" else -gradient.sign()
    assert found.step_cos == pytest.approx(F.cosine_similarity(step.flatten(), H.flatten(), 0).item(), abs=1e-4)


def test_the_probe_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    with AlignmentProbe(model, ["0", "2"]) as probe:
        for _ in range(3):
            model(torch.randn(4, 3)).sum().backward()
            with torch.no_grad():
                model(torch.randn(9, 3))  # not seen
            probe.step()
    assert not any(m._forward_hooks for m in model)
    assert [len(h) for h in probe.history.values()] == [3, 3]
    last = [one.batch_cos for one in probe.history["2"][-2:]]
    assert probe.mean("2", last=2).batch_cos == pytest.approx(sum(last) / 2)
    for name, words in {"1": "no nn.Linear; there is 0, 2", "fc": "no such module; there is 0, 2"}.items():
        with pytest.raises(UserError, match=words):
            AlignmentProbe(model, [name])
    with pytest.raises(UserError, match="no step"):
        probe.mean("1")


class Net(nn.Module):
    """An MLP with the weights of one of a bank's students."""

    layers: nn.ModuleList

    def __init__(self, bank: _Bank, run: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for o, i in bank.shapes)
        for layer, (W, b) in zip(self.layers, bank._weights(bank.theta), strict=True):
            layer.weight.data, layer.bias.data = W[run].clone(), b[run].clone()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        return self.layers[-1](x)


def measured_weight(net: Net) -> Tensor:
    layer = net.layers[1]
    assert isinstance(layer, nn.Linear)
    return layer.weight


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [("sgd", torch.optim.SGD, 0.5), ("adam", torch.optim.Adam, 0.01), ("adamw", torch.optim.AdamW, 0.01)],
)
def test_students_train_as_torch_does(name: Any, kind: Any, lr: float):
    # Every batch is all the data, so that its order does not count.
    arguments: dict[str, Any] = {"gammas": (0.0, 0.1), "seeds": (3, 4), "optimiser": name, "lr": lr}
    arguments |= {"rows": 64, "batch": 64, "epochs": 4, "window": 2, "points": 4}
    found, bank = train(**arguments)["students"], _Bank(Students(**arguments))
    for i, (gamma, _, seed) in enumerate(bank.runs):
        net, data = Net(bank, i), i % 2
        optimiser = kind(net.parameters(), lr=lr, weight_decay=gamma)
        with AlignmentProbe(net, ["layers.1"]) as probe:
            for _ in range(4):
                norm = measured_weight(net).norm().item()
                optimiser.zero_grad()
                F.mse_loss(net(bank.x[data, :, 0]), bank.y[data, :, 0]).backward()
                optimiser.step()
                probe.step(0.0 if name == "adam" else lr * gamma)
        mean, one = probe.mean("layers.1", last=2), found[i]
        assert mean.inner is not None
        assert (one["gamma"], one["seed"]) == (gamma, seed)
        keys = ("batch_cos", "sample_cos", "step_cos")
        assert [one[k] for k in keys] == pytest.approx([getattr(mean, k) for k in keys], abs=2e-4)
        # The student's loss is a mean over samples; A3 counts a sample's own gradient.
        assert one["inner"] == pytest.approx(64 * mean.inner, rel=1e-3, abs=1e-5)
        assert one["norm"] == pytest.approx(measured_weight(net).norm().item(), rel=1e-4)
        assert one["history"][-1] == pytest.approx([4, probe.history["layers.1"][-1].batch_cos, norm], abs=3e-4)
        held = F.mse_loss(net(bank.x_held[data, :, 0]), bank.y_held[data, :, 0]).item()
        assert one["loss"] == pytest.approx(held, rel=1e-3)


def test_dfa_and_the_random_network_by_hand():
    bank = _Bank(Students((0.0,), rows=300, batch=32, rule="dfa"))
    x, y = bank.x[:, :32], bank.y[:, :32]
    _, gradient, delta = bank._learn(bank.theta, x, y)
    (W1, b1), (W2, b2), (W3, b3) = [(W[0], b[0]) for W, b in bank._weights(bank.theta)]
    h0 = x[0, :, 0]
    h1 = torch.tanh(h0 @ W1.T + b1)
    h2 = torch.tanh(h1 @ W2.T + b2)
    e = 2 * (h2 @ W3.T + b3 - y[0, :, 0]) / (32 * 32)
    deltas = [(e @ bank.feedback[layer, 0]) * (1 - h**2) for layer, h in enumerate((h1, h2))]
    parts = [(deltas[0].T @ h0, deltas[0]), (deltas[1].T @ h1, deltas[1]), (e.T @ h2, e)]
    for (W, b), (dW, d) in zip(bank._weights(gradient), parts, strict=True):
        torch.testing.assert_close(W[0], dW, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(b[0], d.sum(0), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(delta[0], deltas[1], atol=1e-8, rtol=1e-4)
    # Direct feedback: of size 1/√outputs, the same for all runs of a seed, and not the forward weights.
    assert bank.feedback.std().item() == pytest.approx(32**-0.5, rel=0.05)

    bank = _Bank(Students((0.0,), rows=300, batch=32, rule="random", pseudo_error_scale=0.5))
    _, gradient, _ = bank._learn(bank.theta, x, y)
    weights = [t.detach().requires_grad_() for layer in bank._weights(bank.theta) for t in layer]
    out = bank._forward(list(zip(weights[::2], weights[1::2], strict=True)), x.flatten(1, 2)).out
    other = bank._forward(bank._weights(bank.frozen), x.flatten(1, 2)).out
    (out * (0.5 * 2 * (other - y.flatten(1, 2)) / 1024)).sum().backward()
    torch.testing.assert_close(gradient, torch.cat([slope(w).flatten() for w in weights])[None], atol=1e-8, rtol=1e-4)
    assert not torch.equal(bank.frozen, bank.theta)


def test_the_transformer_is_torchs():
    bank = _Bank(Students((0.0,), seeds=(0, 1), task="transformer", activation="relu", rows=80, batch=80))
    weights = bank._weights(bank.theta)
    x = bank.x.flatten(1, 2)
    found = bank._forward(weights, x)
    for run in (0, 1):
        mine = [(W[run], b[run]) for W, b in weights]
        h = bank.x[run]
        for at in (0, 4):
            block = nn.TransformerEncoderLayer(32, 4, 128, 0.0, batch_first=True, norm_first=True)
            attention = block.self_attn
            slots = [
                (attention.in_proj_weight, attention.in_proj_bias),
                (attention.out_proj.weight, attention.out_proj.bias),
                (block.linear1.weight, block.linear1.bias),
                (block.linear2.weight, block.linear2.bias),
            ]
            for (weight, bias), (W, b) in zip(slots, mine[at : at + 4], strict=True):
                weight.data, bias.data = W, b
            h = block(h)
        wanted = F.linear(F.layer_norm(h, (32,)), *mine[8])
        torch.testing.assert_close(found.out[run], wanted.flatten(0, 1), atol=1e-5, rtol=1e-4)
    assert bank.layer == 6
    assert found.z.shape == (2, 80, 128)


def test_noise_is_for_the_passes_alone():
    common: dict[str, Any] = {"gammas": (0.0,), "rows": 64, "batch": 32, "epochs": 2, "lr": 0.0}
    still, noisy = train(**common, sigmas=(0.0, 0.1))["students"]
    assert still["norm"] == noisy["norm"] == still["start_norm"]
    assert still["loss"] == noisy["loss"]
    assert noisy["inner"] < still["inner"] - 1
    # The noise of another seed is another one, and a seed's own data too.
    assert train(**common, seeds=(1,))["students"][0]["loss"] != still["loss"]


def test_what_theory_needs_of_the_final_weights():
    gamma = 0.3
    bank = _Bank(Students((gamma,), activation="linear", rows=50, batch=50, sizes=(50, 4000)))
    found = bank.end(0)
    (W1, b1), (W, b2), (W3, b3) = [(W[0].double(), b[0].double()) for W, b in bank._weights(bank.theta)]
    x, y = bank.x[0, :, 0].double(), bank.y[0, :, 0].double()
    h_a = x @ W1.T + b1
    signal = -2 / 32 * ((h_a @ W.T + b2) @ W3.T + b3 - y) @ W3
    g = signal[:, :, None] * h_a[:, None]
    G, h_b, sigma_a = g.mean(0), h_a @ W.T, h_a.T @ h_a / 50
    assert found["signal"] == pytest.approx(G.norm().item(), rel=1e-3)
    assert found["spread"] == pytest.approx((g - G).square().sum((1, 2)).mean().item(), rel=1e-3)
    assert found["unrest"] == pytest.approx(((G - gamma * W).norm() / (G.norm() + gamma * W.norm())).item(), rel=1e-3)
    assert found["mean_cos"] == pytest.approx(by_hand(signal, h_a, W)[0], abs=1e-4)
    assert found["rest_cos"] == pytest.approx(
        F.cosine_similarity(W.flatten(), (W @ sigma_a).flatten(), 0).item(), abs=1e-4
    )
    limit = gamma * h_b.square().sum(1).mean() / (2 / 32 * W3.square().sum() * sigma_a.square().sum())
    assert found["noise_limit"] == pytest.approx(math.sqrt(limit.item()), rel=1e-3)
    # Large batches, drawn with replacement, have the mean's cosine.
    assert dict(map(tuple, found["sized"]))[4000] == pytest.approx(found["mean_cos"], abs=0.05)


def test_decay_makes_learning_hebbian_and_noise_does_not():
    adam: dict[str, Any] = {"optimiser": "adam", "lr": 1e-3, "rows": 2000}
    calm, decayed = train(gammas=(0.0, 5e-4), epochs=40, **adam)["students"]
    assert abs(calm["batch_cos"]) < 0.2
    assert decayed["batch_cos"] > 0.5
    noisy = train(gammas=(0.0,), sigmas=(0.1,), rows=2000, epochs=20)["students"][0]
    assert noisy["batch_cos"] < -0.15


shapes = st.tuples(st.integers(2, 9), st.integers(1, 7), st.integers(1, 7), st.floats(1e-3, 10))


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_theorems_are_identities(shape: tuple[int, int, int, float]):
    rows, outputs, inputs, gamma = shape
    g = torch.Generator().manual_seed(rows)
    h_a, signal = (torch.randn(rows, n, generator=g).double() for n in (inputs, outputs))
    left, right = theory.weak(torch.randn(rows, outputs, inputs, generator=g).double(), h_a, gamma)
    assert left == pytest.approx(right, rel=1e-9)
    assert left > 0
    left, theorem, covariance = theory.strong(signal, h_a, gamma)
    assert left == pytest.approx(theorem + covariance, rel=1e-9, abs=1e-12)
    assert theorem > 0
    # With ‖h_a‖ constant there is no covariance: the paper's form.
    even = F.normalize(h_a, dim=1)
    left, theorem, covariance = theory.strong(signal, even, gamma)
    assert left == pytest.approx(theorem, rel=1e-9)
    assert abs(covariance) < 1e-9 * theorem + 1e-12
    measured, at_rest = theory.ridge(h_a, signal, gamma)
    assert measured == pytest.approx(at_rest, abs=1e-6)


def test_white_inputs_align_fully_at_rest():
    # With Σ_a = I the weights at rest are the Hebbian direction, at any decay.
    x = torch.linalg.qr(torch.randn(40, 6, generator=torch.Generator().manual_seed(5)).double())[0] * 40**0.5
    assert theory.ridge(x, x[:, :3].tanh(), 1e-4) == pytest.approx((1, 1), abs=1e-9)


@pytest.mark.parametrize(("gamma", "sigma", "outputs"), [(0.1, 0.05, 1), (1.0, 0.0, 1), (0.0, 0.1, 3), (0.4, 0.1, 3)])
def test_alignment_under_noise_by_drawing(gamma: float, sigma: float, outputs: int):
    g, d, n = torch.Generator().manual_seed(0), 6, 400_000
    target = torch.randn(outputs, d, generator=g)
    x, noise = torch.randn(n, d, generator=g), sigma * torch.randn(n, outputs, d, generator=g)
    W = target / (1 + gamma) + noise
    h_b = torch.einsum("noi,ni->no", W, x)
    drawn = ((x @ target.T - h_b) * h_b).sum(1) * x.square().sum(1)
    size = target.square().sum().item()
    wanted = theory.alignment_under_noise(gamma, sigma, size, d, outputs)
    assert wanted == pytest.approx(drawn.mean().item(), abs=4 * drawn.std().item() / n**0.5)
    # 0 on the boundary that the figure draws.
    limit = math.sqrt(size * gamma / (d * outputs)) / (1 + gamma)
    assert theory.alignment_under_noise(gamma, limit, size, d, outputs) == pytest.approx(0, abs=1e-9)


def test_sgd_comes_to_the_closed_form():
    found = theory.descend(gammas=[0.1, 1.0], sigmas=[0.0, 0.1], inputs=8, outputs=2, steps=4000)
    for measured, predicted in zip(found["measured"], found["predicted"], strict=True):
        assert measured == pytest.approx(predicted, abs=0.12)
    assert found["predicted"][0] == pytest.approx([10 * 0.1 / 1.21, 10 * (0.1 / 1.21 - 0.16)])


def student(gamma: float, cosine: float | None, norm: float | None = 1.0) -> dict[str, Any]:
    keys = ("sample_cos", "step_cos", "inner", "unrest", "loss")
    return {"gamma": gamma, "batch_cos": cosine, "norm": norm, "start_norm": 1.0, **dict.fromkeys(keys, 0.0)}


def test_verdicts(tmp_path: Path):
    values = {0.0: (-0.02, 1.0), 5e-5: (0.3, 1.0), 5e-4: (0.7, 1.0), 5e-3: (0.99, 0.05)}
    found = {f"MLP, Adam @ {g:g}": {"students": [student(g, c, n)] * 2} for g, (c, n) in values.items()}
    found["MLP, DFA @ 0.005"] = {"students": [student(5e-3, 0.87, 0.05)]}  # near, but collapsed
    found["MLP, DFA @ 0"] = {"students": [student(0.0, None, None)]}  # diverged
    found["MLP, SGD @ 0"] = {"students": [student(0.0, -0.5), student(0.0, 0.9)]}
    text, numbers = report.sweep(found, tmp_path)
    # The second is too far off; the last collapsed, as in the paper; and one whose interval is wide agrees.
    assert [agrees for *_, agrees in numbers["verdicts"]] == [True, False, True, True, False, False, True]
    assert "| MLP, Adam | -.02 ± .00 (-.02) yes | .30 ± .00 (.10) **no** |" in text
    assert ".99 ± .00 c (–) yes" in text
    assert "| MLP, DFA | .87 c (.87) **no** | – (.45) **no** |" in text
    assert "**4 of 7 cells agree.**" in text
    for cosines, grows in {
        (0.0, 0.1, 0.5): "yes",
        (0.0, 0.0, 0.0): "no",
        (0.0, 0.9, 0.5): "no",
        (0.0, -0.01, 0.5): "yes",
    }.items():
        assert report.grows({float(i): [student(i, c)] for i, c in enumerate(cosines)}) == grows
    assert [report.two(v) for v in (0.123, -0.5, 0.996, 0.0, -1.25)] == [".12", "-.50", "1.00", ".00", "-1.25"]


def test_the_early_bump():
    assert report._peak([-0.2, 0.1, 0.3, -0.1, 0.5, 0.4]) == (2, -0.1)
    assert report._peak([0.0, 0.1, 0.2]) == (0, 0.0)


def test_the_formula_of_the_batch():
    # The mean of B samples: its length² is ‖E g‖² + S/B.
    assert report._formula(3.0, 0.5, 16.0) == pytest.approx(0.3)
    assert report._formula(0.0, 0.5, 0.0) == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[AlignmentConfig, Path]:
    made = AlignmentConfig(scale="tiny", workers=1)
    out = tmp_path_factory.mktemp("alignment")
    chapter(made, out)
    return made, out


def test_the_chapter(tiny: tuple[AlignmentConfig, Path]):
    made, out = tiny
    kept = {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()}
    found = chapter(made, out)
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()}
    assert tuple(found.numbers) == EXPERIMENTS
    assert found.command == "hsae lab alignment --scale tiny"
    for name in ("phase", "time", "batch", "saes"):
        assert f"(alignment-{name}.svg)" in found.body
        assert (out / f"alignment-{name}.svg").exists()
    assert "digits" in found.body
    assert "nan" not in found.body.lower()
    assert found.numbers["sweep"]["of"] == 24
    json.dumps(found.numbers)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path))
    assert cli.run(["lab", "alignment", "theorems", "--scale", "tiny", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "The theorems" in shown
    assert "report.md" in shown
    assert "![" not in shown
    text = (tmp_path / "lab" / "alignment-tiny" / "report.md").read_text()
    assert text.startswith("# Emergent Hebbian alignment")
    assert "    hsae lab alignment theorems --scale tiny" in text


def test_a_store_takes_the_place_of_the_harvest(planted: Callable[..., Store], tmp_path: Path):
    store = planted("given")
    for name in ("given", str(store.folder)):
        made = saes.units(AlignmentConfig(scale="tiny", store=name), tmp_path)
        assert list(made)[:2] == ["none 0", "L2 1e-07"]
        assert {unit.arguments["settings"]["store"] for unit in made.values()} == {str(store.folder.resolve())}
    assert not list(tmp_path.glob("stores/*"))
    with pytest.raises(UserError, match="blocks"):
        saes.units(AlignmentConfig(scale="tiny", store="given", hook="blocks"), tmp_path)
    (hook,) = store.manifest.hooks
    named = saes.units(AlignmentConfig(scale="tiny", store="given", hook=hook), tmp_path)
    assert {unit.arguments["settings"]["hook"] for unit in named.values()} == {hook}
    # Another store's trainings are others, also under the same name.
    shutil.rmtree(store.folder)
    planted("given", sequences=32)
    other = saes.units(AlignmentConfig(scale="tiny", store="given"), tmp_path)
    assert {unit.file for unit in made.values()}.isdisjoint(unit.file for unit in other.values())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["swep"], "swep"),
        (["--gammas", "0.1", "-0.1"], "gammas must be different, from 0 to 1"),
        (["--gammas", "0.1", "0.1"], "gammas must be different, from 0 to 1"),
        (["--batch", "0"], "batch must be 1 or above"),
        (["classification", "--images", "nowhere.zip"], "nowhere.zip: no such file"),
        (["saes", "--store", "nowhere"], "no store 'nowhere'"),
        (["sweep", "--batch", "600"], "a batch of 600 samples"),
    ],
)
def test_mistakes_are_one_line(args: list[str], words: str, cache: Path):
    with pytest.raises(UserError) as error:
        cli.run(["lab", "alignment", *args, "--scale", "tiny", "--workers", "1"])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_every_scale_plans_the_same_units():
    for scale in ("tiny", "small", "full"):
        made = AlignmentConfig(scale=scale)
        planned = {name: units(name, made) for name in EXPERIMENTS if name != "saes"}
        # Ten rows of the paper's four decays, five activations and two slow ones, two optimisers on images.
        assert [len(planned[name]) for name in ("sweep", "activations", "classification")] == [40, 7, 8]
        assert all(unit.name.startswith(f"{name}: ") for name, part in planned.items() for unit in part.values())
    seeds = {row.partition(" @")[0]: len(unit.arguments["seeds"]) for row, unit in planned["sweep"].items()}
    assert set(seeds.values()) == {10}
