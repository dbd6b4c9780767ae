"""Documents from every kind of file, and their packing into rows: small cases, written out."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsae.errors import UserError
from hsae.harvesting import text
from hsae.harvesting.packing import Cursor, Packing, Row
from hsae.harvesting.sources import HubDataset, open_source

EOS, BOS, PAD = 9, 8, 7


class Letters:
    """A tokeniser whose ids are the letters' places in the alphabet: "abc" -> 1 2 3."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) - 96 for letter in text] for text in texts]}


def packing(context: int = 4, **options: Any) -> Packing:
    defaults: dict[str, Any] = {"eos": EOS, "bos": BOS, "pad": PAD}
    return Packing(context, **{**defaults, **options})


def rows(source: text.Source, cursor: Cursor | None = None, **options: Any) -> list[Row]:
    return list(packing(**options).rows(source, Letters(), cursor))


def ids(source: text.Source, **options: Any) -> list[list[int]]:
    return [row.tokens.tolist() for row in rows(source, **options)]


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., text.Source]:
    """A source of the given documents, from a .jsonl."""

    def make(*documents: str | list[int] | None) -> text.Source:
        path = tmp_path / "documents.jsonl"
        path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
        return open_source((str(path),))

    return make


Lines = Callable[..., text.Source]


def documents(path: Path, **options: Any) -> list[Any]:
    return [d if isinstance(d, str) else d.tolist() for d in open_source((str(path),), **options).documents()]


# ---- packing


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"separator": "eos"}, [[1, 2, 3, EOS], [4, 5, EOS, 6]]),  # the rest, f and eos, fills no row
        ({"separator": "auto"}, [[1, 2, 3, EOS], [4, 5, EOS, 6]]),
        ({"separator": "bos"}, [[BOS, 1, 2, 3], [BOS, 4, 5, BOS]]),
        ({"separator": "none"}, [[1, 2, 3, 4]]),
        ({"separator": "eos", "context": 9}, [[1, 2, 3, EOS, 4, 5, EOS, 6, EOS]]),
        ({"separator": "eos", "prepend_bos": True}, [[BOS, 1, 2, 3], [BOS, EOS, 4, 5], [BOS, EOS, 6, EOS]]),
        # bos is not doubled where a row starts with one anyway
        ({"separator": "bos", "prepend_bos": True}, [[BOS, 1, 2, 3], [BOS, 4, 5, BOS]]),
    ],
)
def test_packed(lines: Lines, options: dict[str, Any], wanted: list[list[int]]) -> None:
    assert ids(lines("abc", "de", "f"), **options) == wanted


def test_one_document_a_row(lines: Lines) -> None:
    made = rows(lines("abc", "", "abcdef", "d"), pack="documents")
    assert [row.tokens.tolist() for row in made] == [[1, 2, 3, PAD], [1, 2, 3, 4], [4, PAD, PAD, PAD]]
    assert [row.length for row in made] == [3, 4, 1]
    assert made[-1].cursor == Cursor(document=4, documents=3, truncated=1)
    made = rows(lines("abc", "abcdef"), pack="documents", prepend_bos=True)
    assert [(row.tokens.tolist(), row.length) for row in made] == [([BOS, 1, 2, 3], 4), ([BOS, 1, 2, 3], 4)]
    assert made[-1].cursor.truncated == 1


def test_ids_already_made_get_no_separator_unless_asked(lines: Lines) -> None:
    assert ids(lines([1, 2], [3, 4])) == [[1, 2, 3, 4]]
    assert ids(lines([1, 2], [3, 4]), separator="eos") == [[1, 2, EOS, 3]]


