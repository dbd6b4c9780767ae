"""Making an index: one pass over a store, saved now and then, and gone on with where it was cut off."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsae.errors import UserError
from hsae.evidence.draws import Together, Windows, nearest
from hsae.evidence.entries import Encoder
from hsae.evidence.file import BLOCKS, Arrays, write
from hsae.evidence.gathered import SILENT, Contexts, Gathered, Passage
from hsae.evidence.latent import BINS, LOGITS, TOKENS
from hsae.evidence.subject import Subject
from hsae.files import alone, lasting_folder
from hsae.interrupt import interruptible
from hsae.run import Run
from hsae.sae import SAE
from hsae.seal import FIELD
from hsae.store import Store
from hsae.unembedding import Unembedding, read_unembedding

if TYPE_CHECKING:
    from rich.console import Console

ROWS = 16384
"""positions encoded at a time, at most"""
DRIVES = 1 << 26
"""drives at a time: half of them may be active"""
EVERY = 30.0
"""seconds between two savings"""
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
"""hook points whose directions are those of the residual stream, which the unembedding reads"""
BLOCK = 512
"""latents whose logits are in memory at a time"""


Advance = Callable[[int], None]
"""told how many positions of the store have been passed since the last call; it may raise, to stop"""


def build(subject: Subject, console: Console | None = None, advance: Advance = lambda passed: None) -> Path:
    """Make the index of a subject, and say where it is: in the run folder, or a temporary one where that is closed.

    Whatever stops it, what is done is saved, and the same call goes on from there.

    Raises:
        UserError: another process makes it, or a file is damaged.
    """
    from hsae.progress import Bar

    sae = Run(subject.record.folder).sae(subject.row.setup, subject.row.seed)
    store = Store(subject.folder)
    path = _place(subject.index_path)
    with alone(path.parent, "index"):
        passing = Passing(sae, store, subject.hook)
        partial = path.with_suffix(".partial")
        passing.restore(partial, subject.facts)
        total, done = store.manifest.tokens, passing.next * store.manifest.context
        with Bar(console, "reading", total, done) as bar, interruptible() as interrupted:
            saved = time.monotonic()
            try:
                advance(done)
                for passed in passing.go():
                    bar.advance(passed)
                    advance(passed)
                    if interrupted():
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > EVERY:
                        passing.save(partial, subject.facts)
                        saved = time.monotonic()
            except BaseException:
                if passing.between:
                    passing.save(partial, subject.facts)
                raise
        arrays, logits = passing.arrays(), ""
        try:
            arrays |= lens(sae.W_dec, _unembedding(subject))
        except UserError as error:
            logits = str(error)
        write(path, arrays, {**subject.facts, "logits": logits})
        partial.unlink(missing_ok=True)
    return path


def _place(path: Path) -> Path:
    """The path, or one in a temporary folder where its own cannot be written to."""
    try:
        lasting_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="hsae-")) / path.name


class Passing:
    """The pass over a store: what is gathered, and how far it is.

    Args:
        sae: on the CPU.
        store: the activations.
        hook: a hook point of the store, as wide as the SAE.

    Attributes:
        next: the sequence to go on with.
        between: whether what is gathered is of all sequences before that, and of no other.
    """

    def __init__(self, sae: SAE, store: Store, hook: str) -> None:
        self.sae, self.store, self.hook = sae, store, hook
        self.next, self.between = 0, True
        self.rows = torch.zeros(1, dtype=torch.int64)
        self.occurrences = torch.zeros(0, dtype=torch.int64)
        self.gathered, self.windows, self.together = Gathered(sae.latents), Windows(), Together()

    @torch.inference_mode()
    def go(self) -> Iterator[int]:
        """Pass over what is left; yields how many positions were passed, time and again."""
        encode = Encoder(self.sae)
        rows = min(ROWS, DRIVES // self.sae.latents)
        for chunk in self.store.chunks(self.hook, max(1, rows // self.store.manifest.context), self.next):
            self.between = False
            if chunk.keep.any():
                entries = encode(chunk.activations[chunk.keep])
                passage = Passage(chunk.first, chunk.tokens, chunk.keep)
                for part in (self.gathered, self.windows, self.together):
                    part.add(entries, passage)
                self._count(chunk.tokens[chunk.keep])
            self.next, self.between = chunk.first + len(chunk.tokens), True
            yield chunk.keep.numel()

    def _count(self, tokens: Int[Tensor, "row"]) -> None:
        more = torch.bincount(tokens, minlength=len(self.occurrences))
        more[: len(self.occurrences)] += self.occurrences
        self.occurrences = more
        self.rows += len(tokens)

    def _state(self) -> dict[str, Tensor]:
        parts = {"gathered": self.gathered.state(), "windows": vars(self.windows), "together": vars(self.together)}
        own = {"rows": self.rows, "occurrences": self.occurrences}
        return own | {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Save how far it is. A folder that is full or closed costs the saving, not the pass."""
        state = {name: value.contiguous() for name, value in self._state().items()}
        with contextlib.suppress(OSError):
            write(path, state, {**facts, "next": str(self.next)})

    def restore(self, path: Path, facts: dict[str, str]) -> None:
        """Go on from what was saved, if it is of the same subject."""
        try:
            Arrays(path).check()
            with safe_open(path, framework="pt") as file:
                saved = {key: value for key, value in file.metadata().items() if key not in (FIELD, BLOCKS)}
                following = int(saved.pop("next"))
                if saved != facts:
                    return
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError, UserError, KeyError, ValueError):
            return  # not there, or damaged: the pass begins anew
        self.next, self.rows, self.occurrences = following, state["rows"], state["occurrences"]
        for name, value in self.gathered.state().items():
            value.copy_(state[f"gathered.{name}"])
        for name in ("windows", "together"):
            part = getattr(self, name)
            vars(part).update({key: state[f"{name}.{key}"] for key in vars(part)})

    def arrays(self) -> dict[str, Tensor]:
        """What the index holds, but for the logit lens."""
        g, latents = self.gathered, self.sae.latents
        near, cosine = nearest(self.sae.W_dec)
        width = torch.where(g.exponent == SILENT, 0.0, torch.exp2(g.exponent.double()) / BINS)
        arrays = {
            "rows": self.rows,
            "occurrences": self.occurrences,
            "firings": g.firings,
            "total": g.total,
            "maximum": g.maximum,
            "bin_width": width,
            "histogram": g.histogram,
            "near": near,
            "near_cosine": cosine,
        }
        arrays |= _contexts("top", g.top) | _contexts("sample", g.sample) | _tokens(g)
        arrays |= self.windows.arrays(latents) | self.together.arrays(latents)
        return {name: value.contiguous() for name, value in arrays.items()}


