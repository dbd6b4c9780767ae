"""Alignment with the Hebbian direction: the estimators, the probe of a training, and the decay that it is made for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import Cut, CutAt
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hsae import config as configs
from hsae import registry
from hsae.alignment import Alignment, batch_cosine, cosines, dots, inner, measured, sample_cosine
from hsae.errors import UserError
from hsae.graph import StepGraph
from hsae.inspect.tables import run_tables
from hsae.lab.alignment.saes import trained
from hsae.lab.alignment.saes_report import drift, values
from hsae.learner import Learner, Moment, accumulate
from hsae.loop import PROBED
from hsae.probe import AlignmentProbe, Seen
from hsae.record import Row
from hsae.reporting import numbers
from hsae.rules import Weights
from hsae.rules.backprop import Backprop
from hsae.run import Run
from hsae.sae import Variant
from hsae.setup import resolve
from hsae.start import initial_weights
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
SMALL = {"latents": 48, "batch_tokens": 128, "held_out": 256, "steps": 4, "log_every": 2, "baselines": False}
EVERY = ["bp", "bp-tied", "bp-dec", "hebb-tied", "residual-hebb"]
LATENTS, WIDTH, TOKENS = 40, 16, 30


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_table(SMALL | changes, "test")


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def matrices(outers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Each sample's matrix, written out."""
    return torch.stack([torch.einsum("so,si->soi", left, right) for left, right in outers]).sum(0)


def cos(a: Tensor, b: Tensor) -> float:
    return (torch.sum(a * b) / a.norm() / b.norm()).item()


# The estimators.


def test_the_estimators_are_those_of_every_samples_matrix():
    signal, h_b, h_a = draw((7, 3), (7, 3), (7, 5))
    g, H = matrices([(signal, h_a)]), matrices([(h_b, h_a)])
    each = [cos(g[n], H[n]) for n in range(7)]
    assert batch_cosine(g.sum(0), H.sum(0)) == pytest.approx(cos(g.mean(0), H.mean(0)))
    assert sample_cosine(signal, h_b) == pytest.approx(sum(each) / 7)
    assert inner(signal, h_b, h_a) == pytest.approx((g * H).sum().item() / 7)
    found = measured(signal, h_b, h_a)
    assert found.batch_cos == pytest.approx(cos(g.sum(0), H.sum(0)))
    assert (found.sample_cos, found.inner) == (sample_cosine(signal, h_b), inner(signal, h_b, h_a))
    # ⟨g_n, H_n⟩ = (s_n · h_b,n) ‖h_a,n‖²
    assert found.inner == pytest.approx(((signal * h_b).sum(1) * h_a.square().sum(1)).mean().item())


def test_sums_of_outer_products_are_compared_without_their_matrices():
    a, b, c, d, e, f = draw((6, 4), (6, 3), (6, 4), (6, 3), (6, 4), (6, 3))
    one, other = [(a, b), (c, d)], [(e, f), (a, d), (c, b)]
    A, B = matrices(one), matrices(other)
    assert dots(one, other).tolist() == pytest.approx((A * B).sum((1, 2)).tolist())
    assert cosines(one, other).tolist() == pytest.approx([cos(A[n], B[n]) for n in range(6)])


def test_what_is_zero_points_nowhere_and_stays_in_the_mean():
    signal, h_b = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert sample_cosine(signal, h_b) == pytest.approx(0.5)
    assert sample_cosine(h_b, signal) == pytest.approx(0.5)
    assert batch_cosine(torch.zeros(2, 2), torch.ones(2, 2)) == 0
    assert measured(-signal, h_b, torch.ones(2, 1)).batch_cos == pytest.approx(-3 / 10**0.5)


def test_at_rest_under_decay_any_signal_is_hebbian_on_average():
    # E[g] = γW, and then ⟨E[g], E[H]⟩ = γ E‖h_b‖².
    signal, h_a = draw((50, 4), (50, 6))
    g = signal.T @ h_a / 50
    h_b = h_a @ (g / 0.3).T
    assert (g * (h_b.T @ h_a / 50)).sum().item() == pytest.approx(0.3 * h_b.square().sum(1).mean().item())
    assert measured(signal, h_b, h_a).batch_cos > 0


# The probe: what it reads of a micro-batch.


