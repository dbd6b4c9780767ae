"""Surgery on Hopfield layers: closed forms, exact identities, files, the command line, and the chapter."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from hsae.cli import run
from hsae.errors import UserError
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Protocol, difference
from hsae.lab.surgery.hopfield import Hopfield, random_memories
from hsae.lab.surgery.ledger import Ledger
from hsae.lab.surgery.memory import Association
from hsae.lab.surgery.surgeon import Surgeon


def landscape(seed: int = 0, count: int = 5, width: int = 64) -> tuple[Hopfield, Tensor, Tensor]:
    """Random memories in a layer; the memories as they settle; a target that is not among them."""
    drawn = random_memories(count + 1, width, torch.Generator().manual_seed(seed))
    memory = Hopfield.made(drawn[:-1])
    return memory, memory.recall(0.9 * drawn[:-1]), drawn[-1]


def random_symmetric(seed: int, width: int, positive: bool) -> Tensor:
    A = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / width**0.5
    return A @ A.T if positive else (A + A.T) / 2


@pytest.mark.parametrize("form", ["symmetric", "source"])
def test_injecting_is_one_outer_product_of_the_asked_size(form):
    memory, _, target = landscape()
    before, surgeon = memory.W.clone(), Surgeon(memory)
    made = surgeon.inject(target, strength=0.3, form=form)
    change = memory.W - before
    assert change.norm() / before.norm() == pytest.approx(0.3, abs=1e-6)
    assert made.norm == pytest.approx(0.3, abs=1e-6)
    assert made.rank == 1
    assert made.strength == pytest.approx((0.3,))
    singular = torch.linalg.svdvals(change)
    assert singular[1] < 1e-12 * singular[0]
    # p is 0.9 times the signs, f(p) = p |p| is parallel to it: both forms give the same matrix.
    torch.testing.assert_close(change, 0.3 * before.norm() * torch.outer(target, target) / 64)
    assert surgeon.diff().norm == pytest.approx(0.3)
    assert surgeon.diff(memory.weights).norm == 0


def test_the_forms_differ_where_signs_are_not_all():
    memory, _, _ = landscape()
    p = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64)
    f = p * p.abs()
    symmetric, source = (memory.change(Association.of(p), 1, form) for form in ("symmetric", "source"))
    torch.testing.assert_close(torch.outer(symmetric.left, symmetric.right), torch.outer(f, f))
    torch.testing.assert_close(torch.outer(source.left, source.right), torch.outer(p, f))


def test_protected_patterns_keep_their_images_and_their_basins():
    memory, settled, target = landscape(3)
    f = settled * settled.abs()
    images = f @ memory.W.T
    made = Surgeon(memory).inject(target, strength=0.5, protect=list(settled))
    torch.testing.assert_close(f @ memory.W.T, images, atol=1e-12, rtol=0)
    assert made.achieved
    assert made.after.target.hits == 20
    assert made.before.target.hits == 0
    assert [v.hits for v in made.after.protected] == [20] * 5
    with pytest.raises(UserError, match=r"lies in the span of the 5 protected"):
        Surgeon(memory).inject(settled[0], strength=0.5, protect=list(settled))


def test_a_lost_protected_pattern_restores_the_weights():
    memory, settled, target = landscape(1)
    before = memory.W.clone()
    surgeon = Surgeon(memory)
    # So strong a pattern leaves a basin's image alone, and swallows what lies around it.
    made = surgeon.inject(target, strength=40.0, protect=list(settled[:2]))
    assert made.restored
    assert not made.achieved
    assert "protected patterns were lost" in made.notes[0]
    assert torch.equal(memory.W, before)
    assert not surgeon.certificates


def test_undo_is_exact_and_stacked():
    drawn = random_memories(6, 32, torch.Generator().manual_seed(4))
    memory = Hopfield((drawn[:5].T @ drawn[:5] / 32).float())
    surgeon, states = Surgeon(memory), [memory.W.clone()]
    surgeon.inject(drawn[5], strength=0.37)
    states.append(memory.W.clone())
    surgeon.remove(drawn[0], strength=0.11)
    assert surgeon.undo().operation == "remove"
    assert torch.equal(memory.W, states[1])
    assert surgeon.undo().operation == "inject"
    assert torch.equal(memory.W, states[0])
    with pytest.raises(UserError, match="no edit to undo"):
        surgeon.undo()


def test_auto_is_the_smallest_strength_that_verifies():
    memory, _, target = landscape(2)
    surgeon, before = Surgeon(memory), memory.W.clone()
    made = surgeon.inject(target)
    assert made.achieved
    assert made.auto
    assert 0.15 < made.strength[0] < 0.5
    surgeon.undo()
    less = surgeon.inject(target, strength=0.93 * made.strength[0])
    assert not less.achieved
    assert less.after.target.hits < 20
    assert not less.auto
    surgeon.undo()
    assert torch.equal(memory.W, before)


def test_removing_takes_pattern_and_mirror_and_no_more_than_its_support():
    memory, settled, _ = landscape(5)
    p = settled[0]
    made = Surgeon(memory).remove(p, protect=list(settled[1:]))
    assert made.achieved
    assert made.after.target.hits == 0
    assert made.before.mirror is not None
    assert made.after.mirror is not None
    assert made.before.mirror.hits == 20
    assert made.after.mirror.hits == 0
    # The support is pᵀ W f(p) / ‖p‖², here by hand.
    stored = memory.storable(p)
    by_hand = float(stored @ memory.W @ (stored * stored.abs()) / stored.square().sum())
    assert made.after.support == pytest.approx(by_hand)
    assert made.after.support < made.before.support
    assert [v.hits for v in made.after.protected] == [20] * 4


@pytest.mark.parametrize("seed", range(10, 14))
def test_erasing_is_of_all_starts_and_no_stronger_than_needed(seed: int):
    memory, settled, _ = landscape(seed)
    surgeon = Surgeon(memory)
    made = surgeon.remove(settled[0])
    assert made.after.mirror is not None
    assert made.achieved
    assert made.after.target.hits + made.after.mirror.hits == 0
    surgeon.undo()
    less = surgeon.remove(settled[0], strength=0.9 * made.strength[0]).after
    assert less.mirror is not None
    assert less.target.hits + less.mirror.hits > 0


def test_erasing_ends_where_the_matrix_holds_nothing():
    class Stubborn(Hopfield):
        """Every start comes back, whatever the matrix."""

        def recall(self, cues: Tensor) -> Tensor:
            return cues

    memory, settled, _ = landscape()
    surgeon = Surgeon(Stubborn(memory.W))
    made = surgeon.remove(settled[0])
    assert made.achieved
    assert made.after.target.hits == 20
    assert made.after.support <= 0
    surgeon.undo()
    assert surgeon.remove(settled[0], strength=0.93 * made.strength[0]).after.support > 0


def test_what_no_strength_does_leaves_the_weights(monkeypatch: pytest.MonkeyPatch):
    memory, _, target = landscape()
    before, surgeon = memory.W.clone(), Surgeon(memory)
    monkeypatch.setattr("hsae.lab.surgery.surgeon.GRID", (0.01, 0.02))
    made = surgeon.inject(target)
    assert made.restored
    assert not made.achieved
    assert made.notes == ("no strength up to 0.02 does it",)
    assert torch.equal(memory.W, before)


def test_moving_uses_the_landscape_as_it_was():
    memory, settled, target = landscape(6)
    before = memory.W.clone()
    made = Surgeon(memory).move(settled[0], target, strength=0.4)
    p, q = memory.storable(settled[0]), memory.storable(target)
    terms = [torch.outer(v, v) / v.norm() ** 2 for v in (p * p.abs(), q * q.abs())]
    torch.testing.assert_close(memory.W, before + 0.4 * before.norm() * (terms[1] - terms[0]))
    assert made.rank == 2
    # Here what is written brings back what was erased before it.
    memory, settled, target = landscape(1)
    auto = Surgeon(memory).move(settled[0], target, protect=list(settled[1:]))
    assert auto.achieved
    assert auto.before.origin is not None
    assert auto.after.origin is not None
    assert (auto.before.origin.hits, auto.after.origin.hits) == (20, 0)
    assert (auto.before.target.hits, auto.after.target.hits) == (0, 20)


@pytest.mark.parametrize(("operation", "factor"), [("strengthen", 1.5), ("weaken", 1.25)])
def test_strengthening_multiplies_the_support(operation: str, factor: float):
    memory, settled, _ = landscape(7)
    basin = memory.recall(settled[:1])[0]
    made = getattr(Surgeon(memory), operation)(settled[0], factor)
    f = basin * basin.abs()
    wanted = factor if operation == "strengthen" else 1 / factor
    assert made.achieved
    assert made.after.support / made.before.support == pytest.approx(wanted)
    assert made.after.support == pytest.approx(float(basin @ memory.W @ f / basin.square().sum()))


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
def test_the_energys_gradient_by_hand(degree: int):
    memory, x = replace_degree(landscape()[0], degree), 1.9 * torch.rand(8, 64, dtype=torch.float64) - 0.95
    (gradient,) = torch.autograd.grad(memory.lyapunov(x.requires_grad_()).sum(), x)
    x = x.detach()
    slope = (degree - 1) * x.abs() ** (degree - 2)
    field = (x.sign() * x.abs() ** (degree - 1)) @ memory.W.T
    # dE/dx = -f'(x) (h - artanh(x) / β), so dE/dt <= 0 along dx/dt = tanh(βh) - x.
    torch.testing.assert_close(gradient, -slope * (field - torch.atanh(x) / 7))
    assert ((gradient * ((7 * field).tanh() - x)) <= 1e-12).all()


def replace_degree(memory: Hopfield, degree: int) -> Hopfield:
    return Hopfield(memory.W, degree, memory.beta)


def test_the_energy_in_closed_form():
    x = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    W, beta = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64), 3.0
    v = torch.tensor([0.25, -0.0625], dtype=torch.float64)
    barrier = sum(abs(t) - (1 - t * t) * math.atanh(abs(t)) for t in (0.5, -0.25)) / beta
    assert float(Hopfield(W, 3, beta).lyapunov(x)) == pytest.approx(float(-0.5 * v @ W @ v) + barrier)
    v, x2 = x[0], x[0].abs()
    barrier = sum(t * math.atanh(t) + 0.5 * math.log(1 - t * t) for t in x2.tolist()) / beta
    assert float(Hopfield(W, 2, beta).lyapunov(x)) == pytest.approx(float(-0.5 * v @ W @ v) + barrier)


def test_a_matrix_that_is_not_symmetric_has_no_energy(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    lopsided = random_symmetric(0, 16, positive=True)
    lopsided[0, 1] += 0.1
    x = torch.full((1, 16), 0.5, dtype=torch.float64)
    assert Hopfield(lopsided).energy(x) is None
    assert Hopfield((lopsided + lopsided.T) / 2).energy(x) is not None
    save_file({"W": lopsided}, tmp_path / "w.safetensors")
    run(["lab", "surgery", "survey", "--matrix", str(tmp_path / "w.safetensors")])
    assert "–" in capsys.readouterr().out


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]), st.floats(0.5, 20))
def test_the_energy_never_rises(seed: int, degree: int, beta: float):
    memory = Hopfield(random_symmetric(seed, 12, positive=True), degree, beta)
    starts = memory.starts(4, torch.Generator().manual_seed(seed)).clamp(-0.99, 0.99)
    for old, new in pairwise(memory.trajectory(starts)):
        assert (memory.lyapunov(new) <= memory.lyapunov(old) + 1e-9).all()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]), st.floats(0.5, 20))
def test_any_symmetric_matrix_has_small_steps_downhill(seed: int, degree: int, beta: float):
    memory = Hopfield(random_symmetric(seed, 12, positive=False), degree, beta)
    x = memory.starts(4, torch.Generator().manual_seed(seed)).clamp(-0.95, 0.95)
    step = 1e-4 * ((beta * memory.f(x) @ memory.W.T).tanh() - x)
    assert (memory.lyapunov(x + step) <= memory.lyapunov(x) + 1e-9).all()


def test_the_sources_energy_rises():
    memory, _, _ = landscape()
    raised = steps = 0
    for old, new in pairwise(memory.trajectory(memory.starts(20, torch.Generator().manual_seed(0)))):
        moved = (old != new).any(1)
        raised += int((moved & (memory.source_energy(new) > memory.source_energy(old))).sum())
        steps += int(moved.sum())
    assert raised > 0.6 * steps
    x = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    W = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    by_hand = -(0.125 + 0.015625) / 3 + 0.5 * float(x[0] @ W @ torch.tensor([0.25, -0.0625], dtype=torch.float64))
    assert float(Hopfield(W).source_energy(x)) == pytest.approx(by_hand)


def test_the_dynamics_are_the_sources():
    memory, _, _ = landscape()
    x = memory.starts(1, torch.Generator().manual_seed(1))
    path = list(memory.trajectory(x))
    y, seen = x[0], 0
    for t in range(100):
        tau = 0.9 - 0.8 * t / 99
        new = (1 - tau) * y + tau * torch.tanh(7 * memory.W @ (y.sign() * y.abs() ** 2))
        moved, y, seen = (new - y).norm() / new.norm(), new, seen + 1
        torch.testing.assert_close(path[seen][0], y)
        if moved < 5e-3:
            break
    assert len(path) == seen + 1


def test_noise_and_interval():
    memory, settled, _ = landscape()
    seen: list[Tensor] = []

    class Spy(Hopfield):
        def recall(self, cues: Tensor) -> Tensor:
            seen.append(cues)
            return super().recall(cues)

    spy = Spy(memory.W)
    verdict = Surgeon(spy, Protocol(noise=0.25)).verify(settled[0])
    distance = (seen[0] - settled[0]).norm(dim=1) / settled[0].norm()
    torch.testing.assert_close(distance, torch.full_like(distance, 0.25))
    assert (verdict.hits, verdict.trials, verdict.rate) == (20, 20, 1.0)
    assert verdict.low == pytest.approx(20 / (20 + 1.959964**2))
    assert verdict.high == pytest.approx(1)
    Surgeon(spy, Protocol(noise=0.25, trials=4000, convention="per-coordinate")).verify(settled[0])
    spread = (seen[1] - settled[0]).std() / settled[0].norm()
    assert float(spread) == pytest.approx(0.25, rel=0.02)


def test_a_survey_finds_the_memories_and_their_mirrors():
    memory, settled, _ = landscape(8)
    basins = Surgeon(memory).survey(300)
    unit = torch.nn.functional.normalize(basins.patterns, dim=1)
    found = unit @ torch.nn.functional.normalize(settled, dim=1).T
    assert (found.max(0).values > 0.99).all()
    assert (found.min(0).values < -0.99).all()
    assert sum(basins.population) + basins.empty == 300
    assert list(basins.population) == sorted(basins.population)[::-1]
    for i, j in enumerate(basins.mirror):
        assert j == -1 or float(unit[i] @ unit[j]) < -0.95
    torch.testing.assert_close(torch.tensor(basins.energy, dtype=torch.float64), memory.lyapunov(basins.patterns))
    close = unit @ unit.T - 2 * torch.eye(len(unit))
    assert close.max() <= 0.95


def test_anchors():
    memory, settled, target = landscape(9)
    made = Surgeon(memory).inject(target, strength=0.5, anchor="basin", form="source")
    # The source converges first: the target itself gets no basin.
    assert not made.achieved
    assert made.after.target.hits == 0
    assert made.anchor == "basin"
    memory, settled, _ = landscape(9)
    near = settled[0] + 0.1
    before, p = memory.W.clone(), memory.recall(near[None])[0]
    Surgeon(memory).remove(near, strength=0.2, anchor="basin")
    f = p * p.abs()
    torch.testing.assert_close(memory.W, before - 0.2 * before.norm() * torch.outer(f, f) / f.square().sum())
    small = torch.ones(64, dtype=torch.float64) * 0.01
    assert float(memory.scaled(small).norm()) == pytest.approx(4.0)  # ½ √64


@pytest.mark.parametrize(
    ("W", "words"),
    [
        (torch.zeros(3, 4), "square"),
        (torch.full((3, 3), math.nan), "finite"),
        (torch.zeros(3, 3), "all zero"),
    ],
)
def test_matrices_that_are_none(W: Tensor, words: str):
    with pytest.raises(UserError, match=words):
        Hopfield(W)


def test_targets_that_are_none():
    memory, _, _ = landscape()
    for target, words in ((torch.zeros(64), "zero"), (torch.full((64,), math.inf), "finite"), (torch.ones(3), "64")):
        with pytest.raises(UserError, match=words):
            Surgeon(memory).inject(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_files_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    path = tmp_path / "model.safetensors"
    odd = {"a": torch.arange(5, dtype=torch.uint8), "W": torch.randn(6, 6).to(dtype), "z": torch.randn(3)}
    save_file(odd, path, {"format": "pt"})
    memory, raw, between = Hopfield(odd["W"].clone()), path.read_bytes(), list[Tensor]()
    surgeon = Surgeon(memory)
    for i in range(2):
        ledger = Ledger.open(path)
        made = surgeon.inject(torch.randn(6, generator=torch.Generator().manual_seed(i)), strength=0.5)
        ledger.edit("W", memory.W, made)
        ledger.save(path)
        between.append(memory.W.clone())
    there = load_file(path)
    assert set(there) == {"a", "W", "z", "W@before1", "W@before2"}
    for name, wanted in {"W": between[1], "W@before2": between[0], "W@before1": odd["W"]}.items():
        assert torch.equal(there[name], wanted)
    assert torch.equal(there["a"], odd["a"])
    assert torch.equal(there["z"], odd["z"])
    for i in (1, 0):
        ledger = Ledger.open(path)
        edited, old, certificate = ledger.undo()
        assert torch.equal(edited, between[i])
        assert torch.equal(old, between[0] if i else odd["W"])
        assert certificate["operation"] == "inject"
        ledger.save(path)
        assert torch.equal(load_file(path)["W"], old)
    assert path.read_bytes() == raw
    assert not Ledger.open(path).edits


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    run(["lab", "surgery", "inject", "--no-protect", "--save", "m.safetensors", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["achieved"]
    assert made["rank"] == 1
    assert made["norm"] == pytest.approx(made["strength"][0])
    W = load_file("m.safetensors")
    assert difference(W["W@before1"], W["W"]).norm == pytest.approx(made["norm"])
    run(["lab", "surgery", "remove", "--matrix", "m.safetensors", "--target", "0"])
    assert "achieved" in capsys.readouterr().out
    before = Path("m.safetensors").read_bytes()
    run(["lab", "surgery", "undo", "--matrix", "m-remove.safetensors"])
    assert Path("m-remove.safetensors").read_bytes() == before
    assert "bit for bit" in capsys.readouterr().out
    run(["lab", "surgery", "diff", "--matrix", "m.safetensors"])
    assert capsys.readouterr().out.startswith(f"rank 1, ‖ΔW‖/‖W‖ {100 * made['norm']:.1f}%")
    save_file({"v": torch.ones(3)}, "v.safetensors")
    run(["lab", "surgery", "survey", "--json"])
    assert sum(json.loads(capsys.readouterr().out)["population"]) == 200
    run(["lab", "surgery", "verify", "--target", "0"])
    assert capsys.readouterr().out.startswith("20/20 (84–100%)")
    run(["lab", "surgery", "inject", "--strength", "40", "--strength-unit", "percent", "--json"])
    assert json.loads(capsys.readouterr().out)["norm"] == pytest.approx(0.4)
    for words, line in (
        (["remove", "--matrix", "m.safetensors:V"], r"no tensor 'V'; there is W"),
        (["inject", "--matrix", "m.safetensors", "--save", "m.safetensors"], r"is there already"),
        (["verify", "--target", "99"], r"no basin 99"),
        (["undo"], r"--matrix"),
        (["diff", "--matrix", "m-none.safetensors"], r"no such file"),
        (["diff", "--matrix", "v.safetensors"], r"no edit to diff"),
        (["verify", "--target", "v.safetensors"], r"stores vectors of 64 numbers"),
        (["inject", "--strength", "much"], r"strength must be auto or a number"),
        (["weaken", "--strength", "0.1"], r"strength must be auto to weaken"),
        (["inject", "--memory", "mlp"], r"with --token"),
        (["survey", "--memory", "mlp"], r"no basins"),
        (["sharpen"], r"operation must be one of"),
    ):
        with pytest.raises(UserError, match=line) as error:
            run(["lab", "surgery", *words])
        assert "\n" not in str(error.value)


def test_the_chapter(tmp_path: Path):
    from hsae.lab.surgery.study import chapter

    made = chapter(SurgeryConfig(scale="tiny", workers=1), tmp_path, None)
    assert {"surgery-strength.svg", "surgery-energy.svg"} <= {f.name for f in tmp_path.iterdir()}
    assert made.numbers["energies"]["right"]["raised"] == 0
    assert made.numbers["energies"]["source"]["raised"] > 30
    assert all(row["undone"] for rows in made.numbers["operations"].values() for row in rows)
    assert "| at the target, projected | 100% | 100% |" in made.body
    assert made.command == "hsae lab surgery --scale tiny"
    again = chapter(SurgeryConfig(scale="tiny", workers=1), tmp_path, None)
    assert again == replace(made)
