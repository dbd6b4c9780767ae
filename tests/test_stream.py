"""`hsae train --stream`: the rows of a harvest without its store, the same after a kill, by any number of processes."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut import Cut, CutAt
from rich.console import Console
from safetensors.torch import load_file
from together import ended, torchrun
from torch import Tensor

from hsae.cli import run as command
from hsae.errors import UserError
from hsae.evaluate import EvaluateConfig, evaluate
from hsae.flags import choose_data
from hsae.harvesting import HarvestConfig, harvest
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.run import Run
from hsae.store import Store
from hsae.streaming import StreamConfig, StreamRows, make_sample, open_stream
from hsae.streaming.pools import Place
from hsae.trainconfig import TrainConfig
from hsae.training import train

LOADED = functools.cache(load_lm)
HOOK = "blocks.1.hook_resid_pre"
TEXT: dict[str, Any] = {"model": "bundled", "data": ["bundled"], "hooks": [HOOK], "context": 32, "device": "cpu"}
# 32 contexts in the sample, 80 in an epoch; a half of the ring takes 60, less than an epoch.
STREAM: dict[str, Any] = TEXT | {"sample": 1024, "tokens": 2560, "ring_mib": 1}
TRAIN: dict[str, Any] = {
    "data": "stream",
    "stream": STREAM,
    "setups": ["bp", "hebb-tied"],
    "latents": 48,
    "batch_tokens": 256,
    "held_out": 256,
    "steps": 24,
    "log_every": 1,
    "baselines": False,
    "checkpoint_seconds": 0.0,
    "normalise": {"mode": "variance"},
}


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, which no test changes."""
    for home in ("hsae.streaming", "hsae.harvesting"):
        monkeypatch.setattr(f"{home}.load_lm", LOADED)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_table(TRAIN | changes, "test")


def stream(seed: int = 0, **changes: Any) -> StreamRows:
    settings = StreamConfig(**{**{k: tuple(v) if isinstance(v, list) else v for k, v in STREAM.items()}, **changes})
    return open_stream(settings, Store(make_sample(settings, None)), seed, lambda line: None)


def taken(rows: StreamRows, count: int, batch: int, start: int = 0) -> Tensor:
    """So many batches from a row on, one after the other."""
    batches = rows.batches(batch, start)
    found = torch.cat([next(batches) for _ in range(count)])
    batches.close()
    return found


def in_order(rows: Tensor) -> Tensor:
    return rows[torch.from_numpy(np.lexsort(rows.numpy().T))]


