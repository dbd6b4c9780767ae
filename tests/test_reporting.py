"""TensorBoard and Weights & Biases have the points of metrics.jsonl, each once, however often training was cut off."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsae import files
from hsae.errors import UserError
from hsae.progress import Training
from hsae.record import Row
from hsae.reporting import Reports, numbers, reporting
from hsae.run import Run
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

SMALL = {"setups": ["bp", "hebb-tied"], "latents": 24, "batch_tokens": 128, "held_out": 128, "steps": 8, "log_every": 2}
Points = dict[str, list[tuple[int, float]]]

needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs wandb")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_table(SMALL | {"name": "run"} | changes, "test")


class Cut(Exception):
    """The end of a process, for a test."""


class CutAt(Training):
    """Ends training after a step, as a kill between two steps would; hears what is said."""

    def __init__(self, step: int = 0) -> None:
        super().__init__()
        self.left, self.said = step, list[str]()

    def say(self, line: str) -> None:
        self.said.append(line)

    def update(self, records: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Cut


def logged(folder: Path, setup: str, seed: int = 0) -> Points:
    """What metrics.jsonl has of an SAE, by name."""
    points: Points = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if (record["setup"], record["seed"]) == (setup, seed):
            for name, value in numbers(record).items():
                if name not in ("step", "seed"):
                    points.setdefault(name, []).append((record["step"], value))
    return points


def in_tensorboard(folder: Path) -> Points:
    """What TensorBoard's own files hold, in the order in which they were written: no event is forgotten or merged."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points: Points = {}
    for file in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                (number,) = value.tensor.float_val
                points.setdefault(value.tag, []).append((event.step, number))
    return points


