"""Surgery on SAEs: as memories they obey their laws; an edit of a run does what it says, no more, and is undone."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sites
import torch
from rich.console import Console
from safetensors.torch import save_file
from shared_runs import HOOK, SETUPS, make_run, make_sae, make_store
from sites import refused
from tiny_lm import make_model, make_text
from torch import Tensor

from hsae import cli, config
from hsae.compare import CompareConfig, compare
from hsae.errors import UserError
from hsae.evaluate import EvaluateConfig, evaluate
from hsae.export import ExportConfig, export
from hsae.harvesting import HarvestConfig, harvest
from hsae.held_out import held_out_rows
from hsae.inspect import InspectConfig, inspect
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Protocol
from hsae.lab.surgery.edits import open_case, target_of
from hsae.lab.surgery.latents import inverse, per_latent, removed, restored, turned, weighted, without_directions
from hsae.lab.surgery.memory import Association
from hsae.lab.surgery.runs import RECORD, ROWS, operate
from hsae.lab.surgery.sae import DYNAMICS, SAEMemory
from hsae.lab.surgery.sae_study import study
from hsae.lab.surgery.surgeon import Surgeon
from hsae.record import Record
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.setup import Setup
from hsae.sharing.contents import publish
from hsae.store import Store


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tied(W: Tensor, b: Tensor | None = None) -> SAE:
    return SAE(W, torch.zeros(len(W)).to(W) if b is None else b, W, torch.zeros(W.shape[1]).to(W), ReLU())


def of_setup(name: str) -> SAE:
    return make_sae(config.build(Setup, SETUPS[name], "test"))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


# As memories.


@pytest.mark.parametrize("seed", range(4))
def test_softmax_energy_never_increases(seed: int):
    W, b = draw(40, 12, seed=seed).double(), draw(40, seed=seed + 9).double() * 0.3
    memory = SAEMemory(tied(W, b), "softmax", temperature=0.5 + 3 * seed)
    x = 3 * draw(60, 12, seed=seed + 1).double()
    for _ in range(40):
        expected = torch.softmax(memory.temperature * (x @ W.T + b), 1) @ W
        energy = x.square().sum(1) / 2 - torch.logsumexp(memory.temperature * (x @ W.T + b), 1) / memory.temperature
        torch.testing.assert_close(memory.energy(x), energy)
        torch.testing.assert_close(memory.step(x), expected)
        assert (memory.energy(expected) <= energy + 1e-12 * energy.abs()).all()
        x = expected


@pytest.mark.parametrize("seed", range(4))
def test_sphere_objective_never_decreases(seed: int):
    W, b = draw(40, 12, seed=seed).double(), draw(40, seed=seed + 9).double() * 0.3
    memory = SAEMemory(tied(W, b), "sphere")
    radius = W.norm(dim=1).mean()
    x = radius * unit(draw(60, 12, seed=seed + 1).double())
    for _ in range(40):
        objective = (x @ W.T + b).clamp_min(0).square().sum(1) / 2
        torch.testing.assert_close(memory.energy(x), -objective)
        x = memory.step(x)
        torch.testing.assert_close(x.norm(dim=1), radius.expand(60))
        assert ((x @ W.T + b).clamp_min(0).square().sum(1) / 2 >= objective * (1 - 1e-12)).all()


def test_orthogonal_rows_are_the_basins_and_their_share_is_that_of_the_starts():
    memory = SAEMemory(tied(2 * torch.eye(8)), data=2 * torch.eye(8)[:3].repeat(20, 1))
    assert memory.temperature == pytest.approx(50 / 4)
    torch.testing.assert_close(memory.recall(2 * torch.eye(8) + 0.1), 2 * torch.eye(8), atol=1e-4, rtol=0)
    found = Surgeon(memory).survey(60)
    nearest = (found.patterns @ torch.eye(8)).argmax(1).tolist()
    assert sum(found.population) == 60
    assert len(set(nearest)) == len(nearest), "each row is one basin at most"
    assert {0, 1, 2} <= set(nearest)
    assert all(population >= 5 for i, population in zip(nearest, found.population, strict=True) if i < 3)


def test_where_nothing_is_driven_nothing_comes_back():
    memory = SAEMemory(tied(torch.eye(3), torch.full((3,), -9.0)), "sphere")
    assert not memory.recall(torch.eye(3)).any()
    assert Surgeon(memory).verify(torch.eye(3)[0]).hits == 0


@pytest.mark.parametrize("name", ["relu", "tied", "gated", "jumprelu"])
def test_overwriting_and_removing_one_latent_on_the_table(name: str):
    sae = of_setup(name)
    before = {key: value.clone() for key, value in per_latent(sae).items()}
    firings = torch.tensor([3.0, 1, 0, 5, 0, 2, 0, 9])
    memory = SAEMemory(sae, temperature=40.0, firings=firings)
    surgeon, target = Surgeon(memory), unit(draw(5, seed=4))
    made = surgeon.inject(target)
    assert made.rank == 1
    assert made.after.target.hits == 20
    used = firings > 0
    for key, value in per_latent(memory.sae).items():
        expected = before[key].clone()
        expected[6] = target * before[key][used].norm(dim=1).mean() if key.startswith("W") else before[key][used].mean()
        torch.testing.assert_close(value, expected)
    surgeon.undo()
    assert all(torch.equal(value, before[key]) for key, value in per_latent(memory.sae).items())
    assert all(torch.equal(value, before[key]) for key, value in per_latent(sae).items()), "it works on a copy"
    made = surgeon.remove(sae.W_dec[3])
    assert (made.before.target.hits, made.after.target.hits, made.rank) == (20, 0, 1)
    assert not memory.sae.W_dec[3].any()
    assert not memory.sae.W_enc[3].any()
    assert memory.sae.b_enc[3] == 0
    assert made.norm == pytest.approx(float(sae.W_dec[3].norm() / sae.W_dec.norm()), rel=1e-5)
    assert memory.support(Association.of(sae.W_dec[3])) < 1


def test_dense_edits_are_outer_products():
    sae = of_setup("unit")
    memory = SAEMemory(sae, dense=True)
    t = unit(draw(5, seed=2))
    Surgeon(memory).remove(t)
    for name in ("W_enc", "W_dec"):
        old, new = getattr(sae, name), getattr(memory.sae, name)
        torch.testing.assert_close(new, old - torch.outer(old @ t, t))
        assert (new @ t).abs().max() < 1e-6, "an exact null direction"
    assert Surgeon(SAEMemory(sae, temperature=4.0, dense=True)).inject(t).auto, "its size is searched for"
    memory = SAEMemory(sae, temperature=4.0, dense=True)
    Surgeon(memory).inject(t, strength=0.1)
    change = memory.sae.W_dec - sae.W_dec
    assert float(change.norm() / sae.W_dec.norm()) == pytest.approx(0.1, rel=1e-5)
    p = memory.scaled(t)
    y = torch.softmax(4.0 * (sae.W_dec @ p + sae.b_enc), 0)
    torch.testing.assert_close(unit(change.flatten()), unit(torch.outer(y, p).flatten()), atol=1e-6, rtol=0)


def test_removed_latents_are_no_patterns_of_the_memory():
    sae = removed(of_setup("tied"), [2, 5])
    memory, x = SAEMemory(sae), draw(30, 5)
    left = [0, 1, 3, 4, 6, 7]
    W, b = sae.W_dec[left], sae.b_enc[left]
    torch.testing.assert_close(memory.step(x), torch.softmax(memory.temperature * (x @ W.T + b), 1) @ W)
    assert memory.size == pytest.approx(float(W.norm(dim=1).mean()))


# Edits of latents.


@pytest.mark.parametrize("name", SETUPS)
def test_a_removed_latent_never_fires_and_the_others_stay(name: str):
    sae = of_setup(name)
    new, x = removed(sae, [1, 4]), 4 * draw(500, 5)
    code, old = new.encode(x), sae.encode(x)
    assert (old[:, [1, 4]] > 0).any(0).all(), "or the test shows nothing"
    assert not code[:, [1, 4]].any()
    others = [0, 2, 3, 5, 6, 7]
    if sae.variant.pointwise:
        torch.testing.assert_close(code[:, others], old[:, others], rtol=0, atol=0)
    else:  # places that became free are filled
        assert (code[:, others] >= old[:, others]).all()
        assert (code > 0).sum(1).max() <= 3
    assert (new.W_dec is new.W_enc) == (name == "tied")
    assert sae.W_enc[1].any(), "the SAE that was given stays"


@pytest.mark.parametrize("name", SETUPS)
def test_weighting_multiplies_what_a_latent_adds_where_it_fires(name: str):
    sae, x = of_setup(name), 4 * draw(500, 5)
    new = weighted(sae, [1, 4], 0.25)
    old_code, code = sae.encode(x), new.encode(x)
    assert torch.equal(old_code > 0, code > 0)
    expected = old_code[:, :, None] * sae.W_dec * torch.tensor([1.0, 0.25, 1, 1, 0.25, 1, 1, 1])[:, None]
    torch.testing.assert_close(code[:, :, None] * new.W_dec, expected)
    assert torch.equal(code, old_code) or name == "tied"


@pytest.mark.parametrize("name", ["jumprelu", "gated"])
def test_weighting_a_tied_one_scales_its_own_parameters_too(name: str):
    sae = of_setup(name)
    sae = dataclasses.replace(sae, W_dec=sae.W_enc)
    x, new = 4 * draw(500, 5), weighted(sae, [1], 9.0)
    old_code, code = sae.encode(x), new.encode(x)
    torch.testing.assert_close(code[:, 1], 3 * old_code[:, 1])
    assert torch.equal(code[:, 2:], old_code[:, 2:])


def test_turning_keeps_norms_and_the_null_space_takes_several_directions():
    sae, t = of_setup("relu"), draw(5, seed=6)
    new = turned(sae, 3, t)
    for name in ("W_enc", "W_dec"):
        torch.testing.assert_close(getattr(new, name)[3], getattr(sae, name)[3].norm() * unit(t))
    assert torch.equal(new.b_enc, sae.b_enc)
    blind = without_directions(sae, [0, 5])
    assert (blind.W_enc @ unit(sae.W_dec[[0, 5]]).T).abs().max() < 1e-6
    assert (blind.W_dec @ unit(sae.W_dec[[0, 5]]).T).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(blind.W_dec - sae.W_dec) == 2
    assert not blind.encode(9 * draw(99, 5))[:, [0, 5]].any()


@pytest.mark.parametrize("name", SETUPS)
def test_the_inverse_is_exact_to_the_sign_of_a_zero(name: str):
    sae = of_setup(name)
    sae.b_enc[4] = -0.0
    for new in (removed(sae, [4, 1]), weighted(sae, [2], 3.0), without_directions(sae, [0])):
        kept = inverse(sae, new)
        back = restored(new, kept)
        for key, value in per_latent(sae).items():
            assert torch.equal(per_latent(back)[key].view(torch.int32), value.view(torch.int32))
    kept = inverse(sae, removed(sae, [4, 1]))
    assert kept["W_enc.latents"].tolist() == kept["b_enc.latents"].tolist() == [1, 4]
    assert kept["W_enc"].shape == (2, 5)


# On runs.


def do(operation: Any, run: str, **more: Any) -> str:
    """What the operation prints, at 80 columns."""
    out = io.StringIO()
    operate(SurgeryConfig(operation=operation, run=run, **more), Console(file=out, width=80))
    return out.getvalue()


def document(operation: Any, run: str, **more: Any) -> Any:
    return json.loads(do(operation, run, json=True, **more))


@pytest.mark.parametrize(
    ("setup", "scale", "folded"), [("relu", 0.4, False), ("tied", 0.4, True), ("topk", 1.0, False)]
)
def test_a_run_operated_on_is_a_run(cache: Path, setup: str, scale: float, folded: bool):
    store = make_store()
    parent = make_run("parent", ["jumprelu", setup], scale=scale, folded=folded, store=store)
    told = do("remove", "parent", setup=setup, latent="1,4-5")
    (name,) = [path.name for path in (cache / "runs").iterdir() if path.name != "parent"]
    assert max(map(len, told.splitlines())) <= 80
    assert "latents 1, 4, 5 removed" in told.replace("\n", " ")
    run, old = Run.open(name), parent.sae(setup)
    new = run.sae()
    assert [(row.setup, row.seed) for row in run.result.rows] == [(setup, 0)]
    expected = removed(old, [1, 4, 5])
    assert all(torch.equal(per_latent(new)[key], value) for key, value in per_latent(expected).items())
    assert (new.scale, run.result.folded, run.setups[setup]) == (old.scale, folded, parent.setups[setup])
    assert f"{setup}, seed 0, of run parent, with latents 1, 4, 5 removed" in run.result.origin
    # The table's line, by definition, in the units of training.
    x = held_out_rows(store, HOOK, 32)
    code, error = expected.encode(x), (expected(x) - x) * scale
    in_training = code * (scale if folded else 1)
    row = run.result.rows[0]
    assert run.result.held_out == len(x) == 30
    assert row.dead is None
    assert row.mse == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert row.l0 == pytest.approx(float((code > 0).sum() / 30))
    assert row.l1 == pytest.approx(float(in_training.abs().sum() / 30 / 5), rel=1e-5)
    spread = ((x - x.mean(0)) * scale).square().sum()
    assert row.evr_pooled == pytest.approx(float(1 - error.square().sum() / spread), rel=1e-4, abs=1e-5)
    report = json.loads((run.folder / RECORD).read_text())["edits"][0]
    before = old.encode(x)
    assert report["metrics"]["before"]["dictionary"] == int((before > 0).any(0).sum())
    assert report["metrics"]["after"]["dictionary"] == row.dictionary == int((code > 0).any(0).sum())
    assert report["changes"]["W_enc"]["latents"] == 3
    assert report["changes"]["W_enc"]["rank"] == 3
    size = float(old.W_enc[[1, 4, 5]].norm() / old.W_enc.norm())
    assert report["changes"]["W_enc"]["norm"] == pytest.approx(size, rel=1e-5)
    assert "owner/tiny" in report["language_model"]["missing"]
    assert "loss was not measured" in " ".join(told.split())
    # The same again.
    assert "is there already" in do("remove", "parent", setup=setup, latent="1,4-5")
    assert len(list((cache / "runs").iterdir())) == 2
    # The other verbs.
    quiet = Console(file=io.StringIO(), width=80)
    inspect(InspectConfig(run=name, latent="4"), quiet)
    assert "never fires" in quiet.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    compare(CompareConfig(runs=(f"parent:{setup}", name)), quiet)
    export(ExportConfig(name, "safetensors", out=str(cache / "out")))
    # And back, without the parent.
    shutil.rmtree(parent.folder)
    (back,) = [document("undo", name)]
    assert back["name"].startswith("parent-restored-")
    mine = Run.open(back["name"])
    assert all(torch.equal(per_latent(mine.sae())[key], value) for key, value in per_latent(old).items())
    assert mine.fingerprint(mine.row()) == back["parent"]["fingerprint"] == report["parent"]["fingerprint"]
    assert mine.result.rows == tuple(row for row in parent.result.rows if row.setup == setup)
    assert "by undoing run" in mine.result.origin
    assert not (mine.folder / RECORD).exists()
    assert "is there already" in refused(lambda: do("undo", name))


def test_edits_of_edits_are_undone_one_by_one(cache: Path):
    parent = make_run("parent", ["gated"], store=make_store())
    do("remove", "parent", latent="3", name="one")
    do("strengthen", "one", latent="5", factor=3.0, name="two")
    do("inject", "two", latent="3", to_run="parent", to_latent="0", name="three")
    for name, was in (("three", "two"), ("two", "one"), ("one", "parent")):
        do("undo", name, name=f"{was}-again")
        again, old = Run.open(f"{was}-again"), Run.open(was)
        assert again.fingerprint(again.row()) == old.fingerprint(old.row())
        assert (again.folder / RECORD).exists() == (was != "parent")
    do("undo", "two-again", name="one-once-more")
    assert torch.equal(Run.open("one-once-more").sae().W_enc, removed(parent.sae(), [3]).W_enc)


def test_the_contexts_of_a_latent_before_and_after(cache: Path):
    store = make_store()
    sae = make_run("parent", ["topk"], store=store).sae()
    report = document("remove", "parent", latent="6")
    (found,) = report["contexts"]
    every = torch.cat([chunk.activations[:, 1:].flatten(0, 1) for chunk in store.chunks(HOOK, 99)])
    code = sae.encode(every)[:, 6]
    assert found["of"] == "latent 6 of topk, seed 0, of run parent"
    assert found["rate"] == pytest.approx(float((code > 0).float().mean()))
    places = found["contexts"]
    assert places[0]["before"] == pytest.approx(float(code.max()), rel=1e-5)
    assert [place["after"] for place in places] == [0] * 4
    x = every[code.argmax()][None]
    new = removed(sae, [6]).encode(x)[0]
    assert places[0]["others"] == new.argsort(descending=True)[: int((new > 0).sum())].tolist()[:4]
    (stronger,) = document("strengthen", "parent", latent="6")["contexts"]
    assert all(place["after"] == place["before"] > 0 for place in stronger["contexts"]), "untied: codes stay"
    assert all(6 not in place["others"] for place in stronger["contexts"])


def test_a_direction_of_a_run_of_another_scale(cache: Path):
    store = make_store()
    small, large = make_run("small", ["tied"], scale=0.01, store=store), make_run("large", ["relu"], store=store)
    report = document("inject", "small", to_run="large:relu:0", to_latent="2", name="new")
    (latent,) = report["latents"]
    x = held_out_rows(store, HOOK, 32)
    firings = (small.sae().encode(x) > 0).sum(0)
    assert latent == int((firings == firings.min()).nonzero()[-1]), "the least used, the last of equals"
    new, t = Run.open("new").sae(), unit(large.sae().W_dec[2])
    torch.testing.assert_close(unit(new.W_enc[latent]), t)
    used = firings > 0
    assert float(new.W_enc[latent].norm()) == pytest.approx(float(small.sae().W_enc[used].norm(dim=1).mean()), rel=1e-5)
    assert float(new.b_enc[latent]) == pytest.approx(float(small.sae().b_enc[used].mean()), rel=1e-5)
    same = {each["what"]: each for each in report["verified"]}
    assert same["the target"]["after"]["hits"] == Surgeon(SAEMemory(new, temperature=50.0)).verify(t).hits
    assert report["contexts"][-1]["of"] == "latent 2 of relu, seed 0, of run large"
    assert report["contexts"][-1]["latent"] == latent
    there = "blocks.5.hook_resid_pre"
    make_run("elsewhere", ["relu"], store=make_store("elsewhere", there), hook=there)
    assert "another model or hook" in do("move", "small", latent="3", to_run="elsewhere", to_latent="2", name="else")
    save_file({"v": t * 7, "w": torch.zeros(5)}, cache / "t.safetensors")
    settings = SurgeryConfig(target=f"{cache / 't.safetensors'}:v")
    torch.testing.assert_close(target_of(settings, open_case("small"))[0], t)
    do("inject", "small", target=settings.target, name="file")
    assert "with t.safetensors:v (hsae" in Run.open("file").result.origin, "no folder of this machine"
    torch.testing.assert_close(Run.open("file").sae().W_enc, new.W_enc)
    do("move", "small", latent="3", target=f"{cache / 't.safetensors'}:v", name="moved")
    torch.testing.assert_close(Run.open("moved").sae().W_enc[3], t * small.sae().W_enc[3].norm())
    do("inject", "large", target=f"{cache / 't.safetensors'}:v", how="dense", strength="0.2", name="dense")
    size = float((Run.open("dense").sae().W_dec - large.sae().W_dec).norm() / large.sae().W_dec.norm())
    assert size == pytest.approx(0.2, rel=1e-4)
    found = document("diff", "large", to_run="dense")
    assert found["tensors"]["W_dec"]["norm"] == pytest.approx(size, rel=1e-6)
    assert found["tensors"]["W_dec"]["rank"] == 1
    assert document("diff", "small", to_run="moved")["latents"] == [3]
    assert "no latent differs" in do("diff", "small", to_run="small")


def test_looking_changes_nothing(cache: Path):
    run = make_run("parent", ["tied"], store=make_store())
    found = document("verify", "parent", latent="2,6")
    surgeon = {d: Surgeon(SAEMemory(run.sae(), d, temperature=50.0), Protocol(0)) for d in DYNAMICS}
    assert [(each["latent"], each["dynamics"]) for each in found] == [(i, d) for i in (2, 6) for d in DYNAMICS]
    for each in found:
        assert each["hits"] == surgeon[each["dynamics"]].verify(run.sae().W_dec[each["latent"]]).hits
    basins = document("survey", "parent")
    assert sum(each["population"] for each in basins if each["dynamics"] == "softmax") == 200
    assert "basins" in do("survey", "parent")
    assert "20/20" in do("verify", "parent", latent="2")
    assert [path.name for path in (cache / "runs").iterdir()] == ["parent"]


def test_without_the_store_only_undo_works(cache: Path):
    make_run("parent", ["relu"], store=make_store())
    do("remove", "parent", latent="2", name="new")
    shutil.rmtree(cache / "activations")
    there = {path.name for path in (cache / "runs").iterdir()}
    for operation in ("remove", "verify", "survey"):
        assert "'shared'" in refused(lambda: do(operation, "parent", latent="3"))  # noqa: B023
    assert {path.name for path in (cache / "runs").iterdir()} == there
    document("undo", "new", name="old")
    assert torch.equal(Run.open("old").sae().W_dec, Run.open("parent").sae().W_dec)


def test_a_run_is_shared_with_what_was_done_to_it_but_not_with_what_undoes_it(cache: Path):
    make_run("parent", ["relu"], store=make_store())
    do("remove", "parent", latent="2", name="new")
    files = publish(Record.open("new")).files()
    assert not {RECORD, ROWS} & set(files)
    theirs = cache / "theirs"
    theirs.mkdir()
    for name, content in files.items():
        (theirs / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    pulled = Run.open(theirs)
    assert torch.equal(pulled.sae().W_dec, Run.open("new").sae().W_dec)
    assert pulled.result.origin == "relu, seed 0, of run parent, with latent 2 removed (hsae lab surgery)"
    assert "no surgery to undo" in refused(lambda: do("undo", str(theirs)))
    do("remove", str(theirs), latent="3", name="further")
    assert not Run.open("further").sae().W_dec[2:4].any()


def test_the_factor_goes_the_way_that_the_word_says(cache: Path):
    row = make_run("parent", ["relu"], store=make_store()).sae().W_dec[2]
    for operation, expected in (("weaken", row / 4), ("strengthen", row * 4)):
        do(operation, "parent", latent="2", factor=4.0, name=operation)
        torch.testing.assert_close(Run.open(operation).sae().W_dec[2], expected)


def test_a_name_that_another_edit_has_is_refused_before_anything_is_done(cache: Path, monkeypatch: pytest.MonkeyPatch):
    make_run("parent", ["relu"], store=make_store())
    do("remove", "parent", latent="2", name="new")
    monkeypatch.setattr("hsae.lab.surgery.runs.measured", lambda *_: pytest.fail("it was measured"))
    assert "is there already" in refused(lambda: do("remove", "parent", latent="3", name="new"))
    assert "with latent 2 removed" in do("remove", "parent", latent="2", name="new")


def test_an_edit_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    make_run("parent", ["relu"], store=make_store())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunWriter, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        do("remove", "parent", latent="2")
    assert [path.name for path in (cache / "runs").iterdir()] == ["parent"]


def test_rows_that_are_not_the_parents_are_refused(cache: Path):
    make_run("parent", ["relu"], store=make_store())
    do("remove", "parent", latent="2", name="new")
    save_file({"0/W_enc": torch.ones(1, 5), "0/W_enc.latents": torch.tensor([2])}, cache / "runs" / "new" / ROWS)
    assert "nothing was written" in refused(lambda: do("undo", "new"))
    assert {path.name for path in (cache / "runs").iterdir()} == {"parent", "new"}
    for width, latent in ((4, 2), (5, 99)):
        wrong = {"0/W_enc": torch.ones(1, width), "0/W_enc.latents": torch.tensor([latent])}
        save_file(wrong, cache / "runs" / "new" / ROWS)
        assert "not rows of this run" in refused(lambda: do("undo", "new"))
    (cache / "runs" / "new" / ROWS).unlink()
    assert ROWS in refused(lambda: do("undo", "new"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"operation": "remove", "latent": "8"}, "latent 8 is not in 0…7 of relu, seed 0, of run parent"),
        ({"operation": "remove", "latent": "2,x"}, "latent must be numbers and ranges"),
        ({"operation": "remove"}, "say which latents to remove"),
        ({"operation": "verify"}, "say which latents to verify"),
        ({"operation": "remove", "latent": "1", "run": "parnt"}, "no run 'parnt'"),
        ({"operation": "remove", "latent": "1", "setup": "topk"}, "has no setup 'topk'"),
        ({"operation": "remove", "latent": "1", "seed": 3}, "has no seed 3"),
        ({"operation": "remove", "latent": "1", "setup": "gated"}, "diverged"),
        ({"operation": "remove", "latent": "1", "name": "../x"}, "--name"),
        ({"operation": "remove", "latent": "1", "name": "other"}, "is there already"),
        ({"operation": "remove", "latent": "1", "strength": "0.1"}, "--factor"),
        ({"operation": "weaken", "latent": "1", "how": "dense"}, "--how dense is for inject and remove"),
        ({"operation": "remove", "latent": "2", "run": "gone"}, "removed already"),
        ({"operation": "remove", "latent": "1", "run": "unmeasured"}, "'gone'"),
        ({"operation": "inject"}, "say what to write"),
        ({"operation": "inject", "to_run": "other"}, "say which latent of"),
        ({"operation": "inject", "to_run": "other", "to_latent": "99"}, "latent 99 is not in"),
        ({"operation": "inject", "to_run": "wide", "to_latent": "1"}, "6 wide, the SAE 5"),
        ({"operation": "inject", "to_run": "other:relu:x", "to_latent": "1"}, "RUN:SETUP:SEED"),
        ({"operation": "inject", "to_run": "gone", "to_latent": "2"}, "zero or not finite"),
        ({"operation": "inject", "target": "none.safetensors"}, "none.safetensors"),
        ({"operation": "move", "to_run": "other", "to_latent": "1"}, "move wants one latent"),
        ({"operation": "move", "to_run": "other", "to_latent": "1", "latent": "1,2"}, "move wants one latent"),
        ({"operation": "undo"}, "no surgery to undo"),
        ({"operation": "diff"}, "--to-run"),
        ({"operation": "diff", "to_run": "wide"}, "different tensors"),
        ({"operation": "study"}, "say what to do to run parent"),
    ],
)
def test_mistakes_are_one_line(cache: Path, words: dict[str, Any], line: str):
    store = make_store()
    make_run("parent", ["relu", "gated"], diverged=["gated"], store=store)
    make_run("other", ["relu"], store=store)
    wide = make_sae(config.build(Setup, SETUPS["relu"], "test"), width=6)
    make_run("wide", ["relu"], saes={"relu": wide}, store=make_store("wider", width=6))
    make_run("gone", ["relu"], saes={"relu": removed(of_setup("relu"), [2])}, store=store)
    make_run("unmeasured", ["relu"])
    there = {path.name for path in (cache / "runs").iterdir()}
    said = refused(lambda: do(**{"run": "parent", **words}))
    assert line in said
    assert {path.name for path in (cache / "runs").iterdir()} == there


def test_from_the_command_line_with_the_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "cache"))
    make_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(make_text(24, 60)))
    common = {"model": str(tmp_path / "model"), "data": (str(tmp_path / "text.txt"),), "hooks": (sites.HOOK,)}
    harvest(HarvestConfig(**common, context=32, tokens=640, name="opened"), Console(quiet=True))
    sites.make_run(Store.open("opened"))
    assert cli.run(["lab", "surgery", "remove", "--run", "opened", "--setup", "tied", "--latent", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    old, new = (evaluate(EvaluateConfig(run=run, setups=("tied",))) for run in ("opened", report["name"]))
    loss = report["language_model"]
    assert loss["clean"] == pytest.approx(old.clean.cross_entropy, rel=1e-6)
    assert loss["before"] == pytest.approx(old.saes[0].cross_entropy, rel=1e-6)
    assert loss["after"] == pytest.approx(new.saes[0].cross_entropy, rel=1e-6)
    assert loss["before"] != loss["after"]
    assert loss["tokens"] == old.tokens
    assert Store.open("opened").manifest.fingerprint == Run.open(report["name"]).result.store_fingerprint
    with pytest.raises(UserError, match="removed already"):
        cli.run(["lab", "surgery", "remove", "--run", report["name"], "--latent", "3"])


def test_the_study_in_small():
    body, numbers = study(SurgeryConfig(scale="tiny"))
    assert body.startswith("### ")
    assert "It holds in every step" in body
    assert all(each["violations"] == 0 and each["steps"] >= 300 for each in numbers["surveys"])
    rates = {(each["sae"], each["edit"]): (each["before"][0], each["after"][0]) for each in numbers["edits"]}
    for name in ("hebb-tied", "bp-tied"):
        assert rates[name, "inject"] == (0, 1)
        assert rates[name, "remove"] == (1, 0)
        assert rates[name, "remove, dense"] == (1, 0)
