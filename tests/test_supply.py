"""What the toolkit depends on, and what it does before it is asked for anything: nothing."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# A compiler that systems have anyway, and Google's object store, which no test reaches.
NOT_LOCKED = {"ziglang", "gcsfs"}


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        pin = Requirement(line)
        assert pin.url is None, line
        (only,) = pin.specifier
        assert only.operator == "==", line
        assert "*" not in only.version, line
        version = Version(only.version)
        assert version.local is None, f"{line}: of one platform"
        name = canonicalize_name(pin.name)
        assert name not in found, f"{line}: twice"
        found[name] = version
    return found


def test_every_requirement_is_pinned_and_the_pins_fit():
    pins, missing = locked(), set()
    extras = PROJECT["optional-dependencies"].values()
    for line in (*PROJECT["dependencies"], *(line for extra in extras for line in extra)):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in pins:
            missing.add(name)
        else:
            assert requirement.specifier.contains(pins[name], prereleases=True), f"{line}: {pins[name]}"
    assert missing == NOT_LOCKED


def test_what_the_pins_want_is_pinned():
    pins, seen = locked(), 0
    for name, version in pins.items():
        try:
            here = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        if Version(here.version).public != str(version):
            continue
        seen += 1
        for line in here.requires or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            other = canonicalize_name(needed.name)
            if other == "setuptools":  # pip's own, which `pip freeze` leaves out
                continue
            # Builds of PyTorch for GPUs differ from machine to machine, and name their own libraries.
            if name == "torch" and other.startswith(("cuda-", "nvidia-", "triton")):
                continue
            assert other in pins, f"{name} wants {line}"
            assert needed.specifier.contains(pins[other], prereleases=True), f"{name} wants {line}: {pins[other]}"
    assert seen > len(pins) // 2


def test_the_versions_of_python_that_are_named_are_those_that_may_install():
    said = {line.split(" :: ")[-1] for line in PROJECT["classifiers"] if "Python :: 3" in line}
    assert said == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11"


# Before anything is asked for.

WATCH = """
import os, sys

seen = []