def in_wandb(file: Path) -> tuple[Points, dict[str, float], dict[str, Any]]:
    """History, summary and the run's record in an offline file of Weights & Biases: LevelDB's log of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    points: Points = {}
    summary: dict[str, float] = {}
    about: dict[str, Any] = {}
    for record in records:
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            if not name.startswith("_"):
                points.setdefault(name, []).append((items["_step"], value))
        summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
        if record.run.run_id:
            about = {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
            about["config"] = {i.key: json.loads(i.value_json) for i in record.run.config.update}
    return points, summary, about


def earlier() -> Path:
    """The offline folder of the one start so far, named as of another second: two within one would share a name."""
    (folder,) = (files.cache_root() / "runs" / "run" / "wandb").glob("offline-run-*")
    return folder.rename(folder.with_name(folder.name.replace("offline-run-2", "offline-run-1")))


def near(points: Points) -> Any:
    return {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in rows] for name, rows in points.items()}


def test_numbers_of_a_record() -> None:
    record = {"setup": "bp", "l0": 3.5, "dead": 2, "evr": None, "ok": True, "rule": {"gini": 0.25, "bias": None}}
    assert numbers(record) == {"l0": 3.5, "dead": 2, "rule/gini": 0.25}


def test_what_a_sink_is_told() -> None:
    told: list[tuple[Any, ...]] = []

    class Heard:
        def log(self, *args: Any) -> None:
            told.append(("log", *args))

        def result(self, *args: Any) -> None:
            told.append(("result", *args))

    reports = Reports([Heard()])
    reports.log([{"step": 4, "setup": "bp", "seed": 1, "mse": 0.5}])
    reports.result([Row("bp", 1, l0=2.0, dead=3, diverged="at step 3")], 8)
    assert told == [("log", ("bp", 1), 4, {"mse": 0.5}), ("result", ("bp", 1), 8, {"l0": 2.0, "dead": 3})]


def test_none_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("not read\n")
    with reporting(config(), tmp_path, print) as reports:
        reports.log([{"no": "keys"}])
        reports.result([], 1)


def test_they_change_nothing_that_is_trained(planted: Callable[..., Store]) -> None:
    planted()
    plain = train(config(name=""))
    named = train(config(name="", tensorboard=True)) if importlib.util.find_spec("tensorboard") else plain
    assert named.folder == plain.folder


@needs_tensorboard
class TestTensorBoard:
    def test_every_number_of_every_setup_and_seed(self, planted: Callable[..., Store]) -> None:
        planted()
        run = train(config(tensorboard=True, seeds=[0, 3]))
        folders = {path.name for path in (run.folder / "tensorboard").iterdir()}
        assert folders == {"bp-0", "bp-3", "hebb-tied-0", "hebb-tied-3"}
        for row in run.result.rows:
            points = in_tensorboard(run.folder / "tensorboard" / f"{row.setup}-{row.seed}")
            held_out = {name: rows for name, rows in points.items() if name.startswith("held-out/")}
            trained = {name: rows for name, rows in points.items() if name not in held_out}
            assert trained == near(logged(run.folder, row.setup, row.seed))
            assert [step for step, _ in points["mse"]] == [1, 2, 4, 6, 8]
            assert held_out["held-out/evr_pooled"] == [(8, pytest.approx(row.evr_pooled, rel=1e-6))]
            assert any(name.startswith("rule/") for name in points) is (row.setup == "hebb-tied")

    def test_after_a_cut_every_point_is_there_once(self, planted: Callable[..., Store]) -> None:
        planted()
        whole = train(config(name="whole", tensorboard=True))
        settings = config(tensorboard=True, checkpoint_seconds=0)
        with pytest.raises(Cut):
            train(settings, CutAt(5))
        # As if the kill had come after the logging, and before the checkpoint.
        folder = whole.folder.parent / "run"
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 7, "setup": "bp", "seed": 0, "mse": 9.0}) + "\n")
        run = train(settings)
        for name in ("bp-0", "hebb-tied-0"):
            mine, others = (in_tensorboard(f / "tensorboard" / name) for f in (run.folder, whole.folder))
            for points in (mine, others):
                del points["held-out/tokens_per_second"]
            assert mine == others

    def test_a_finished_run_can_be_told_later(self, planted: Callable[..., Store]) -> None:
        planted()
        run = train(config())
        assert not (run.folder / "tensorboard").exists()
        hearing = CutAt()
        train(config(tensorboard=True), hearing)
        assert hearing.said == [
            f"{run.folder} is already trained: nothing to do",
            f"TensorBoard: tensorboard --logdir {run.folder / 'tensorboard'}",
        ]
        points = in_tensorboard(run.folder / "tensorboard" / "bp-0")
        assert len(points["mse"]) == 5
        assert len(points["held-out/mse"]) == 1
        train(config(tensorboard=True))
        assert in_tensorboard(run.folder / "tensorboard" / "bp-0") == points

    def test_an_open_tensorboard_forgets_the_file_before(self, planted: Callable[..., Store]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        planted()
        folder = train(config(tensorboard=True)).folder / "tensorboard" / "bp-0"
        # The clock of a quick test does not always give the new file a later name.
        (old,) = folder.iterdir()
        old = old.rename(folder / "events.out.tfevents.1.before")
        watching = EventAccumulator(str(folder))
        watching.Reload()
        first = watching.Scalars("mse")
        train(config(tensorboard=True))
        assert (old.stat().st_size, len(list(folder.iterdir()))) == (0, 2)
        watching.Reload()
        again = watching.Scalars("mse")
        assert [event.step for event in again] == [event.step for event in first] == [1, 2, 4, 6, 8]
        assert again[0].wall_time > first[-1].wall_time


@needs_wandb
class TestWeightsAndBiases:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_DISABLE_GIT", "true")

    def files(self, run: Run) -> dict[str, Path]:
        """The one offline file of each SAE."""
        ids = json.loads((run.folder / "wandb" / "hsae.json").read_text())["ids"]
        found = {}
        for name, id in ids.items():
            (found[name],) = (run.folder / "wandb").glob(f"offline-run-*-{id}/run-{id}.wandb")
        return found

    def test_every_number_and_what_was_trained(self, planted: Callable[..., Store]) -> None:
        planted()
        run = train(config(wandb="project"))
        for name, file in self.files(run).items():
            setup = name.removesuffix("-0")
            points, summary, about = in_wandb(file)
            assert points == near(logged(run.folder, setup))
            assert summary["held-out/mse"] == pytest.approx(run.row(setup).mse)
            assert (about["group"], about["name"]) == ("run", f"run {setup} 0")
            assert (about["config"]["setup"], about["config"]["seed"], about["config"]["latents"]) == (setup, 0, 24)
            assert about["config"]["encoder"]["rule"] == {"bp": "backprop", "hebb-tied": "softhebb"}[setup]

    def test_after_a_cut_one_folder_holds_every_point_once(self, planted: Callable[..., Store]) -> None:
        planted()
        settings = config(wandb="project", setups=["bp"], checkpoint_seconds=0)
        with pytest.raises(Cut):
            train(settings, CutAt(5))
        earlier()
        hearing = CutAt()
        run = train(settings, hearing)
        points, _, _ = in_wandb(self.files(run)["bp-0"])
        assert points == near(logged(run.folder, "bp"))
        assert [step for step, _ in points["mse"]] == [1, 2, 4, 6, 8]
        assert f"Weights & Biases: wandb sync {run.folder}/wandb/offline-run-*" in hearing.said

    def test_what_is_told_is_not_told_again(self, planted: Callable[..., Store]) -> None:
        planted()
        settings = config(wandb="project", setups=["bp"])
        run = train(settings)
        before = self.files(run)
        hearing = CutAt()
        train(settings, hearing)
        assert hearing.said[-1] == "Weights & Biases: project project has this run already"
        assert self.files(run) == before
        train(config(wandb="another", setups=["bp"]))
        assert self.files(run) != before

    def test_a_synced_folder_is_kept(self, planted: Callable[..., Store]) -> None:
        planted()
        settings = config(wandb="project", setups=["bp"], checkpoint_seconds=0)
        with pytest.raises(Cut):
            train(settings, CutAt(5))
        folder = earlier()
        (folder / "run.wandb.synced").touch()
        train(settings)
        assert folder.exists()

    def test_steps_that_the_service_has_are_not_sent(self, planted: Callable[..., Store], monkeypatch: Any) -> None:
        import wandb

        sent: list[tuple[int, dict[str, float]]] = []

        class Resumed:
            starting_step, offline, project_url = 5, False, "https://wandb.ai/me/project"

            def __init__(self) -> None:
                self.summary: dict[str, float] = {}

            def log(self, values: dict[str, float], step: int) -> None:
                sent.append((step, values))

            def finish(self, exit_code: int) -> None:
                sent.append((-1, {"exit": exit_code}))

        monkeypatch.setattr(wandb, "init", lambda **kwargs: Resumed())
        planted()
        hearing = CutAt()
        train(config(wandb="project", setups=["bp"]), hearing)
        assert [step for step, _ in sent] == [6, 8, -1]
        assert sent[-1][1] == {"exit": 0}
        assert "Weights & Biases: https://wandb.ai/me/project" in hearing.said
        sent.clear()
        with pytest.raises(Cut):
            train(config(wandb="other", name="cut", setups=["bp"]), CutAt(7))
        assert sent[-1][1] == {"exit": 1}


class TestRefusals:
    @pytest.mark.parametrize(
        ("flag", "value", "package"), [("tensorboard", True, "torch.utils.tensorboard"), ("wandb", "p", "wandb")]
    )
    def test_a_missing_package(
        self, planted: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, flag: str, value: Any, package: str
    ) -> None:
        planted()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"^--{flag} needs a package: pip install {flag}$"):
            train(config(**{flag: value}))

    @needs_wandb
    def test_nobody_is_logged_in(self, planted: Callable[..., Store], tmp_path: Path) -> None:
        planted()
        # The service's client reads its environment once in a process.
        left_out = {"WANDB_API_KEY", "WANDB_MODE"}
        environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"NETRC": str(tmp_path / "none")}
        command = [sys.executable, "-m", "hsae", "train", "--setups", "bp", "--latents", "24", "--batch-tokens", "128"]
        done = subprocess.run(
            [*command, "--steps", "2", "--held-out", "128", "--wandb", "p"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert re.fullmatch(r"hsae: --wandb p: No API key .*; WANDB_MODE=offline logs into \S+\n", done.stderr)