def test_duplicates(lines: Lines) -> None:
    source = lines("abc", "de", "abc", "de", "f", "abc")
    assert ids(source) == [[1, 2, 3, EOS], [4, 5, EOS, 1], [2, 3, EOS, 4], [5, EOS, 6, EOS], [1, 2, 3, EOS]]
    reading = packing(dedupe=True, separator="none", context=2).rows(source, Letters())
    made = list(reading)
    assert [row.tokens.tolist() for row in made] == [[1, 2], [3, 4], [5, 6]]
    assert [row.cursor.duplicates for row in made] == [0, 0, 2]
    assert reading.duplicates == 3
    assert made[-1].cursor.documents == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separator": "bos", "prepend_bos": True},
        {"dedupe": True, "separator": "none"},
        {"pack": "documents"},
        {"pack": "documents", "dedupe": True, "context": 3},
        {"context": 50},
    ],
)
def test_entering_at_any_row_equals_unbroken(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    texts = ["abc", "de", "", "abc", "abcdefgh" * 5, "f", "de", None, "ghg", "h" * 13] * 3
    source = lines(*texts)
    whole = rows(source, **options)
    # Documents are tokenised in other groups when reading starts elsewhere: that must not show.
    monkeypatch.setattr("hsae.harvesting.packing.BATCH_DOCUMENTS", 3)
    for place in range(len(whole)):
        again = rows(source, whole[place].cursor, **options)
        assert [(r.tokens.tolist(), r.length, r.cursor) for r in again] == [
            (r.tokens.tolist(), r.length, r.cursor) for r in whole[place + 1 :]
        ]


def test_resuming_tokenises_nothing_that_was_used(lines: Lines) -> None:
    asked: list[str] = []

    class Spy(Letters):
        def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
            asked.extend(texts)
            return super().__call__(texts, **options)

    list(packing(dedupe=True).rows(lines("abc", "de", "abc", "f"), Spy(), Cursor(document=1, documents=1)))
    assert asked == ["de", "f"]


@pytest.mark.parametrize("bad", [-1, 30])
def test_ids_outside_the_vocabulary(lines: Lines, bad: int) -> None:
    with pytest.raises(UserError, match=f"token id {bad} in document 1 .*vocabulary is 0 to 29"):
        ids(lines([1, 2, 3, 4], [5, bad, 6, 7, 8]), vocabulary=30)


def test_tokenisers_without_the_token() -> None:
    with pytest.raises(UserError, match="no bos token"):
        packing(separator="bos", bos=None)
    with pytest.raises(UserError, match="no eos token"):
        packing(separator="auto", eos=None)
    packing(pack="documents", eos=None)


# ---- text files


def test_txt_is_cut_at_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\n<|endoftext|>\ntwo\n\nlines\n<|endoftext|>\n")
    assert documents(path) == ["one", "two\n\nlines", ""]
    assert documents(path, separator="\n\n") == documents(path, separator="\\n\\n")
    path.write_bytes(b"one\r\nline\r\n\r\ntwo")
    assert documents(path, separator="\n\n") == ["one\nline", "two"]
    assert documents(path, separator="") == ["one\nline\n\ntwo"]


def test_txt_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    wanted = ["über\nzwölf", "größe € 𝄞", "", "ende"]
    path.write_text("\n\n".join(wanted), newline="\r\n", encoding="utf-8")
    for size in (1, 2, 3, 5, 7, 1000):
        monkeypatch.setattr(text, "READ_BYTES", size)
        assert documents(path, separator="\n\n") == wanted


@pytest.mark.parametrize("separator", ["<|endoftext|>", ""])
def test_a_long_document_is_cut_at_a_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setattr(text, "LONGEST", 10)
    path = tmp_path / "a.txt"
    path.write_text("one two\nthree\nfour\nabcdefghijklmnopqrst\n")
    for size in (4, 1000):
        monkeypatch.setattr(text, "READ_BYTES", size)
        assert documents(path, separator=separator) == ["one two", "three", "four", "abcdefghij", "klmnopqrst", ""]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("size", [3, 1000])
def test_not_utf8_names_file_and_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, size: int) -> None:
    monkeypatch.setattr(text, "READ_BYTES", size)
    path = tmp_path / f"a{suffix}"
    good = '{"text": "ä"}\n'.encode()
    path.write_bytes(good + b'{"text": "\xff"}\n')
    with pytest.raises(UserError, match=rf"a\{suffix}: not UTF-8 text at byte {len(good) + 10};"):
        documents(path)


# ---- tables of documents


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "one"}\n\n{"text": null}\n{"text": "two"}\n')
    assert documents(path) == ["one", "", "two"]
    path.write_text('{"input_ids": [1, 2], "story": "s"}\n')
    assert documents(path) == [[1, 2]]
    assert documents(path, column="story") == ["s"]


