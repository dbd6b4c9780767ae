"""Real processes that are killed, stopped, failed and misled about the time; see tests/faults/README.md."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from faults import folders
from faults.bench import COMMANDS, STORE, Bench
from faults.forks import COMPILER, Fault, Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills and traces processes as Linux does")
with_shim = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

EVERY = "hsae harvest, train, inspect, export, import, repair"
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")

C = TypeVar("C")
Trials = Callable[[int, int], int]
Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The commands, and as many processes at a time as there are cores in the long form."""
    long = request.config.getoption("--long-faults")
    made = Bench(tmp_path_factory.mktemp("bench"), os.cpu_count() or 1 if long else 1)
    yield made
    made.crew.close()


def spread(cases: Sequence[C], count: int) -> list[C]:
    """So many of them, evenly, and always the same; all where there are no more."""
    return [cases[int((i + 0.5) * len(cases) / count)] for i in range(count)] if count < len(cases) else list(cases)


def operations(bench: Bench, more: int = 0) -> list[tuple[str, int]]:
    """Every file operation of every command, and `more` behind each command's last."""
    return [(name, at) for name in COMMANDS for at in range(1, bench.unbroken[name].operations + 1 + more)]


def killed_at_random(bench: Bench, name: str, count: int, record: Record) -> None:
    def trial(forks: Forks, case: int) -> int:
        draw = random.Random(f"{name} {case}")
        with bench.trial(name, f"killed {case}") as cache:
            ends = [bench.cut_off(forks, name, cache, draw, signal.SIGKILL)]
            # Killed again while it goes on, now and then.
            for _ in range(draw.choice((0, 0, 0, 1, 2))):
                ends.append(bench.give(forks, name, cache, after=draw.uniform(0, ends[0].seconds)))
            for ended in ends:
                assert ended.code in (0, -signal.SIGKILL), ended.said
            bench.goes_on(forks, name, cache)
        return sum(ended.code < 0 for ended in ends)

    kills = sum(bench.crew.each(trial, range(count)))
    record("trials", count)
    record("note", f"{kills} kills")


@pytest.mark.fault("Kills", "SIGKILL", "at random instants, up to three times in a row", "hsae harvest")
def test_the_store_has_the_bytes_of_an_unbroken_one(bench: Bench, trials: Trials, record_property: Record):
    """The same command given again leaves the bytes of an unbroken one, and rewrites one whole shard at most"""
    killed_at_random(bench, "harvest", trials(4, 200), record_property)


@pytest.mark.fault("Kills", "SIGKILL", "at random instants, up to three times in a row", "hsae train")
def test_the_run_has_the_weights_of_an_unbroken_one(bench: Bench, trials: Trials, record_property: Record):
    """The same command given again goes on from the last checkpoint, and leaves the weights of an unbroken one"""
    killed_at_random(bench, "train", trials(4, 200), record_property)


@pytest.mark.fault("Kills", "SIGKILL", "at file operations, evenly spaced; a write is cut in half", EVERY)
@with_shim
def test_after_a_kill_in_a_file_operation_the_same_command_goes_on(
    bench: Bench, trials: Trials, record_property: Record
):
    """The same command given again leaves what an unbroken one leaves, and no other file"""

    def trial(forks: Forks, case: tuple[str, int]) -> None:
        name, at = case
        with bench.trial(name, f"killed at operation {at}") as cache:
            assert bench.give(forks, name, cache, fault=Fault(at)).code == -signal.SIGKILL
            bench.goes_on(forks, name, cache)

    cases = spread(operations(bench), trials(8, 10**6))
    bench.crew.each(trial, cases)
    record_property("trials", len(cases))
    record_property("note", f"of {len(operations(bench))} operations")