def learner_of(tied: bool, kind: str, **changes: Any) -> tuple[Learner, Tensor]:
    """A learner some latents of which are dead, ready for a batch."""
    base = {"encoder": "backprop", "sae": {"kind": kind}} | ({"tied": True} if tied else {"decoder": "backprop"})
    if kind in ("topk", "batchtopk", "matryoshka"):
        base["sae"]["k"] = 3
    setup = resolve(["own"], {"own": base | changes}, "test")["own"]
    learner = Learner("own", setup, 0, LATENTS, torch.full((WIDTH,), 0.1))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    for name, weights in learner.weights.items():
        if weights.b is not None:
            learner.weights[name] = replace(weights, b=torch.randn(weights.b.shape, generator=generator) * 0.1)
    dead = torch.arange(LATENTS) % 5 == 0
    learner.begin(x, Moment(2, 9, dead if changes.get("revive") else None))
    return learner, x


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", registry.names("hsae.sae"))
@pytest.mark.parametrize("revive", [None, "auxk"])
def test_each_tokens_descent_is_its_own_gradient(kind: str, tied: bool, revive: str | None):
    if revive and not registry.find("hsae.sae", kind, Variant).masks:
        revive = None
    changes = {"revive": revive} if revive else {}
    changes |= {} if tied else {"decoder_bias": True}
    learner, x = learner_of(tied, kind, **changes)
    seen = learner.forward(x, Seen)
    assert isinstance(seen, Seen)
    for side in ["encoder"] if tied else ["encoder", "decoder"]:
        each = matrices(seen.descent(side))
        for n in (0, 7, TOKENS - 1):
            alone = -learner.forward(x[n : n + 1]).synapse(side).gradient().W
            torch.testing.assert_close(each[n], alone, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(each.sum(0), -learner.forward(x).synapse(side).gradient().W, atol=1e-5, rtol=1e-4)
        drive, made = (x - 0.1) @ seen.encoder.W.T, seen.code @ seen.decoder.W
        wanted = drive.T @ (x - 0.1) if side == "encoder" else seen.code.T @ made
        torch.testing.assert_close(matrices(seen.hebbian(side)).sum(0), wanted, atol=1e-4, rtol=1e-4)


def test_micro_batches_add_up():
    learner, x = learner_of(False, "relu")
    before = dict(learner.weights)
    results = []
    for size in (TOKENS, 7):
        probe = AlignmentProbe(learner.rules)
        for block in x.split(size):
            probe.add(learner.forward(block, Seen), learner.state)
        after = {name: weights.map(lambda t: t * 1.1) for name, weights in before.items()}
        results.append(probe.result(before, after))
    for side in ("encoder", "decoder"):
        assert vars(results[0][side]) == pytest.approx(vars(results[1][side]), rel=1e-4)
    found, whole = results[0]["encoder"], learner.forward(x, Seen)
    H = (x - 0.1).T @ (x - 0.1) @ before["encoder"].W.T
    assert found.step_cos == pytest.approx(cos(before["encoder"].W, H.T), rel=1e-4)
    each = cosines(whole.descent("encoder"), whole.hebbian("encoder"))
    assert found.sample_cos == pytest.approx(each.mean().item(), rel=1e-4)


# The probe in a training.


@pytest.mark.parametrize("tied", [False, True])
def test_the_probe_of_a_first_step_is_autograds(planted: Planted, tied: bool):
    store, name = planted(), "bp-tied" if tied else "bp"
    own = {"centre": "mean", "init_std": 0.4, "encoder": {"clip": 1e-3}, "sae": {"kind": "relu", "l1": 0.05}}
    run = train(config(setups=[name], setup={name: own}, steps=1, probe="alignment"))
    setup = run.setups[name]
    start = initial_weights(setup, 16, 48, 0)
    x = next(iter(store.rows("hook", 0, 8).batches(128, start=0))) - torch.tensor(store.hook()[1].mean)
    W = {side: weights.W.double().requires_grad_() for side, weights in start.items()}
    x, each = x.double(), {side: [] for side in W}
    decoder = W.get("decoder", W["encoder"])
    for token in x:
        code = torch.relu(W["encoder"] @ token)
        loss = (decoder.T @ code - token).square().mean() + 0.05 * code.sum() / 16
        for side, g in zip(W, torch.autograd.grad(loss, list(W.values())), strict=True):
            each[side].append(-g)
    code = torch.relu(x @ W["encoder"].T).detach()
    directions = {"encoder": [(x @ W["encoder"].T, x)], "decoder": [(code, code @ decoder)]}
    for side, direction in directions.items():
        g, H = torch.stack(each["encoder" if tied else side]), matrices(direction).detach()
        lengths = g.flatten(1).norm(dim=1) * H.flatten(1).norm(dim=1)
        some = torch.where(lengths > 0, (g * H).sum((1, 2)) / lengths.clamp(min=1e-30), 0)
        found = lines(run)[0]["alignment"][side]
        assert found["batch_cos"] == pytest.approx(cos(g.sum(0), H.sum(0)), abs=1e-5)
        assert found["sample_cos"] == pytest.approx(some.mean().item(), abs=1e-5)
        assert found["inner"] == pytest.approx((g * H).sum((1, 2)).mean().item(), rel=1e-4)
        # Adam's first step is nearly the sign of the gradient.
        stepped = found["step_cos"]
        assert stepped == pytest.approx(cos(g.sum(0).sign(), H.sum(0)), abs=2e-2)
    assert run.row(name).alignment == lines(run)[0]["alignment"]


def test_a_local_rules_signal_is_its_displacement_and_by_token_its_own(planted: Planted):
    planted()
    hebb = {"tied": True, "encoder": {"rule": "hebb", "lr": 0.1, "decay": 0.0}}
    run = train(config(setups=["hebb-tied", "own", "residual-hebb"], setup={"own": hebb}, steps=1, probe="alignment"))
    found = {line["setup"]: line["alignment"] for line in lines(run)}
    for sides in found.values():
        assert all(side["batch_cos"] == side["step_cos"] for side in sides.values())
    assert found["hebb-tied"]["encoder"]["sample_cos"] is not None
    assert found["residual-hebb"]["decoder"]["sample_cos"] is None
    assert "sample_cos" not in (run.row("residual-hebb").alignment or {})["decoder"]
    # Plain Hebb takes the direction itself.
    assert found["own"]["encoder"]["batch_cos"] == pytest.approx(1, abs=1e-5)


def test_a_probe_changes_nothing_else(planted: Planted):
    planted()
    one = train(config(setups=EVERY, steps=2, name="without"))
    other = train(config(setups=EVERY, steps=2, name="with", probe="alignment"))
    saved, too = (load_file(run.folder / "sae.safetensors") for run in (one, other))
    assert saved.keys() == too.keys()
    assert all(torch.equal(value, too[key]) for key, value in saved.items())
    assert [{k: v for k, v in line.items() if k != "alignment"} for line in lines(other)] == lines(one)
    assert all(line["alignment"].keys() == {"encoder", "decoder"} for line in lines(other))
    assert one.row("bp").alignment is None
    # Nor does it name another run.
    named = train(config(setups=["bp"], steps=1))
    assert train(config(setups=["bp"], steps=1, probe="alignment")).folder == named.folder


def test_a_probed_run_that_is_cut_off_ends_the_same(planted: Planted):
    planted()
    common = {"setups": ["bp"], "probe": "alignment", "checkpoint_seconds": 0.0}
    whole = train(config(name="whole", **common))
    with pytest.raises(Cut):
        train(config(name="cut", **common), CutAt(3))
    cut = train(config(name="cut", **common))
    assert lines(cut) == lines(whole)
    assert cut.row().alignment == whole.row().alignment == lines(whole)[-1]["alignment"]
    # All steps done, and only the table is missing.
    (cut.folder / "run.json").unlink()
    assert train(config(name="cut", **common)).row().alignment == whole.row().alignment
    # A checkpoint as it was written before there was a probe.
    (cut.folder / "run.json").unlink()
    checkpoint = cut.folder / "checkpoint.safetensors"
    with safe_open(checkpoint, framework="pt") as file:
        state = {k: v for k, v in json.loads(file.metadata()["state"]).items() if k != "alignment"}
    checkpoint.write_bytes(save(load_file(checkpoint), metadata={"state": json.dumps(state)}))
    assert train(config(name="cut", **common)).row().alignment is None


def test_it_is_bounded_reported_and_shown(planted: Planted):
    planted()
    run = train(config(setups=["bp"], probe="alignment", steps=1, seeds=[0, 1]))
    names = {f"alignment/{s}/{n}" for s in ("encoder", "decoder") for n in vars(Alignment(0.0))}
    assert names <= numbers(lines(run)[0]).keys()
    assert names <= numbers(vars(run.row("bp"))).keys()
    assert Run(run.folder).row("bp").alignment == run.row("bp").alignment
    console = Console(width=80, record=True)
    console.print(run_tables(run.result.rows, (), 256, 0))
    shown = console.export_text()
    heads = "setup seed encoder token step decoder token step"
    assert heads in [" ".join(line.split()) for line in shown.splitlines()]
    console.print(run_tables([Row("bp", 0)], (), 256, 0))
    assert "Hebbian direction" not in console.export_text()
    assert PROBED <= 4096
    with pytest.raises(UserError, match="probe must be one of"):
        config(probe="alignmnt")


# Weight decay.


@pytest.mark.parametrize("decoupled", [False, True])
def test_decay_is_adams_and_adamws(decoupled: bool):
    learner, x = learner_of(
        False,
        "relu",
        encoder={"rule": "backprop", "weight_decay": 0.2, "decoupled": decoupled, "clip": 0.0, "lr": 1e-2},
        decoder={"rule": "backprop", "clip": 0.0},
    )
    encoder, decoder = learner.weights["encoder"], learner.weights["decoder"]
    W, b, plain = (torch.nn.Parameter(t.clone()) for t in (encoder.W, encoder.b, decoder.W))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    groups = [{"params": [W], "weight_decay": 0.2}, {"params": [b, plain], "weight_decay": 0.0}]
    optimiser = kind(groups, lr=1e-2)
    for step in range(1, 5):
        forward = learner.forward(x)
        gradients = forward.synapse("encoder").gradient(), forward.synapse("decoder").gradient()
        W.grad, b.grad, plain.grad = (t / TOKENS for t in (gradients[0].W, gradients[0].b, gradients[1].W))
        optimiser.step()
        learner.update(learner.statistics(forward), Moment(step, 9))
        for made, wanted in (
            (learner.weights["encoder"].W, W),
            (learner.weights["encoder"].b, b),
            (learner.weights["decoder"].W, plain),
        ):
            torch.testing.assert_close(made, wanted.detach(), atol=2e-6, rtol=1e-5)


def test_decay_joins_the_clipped_gradient():
    # One weight of 2 under a gradient of 30, clipped to 1; γ = 0.5. So Adam's first mean is (1 - β1)(1 + 0.5 · 2).
    rule = Backprop(clip=1.0, weight_decay=0.5)
    W = torch.tensor([[2.0]])
    weights = Weights(W)
    statistics = {"W": torch.tensor([[30.0]]), "tokens": torch.tensor(1.0)}
    change, state = rule.displacement(statistics, weights, rule.start(weights))
    assert state["W.mean"].item() == pytest.approx(0.1 * 2.0, rel=1e-4)
    assert change.W.item() == pytest.approx(-rule.lr, rel=1e-4)
    beside = Backprop(clip=1.0, weight_decay=0.5, decoupled=True)
    change, state = beside.displacement(statistics, weights, beside.start(weights))
    assert state["W.mean"].item() == pytest.approx(0.1, rel=1e-4)
    assert change.W.item() == pytest.approx(-beside.lr - beside.lr * 0.5 * 2.0, rel=1e-4)
    for wrong in ({"weight_decay": -1.0}, {"decoupled": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Backprop(**wrong)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_step_on_fixed_memory_decays_too(decoupled: bool):
    decay = {"rule": "backprop", "weight_decay": 0.1, "decoupled": decoupled}
    one, x = learner_of(False, "relu", encoder=decay, decoder=decay)
    other, _ = learner_of(False, "relu", encoder=decay, decoder=decay)
    graph = StepGraph(other, TOKENS, torch.zeros(LATENTS, dtype=torch.int64), fixed=True, capture=False)
    for step in range(1, 4):
        statistics: dict[str, Any] = {}
        one.begin(x, Moment(step, 9))
        for forward in one.forwards(x):
            accumulate(statistics, one.statistics(forward))
        one.update(statistics, Moment(step, 9))
        graph.step(x, Moment(step, 9))
    for side in ("encoder", "decoder"):
        torch.testing.assert_close(one.weights[side].W, other.weights[side].W, atol=1e-6, rtol=1e-5)


def test_runs_from_before_there_was_decay_are_the_same_runs(planted: Planted):
    planted()
    table = configs.table(config(setups=["bp"], steps=1))
    assert table["setup"]["bp"]["encoder"] == {
        "rule": "backprop", "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip": 1.0
    }  # fmt: skip
    assert "probe" not in table
    run = train(config(setups=["bp"], steps=1))
    text = (run.folder / "config.toml").read_text()
    assert not {"weight_decay", "decoupled", "probe"} & {line.split(" =")[0] for line in text.splitlines()}
    decayed = {"encoder": {"weight_decay": 1e-3}}
    other = train(config(setups=["bp"], steps=1, setup={"bp": decayed}))
    assert other.folder != run.folder
    assert isinstance(rule := other.setups["bp"].encoder, Backprop)
    assert rule.weight_decay == 1e-3
    with pytest.raises(UserError, match=r"another config .*setup"):
        train(config(setups=["bp"], steps=1, setup={"bp": decayed}, name=run.name))


# The experiment on SAEs.


def seeds_of(sample_cos: list[float | None], evr: float | None = 0.9) -> list[dict[str, Any]]:
    """What a training of each seed came to: its alignment stays what it is."""
    side = {"batch_cos": 0.1, "inner": None}
    return [
        {"EVR": None if value is None else evr, "L0": 3.0, "dictionary": 4, "steps": [1, 2]}
        | {"alignment": [{s: side | {"sample_cos": value} for s in ("encoder", "decoder")}] * 2}
        for value in sample_cos
    ]


def test_values_are_means_over_the_last_steps_and_know_what_diverged():
    seeds = seeds_of([0.5, None, 0.25])
    seeds[0]["alignment"] = [
        {s: {"batch_cos": i, "sample_cos": 1.0, "inner": 2.0} for s in ("encoder", "decoder")} for i in range(30)
    ]
    found = values(seeds)
    assert found["encoder batch_cos"] == [pytest.approx(24.5), None, pytest.approx(0.1)]
    assert found["decoder sample_cos"] == [1.0, None, 0.25]
    assert found["encoder inner"] == [2.0, None, None]
    assert found["EVR"] == [0.9, None, 0.9]


def test_a_training_of_the_lab_is_its_own_and_tells_what_the_run_says(planted: Planted, cache: Path, tmp_path: Path):
    store = planted(sequences=256)
    common = {"store": str(store.folder), "latents": 48, "batch_tokens": 64, "steps": 4, "log_every": 2}
    setups = {"bp-own": {"encoder": "backprop", "decoder": "backprop"}, "bp-tied": {}}
    found = trained(str(tmp_path / "runs"), "one", common | {"seeds": [3, 0], "device": "cpu"}, setups)
    assert not (cache / "runs").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert found.keys() == setups.keys()
    for name, seeds in found.items():
        for seed, one in zip((3, 0), seeds, strict=True):
            mine = [line for line in lines(run) if (line["setup"], line["seed"]) == (name, seed)]
            assert one["steps"] == [1, 2, 4] == [line["step"] for line in mine]
            assert one["alignment"] == [line["alignment"] for line in mine]
            assert one["EVR"] == run.row(name, seed).evr_pooled


@pytest.mark.parametrize(
    ("path", "cosines", "up"),
    [
        ([[0.0, 0.1], [0.1, 0.2], [0.2, 0.3]], ".050 → .150 → .250", "yes"),
        # Higher in each seed by the same, though not apart beside the seeds' spread.
        ([[0.0, 0.5], [-0.1, 0.4], [0.01, 0.51]], ".250 → .150 → .260", "yes"),
        ([[0.0, 0.1], [0.1, 0.2], [-0.1, 0.3]], ".050 → .150 → .100", "no"),
        ([[0.2, 0.3], [0.1, 0.2], [0.0, 0.1]], ".250 → .150 → .050", "no"),
        ([[0.0, 0.1], [None, None], [0.2, 0.3]], ".050 → – → .250", "yes"),
        ([[0.0, 0.1], [0.1, 0.2], [None, None]], ".050 → .150 → –", "no"),
        ([[0.0], [0.9]], ".000 → .900", "no"),  # a single seed is no evidence
    ],
)
def test_drift_along_a_sweep(path: list[list[float | None]], cosines: str, up: str):
    found = drift([values(seeds_of(each)) for each in path], "encoder")
    assert (found[0], found[2]) == (cosines, up)


def test_drift_is_by_seed():
    before, after = values(seeds_of([0.0, 0.5, None])), values(seeds_of([0.1, 0.8, 0.9]))
    told = drift([before, after], "decoder")
    # Gains of .1 and .3: their mean, and 12.706 (Student's t, one degree of freedom) times their standard error.
    assert told[1:] == [".200 ± 1.27", "no"]