@pytest.mark.parametrize(
    ("second", "options", "said"),
    [
        ('{"text": "x', {}, "line 2: not JSON"),
        ('["x"]', {}, "line 2: not an object with columns but a list"),
        ('{"body": "x"}', {}, "line 2: no column 'text'; there is body"),
        ('{"text": 3}', {}, "line 2: a document must be text or a list of token ids, not '3'"),
        ('{"text": [1.5]}', {}, "line 2: a document must be text or a list of token ids"),
        ("", {"column": "story"}, "line 1: no column 'story'; there is text"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path: Path, second: str, options: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + second)
    with pytest.raises(UserError, match=rf"a\.jsonl, {said}"):
        documents(path, **options)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["one", None, "three"], "ids": [[1, 2], [], None]}), path)
    assert documents(path) == ["one", "", "three"]
    assert documents(path, column="ids") == [[1, 2], [], ""]
    with pytest.raises(UserError, match=r"a\.parquet: no column 'story'; there is id, ids, text"):
        documents(path, column="story")
    with pytest.raises(UserError, match=r"a\.parquet, row 0: a document must be text or a list"):
        documents(path, column="id")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        documents(path)


def test_a_document_over_many_contexts_loses_no_token(lines: Lines) -> None:
    source = lines(list(range(14)), list(range(50, 55)))
    whole = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 50], [51, 52, 53]]
    made = rows(source, context=3, vocabulary=99)
    assert [row.tokens.tolist() for row in made] == whole
    for number, row in enumerate(made):
        assert [r.tokens.tolist() for r in rows(source, row.cursor, context=3, vocabulary=99)] == whole[number + 1 :]


def test_npy(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6, dtype=np.uint16))
    assert documents(path) == [[0, 1, 2, 3, 4, 5]]
    assert ids(open_source((str(path),)), context=3) == [[0, 1, 2], [3, 4, 5]]
    np.save(path, np.arange(6).reshape(3, 2))
    assert documents(path) == [[0, 1], [2, 3], [4, 5]]
    np.save(path, np.ones(3))
    with pytest.raises(UserError, match=r"a\.npy: whole numbers .*float64"):
        documents(path)
    np.save(path, np.array([{"x": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: not a readable"):
        documents(path)


def test_several_files_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    source = open_source((str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")))
    assert list(source.documents()) == ["one", "two", "three"]
    assert list(source.documents(2)) == ["three"]


def test_the_record_follows_the_content_not_the_place(tmp_path: Path) -> None:
    def record(place: str, content: str) -> dict[str, Any]:
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "a.txt").write_text(content)
        return open_source((str(tmp_path / place / "a.txt"),)).record()

    assert record("x", "one") == record("y", "one")
    assert record("x", "one") != record("x", "two")
    assert str(tmp_path) not in str(record("x", "one"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (("no.txt",), r"no\.txt: no such file"),
        (("./no",), r"\./no: no such file"),
        (("a.csv",), r"a\.csv: unknown kind of file '\.csv'; known are \.txt, \.jsonl, \.parquet, \.npy"),
        (("folder",), "folder: a folder; name the files in it"),
        (("a.txt", "owner/name"), "owner/name: no such file"),
    ],
)
def test_no_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=said):
        open_source(data)


# ---- the hub, as far as it goes without one


def test_streamed_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset library reads a folder as it reads the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"text": ["one", None, "three"], "ids": [[1], [2], []]}), tmp_path / "set" / "train.parquet"
    )
    name = str(tmp_path / "set")
    assert list(HubDataset(name).documents()) == ["one", "", "three"]
    assert list(HubDataset(name).documents(2)) == ["three"]
    assert [d.tolist() for d in HubDataset(name, column="ids").documents() if not isinstance(d, str)] == [
        [1],
        [2],
        [],
    ]
    with pytest.raises(UserError, match="no column 'story'; there is ids, text"):
        list(HubDataset(name, column="story").documents())
    with pytest.raises(UserError, match="cannot be loaded: Bad split: test"):
        list(HubDataset(name, split="test").documents())
