"""The command line: what a user types, what comes back, and with which exit code."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hsae.cli import main, run
from hsae.config import SECTIONS
from hsae.errors import UserError
from hsae.interrupt import interruptible
from hsae.run import Run
from hsae.store import Store
from hsae.verbs import LAB, VERBS

TRAIN = ["train", "--latents", "48", "--batch-tokens", "128", "--held-out", "256", "--steps", "3"]


def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    """The one line of a command that fails."""
    monkeypatch.setattr(sys, "argv", ["hsae", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["trian"], "no verb 'trian'; nearest: train"),
        (["train", "absent.toml"], "absent.toml: no such config file"),
        (["train", "--latens", "3"], "no flag --latens; nearest: --latents"),
        (["train", "--latents", "many"], "--latents: invalid literal for int()"),
        (["train", "--latents", "0"], "latents must be 1 or above, not 0"),
        (["train", "--latents"], "--latents"),
        (["train", "--setups", "bp", "--encoder.temperature", "3"], "no setup has --encoder.temperature"),
        (["train", "--setups", "bq"], "no setup named 'bq'; there is bp, bp-dec, bp-tied, hebb-tied"),
        (["train", "--setups"], "--setups needs a name"),
        (["train", "--encoder.rule", "adam"], "no rules entry named 'adam'; nearest: "),
        (["train", "--setups", "hebb-tied", "--sae", "gated"], "softhebb can train batchtopk, matryoshka, relu, topk"),
        (["train", "--setups", "hebb-tied", "--target-l0", "8"], "it can be steered with batchtopk, matryoshka, topk"),
        (["train", "--setups", "bp", "--revive", "auxk"], "revive must be one of homeostasis, resample for relu"),
        (["train", "--setups", "bp", "--decoder", "delta"], "decoder must be a rule for decoders"),
        (["train", "--data", "nonsense"], "data must be one of 'store', 'synthetic'"),
        (["train", "--setup.oops.encoder.rule", "oja"], "setup oops is not trained"),
        (["train", "--encoder.temperature", "-1"], "encoder: temperature must be above 0, not -1.0"),
        (["train"], "no store in"),
        (["inspect"], "no run in"),
        (["inspect", "--run", "absent"], "no run 'absent' in"),
        (["inspect", "--latent", "x"], "latent must be numbers and ranges such as 27"),
        (["harvest", "--hooks"], "hooks must be one or more different names"),
        (["harvest", "--context", "1"], "context must be at least 2"),
        (["harvest", "--data", "absent.txt"], "absent.txt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], line: str
):
    assert line in failed(capsys, monkeypatch, *args)


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "file"))
    line = failed(capsys, monkeypatch, "harvest", "--model", "bundled", "--data", "bundled", "--tokens", "2000")
    assert str(tmp_path / "file") in line


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'transformer_lens', 'tyro'}"
    code = f"import sys; from hsae.cli import run; run(['--help']); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: hsae VERB")
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("verb", ["harvest", "train", "inspect"])
def test_each_verb_lists_its_flags(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        run([verb, "--help"])
    assert stop.value.code == 0
    flags = {"harvest": ["--hooks"], "train": ["--setup.bp.encoder.lr", "softhebb", "topk"], "inspect": ["--latent"]}
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in flags[verb])


def test_flags_override_the_file_and_reach_every_setup(planted: Callable[..., Store], tmp_path: Path):
    planted()
    path = tmp_path / "my.toml"
    path.write_text('[train]\nlatents = 99\nsetups = ["bp", "hebb-tied"]\n[train.setup.bp.encoder]\nclip = 0.5\n')
    flags = ["--name", "x", "--encoder.lr", "1e-3", "--setup.hebb-tied.encoder.temperature", "7"]
    assert run(["train", str(path), *TRAIN[1:], *flags]) == 0
    setups = Run.open("x").setups
    assert Run.open("x").result.latents == 48
    assert setups["bp"].encoder.lr == setups["hebb-tied"].encoder.lr == 1e-3  # pyright: ignore
    assert setups["bp"].encoder.clip == 0.5  # pyright: ignore
    assert setups["hebb-tied"].encoder.temperature == 7  # pyright: ignore


def test_another_rule_and_variant_by_flags(planted: Callable[..., Store]):
    planted()
    flags = ["--setups", "hebb-tied,bp", "--setup.hebb-tied.encoder", "oja", "--sae.kind=topk", "--sae.k", "5"]
    assert run([*TRAIN, "--name", "x", *flags, "--setup.hebb_tied.encoder.lr=0.5".replace("_", "-")]) == 0
    setups = Run.open("x").setups
    assert type(setups["hebb-tied"].encoder).__name__ == "Oja"
    assert setups["hebb-tied"].encoder.lr == 0.5  # pyright: ignore
    assert setups["bp"].sae.k == setups["hebb-tied"].sae.k == 5  # pyright: ignore
    row = Run.open("x").row("bp")
    assert row.l0 is not None
    assert row.l0 <= 5


@pytest.mark.parametrize(
    ("flags", "signed", "adaptive"),
    [
        (["--encoder.no-signed"], False, True),
        (["--encoder.signed", "false", "--encoder.adaptive", "true"], False, True),
        (["--setup.hebb-tied.encoder.signed=True", "--setup.hebb-tied.encoder.no-adaptive"], True, False),
    ],
)
def test_switches_in_every_spelling(planted: Callable[..., Store], flags: list[str], signed: bool, adaptive: bool):
    planted()
    assert run([*TRAIN, "--name", "x", "--setup", "hebb-tied", *flags]) == 0
    encoder = Run.open("x").setups["hebb-tied"].encoder
    assert (encoder.signed, encoder.adaptive) == (signed, adaptive)  # pyright: ignore


def test_a_diverged_setup_is_exit_code_1(planted: Callable[..., Store]):
    planted()
    assert run([*TRAIN, "--setups", "bp", "--encoder.lr", "1e25", "--encoder.clip", "0"]) == 1


def test_a_run_with_another_config_is_not_overwritten(planted: Callable[..., Store]):
    planted()
    assert run([*TRAIN, "--name", "x"]) == 0
    with pytest.raises(UserError, match=r"holds a run with another config \(latents\); give another --name"):
        run([*TRAIN, "--name", "x", "--latents", "49"])
    # What does not change the result is no other config.
    assert run([*TRAIN, "--name", "x", "--log-every", "2", "--checkpoint-seconds", "1"]) == 0


def test_every_verb_has_a_section_in_config_files_and_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {*VERBS, "harvest", "train", "evaluate", "lab"}
    assert {*SECTIONS} == verbs
    run(["--help"])
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in verbs)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("verb", [*sorted(VERBS), *(f"lab {name}" for name in LAB)])
def test_every_verb_has_help_and_needs_no_pytorch_for_it(verb: str) -> None:
    code = (
        "import sys, hsae.cli\n"
        "try: hsae.cli.run(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *verb.split(), "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: hsae {verb} ")


INTERRUPTED = """
import os, signal, sys, time
from hsae import cli
{body}
cli.run = run
sys.argv = ["hsae"]
cli.main()
"""
LOST = """
class Falls:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        time.sleep(1)
def run(words):
    falls = Falls()
    del falls
    time.sleep(20)
    return 0
