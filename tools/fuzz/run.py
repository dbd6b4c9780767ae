"""Look for bytes that a reader does not take as it should: coverage-guided, by atheris.

    make fuzz                                         # all targets, a minute each
    .venv/bin/python tools/fuzz/run.py config --seconds 1200

atheris is not in the lock: .venv/bin/pip install atheris==3.0.0 (it needs Python 3.11 to 3.13)
A finding ends the run; its bytes lie in build/fuzz/TARGET/findings, to be kept in tests/fuzz_cases/TARGET.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The code that is watched. Compiled code beneath it (safetensors, hashing) is not.
WATCHED = ["hsae", "tomllib", "json"]


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fuzz")
    wanted = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is missing: .venv/bin/pip install atheris==3.0.0")
    with atheris.instrument_imports(include=WATCHED):
        from targets import TARGETS, cases

    target, folder = TARGETS[wanted.target], wanted.work / wanted.target
    corpus, findings = folder / "corpus", folder / "findings"
    for place in (corpus, findings):
        place.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds(), *cases(wanted.target)):
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = folder / "words.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words()), encoding="utf-8")
    limits = ["-rss_limit_mb=4096", "-timeout=20", "-max_len=20000", f"-max_total_time={wanted.seconds}"]
    limits += [f"-dict={words}", f"-artifact_prefix={findings}/", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *limits], target.run)
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


if __name__ == "__main__":
    main()
