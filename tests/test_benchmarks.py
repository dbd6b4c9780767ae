"""The benchmarks run, and their tables have what they should. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TINY = ("--width", "16", "--latents", "64", "--tokens", "4000", "--held-out", "1024", "--threads", "1")


def ran(script: str, out: Path, *flags: str) -> dict[str, Any]:
    """What a benchmark wrote, at sizes that say nothing."""
    words = [sys.executable, str(ROOT / "benchmarks" / script), *TINY, "--out", str(out), "--name", "tiny", *flags]
    done = subprocess.run(words, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (text,) = out.glob("*-tiny.md")
    assert "PyTorch" in text.read_text(encoding="utf-8")
    (record,) = out.glob("*-tiny.json")
    return json.loads(record.read_text(encoding="utf-8"))


def test_training_steps(tmp_path: Path) -> None:
    tools = ("hsae", "plain PyTorch")
    flags = ("--tasks", "relu", "--pages", "huge", "--batch", "256", "--rounds", "3", "--steps", "8", "--warmup", "3")
    record = ran("train.py", tmp_path, "--tools", *tools, *flags)
    assert {"date", "cpu", "cores", "torch"} <= set(record["machine"])
    task = record["tasks"]["relu"]
    assert task["floor"] > 0
    assert [row["tool"] for row in task["rows"]] == list(tools)
    for row in task["rows"]:
        assert "failure" not in row
        assert all(math.isfinite(second) and second > 0 for seconds in row["rounds"] for second in seconds)
        assert [len(seconds) for seconds in row["rounds"]] == [8, 8, 8]
        assert row["fvu"] < row["fvu_start"]
    # The plain PyTorch that hsae is compared with learns the same.
    ours, plain = task["rows"]
    assert ours["fvu"] == pytest.approx(plain["fvu"], rel=1e-3)
    assert ours["l0"] == pytest.approx(plain["l0"], rel=1e-2)


def test_a_peer_that_is_not_there_is_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSAE_BENCH_VENVS", str(tmp_path / "none"))
    flags = ("--tasks", "topk", "--pages", "huge", "--batch", "256", "--rounds", "1", "--steps", "1", "--warmup", "2")
    record = ran("train.py", tmp_path, "--tools", "plain PyTorch", "sae-lens", "--no-environments", *flags)
    rows = {row["tool"]: row for row in record["tasks"]["topk"]["rows"]}
    assert "no environment" in rows["sae-lens"]["failure"]
    assert rows["plain PyTorch"]["seconds"] > 0


def test_time_to_equal_fvu(tmp_path: Path) -> None:
    flags = (
        "--k",
        "4",
        "--batch",
        "256",
        "--seconds",
        "0.3",
        "--interval",
        "0.05",
        "--seeds",
        "1",
        "--most-steps",
        "60",
    )
    record = ran("fvu.py", tmp_path, "--tools", "hsae bp", "hsae residual-hebb", *flags)
    (result,) = record["results"]
    assert 0 < result["target"] < 1.1
    assert [row["tool"] for row in result["tools"]] == ["hsae bp", "hsae residual-hebb"]
    for curve in result["curves"]:
        assert curve["failure"] == ""
        assert curve["points"][-1]["fvu"] < curve["points"][0]["fvu"]
        assert all(point["l0"] <= 4 for point in curve["points"])
        assert [point["seconds"] for point in curve["points"]] == sorted(point["seconds"] for point in curve["points"])
    assert any(row["seconds"] is not None for row in result["tools"])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory(tmp_path: Path) -> None:
    record = ran("train.py", tmp_path, "--memory", "--tasks", "relu", "--tools", "hsae", "--batch", "256")
    assert [row["latents"] for row in record["rows"]] == [3200, 32_768]
    for row in record["rows"]:
        parts = sum(row[name] for name in ("before", "buffer", "parameters", "optimiser", "beyond"))
        assert row["peak"] == parts
        assert row["parameters"] == 4 * row["latents"] * (2 * 16 + 1)
