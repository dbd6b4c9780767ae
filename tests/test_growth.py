"""The report of benchmarks/growth.py: slopes and verdicts of curves whose growth is known. Nothing is measured."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KEYS = ("harvest_rate", "train_rate", "harvest_cpu", "train_cpu", "harvest_memory", "train_memory", "disk", "resume")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import growth_report

    return growth_report


def record(over_tokens: dict[str, float], over_latents: dict[str, float]) -> dict[str, Any]:
    tokens = [{"tokens": n, **{key: 7 * n ** over_tokens.get(key, 0) for key in KEYS}} for n in (1, 4, 16, 64)]
    rest = ("topk_rate", "topk_memory", "hebb_rate", "hebb_memory")
    latents = [{"latents": n, **{key: 5e6 * n ** over_latents[key] for key in rest}} for n in (1024, 4096, 65536)]
    points = {"tokens": tokens, "latents": latents}
    told = {"command": "python growth.py", "date": "today", "machine": "this", "seconds": 60.0, "load": 0.5}
    return told | {"points": points}


RIGHT = {"topk_rate": -1.0, "hebb_rate": -1.0, "topk_memory": 1.0, "hebb_memory": 1.0}


def verdicts(report: ModuleType, found: dict[str, Any]) -> dict[str, str]:
    rows = [line.split(" | ") for line in report.text(found).splitlines() if line.endswith(" |")]
    return {row[0].removeprefix("| "): row[-1].removesuffix(" |") for row in rows if len(row) == 4 and row[0][2:]}


def test_what_grows_as_it_should_is_said_to(report: ModuleType):
    found = verdicts(report, record({"disk": 1.0}, RIGHT))
    assert len(found) == 12
    assert all(verdict.endswith("as it should be") for verdict in found.values()), found
    assert found["disk, MiB"] == "linear, as it should be"
    assert found["TopK, tokens/s"] == "as 1 / latents, as it should be"


def test_what_does_not_is_said_to_be_better_or_worse(report: ModuleType):
    worse = {"disk": 1.2, "train_memory": 0.3, "train_rate": -0.3, "resume": 1.0}
    found = verdicts(report, record(worse, RIGHT | {"topk_rate": -0.5, "hebb_memory": 2.0}))
    assert found["disk, MiB"] == "worse than linear"
    assert found["training, memory, MiB"] == "worse than constant"
    assert found["training, tokens/s"] == "worse than constant"
    assert found["first step after a restart, s"] == "worse than constant"
    assert found["TopK, tokens/s"] == "better than as 1 / latents"
    assert found["SoftHebb, memory, MiB"] == "worse than linear"
    assert found["harvest, memory, MiB"] == "constant, as it should be"


def test_what_was_not_measured_is_said_to_be_so(report: ModuleType):
    data = record({}, RIGHT)
    for point in data["points"]["tokens"]:
        point["resume"] = math.nan
    assert verdicts(report, data)["first step after a restart, s"] == "not measured"


def test_the_figure_is_drawn_from_any_points(report: ModuleType, tmp_path: Path):
    report.draw(tmp_path, record({"disk": 1.0}, RIGHT)["points"])
    report.draw(tmp_path, {"tokens": [], "latents": []})
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
