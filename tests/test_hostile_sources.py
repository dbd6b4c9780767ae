"""SAEs of other tools, texts, models and answers from a stranger: read, or refused in one line."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_endpoint import answering
from hostile import DEEP, ESCAPES, do
from shared_runs import make_run

from hsae.errors import UserError
from hsae.export import ExportConfig, export
from hsae.harvesting.sources import open_source
from hsae.importing import ImportConfig, import_sae
from hsae.interpret.endpoint import Endpoint


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with SAEs of four tools."""
    monkeypatch.setenv("HSAE_CACHE", "cache")
    monkeypatch.chdir(tmp_path)
    make_run()
    for to in ("saelens", "sparsify", "dictionary-learning", "safetensors"):
        export(ExportConfig(run="made", to=to, setup="topk", out=to))
    return tmp_path


# ---- sizes are held against the file


def bring(folder: str) -> UserError:
    with pytest.raises(UserError) as refused:
        import_sae(ImportConfig(folder=folder, name="x", measure=False))
    assert not Path("cache/runs/x").exists()
    return refused.value


STATE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a tensor that repeats one number 10^14 times": lambda s: s | {"W_dec": torch.zeros(1).expand(10**7, 10**7)},
    "that fits what the config says": lambda s: (
        s
        | {
            "encoder.weight": torch.zeros(1).expand(BIG, BIG),
            "b_dec": torch.zeros(1).expand(BIG),
            "encoder.bias": torch.zeros(1).expand(BIG),
            "decoder.weight": torch.zeros(1).expand(BIG, BIG),
        }
    ),
    "complex": lambda s: s | {"b_dec": torch.zeros_like(s["b_dec"], dtype=torch.complex64)},
    "sparse": lambda s: s | {"b_dec": s["b_dec"].to_sparse()},
    "without numbers": lambda s: s | {"b_dec": s["b_dec"].to("meta")},
    "k is a text": lambda s: s | {"k": "3"},
    "k is negative": lambda s: s | {"k": torch.tensor(-3)},
    "k is not finite": lambda s: s | {"k": torch.tensor(float("nan"))},
    "keys are numbers": lambda s: dict(enumerate(s.values())),
    "a list": lambda s: list(s.values()),
}
BIG = 10**6


@pytest.mark.fault(
    "Strangers", "A PyTorch file that lies about its size", "repeating, sparse, empty, complex", "hsae import"
)
@pytest.mark.parametrize("what", STATE)
def test_tensors_of_a_pytorch_file_are_held_against_the_file(there: Path, what: str) -> None:
    """A tensor that takes more memory than its file has bytes is refused before it takes it."""
    path, config = there / "dictionary-learning" / "ae.pt", there / "dictionary-learning" / "config.json"
    torch.save(STATE[what](torch.load(path, weights_only=True)), path)
    if "config" in what:
        table = json.loads(config.read_text())
        table["trainer"] |= {"activation_dim": BIG, "dict_size": BIG}
        config.write_text(json.dumps(table))
    assert "ae.pt" in str(bring("dictionary-learning"))


def test_a_compressed_or_old_pytorch_file_is_refused(there: Path) -> None:
    """A zip bomb, and the format before 1.6 that makes room by what the file says, are refused unread."""
    path = there / "dictionary-learning" / "ae.pt"
    state = torch.load(path, weights_only=True)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(there / "bomb", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part) + b"\0" * 10_000_000)
    shutil.move(there / "bomb", path)
    assert "it is compressed" in str(bring("dictionary-learning"))
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "not a file of tensors alone" in str(bring("dictionary-learning"))