@pytest.mark.fault("Kills", "Ctrl-C, or a batch system", "SIGINT or SIGTERM at random instants", EVERY)
def test_an_interruption_is_one_line_and_exit_130_and_the_same_command_goes_on(
    bench: Bench, trials: Trials, record_property: Record
):
    def trial(forks: Forks, case: tuple[str, int]) -> None:
        name, number = case
        with bench.trial(name, f"interrupted {number}") as cache:
            sent = signal.SIGTERM if number % 2 else signal.SIGINT
            ended = bench.cut_off(forks, name, cache, random.Random(f"{name} {number}"), sent)
            assert ended.code == 130, ended.said
            *_, last = ended.said.splitlines()
            assert re.match("hsae: .*(the same command|was (not )?written)", last), ended.said
            bench.goes_on(forks, name, cache)

    cases = [(name, number) for number in range(trials(2, 30)) for name in COMMANDS]
    bench.crew.each(trial, cases)
    record_property("trials", len(cases))


AT_THE_END = """
import atexit, os, signal, sys
from hsae.cli import main
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["hsae", "--version"]
main()
"""


@pytest.mark.fault("Kills", "Ctrl-C", "SIGINT while the interpreter clears up", "hsae --version")
def test_ctrl_c_after_the_end_changes_nothing():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hsae ")


@pytest.mark.fault(
    "Power", "The power goes", "at a file operation; what was not flushed is cut off, or loses its name", EVERY
)
@with_shim
def test_after_a_loss_of_power_the_same_command_goes_on(bench: Bench, trials: Trials, record_property: Record):
    """The same command given again leaves what an unbroken one leaves; a command that had ended has lost nothing"""

    def trial(forks: Forks, case: tuple[str, int]) -> None:
        name, at = case
        names = random.Random(f"{name} {at}").random() < 0.5
        with bench.trial(name, f"no power at operation {at} {names}") as cache:
            trace = cache.with_name(f"{cache.name}.trace")
            ended = bench.give(forks, name, cache, fault=Fault(at, trace=trace))
            folders.lose_power(trace, names)
            if ended.code == 0:
                bench.is_whole(name, cache)
            bench.goes_on(forks, name, cache)

    cases = spread(operations(bench, more=1), trials(6, 10**6))
    bench.crew.each(trial, cases)
    record_property("trials", len(cases))
    record_property("note", f"of {len(operations(bench, more=1))} operations")


@pytest.mark.fault(
    "Disk", "An error of the disk", f"file operations, evenly spaced, fail with {' or '.join(ERRORS)}", EVERY
)
@with_shim
def test_an_error_of_the_disk_is_one_line_and_the_same_command_goes_on(
    bench: Bench, trials: Trials, record_property: Record
):
    """One line and exit 2, or a result; once the disk is well, the same command leaves what an unbroken one leaves"""

    def trial(forks: Forks, case: tuple[str, int]) -> None:
        name, at = case
        error = random.Random(f"{name} {at}").choice(ERRORS)
        with bench.trial(name, f"{error} at operation {at}") as cache:
            ended = bench.give(forks, name, cache, fault=Fault(at, getattr(errno, error)))
            assert ended.code in (0, 2), ended.said
            if ended.code == 2:
                assert ended.said.splitlines()[-1].startswith("hsae: "), ended.said
            bench.goes_on(forks, name, cache)

    cases = spread(operations(bench), trials(8, 10**6))
    bench.crew.each(trial, cases)
    record_property("trials", len(cases))
    record_property("note", f"of {len(operations(bench))} operations")


@pytest.mark.fault("Clock", "The clock jumps", "it is 3 hours ahead, right or behind, each time it is asked", EVERY)
@with_shim
def test_a_clock_that_jumps_changes_no_byte(bench: Bench, record_property: Record):
    def trial(forks: Forks, name: str) -> None:
        with bench.trial(name, "while the clock jumps") as cache:
            ended = bench.give(forks, name, cache, fault=Fault(clock=3 * 3600))
            assert ended.code == 0, ended.said
            bench.is_whole(name, cache)

    bench.crew.each(trial, COMMANDS)
    record_property("trials", len(COMMANDS))


