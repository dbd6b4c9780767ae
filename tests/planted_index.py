"""Latents whose meaning is known: an index of them made by hand, and a run with its store. Nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hsae.evidence.index import Index
from hsae.evidence.latent import AFTER, BEFORE, RANDOM, SAMPLES, TOP
from hsae.record import Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import Store, StoreWriter

NAMES = ("Tom", "Lily", "Sam", "Ben", "Mia", "Anna")
STARTS = ("The", "She", "Then", "One", "But")
FILLER = (
    "a",
    "big",
    "red",
    "sun",
    "tree",
    "house",
    "run",
    "saw",
    "on",
    "in",
    "of",
    "and",
    "it",
    "he",
    "was",
    "time",
    "dog",
    "cat",
    "bird",
    "car",
    "song",
    "want",
    "old",
    "new",
    "far",
)
WORDS = ("zero", *NAMES, *STARTS, *FILLER, "to", "go", ".")
SEQUENCES, CONTEXT = 600, 40
WORD, BIGRAM, NAME, NOISE, DEAD, RARE, DENSE, ANIMAL = range(8)


def tokenizer() -> Tokenizer:
    """Whole words."""
    return Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="zero"))


def corpus() -> np.ndarray:
    """Token ids [sequence, position]: sentences of five to nine words that begin with a capital."""
    random = np.random.default_rng(3)
    rows = []
    for _ in range(SEQUENCES):
        words: list[str] = []
        while len(words) < CONTEXT:
            sentence = [str(random.choice(STARTS))]
            for _ in range(random.integers(4, 9)):
                draw = random.random()
                pair = ["to", "go"] if draw < 0.03 else ["to"] if draw < 0.1 else ["go"] if draw < 0.14 else None
                sentence += pair or [str(random.choice(NAMES if draw < 0.2 else FILLER))]
            words += [*sentence, "."]
        rows.append([WORDS.index(word) for word in words[:CONTEXT]])
    return np.array(rows, np.int32)


def fires(latent: int, tokens: np.ndarray) -> np.ndarray:
    """Where a latent fires, as its definition says."""
    words = np.array(WORDS)[tokens]
    before = np.pad(words, ((0, 0), (1, 0)))[:, :-1]
    draw = np.random.default_rng(latent).random(tokens.shape)
    return {
        WORD: words == "time",
        BIGRAM: (words == "go") & (before == "to"),
        NAME: np.isin(words, NAMES),
        NOISE: draw < 0.02,
        DEAD: draw < 0,
        RARE: (words == "song") & (np.arange(SEQUENCES)[:, None] < 20),
        DENSE: draw < 0.7,
        ANIMAL: np.isin(words, ("dog", "cat", "bird")),
    }[latent]


def activations(latent: int, tokens: np.ndarray) -> np.ndarray:
    """How strongly, at random."""
    strength = 0.5 + np.random.default_rng(100 + latent).random(tokens.shape)
    return np.where(fires(latent, tokens), strength, 0).astype(np.float32)


def windows(values: np.ndarray, sequence: np.ndarray, position: np.ndarray, outside: float) -> np.ndarray:
    """Stretches around positions."""
    padded = np.pad(values, ((0, 0), (BEFORE, AFTER)), constant_values=outside)
    return padded[sequence[:, None], position[:, None] + np.arange(BEFORE + 1 + AFTER)]


def write(path: Path, facts: dict[str, str] | None = None) -> Index:
    """The index file, by the definitions in `hsae.evidence.index`."""
    tokens, random = corpus(), np.random.default_rng(1)
    arrays: dict[str, list[np.ndarray]] = {
        f"{k}_{n}": [] for k in ("sample", "top") for n in ("sequence", "position", "tokens", "code")
    }
    counts: dict[str, list[int]] = {"sample": [], "top": []}
    drawn = np.sort(random.permutation(SEQUENCES)[:RANDOM]), random.integers(0, CONTEXT, RANDOM)
    entries: list[tuple[np.ndarray, ...]] = []
    firings, total, maximum = [], [], []
    for latent in range(8):
        code = activations(latent, tokens)
        s, p = code.nonzero()
        mixed = random.permutation(len(s))
        for kind, count, order in (("sample", SAMPLES, mixed), ("top", TOP, np.argsort(-code[s, p], kind="stable"))):
            _, first = np.unique(s[order], return_index=True)
            best = order[np.sort(first)][:count]
            counts[kind].append(len(best))
            parts = (s[best], p[best], windows(tokens, s[best], p[best], -1), windows(code, s[best], p[best], 0))
            for name, part in zip(("sequence", "position", "tokens", "code"), parts, strict=True):
                arrays[f"{kind}_{name}"].append(part)
        inside = windows(code, *drawn, 0)
        window, place = inside.nonzero()
        entries.append((window, place, inside[window, place]))
        firings.append(len(s))
        total.append(float(code.sum()))
        maximum.append(float(code.max()))
    flat = {name: np.concatenate(parts) for name, parts in arrays.items()}
    offsets = {f"{kind}_offset": np.cumsum([0, *some]) for kind, some in counts.items()}
    random_arrays = {
        "random_sequence": drawn[0],
        "random_position": drawn[1],
        "random_tokens": windows(tokens, *drawn, -1).astype(np.int32),
        "random_offset": np.cumsum([0, *(len(e[0]) for e in entries)]),
        **{f"random_{n}": np.concatenate([e[i] for e in entries]) for i, n in enumerate(("window", "place", "value"))},
    }
    plain = {
        "rows": np.array([tokens.size]),
        "firings": np.array(firings),
        "total": np.array(total),
        "maximum": np.array(maximum, np.float32),
        "occurrences": np.bincount(tokens.ravel(), minlength=len(WORDS)),
    }
    # What explanations do not look at.
    none = {name: np.zeros(8) for name in ("bin_width", "token_doubt")} | {"histogram": np.zeros((8, 1), np.int64)}
    none |= {name: np.full((8, 1), -1) for name in ("near", "coactive")}
    none |= {name: np.zeros((8, 1)) for name in ("near_cosine", "coactive_phi", "coactive_share")}
    none |= {"token_id": np.zeros(0, np.int64), "token_firings": np.zeros(0, np.int64), "token_mass": np.zeros(0)}
    none["token_offset"] = np.zeros(9, np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**plain, **none, **offsets, **flat, **random_arrays}, path, metadata=facts)
    return Index(path)


def identity(width: int) -> SAE:
    """Latent j's activation is the activation's dimension j."""
    return SAE(torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width), ReLU())


def write_run(cache: Path) -> Run:
    """A store of the corpus, and a run whose SAEs have these latents; hebb-tied diverged."""
    tokens = torch.from_numpy(corpus()).long()
    x = torch.from_numpy(np.stack([activations(latent, tokens.numpy()) for latent in range(8)], 2))
    writer = StoreWriter(cache / "activations" / "known", {"made": "by a test"}, "fp32")
    writer.write(0, tokens, {"hook": x}, {"hook": torch.ones(tokens.shape, dtype=torch.bool)}, {"hook": {}})
    tables = {"model": {"fingerprint": "m"}, "tokenizer": {}, "text": {}, "harvest": {}}
    (writer.folder / "tokenizer").mkdir()
    tokenizer().save(str(writer.folder / "tokenizer" / "tokenizer.json"))
    writer.finish(shard_sequences=SEQUENCES, context=CONTEXT, **tables)
    saes = {(setup, 0): identity(8) for setup in ("bp", "bp-tied")}
    rows = [*(Row(setup, seed) for setup, seed in saes), Row("hebb-tied", 0, diverged="at step 1")]
    result = Result(
        version=1,
        store="known",
        store_fingerprint=Store(writer.folder).manifest.fingerprint,
        model={"fingerprint": "m"},
        hook="hook",
        width=8,
        latents=8,
        scale=1.0,
        folded=False,
        steps=1,
        tokens=1,
        held_out=1,
        dead_window=1,
        rows=tuple(rows),
    )
    setups = {row.setup: {"decoder": "backprop"} for row in rows}
    return RunWriter(cache / "runs" / "known", {"setup": setups}).finish(saes, result)