@pytest.mark.parametrize("tool", ["saelens", "sparsify", "safetensors"])
def test_a_safetensors_header_that_lies_is_refused(there: Path, tool: str) -> None:
    """A header that tells of more than the file has, or of none of it, is one line."""
    path = next((there / tool).rglob("*.safetensors"))
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    for change in (
        {"shape": [2**40, 2**20]},
        {"data_offsets": [0, 2**60]},
        {"data_offsets": [-4, 4]},
        {"dtype": "F128"},
    ):
        text = json.dumps(header | {name: header[name] | change}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
        assert path.name in str(bring(tool))
    for start in ((2**63).to_bytes(8, "little"), b"\xff" * 8, b""):
        path.write_bytes(start + raw[8:40])
        assert path.name in str(bring(tool))
    del header["__metadata__" if "__metadata__" in header else name]


# ---- text


def npy(shape: str, descr: str = "'<i4'") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\0" * 64


TEXTS = {
    "huge.npy": npy("(1000000000000,)"),
    "negative.npy": npy("(-1, 4)"),
    "deep.npy": npy("(" * 4000 + ")" * 4000),
    "objects.npy": npy("(2,)", "'|O'"),
    "records.npy": npy("(2,)", "[('a', '<i4')]"),
    "head.npy": b"\x93NUMPY\x03\x00\xff\xff\xff\x7f",
    "cut.npy": npy("(8,)")[:30],
    "cut.parquet": b"PAR1" + b"\0" * 20,
    "footer.parquet": b"PAR1" + b"\0" * 20 + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "thrift.parquet": b"PAR1" + b"\x15\xff" * 40 + (80).to_bytes(4, "little") + b"PAR1",
    "ids.jsonl": b'{"tokens": [' + b"9" * 30 + b"]}\n",
    "nested.jsonl": b'{"tokens": [[1], [2]]}\n',
    "table.jsonl": b'{"text": {"a": 1}}\n',
    "escapes.jsonl": json.dumps({ESCAPES: 1}).encode() + b"\n",
    "nul.txt": b"\xff\x00",
}


@pytest.mark.fault("Strangers", "Text files that lie", "headers, depth, escapes", "hsae harvest")
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_lies_is_one_line(there: Path, name: str) -> None:
    """A .npy, .parquet, .jsonl or .txt whose header or content is not what it says is one line with its name."""
    (there / name).write_bytes(TEXTS[name])
    with pytest.raises(UserError) as refused:
        list(open_source((name,)).documents())
    assert name in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "bits", [b"", b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16, b"GGUF" + b"\xff" * 60, b"x" * 100]
)
def test_a_gguf_that_lies_is_one_line(there: Path, bits: bytes) -> None:
    """A .gguf file that is none, or counts tensors that it does not have, is one line."""
    (there / "m.gguf").write_bytes(bits)
    done = do("harvest --model m.gguf --data text.jsonl --tokens 32 --context 16")
    assert done.code == 2


# ---- a language model behind an endpoint


ANSWERS: dict[str, bytes] = {
    "deep": b"[" * DEEP,
    "endless": b'{"choices": [{"message": {"content": "' + b"a" * (20 << 20) + b'"}}]}',
    "not finite": b'{"usage": {"prompt_tokens": 1e999}, "choices": []}',
    "a list": b"[1]",
    "digits": b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    "not UTF-8": b"\xff\xfe",
    "nothing": b"",
}


@pytest.mark.fault("Strangers", "An endpoint that answers nonsense", "depth, 20 MiB, NaN, no JSON", "hsae interpret")
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none_is_one_line(answer: str) -> None:
    """Whatever an endpoint answers is an answer, or one line after the last try."""
    with answering(ANSWERS[answer]) as address, pytest.raises(UserError) as refused:
        Endpoint(address, "m", 1, 5.0, pause=0.0).answer([{"role": "user", "content": "x"}], 4)
    assert str(refused.value).isprintable()


def test_a_server_that_names_a_strange_time_to_wait_is_asked_again() -> None:
    """Retry-After in digits that are no number does not end the program."""
    with answering(b"{}", status=503, retry="\xb2") as address, pytest.raises(UserError, match="tries failed"):
        Endpoint(address, "m", 1, 5.0, pause=0.0).answer([{"role": "user", "content": "x"}], 4)