def note(event, args):
    if event == "open":
        path, mode, flags = args
        writes = (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if isinstance(path, int) or (not writes and str(path).startswith(own)):
            return
        if not writes and str(path).startswith(SYSTEM):
            return
        seen.append(("writes" if writes else "reads", str(path)))
    elif event.split(".")[0] in PARTS or event in EVENTS:
        seen.append((event, str(args)[:100]))


PARTS = {"socket", "subprocess", "shutil", "tempfile", "urllib", "http", "ftplib", "smtplib", "webbrowser", "fcntl"}
EVENTS = {f"os.{name}" for name in "mkdir rename remove rmdir link symlink truncate chmod utime".split()}
EVENTS |= {f"os.{name}" for name in "system exec fork forkpty posix_spawn spawn kill putenv_".split()}
# What C libraries and platform look into: they say what machine it is.
SYSTEM = ("/proc/", "/sys/", "/etc/", "/dev/null", "/usr/share/locale", "/usr/lib/locale", "/usr/share/zoneinfo")
"""

IMPORTED = (
    WATCH
    + """
SYSTEM = ("/nothing/",)
own = (sys.prefix, sys.base_prefix, os.environ["HOUSE"])
sys.addaudithook(note)
import hsae
hsae.__version__, hsae.__all__
sys.stdout.write(repr(seen))
"""
)

HELPED = (
    WATCH
    + """
import contextlib, io
own = (sys.prefix, sys.base_prefix, os.environ["HOUSE"])
sys.addaudithook(note)
from hsae import cli
from hsae.verbs import LAB, VERBS
verbs = [[], *([name] for name in (*VERBS, "harvest", "train", "evaluate", "lab"))]
for words in [*verbs, *(["lab", name] for name in LAB)]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.run([*words, "--help"])
    assert "usage" in out.getvalue(), words
sys.stdout.write(repr(seen))
"""
)


def watched(code: str, folder: Path) -> list[tuple[str, str]]:
    """What a fresh interpreter did that it should not have. It keeps no compiled modules: that would be writing.

    PyTorch imports dill where that is installed, which asks the temporary folder whether it can be written, and its
    builds for GPUs ask ldconfig where their libraries lie; those and /dev/null are left out.
    """
    temporary = folder / "temporary"
    temporary.mkdir()
    env = {"HOUSE": str(ROOT / "hsae"), "PYTHONPATH": str(ROOT), "HOME": str(folder), "TMPDIR": str(temporary)}
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [*folder.rglob("*")] == [temporary]
    fine = (str(temporary), "/dev/null", "('/sbin/ldconfig', ['/sbin/ldconfig', '-p'],")
    return [event for event in ast.literal_eval(done.stdout) if not any(path in event[1] for path in fine)]


@pytest.mark.fault("Supply", "An import that does something", "every audit event is watched", "import hsae")
def test_the_import_opens_no_socket_and_touches_no_file(tmp_path: Path):
    assert watched(IMPORTED, tmp_path) == []


def test_the_help_of_every_verb_opens_no_socket_and_touches_no_file(tmp_path: Path):
    assert watched(HELPED, tmp_path) == []


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("open('a', 'w').close(); os.remove('a')", "writes"),
        ("import pathlib; pathlib.Path('b').mkdir(); os.rmdir('b')", "os.mkdir"),
        ("import socket; socket.socket().close()", "socket"),
        ("import subprocess; subprocess.run(['true'])", "subprocess"),
        ("os.close(os.open('c', os.O_CREAT)); os.remove('c')", "writes"),
        ("open('/etc/hostname').close()", "reads"),
    ],
)
def test_the_watch_sees(tmp_path: Path, code: str, event: str):
    found = watched(IMPORTED.replace("import hsae\n", f"{code}\nimport hsae\n"), tmp_path)
    assert any(name.startswith(event) for name, _ in found), found


# The audit.


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    home = ROOT / "tools" / "supply"
    monkeypatch.syspath_prepend(str(home))
    spec = importlib.util.spec_from_file_location("audit", home / "audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "h11", "version": "0.16.0", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "CVE-2"}]}
GAP: dict[str, Any] = {"name": "odd", "skip_reason": "Dependency not found on PyPI"}


def test_every_finding_is_printed_and_fails(audit: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert audit.report([GOOD, BAD, GAP]) == 1
    said = capsys.readouterr().out
    for words in ("old 1.0: PYSEC-1, mended in: 1.1", "old 1.0: CVE-2, mended in: none yet", "odd", "2 known flaws"):
        assert words in said
    assert audit.report([GOOD, GAP]) == 0
    assert "odd" in capsys.readouterr().out
    assert audit.report(None) == 1


@pytest.mark.parametrize("answer", [json.dumps({"dependencies": [GAP]}), "no network", ""])
def test_where_no_service_answers_one_line_says_so(
    audit: ModuleType, answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def run(command: list[str], **more: Any) -> Any:
        asked.append(Path(command[command.index("--requirement") + 1]).read_text())
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(audit, "environment", lambda *words: Path("python"))
    monkeypatch.setattr(audit.subprocess, "run", run)
    audit.main()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "skipped" in said
    # One pin was asked about, and it is one of the lock's.
    assert len(asked) == 1
    assert re.fullmatch(r"h11==[\d.]+\n", asked[0])


def test_a_service_that_answers_is_asked_about_every_pin(
    audit: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def answer(python: Path, place: Path, pins: list[str]) -> list[dict[str, Any]]:
        asked.append(pins)
        return [GOOD] if len(pins) == 1 else [GOOD, BAD]

    monkeypatch.setattr(audit, "environment", lambda *words: Path("python"))
    monkeypatch.setattr(audit, "audit", answer)
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == 1
    assert asked[1] == (ROOT / "requirements.lock").read_text().splitlines()
    assert "PYSEC-1" in capsys.readouterr().out


def test_ci_audits():
    assert "make audit" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
