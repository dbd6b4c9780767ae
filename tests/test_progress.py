"""Numbers as people read them, and progress where there is no terminal."""

import io

import pytest
from rich.console import Console

from hsae import progress
from hsae.figures import duration, short, size
from hsae.progress import Bar, Training


def test_numbers() -> None:
    assert [short(n) for n in (0.0, 7.0, 950.0, 12_345.0, 345_678.0, 2.5e6)] == [
        "0",
        "7",
        "950",
        "12.3k",
        "346k",
        "2.5M",
    ]
    assert [size(n) for n in (0, 1023, 1024, 3 << 19, 5 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 TiB",
    ]
    assert [duration(s) for s in (0.2, 89.0, 600.0, 7300.0, 3 * 86400.0)] == [
        "1 s",
        "89 s",
        "10 min",
        "2 h 2 min",
        "3 days",
    ]


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Bar(Console(file=file), "harvest", total=1000, done=400) as bar:
        for _ in range(6):
            now[0] += 10
            bar.advance(100)
    # One line every 15 seconds; what an earlier run did does not count for the rate.
    assert file.getvalue().splitlines() == [
        "harvest: 600 of 1,000 tokens, 10 tokens/s, 40 s left",
        "harvest: 800 of 1,000 tokens, 10 tokens/s, 20 s left",
        "harvest: 1,000 of 1,000 tokens, 10 tokens/s, 1 s left",
    ]
    assert bar.rate == 10


def test_what_is_slow_has_a_rate_by_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Bar(Console(file=file), "lab", total=4, unit="units") as bar:
        now[0] += 40
        bar.advance(1)
    assert file.getvalue() == "lab: 1 of 4 units, 1.5 units/min, 2 min left\n"


def test_a_terminal_shows_the_metrics_of_every_setup_and_the_bar() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    training = Training(console)
    record = {"setup": "bp", "seed": 3, "step": 10, "mse": 2.5e-4, "evr": 0.5, "evr_pooled": 0.25, "l1": 1e-3}
    with training.bar(steps=20, at=0, batch_tokens=100) as bar:
        training.update([record | {"l0": 12.34, "dictionary": 1234, "dead": 7}])
        bar.advance(1000)
    shown = file.getvalue()
    assert all(word in shown for word in ("2.5e-4", ".500", ".250", "12.3", "1,234", "50%", "tokens/s"))


def test_on_no_console_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training()
    training.say("a line")
    with training.bar(2, 0, 10) as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")
