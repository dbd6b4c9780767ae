"""The lab's frame: units kept on disk, chapters and reports, the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from hsae.cli import run
from hsae.config import read_file
from hsae.errors import UserError
from hsae.lab import LabConfig
from hsae.lab.chapter import Chapter, command_of, folder_of, page, write
from hsae.lab.units import Unit, computed
from hsae.verbs import LAB, LAB_HELP

MODULE = """
import os, time
def double(n): return {"n": 2 * n, "process": os.getpid(), "bad": float("nan")}
def slow(n, seconds): time.sleep(seconds); return {"n": n}
def threads(): import torch; return {"threads": torch.get_num_threads()}
def wrong():
    from hsae.errors import UserError
    raise UserError("the file is not there")
def dies(): os._exit(9)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of unit functions that worker processes can import too; its path."""
    home = tmp_path / "modules"
    home.mkdir()
    (home / "lab_units_made.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("PYTHONPATH", str(home))
    monkeypatch.delitem(sys.modules, "lab_units_made", raising=False)
    return home / "lab_units_made.py"


def units(count: int, function: str = "double", **more: float) -> list[Unit]:
    return [Unit(f"u{n}", f"lab_units_made:{function}", {"n": n, **more}) for n in range(count)]


class TestUnits:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_results_by_name_and_nan_as_none(self, made: Path, tmp_path: Path, workers: int):
        found = computed(units(3), tmp_path / "kept", workers=workers)
        assert {name: result["n"] for name, result in found.items()} == {"u0": 0, "u1": 2, "u2": 4}
        assert list(found) == ["u0", "u1", "u2"]
        assert all(result["bad"] is None for result in found.values())
        here = {result["process"] == os.getpid() for result in found.values()}
        assert here == {workers == 1}

    def test_what_is_kept_is_not_computed_again(self, made: Path, tmp_path: Path):
        first = computed(units(2), tmp_path / "kept", workers=1)
        for file in (tmp_path / "kept").iterdir():
            kept = json.loads(file.read_text())
            file.write_text(json.dumps(kept | {"result": {"n": "kept"}}))
        again = computed(units(3), tmp_path / "kept", workers=1)
        assert [result["n"] for result in again.values()] == ["kept", "kept", 4]
        assert first["u1"]["n"] == 2

    def test_other_arguments_and_another_source_are_other_units(self, made: Path, tmp_path: Path):
        (one, two), (same, _) = (tuple(unit.file for unit in units(2)) for _ in range(2))
        assert one == same != two
        assert units(1, "slow")[0].file != one
        made.write_text(MODULE + "# changed\n")
        assert units(1)[0].file != one

    @pytest.mark.parametrize("torn", ["", "{", '{"result"', "[]", "null"])
    def test_a_torn_file_is_computed_again(self, made: Path, tmp_path: Path, torn: str):
        (unit,) = units(1)
        (tmp_path / unit.file).write_text(torn)
        assert computed([unit], tmp_path, workers=1)["u0"]["n"] == 0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_units_have_one_thread_and_this_process_gets_its_own_back(self, made: Path, tmp_path: Path, workers: int):
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            both = [Unit(name, "lab_units_made:threads", {}) for name in "ab"]
            assert computed(both, tmp_path, workers=workers)["a"] == {"threads": 1}
            with pytest.raises(UserError, match="the file is not there"):
                computed([Unit("c", "lab_units_made:wrong", {})], tmp_path, workers=workers)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)

    def test_a_mistake_in_a_worker_is_the_users_line(self, made: Path, tmp_path: Path):
        both = [Unit("a", "lab_units_made:wrong", {}), *units(1)]
        with pytest.raises(UserError, match="the file is not there"):
            computed(both, tmp_path, workers=2)

    def test_a_worker_that_dies_is_named(self, made: Path, tmp_path: Path):
        both = [Unit("a", "lab_units_made:dies", {}), *units(1)]
        with pytest.raises(UserError, match="a worker process died"):
            computed(both, tmp_path, workers=2)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_what_is_done_is_kept_and_no_process_stays(self, made: Path, tmp_path: Path, number: signal.Signals):
        code = (
            "import sys\nfrom pathlib import Path\nfrom hsae.lab.units import Unit, computed\n"
            "if __name__ == '__main__':\n"
            "    quick = [Unit('q', 'lab_units_made:slow', {'n': 1, 'seconds': 0})]\n"
            "    long = [Unit(f's{i}', 'lab_units_made:slow', {'n': i, 'seconds': 60}) for i in range(2)]\n"
            "    try: computed(quick + long, Path(sys.argv[1]), workers=2)\n"
            "    except KeyboardInterrupt as stop: print(stop)\n"
        )
        (tmp_path / "main.py").write_text(code)
        kept = tmp_path / "kept"
        arguments = [sys.executable, tmp_path / "main.py", kept]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert soon(lambda: kept.is_dir() and any(f.suffix == ".json" for f in kept.iterdir()), 60)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.kill()
            process.wait(30)
            assert soon(lambda: not alive(process.pid), 10)
            assert process.stdout is not None
            said = process.stdout.read()
        done = "stopped: 1 of 3 units of lab are kept; the same command goes on from there\n"
        assert said == (done if number == signal.SIGINT else "")


def soon(true: Callable[[], bool], seconds: float) -> bool:
    """Whether something becomes true in that time."""
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Made(LabConfig):
    """For tests."""

    words: tuple[str, ...] = ()
    rate: float = 0.5
    fast: bool = True


class TestChapters:
    def test_the_command_says_what_is_not_as_by_default(self):
        assert command_of("lab made", Made()) == "hsae lab made"
        settings = Made(scale="tiny", out="somewhere", workers=3, words=("a", "b c"), rate=0.25, fast=False)
        said = command_of("lab made", settings, words="words")
        assert said == "hsae lab made a 'b c' --scale tiny --rate 0.25 --no-fast"

    def test_folders(self, cache: Path):
        assert folder_of(LabConfig(), "x") == cache / "lab" / "x-small"
        assert folder_of(LabConfig(out="here"), "x") == Path("here")

    def test_one_chapter_and_several(self, tmp_path: Path):
        chapter = Chapter("One", "## First\n\nText.", {"a": float("inf"), "b": 2}, "hsae lab one")
        report = write(tmp_path, "Title", [chapter])
        assert report.read_text() == "# Title\n\n    hsae lab one\n\n## First\n\nText.\n"
        assert json.loads((tmp_path / "report.json").read_text())["One"] == {
            "command": "hsae lab one",
            "a": None,
            "b": 2,
        }
        write(tmp_path, "Title", [chapter, Chapter("Two", "## Second")], "Hello.")
        heads = [line for line in report.read_text().splitlines() if line.startswith("#")]
        assert heads == ["# Title", "## One", "### First", "## Two", "### Second"]

    def test_the_page_holds_its_figures_and_no_html_of_others(self, tmp_path: Path):
        (tmp_path / "a.svg").write_text("<svg/>")
        text = (
            "![what <it> shows](a.svg)\n\n| x |\n|---|\n| 1 |\n\n<script>alert(1)</script> [bad](javascript:alert(1))"
        )
        made = page("T & Co", text, tmp_path)
        assert '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="what &lt;it&gt; shows"' in made
        assert '<div class="wide"><table>' in made
        assert "<title>T &amp; Co</title>" in made
        assert "<script" not in made
        assert 'href="javascript' not in made

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            write(tmp_path / "file", "T", [Chapter("One", "")])


class TestCommandLine:
    def test_help(self, capsys: pytest.CaptureFixture[str]):
        for arguments in (["lab"], ["lab", "--help"]):
            assert run(arguments) == 0
            assert capsys.readouterr().out == LAB_HELP
        assert max(map(len, LAB_HELP.splitlines())) <= 80
        assert re.findall(r"^  (\S+) ", LAB_HELP, re.MULTILINE) == [*LAB]

    def test_an_experiment_that_is_not_there(self):
        with pytest.raises(
            UserError, match="hsae lab: no experiment 'surgry'; there is alignment, all, hybrid-lm, nm-hebb, surgery"
        ):
            run(["lab", "surgry"])
        with pytest.raises(UserError, match="hsae lab surgery: operation must be one of 'study', 'inject'"):
            run(["lab", "surgery", "injct"])

    def test_sections_of_a_config_file(self, tmp_path: Path):
        path = tmp_path / "x.toml"
        path.write_text('[lab.surgery]\nscale = "tiny"\n[lab.nm-hebb]\nworkers = 1\n')
        assert read_file(path, "lab.surgery") == {"scale": "tiny"}
        assert read_file(path, "lab.nm-hebb") == {"workers": 1}
        assert read_file(path, "lab.alignment") == {}
        path.write_text("[lab]\nsurgery = 3\n")
        with pytest.raises(UserError, match=r"lab\.surgery must be a table"):
            read_file(path, "lab.surgery")


class TestAll:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[LabConfig]:
        """What the experiments are asked for; each says one word."""
        asked: list[LabConfig] = []

        def chapter(settings: LabConfig, out: Path, console: Console | None) -> Chapter:
            asked.append(settings)
            return Chapter(type(settings).__name__, "## Found\n\nOne word.", {"n": len(asked)})

        for place in ("surgery.study", "alignment.job", "hybrid_lm.job", "nm_hebb.job"):
            monkeypatch.setattr(f"hsae.lab.{place}.chapter", chapter)
        return asked

    def test_one_report_of_all_at_one_scale(self, asked: list[LabConfig], tmp_path: Path):
        (tmp_path / "t.txt").write_text("<|endoftext|>".join(f"The story of number {n}." for n in range(40)))
        images, text = str(tmp_path / "images"), str(tmp_path / "t.txt")
        for n in range(20):
            place = tmp_path / "images" / "ab"[n % 2] / f"{n}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * n).save(place)
        flags = ["--scale", "tiny", "--workers", "1", "--images", images, "--text", text, "--out", str(tmp_path)]
        assert run(["lab", "all", *flags]) == 0
        names = ["SurgeryConfig", "AlignmentConfig", "HybridLMConfig", "NMHebbConfig"]
        assert [type(settings).__name__ for settings in asked] == names
        assert {(s.scale, s.workers, s.out) for s in asked} == {("tiny", 1, "")}
        assert [getattr(s, "images", None) for s in asked] == [None, images, None, images]
        assert [getattr(s, "text", None) for s in asked] == [None, None, text, None]
        text = (tmp_path / "report.md").read_text()
        assert re.findall("^## (.*)", text, re.MULTILINE) == names
        assert [json.loads((tmp_path / "report.json").read_text())[name]["n"] for name in names] == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("flags", "line"),
        [
            (["--device", "cuda:99"], "device 'cuda:99' is not there"),
            (["--images", "nowhere"], "nowhere: no such file or folder"),
            (["--text", "nothing.txt"], "nothing.txt: no such file"),
        ],
    )
    def test_what_is_wrong_is_said_at_once(self, asked: list[LabConfig], cache: Path, flags: list[str], line: str):
        with pytest.raises(UserError, match=line):
            run(["lab", "all", *flags])
        assert not asked
