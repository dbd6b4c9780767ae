"""Training end to end on planted directions: it learns, repeats itself to the bit, survives a kill, sees divergence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import Cut, CutAt
from safetensors.torch import load_file

from hsae.config import read_file
from hsae.errors import UserError
from hsae.run import Run
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
SMALL = {"latents": 48, "batch_tokens": 128, "held_out": 256, "steps": 8, "log_every": 2}


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_table(SMALL | changes, "test")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "sae.safetensors")


def test_the_four_setups_train_and_backprop_learns(planted: Planted):
    planted()
    run = train(config(steps=300, log_every=100))
    rows = {row.setup: row for row in run.result.rows}
    assert list(rows) == ["bp", "bp-tied", "bp-dec", "hebb-tied"]
    assert rows["bp"].evr_pooled is not None
    assert rows["bp"].evr_pooled > 0.8
    assert rows["bp-dec"].evr_pooled is not None
    assert rows["bp-dec"].evr_pooled > rows["hebb-tied"].evr_pooled
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged if r["setup"] == "bp"] == [1, 100, 200, 300]
    assert next(r for r in logged if r["setup"] == "bp")["evr_pooled"] < rows["bp"].evr_pooled


def test_a_hebbian_encoder_does_not_depend_on_its_decoder(planted: Planted):
    planted()
    run = train(config(setups=["bp-dec", "hebb-tied"]))
    saved = weights(run)
    assert torch.equal(saved["bp-dec/0/W_enc"], saved["hebb-tied/0/W_enc"])
    assert torch.equal(saved["bp-dec/0/b_enc"], saved["hebb-tied/0/b_enc"])
    dec, tied = run.row("bp-dec"), run.row("hebb-tied")
    assert (dec.l0, dec.l1, dec.dictionary, dec.dead) == (tied.l0, tied.l1, tied.dictionary, tied.dead)
    assert dec.mse != tied.mse


@pytest.mark.parametrize("rule", ["backprop", "softhebb", "oja"])
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_the_result_does_not_depend_on_micro_batches(planted: Planted, rule: str, kind: str):
    planted()
    runs = []
    for micro in (128, 64, 7):
        setup = {"x": {"encoder": {"rule": rule}, "tied": True, "sae": {"kind": kind}}}
        runs.append(weights(train(config(setups=["x"], setup=setup, micro_batch=micro, name=f"micro-{micro}"))))
    for other in runs[1:]:
        torch.testing.assert_close(other["x/0/W_enc"], runs[0]["x/0/W_enc"], rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(other["x/0/b_enc"], runs[0]["x/0/b_enc"], rtol=2e-4, atol=2e-5)


def test_several_seeds_are_several_saes(planted: Planted):
    planted()
    run = train(config(setups=["bp"], seeds=[0, 5]))
    saved = weights(run)
    assert not torch.equal(saved["bp/0/W_enc"], saved["bp/5/W_enc"])
    alone = weights(train(config(setups=["bp"], seeds=[5])))
    assert torch.equal(saved["bp/5/W_enc"], alone["bp/5/W_enc"])


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_cut_off_ends_the_same_to_the_bit(planted: Planted, step: int):
    planted()
    whole = train(config(name="whole"))
    with pytest.raises(Cut):
        train(config(name="cut", checkpoint_seconds=0.0), CutAt(step))
    with pytest.raises(UserError, match="unfinished run"):
        Run.open("cut")
    cut = train(config(name="cut", checkpoint_seconds=0.0))
    assert all(torch.equal(value, weights(cut)[key]) for key, value in weights(whole).items())
    assert (cut.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_a_run_does_not_go_on_with_other_data(planted: Planted, cache: Path):
    planted()
    with pytest.raises(Cut):
        train(config(name="cut", store="planted", checkpoint_seconds=0.0), CutAt(3))
    shutil.rmtree(cache / "activations" / "planted")
    planted(features=8)
    with pytest.raises(UserError, match="was begun on another store"):
        train(config(name="cut", store="planted", checkpoint_seconds=0.0))


def test_a_run_goes_on_with_the_same_activations_at_another_place(planted: Planted, cache: Path):
    planted()
    whole = train(config(name="whole"))
    with pytest.raises(Cut):
        train(config(name="cut", store="planted", checkpoint_seconds=0.0), CutAt(3))
    (cache / "activations" / "planted").rename(cache / "activations" / "moved")
    cut = train(config(name="cut", store="moved"))
    assert all(torch.equal(value, weights(cut)[key]) for key, value in weights(whole).items())
    assert cut.result.store == read_file(cut.folder / "config.toml", "train")["store"] == "moved"
    # What is whole is neither trained again nor changed.
    (cache / "activations" / "moved").rename(cache / "activations" / "again")
    before = (cut.folder / "config.toml").read_bytes()
    assert train(config(name="cut", store="again")).result == cut.result
    assert (cut.folder / "config.toml").read_bytes() == before
    with pytest.raises(UserError, match="another config"):
        train(config(name="cut", store="again", latents=40))


def start(*words: str) -> subprocess.Popen[str]:
    flags = ["--latents", "48", "--batch-tokens", "128", "--held-out", "256", "--checkpoint-seconds", "0.05"]
    command = [sys.executable, "-m", "hsae", "train", *flags, "--steps", "2500", "--setups", "bp", "hebb-tied", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def until_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_and_interrupted_processes_end_the_same_to_the_bit(planted: Planted, cache: Path):
    planted()
    assert start("--name", "whole").wait() == 0
    killed = start("--name", "cut")
    until_checkpoint(killed, cache / "runs" / "cut")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stopped = start("--name", "cut")
    while "going on" not in (line := (stopped.stdout.readline() if stopped.stdout else "")):
        assert line, stopped.communicate()
    stopped.send_signal(signal.SIGINT)
    out, error = stopped.communicate()
    assert stopped.returncode == 130, (out, error)
    assert "the same command goes on from" in error
    assert "Traceback" not in error
    assert start("--name", "cut").wait() == 0
    whole, cut = Run.open("whole"), Run.open("cut")
    assert all(torch.equal(value, weights(cut)[key]) for key, value in weights(whole).items())


def test_a_finished_run_is_returned_not_repeated(planted: Planted):
    planted()
    run = train(config())
    before = (run.folder / "sae.safetensors").stat().st_mtime_ns
    assert train(config()).folder == run.folder
    assert (run.folder / "sae.safetensors").stat().st_mtime_ns == before
    repeated = TrainConfig.from_table(read_file(run.folder / "config.toml", "train"), "config.toml")
    assert train(repeated).folder == run.folder


def test_a_setup_that_diverges_is_stopped_and_the_others_go_on(planted: Planted):
    planted()
    run = train(config(setups=["bp", "bp-tied"], setup={"bp": {"encoder": {"lr": 1e20, "clip": 0.0}}}))
    bad, good = run.row("bp"), run.row("bp-tied")
    assert bad.diverged is not None
    assert bad.diverged.startswith("at step 1: ")
    assert "learning rate" in bad.diverged
    assert bad.mse is None
    assert good.mse is not None
    assert not any(key.startswith("bp/") for key in weights(run))
    with pytest.raises(UserError, match="diverged at step 1"):
        run.sae("bp")


def test_normalisation_scales_to_the_variance_and_folds_back(planted: Planted):
    store = planted()
    _, record = store.hook()
    modes = {"mode": "variance", "variance": 0.25}
    plain = train(config(setups=["bp"], normalise=modes))
    assert plain.result.scale == pytest.approx((0.25 / record.variance) ** 0.5)
    folded = train(config(setups=["bp"], normalise=modes | {"fold": True}))
    x = next(store.chunks("hook", 4)).activations.reshape(-1, 16)
    assert plain.sae().scale == pytest.approx(plain.result.scale)
    assert folded.sae().scale == 1
    assert torch.equal(folded.sae().W_enc, plain.sae().W_enc)
    torch.testing.assert_close(folded.sae()(x), plain.sae()(x))
    torch.testing.assert_close(folded.sae().encode(x) * plain.result.scale, plain.sae().encode(x))
    # The same as training on activations that were scaled beforehand.
    by_hand = train(config(setups=["bp"], normalise={"mode": "factor", "factor": plain.result.scale}))
    torch.testing.assert_close(by_hand.sae().W_enc, plain.sae().W_enc)


def test_the_table_is_measured_on_held_out_tokens(planted: Planted):
    store = planted()
    run = train(config(setups=["bp"]))
    x = torch.cat([c.activations.reshape(-1, 16) for c in store.chunks("hook", 8, first=56)])
    assert run.result.held_out == len(x) == 256
    sae = run.sae()
    error = (sae(x) - x).double()
    row = run.row()
    assert row.mse == pytest.approx(error.square().mean().item(), rel=1e-5)
    spread = (x - x.mean(0)).double().square().sum()
    assert row.evr_pooled == pytest.approx(1 - (error.square().sum() / spread).item(), rel=1e-5)
    assert row.l0 == pytest.approx((sae.encode(x) > 0).sum(1).float().mean().item())


def test_dead_latents_are_those_that_have_not_fired_lately(planted: Planted):
    planted()
    # A bias far below anything that the activations reach: nothing fires.
    literal = {"hebb-tied": {"encoder": {"bias_init": "paper_literal"}}}
    run = train(config(setups=["hebb-tied", "bp"], setup=literal, latents=3200, steps=2))
    assert run.row("hebb-tied").dead == 3200
    assert run.row("hebb-tied").dictionary == 0
    assert run.row("bp").dead is not None
    assert run.row("bp").dead < 3200


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch_tokens": 10**6, "steps": None}, "fewer than one batch"),
        ({"held_out": 10**6}, "would be held out"),
        ({"device": "quantum"}, "device 'quantum' is not there; there is"),
        ({"hook": "blocks.9"}, "has no hook point 'blocks.9'; there is hook"),
        ({"store": "absent"}, "no store 'absent'"),
    ],
)
def test_what_cannot_be_trained_is_one_line(planted: Planted, changes: dict[str, Any], line: str):
    planted()
    with pytest.raises(UserError, match=line) as error:
        train(config(**changes))
    assert "\n" not in str(error.value)


def test_a_run_that_is_not_there(cache: Path):
    with pytest.raises(UserError, match=r"no run in .* yet: make one with `hsae train`"):
        Run.open()
    with pytest.raises(UserError, match=r"no store in .* yet: make one with `hsae harvest`"):
        train(config())
