"""Inject every fault, and write what came of it to docs/reliability.md.

    python tools/reliability.py                    # make faults
    python tools/reliability.py --short            # as many trials as the ordinary tests make
    python tools/reliability.py -k harvest --out /tmp/some.md

A row is a test that carries the mark `fault` (tests/faults/README.md). One that fails is in the table as FAILED, and
then the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

from hsae.figures import duration
from hsae.sharing.markdown import code, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
# The tables, in the order of the page; others come behind them.
TABLES = ["Kills", "Power", "Disk", "Damage", "Processes", "Ranks", "Object stores", "Memory", "Numbers", "Clock"]
TABLES += ["Hostile input", "Strangers", "Server", "Supply"]


@dataclass
class Row:
    """A fault: the four strings of its mark, what must hold, and what came of each of its tests."""

    table: str
    fault: str
    injection: str
    command: str
    claim: str
    seconds: float = 0.0
    passed: int = 0
    trials: int = 0
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def result(self) -> str:
        """The last cell but one."""
        parts = []
        if self.failed:
            parts.append(f"**FAILED** ({len(self.failed)} of {len(self.failed) + self.passed}) {cell(self.failed[0])}")
        elif self.passed:
            parts.append("holds")
        if self.trials:
            parts.append(f"{self.trials:,} trial{'' if self.trials == 1 else 's'}")
        parts += map(cell, self.notes)
        if self.skipped:
            parts.append(f"{'' if self.passed or self.failed else 'not tried: '}{cell(self.skipped[0])}")
        return "; ".join(parts)


class Rows:
    """A plugin of pytest that gathers the rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._of: dict[str, Row] = {}

    def pytest_collection_modifyitems(self, items: Iterable[pytest.Item]) -> None:
        """A row for each mark of each test, whatever its parameters."""
        found: dict[tuple[str, ...], Row] = {}
        for item in items:
            mark = item.get_closest_marker("fault")
            if mark is not None:
                key = (place(item.nodeid), *mark.args)
                self._of[item.nodeid] = found.setdefault(key, Row(*mark.args, claim=claim(item)))
        self.rows = list(found.values())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What came of one test."""
        row, case = self._of[report.nodeid], report.nodeid.partition("[")[2].rstrip("]")
        label = f"{case}: " if case else ""
        row.seconds += report.duration if report.when == "call" else 0.0
        if report.failed:
            said = str(getattr(report.longrepr, "reprcrash", report.longrepr)).splitlines()[0]
            for place in (f"{ROOT}/", f"{sys.prefix}/", f"{sys.base_prefix}/"):  # where they lie is this machine's
                said = said.replace(place, "")
            row.failed.append(label + said[:300])
        elif report.skipped:
            row.skipped.append(str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))
        elif report.when == "call":
            row.passed += 1
        if report.when == "call" and not report.skipped:
            told = dict(report.user_properties)
            row.trials += int(str(told.get("trials", 1)))
            row.notes += [f"{label}{told['note']}"] if "note" in told else []


def cell(text: str) -> str:
    """Text in a cell, shown as it is."""
    for sign in "&<>|`*_[]\\":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def place(node: str) -> str:
    """A test's file and name, without its parameters."""
    return node.partition("[")[0]


def claim(item: pytest.Item) -> str:
    """What must hold: the first line of a test's docstring, else its name read as a sentence."""
    function = getattr(item, "function", None)
    said = (getattr(function, "__doc__", None) or "").strip().splitlines()
    name = place(item.name).removeprefix("test_").replace("_", " ")
    return said[0].rstrip(".") if said else name[:1].upper() + name[1:]


def page(rows: Iterable[Row], seconds: float, given: str) -> str:
    """The document. `given`: the command that makes it."""
    rows = [row for row in rows if row.passed or row.failed or row.skipped]
    failed = sum(bool(row.failed) for row in rows)
    trials = sum(row.trials for row in rows)
    tables: dict[str, list[list[str]]] = {}
    for row in rows:
        cells = [cell(row.fault), cell(row.injection), code(row.command), cell(row.claim), row.result()]
        tables.setdefault(row.table, []).append([*cells, f"{row.seconds:,.0f}"])
    heads = ["what goes wrong", "how it is injected", "command", "what must hold", "result", "s"]
    told = "all hold" if not failed else f"**{failed} FAILED**"
    parts = [
        "# Reliability",
        f"What `{given}` injected, and what came of it: "
        f"{len(rows)} faults, {trials:,} trials, {told}. It writes this page; nothing on it is typed. "
        "[How the faults are injected, and how a test becomes a row](../tests/faults/README.md).",
        f"{time.strftime('%-d %B %Y')}, commit {commit()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, PyTorch {version('torch')}; {duration(seconds)}.",
    ]
    ordered = sorted(tables, key=lambda name: TABLES.index(name) if name in TABLES else len(TABLES))
    parts += [f"## {name}\n\n{table(heads, tables[name], '.....r')}" for name in ordered]
    return "\n\n".join(parts) + "\n"


def commit() -> str:
    """The commit of the working tree."""
    run = ["git", "-C", str(ROOT)]
    name = subprocess.run([*run, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*run, "status", "--porcelain", "hsae", "tests"], capture_output=True, text=True).stdout
    return f"`{name}`{' with changes' if changed else ''}" if name else "unknown"


def main() -> int:
    """The exit code of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="as many trials as the ordinary tests make")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only these tests, as pytest's -k")
    parser.add_argument("--out", type=Path, default=PAGE, help="the document (default: docs/reliability.md)")
    told = parser.parse_args()
    rows, start = Rows(), time.monotonic()
    words = ["-m", "fault", "-k", told.k, str(ROOT / "tests"), "--tb", "short", "--durations", "0", "-vv"]
    code = pytest.main([*words, *([] if told.short else ["--long-faults"])], plugins=[rows])
    given = " ".join(["python tools/reliability.py", *sys.argv[1:]]) if told.short or told.k else "make faults"
    told.out.write_text(page(rows.rows, time.monotonic() - start, given), encoding="utf-8")
    print(f"{told.out} is written")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