def _offset(counts: Int[Tensor, "latent"]) -> Int[Tensor, "offset"]:
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _contexts(kind: str, contexts: Contexts) -> dict[str, Tensor]:
    there = contexts.sequence >= 0
    return {f"{kind}_offset": _offset(there.sum(1))} | {
        f"{kind}_{name}": getattr(contexts, name)[there] for name in ("sequence", "position", "tokens", "code")
    }


def _tokens(g: Gathered) -> dict[str, Tensor]:
    """The tokens with the most activation, of each latent; among equals the lowest id."""
    there = torch.arange(g.token_id.shape[1]) < g.token_count[:, None]
    by_id = torch.where(there, g.token_id, torch.iinfo(torch.int32).max).argsort(dim=1)
    mass = torch.where(there, g.token_mass, -1.0).gather(1, by_id)
    order = by_id.gather(1, mass.argsort(dim=1, descending=True, stable=True))[:, :TOKENS]
    kept = torch.arange(order.shape[1]) < g.token_count[:, None]
    parts = {name: getattr(g, name).gather(1, order)[kept] for name in ("token_id", "token_firings", "token_mass")}
    return parts | {"token_offset": _offset(kept.sum(1)), "token_doubt": g.token_doubt}


def _unembedding(subject: Subject) -> Unembedding:
    """The unembedding of the store's model.

    Raises:
        UserError: there is none, or directions at this hook point do not lead to it.
    """
    model = subject.manifest.model
    name = model.get("name")
    if not (isinstance(name, str) and name):
        raise UserError(f"store {subject.store} names no language model")
    if not subject.hook.endswith(RESIDUAL):
        raise UserError(f"{subject.hook} does not lie on the residual stream")
    found = read_unembedding(name, str(model.get("revision") or ""))
    if found.W.shape[1] != subject.hook_record.width:
        raise UserError(f"model {name} is {found.W.shape[1]} wide, {subject.hook} {subject.hook_record.width}")
    return found


def lens(W: Float[Tensor, "latent width"], unembedding: Unembedding) -> dict[str, Tensor]:
    """The tokens that each decoder direction, brought to unit norm, promotes and suppresses most."""
    unit = torch.nn.functional.normalize(W.float(), dim=1)
    count = min(LOGITS, len(unembedding.W))
    parts: dict[str, list[Tensor]] = {n: [] for n in ("promoted", "promoted_logit", "suppressed", "suppressed_logit")}
    for block in unit.split(BLOCK):
        logits = unembedding.logits(block)
        for name, largest in (("promoted", True), ("suppressed", False)):
            value, index = logits.topk(count, dim=1, largest=largest)
            parts[name].append(index.int())
            parts[f"{name}_logit"].append(value)
    return {name: torch.cat(values) for name, values in parts.items()}