def same(one: Run, other: Run) -> bool:
    first, second = (load_file(run.folder / "sae.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_stream_has_the_rows_that_a_harvest_of_the_text_has(cache: Path):
    # The first position never counts: that neither is trained on.
    rows = stream(exclude_first=1)
    table = {k: tuple(v) if isinstance(v, list) else v for k, v in TEXT.items()}
    store = Store(harvest(HarvestConfig(**table, tokens=1024 + 2560, exclude_first=1), Console(quiet=True)))
    (chunk,) = store.chunks(HOOK, 200, first=32)
    wanted = chunk.activations[chunk.keep]
    assert len(wanted) == 80 * 31
    epoch = taken(rows, 10, 248)
    assert torch.equal(in_order(epoch), in_order(wanted))
    assert not torch.equal(epoch, wanted)
    # The ring's half is a pool: its rows come first, and are the text's first.
    pool = rows.pools.config.pool_sequences(rows.pools.width) * 31
    assert 0 < pool < len(wanted)
    assert torch.equal(in_order(epoch[:pool]), in_order(wanted[:pool]))
    # The next epoch is the same text in another order; another seed is another order too.
    again = taken(rows, 10, 248, start=2480)
    assert torch.equal(in_order(again), in_order(wanted))
    assert not torch.equal(again, epoch)
    assert not torch.equal(taken(stream(1, exclude_first=1), 10, 248), epoch)


def test_a_stream_can_be_entered_at_any_row_from_any_place_before_it(cache: Path):
    whole, places = stream(), {}
    batches = whole.batches(500)
    wanted = []
    for number in range(12):
        wanted.append(next(batches))
        places[500 * number] = whole.place(500 * number)
    batches.close()
    assert len({Place.of(place).row for place in places.values()}) >= 4
    for row, place in [(0, None), (1234, None), *list(places.items())[::3]]:
        fresh = stream()
        fresh.go_on(place, fresh.pools.ranks)
        assert torch.equal(taken(fresh, 1, 500, row), torch.cat(wanted + wanted)[row : row + 500])
        if place is not None:
            # What is before the place is not computed, and the place is the last there is.
            assert Place.of(fresh.place(row)) == Place.of(place)
            assert row - Place.of(place).row < 2560
    assert torch.equal(whole.batch(500, 5500), wanted[-1])
    assert torch.equal(whole.batch(500, 0), wanted[0])


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A text of some 2,000 tokens, in fifty documents."""
    path = tmp_path / "short.txt"
    path.write_text(
        "<|endoftext|>".join(f"Once there were {n} cats. They all sat on mat {n * n} and slept." for n in range(50))
    )
    return str(path)


def test_a_text_that_ends_is_read_again(cache: Path, short: str):
    rows = stream(data=(short,), sample=128, tokens=10**9)
    batches = rows.batches(100)
    first, place = next(batches), rows.place(0)
    for number in range(1, 100):
        next(batches)
        place = rows.place(100 * number)
        if place["epoch"]:
            break
    batches.close()
    epoch = place["row"]
    assert place["epoch"] == 1
    assert 500 < epoch < 5000
    assert epoch % 32 == 0
    assert torch.equal(in_order(taken(rows, 1, epoch, epoch)), in_order(taken(rows, 1, epoch)))
    assert not torch.equal(taken(rows, 1, 100, epoch), first)
    with pytest.raises(UserError, match=r"the text ends with the sample; lower --stream.sample"):
        stream(data=(short,), sample=10**6)


@pytest.mark.parametrize("step", [2, 10, 17])
def test_a_training_cut_off_ends_the_same_to_the_bit(cache: Path, step: int):
    whole = train(config(name="whole"))
    with pytest.raises(Cut):
        train(config(name="cut"), CutAt(step))
    cut = train(config(name="cut"))
    assert same(whole, cut)
    assert [row.train_mse for row in cut.result.rows] == [row.train_mse for row in whole.result.rows]
    assert cut.result.tokens == 24 * 256
    # Two epochs and more, in every one of which the sample is left out.
    assert cut.result.store == Path(make_sample(config().stream, None)).name


@pytest.mark.fault("Kills", "SIGKILL", "in the middle; three processes go on", "hsae train --stream")
def test_a_killed_process_and_three_others_end_the_same(cache: Path, tmp_path: Path):
    words = ["train", "--stream", "bundled", "--stream.data", "bundled", "--stream.hook", HOOK, "--stream.context"]
    words += ["32", "--stream.sample", "1024", "--stream.tokens", "2560", "--stream.ring-mib", "1", "--latents", "48"]
    words += ["--stream.device", "cpu", "--batch-tokens", "256", "--held-out", "256", "--steps", "60", "--baselines"]
    words += ["False", "--setups", "hebb-tied", "--log-every", "1", "--checkpoint-seconds", "0", "--name", "cut"]
    child = subprocess.Popen([sys.executable, "-m", "hsae", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log, deadline = cache / "runs" / "cut" / "metrics.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 15:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (cache / "runs" / "cut" / "run.json").exists()
    out, error = ended(torchrun(3, *words))
    assert "3 processes, going on from step" in out, (out, error)
    whole = train(config(setups=["hebb-tied"], steps=60, name="whole", normalise={}))
    for key, value in load_file(whole.folder / "sae.safetensors").items():
        off = (load_file(Run.open("cut").folder / "sae.safetensors")[key] - value).abs().max()
        assert off <= 1e-6 * value.abs().max().clamp(min=1e-30), key


def test_a_run_on_a_stream_is_looked_at_and_evaluated_by_its_sample(cache: Path, capsys: pytest.CaptureFixture[str]):
    run = train(config(name="streamed", setups=["bp"]))
    assert Store.open(run.result.store).manifest.tokens == 1024
    assert command(["inspect", "--run", "streamed"]) == 0
    assert run.result.store in capsys.readouterr().out
    result = evaluate(EvaluateConfig(run="streamed", tokens=512, device="cpu"), Console(quiet=True))
    assert result is not None
    # The same settings name the same run, a smaller ring another one: its pools are others.
    assert train(config(name="streamed", setups=["bp"])).folder == run.folder
    with pytest.raises(UserError, match=r"another config \(stream\)"):
        train(config(name="streamed", setups=["bp"], stream=STREAM | {"ring_mib": 2}))


def test_the_ring_bounds_the_memory_whatever_the_length_of_the_text(cache: Path):
    rows = stream(tokens=10**7, context=64)
    pool = rows.pools.config.pool_sequences(rows.pools.width)
    rooms = [tensor.nbytes for tensor in _rooms(rows)]
    assert len(rooms) == 2
    assert (1 << 20) * 0.8 < sum(rooms) + 2 * pool * 64 * 9 <= 1 << 20
    # The producer makes two pools and waits.
    batches = rows.batches(64)
    next(batches)
    assert rows._producer is not None
    held = [room.clone() for room in rows._producer._rooms]
    deadline = time.monotonic() + 60
    while rows._producer._made.qsize() < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    assert rows._producer._made.qsize() == 1
    # What is trained on stays as it is meanwhile.
    assert sum(torch.equal(a, b) for a, b in zip(held, rows._producer._rooms, strict=True)) >= 1
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("stream", "tokenise")]


def _rooms(rows: StreamRows) -> list[Tensor]:
    return rows.pools.rooms()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stream": STREAM | {"model": "absent/model"}}, "absent/model"),
        ({"stream": STREAM | {"hooks": ["blocks.99.hook_resid_pre"]}}, "no hook point 'blocks.99.hook_resid_pre'"),
        ({"held_out": 4096}, "would be held out"),
        ({"store": "other"}, "store must be unset with data = stream"),
        ({"stream": STREAM | {"hooks": [HOOK, "blocks.0.hook_resid_pre"]}}, "hooks must be one hook point"),
        ({"stream": STREAM | {"name": "kept"}}, "name must be unset"),
        ({"data": "store"}, "stream must be set only with data = stream"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(
    cache: Path, changes: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=re.escape(line)) as error:
        train(config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.fault("Numbers", "NaN in the activations of a stream", "a token gives it", "hsae train --stream")
def test_numbers_that_are_none_are_refused_or_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch):
    rows, dropping, tap = stream(), stream(non_finite="drop"), LM.tap

    def broken(self: LM, tokens: Tensor, hooks: Any) -> dict[str, Tensor]:
        found = tap(self, tokens, hooks)
        return {hook: values.index_fill(1, torch.tensor([3]), torch.nan) for hook, values in found.items()}

    monkeypatch.setattr(LM, "tap", broken)
    with pytest.raises(UserError, match=r"sequence 0, position 3, .*the model gave nan"):
        taken(rows, 1, 100)
    assert bool(taken(dropping, 10, 248).isfinite().all())


def test_a_text_of_which_nothing_counts_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    rows = stream()
    none = lambda config, tokens, *_: (torch.zeros_like(tokens).bool(), {})  # noqa: E731
    monkeypatch.setattr("hsae.harvesting.passes.keep_mask", none)
    with pytest.raises(UserError, match="no position of the text counts"):
        taken(rows, 1, 100)


def test_the_flag_that_makes_a_stream():
    assert choose_data({}, ["--stream", "m", "--latents", "8"]) == (
        {"data": "stream"},
        ["--stream.model", "m", "--latents", "8"],
    )
    assert choose_data({}, ["--stream.hook", "x"]) == ({"data": "stream"}, ["--stream.hooks", "x"])
    assert choose_data({}, ["--data", "synthetic"]) == ({"data": "synthetic"}, ["--data", "synthetic"])
    for args in (["--stream"], ["--stream", "--latents"]):
        with pytest.raises(UserError, match="--stream needs a model"):
            choose_data({}, args)


def test_several_setups_share_one_stream(cache: Path):
    both, one = train(config(name="both")), train(config(name="one", setups=["bp"]))
    first, second = (load_file(run.folder / "sae.safetensors") for run in (both, one))
    assert all(torch.equal(first[key], value) for key, value in second.items())