"""
CONVERTED = """
def run(words):
    try:
        os.kill(os.getpid(), signal.{signal})
        time.sleep(20)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None
"""
TWICE = """
def run(words):
    try:
        os.kill(os.getpid(), signal.{signal})
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("body", "number"),
    [(LOST, "SIGINT"), (LOST, "SIGTERM"), (CONVERTED, "SIGINT"), (CONVERTED, "SIGTERM"), (TWICE, "SIGTERM")],
)
def test_an_interruption_is_one_line_wherever_it_comes(body: str, number: str):
    code = INTERRUPTED.format(body=body.format(signal=number))
    # A shell may have had this process ignore Ctrl-C.
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **listens)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "hsae: stopped; the same command goes on from what is saved\n"


AT_EVERY_INSTANT = """
import linecache, mmap, os, signal, sys, tempfile, time
from hsae import cli, interrupt
from hsae.errors import Elsewhere, UserError

begun, instants, sleep, monotonic = False, mmap.mmap(-1, 8), time.sleep, time.monotonic

def run(words):
    global begun
    begun = True
    {end}

def trace(frame, event, arg):
    # Python looks for signals between lines, not while an exception finds its way out.
    line = linecache.getline(cli.__file__, frame.f_lineno)
    leaves = event in ("exception", "return") or line.startswith("    except")
    if begun and not leaves and frame.f_code.co_filename in (cli.__file__, interrupt.__file__):
        at = int.from_bytes(instants[:]) + 1
        instants[:] = at.to_bytes(8)
        if at == number:
            os.kill(os.getpid(), signal.{signal})
    return trace

number = most = 0
while number <= most:
    with tempfile.TemporaryFile() as said:
        instants[:] = bytes(8)
        process = os.fork()
        if process == 0:
            os.dup2(said.fileno(), 2)
            cli.run, cli.RANK, sys.argv = run, {rank}, ["hsae"]
            time.sleep, time.monotonic = lambda seconds: sleep(seconds / 100), lambda: 100 * monotonic()
            sys.settrace(trace)
            cli.main()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        print((code, said.read().decode()))
    most = most or min(int.from_bytes(instants[:]), 60)
    number += 1
"""


@pytest.mark.fault("Kills", "Ctrl-C, or a batch system", "SIGINT or SIGTERM at every line of a verb's end", "any")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("end", "rank", "code", "said"),
    [
        ("return 0", 0, 0, ""),
        ("raise UserError('none.txt: no such file')", 0, 2, "hsae: none.txt: no such file\n"),
        ("raise FileNotFoundError(2, 'no such file', 'none.txt')", 0, 2, "hsae: none.txt: no such file\n"),
        ("raise MemoryError", 0, 2, "hsae: out of memory (MemoryError); take smaller sizes\n"),
        ("raise Elsewhere", 1, 2, ""),
        ("raise KeyboardInterrupt", 0, 130, "hsae: stopped; the same command goes on from what is saved\n"),
    ],
)
def test_an_interruption_while_a_verb_ends_is_one_line(
    end: str, rank: int, code: int, said: str, number: str, record_property: Callable[[str, object], None]
):
    script = AT_EVERY_INSTANT.format(end=end, rank=rank, signal=number)
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, **listens)
    unbroken, *ends = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert unbroken == (code, said)
    assert len(ends) > 5, done.stderr
    stopped = (130, "" if rank else "hsae: stopped; the same command goes on from what is saved\n")
    assert set(ends) == {stopped, unbroken}
    record_property("trials", len(ends))


def test_an_interruption_that_no_step_asked_for_any_more_is_not_lost():
    def last_step() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        last_step()
    assert signal.getsignal(signal.SIGTERM) is before