@pytest.mark.fault("Clock", "The clock is set back", "by 3 hours, between a kill and the same command again", EVERY)
@with_shim
def test_files_from_the_future_are_gone_on_with(bench: Bench, record_property: Record):
    def trial(forks: Forks, name: str) -> None:
        with bench.trial(name, "after the clock is set back") as cache:
            middle = bench.unbroken[name].operations // 2
            assert bench.give(forks, name, cache, fault=Fault(middle)).code == -signal.SIGKILL
            ahead = time.time() + 3 * 3600
            for path in cache.rglob("*"):
                os.utime(path, (ahead, ahead))
            bench.goes_on(forks, name, cache)

    bench.crew.each(trial, COMMANDS)
    record_property("trials", len(COMMANDS))


@pytest.mark.fault(
    "Processes", "Two processes on one store", "the same command, while the first is stopped", "hsae harvest"
)
def test_the_second_says_so_in_one_line_and_does_not_disturb_the_first(bench: Bench):
    def trial(forks: Forks, case: str) -> None:
        with bench.trial("harvest", case) as cache:
            words = [sys.executable, "-m", "hsae", *COMMANDS["harvest"]]
            environment = os.environ | {"HSAE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
            first = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
            try:
                while first.poll() is None and not (cache / STORE / "plan.json").exists():
                    time.sleep(0.001)
                first.send_signal(signal.SIGSTOP)
                second = bench.give(forks, "harvest", cache)
                assert second.code == 2, second.said
                assert re.fullmatch("hsae: .*another hsae harvest is writing it.*\n", second.said)
                first.send_signal(signal.SIGCONT)
                assert first.wait(timeout=120) == 0
            finally:
                first.kill()
            bench.is_whole("harvest", cache)

    bench.crew.each(trial, ["twice"])


# ---- the suite itself


@pytest.mark.parametrize("names", [False, True])
def test_a_loss_of_power_takes_what_was_not_flushed_and_nothing_else(tmp_path: Path, names: bool):
    for name in ("sub", "empty"):
        (tmp_path / name).mkdir()
    for name, text in {"new": "12345", "longer": "12345678", "sub/whole": "1234", "sub/hollow": "1234"}.items():
        (tmp_path / name).write_text(text)
    done = ["open new 1", "write new 5", "open longer 1", "write longer 5", "fsync longer", "write longer 3"]
    done += ["open sub/a 1", "write sub/a 4", "fsync sub/a", "rename sub/a sub/whole"]
    done += ["open sub/b 1", "write sub/b 4", "rename sub/b sub/hollow", "fsync sub", "mkdir empty", "unlink sub/whole"]
    lines = []
    for operation, path, *more in map(str.split, done):
        to, number = (tmp_path / more[0], 0) if operation == "rename" else ("", *(more or [0]))
        lines.append(f"{operation}\t{tmp_path / path}\t{to}\t{number}\n")
    (trace := tmp_path / "trace").write_text("".join(lines))
    folders.lose_power(trace, names)
    trace.unlink()
    left = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {"sub/whole": "1234"}
    assert (tmp_path / "empty").exists() != names
    assert left == kept | ({"sub/hollow": "1234"} if names else {"new": "", "longer": "12345", "sub/hollow": ""})


def test_a_fault_that_fails_is_in_the_table_as_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    import reliability

    good = reliability.Row("Clock", "It jumps", "LD_PRELOAD", "hsae train", "No byte changes", 3.2, 2, 7, ["note"])
    bad = reliability.Row(
        "Kills", "SIGKILL", "at once", "hsae harvest", "It goes on", 1.0, 1, 2, failed=["x: no | way"]
    )
    page = reliability.page([good, bad, reliability.Row("Disk", "never", "run", "x", "y")], 61.0, "make faults")
    assert "2 faults, 9 trials, **1 FAILED**" in page
    assert "| It jumps | LD&#95;PRELOAD | `hsae train` | No byte changes | holds; 7 trials; note | 3 |" in page
    assert "| It goes on | **FAILED** (1 of 2) x: no &#124; way; 2 trials | 1 |" in page
    assert page.index("## Kills") < page.index("## Clock")
    assert "## Disk" not in page
