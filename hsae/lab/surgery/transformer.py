"""Matrices of a transformer as memories: what an MLP writes, what an attention head writes, and where it looks."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from hsae.errors import UserError
from hsae.harvesting.text import BUNDLED, LocalFiles
from hsae.lab.surgery.memory import Association, Change, Form, Memory
from hsae.lm import LM
from hsae.tapping import read_parts
from hsae.unembedding import read_unembedding

Rule = Literal["hebbian", "delta", "rome", "null-space"]
Kind = Literal["mlp", "ov", "qk"]
LAYERS = {"mlp": "mlp.out", "ov": "attn.o", "qk": "attn.q"}
ROWS, CONTEXT, HELD = 96, 128, 16
RIDGE, NULL = 1e-3, 0.1


class Transformer(Memory):
    """One linear layer of a language model, or a head's part of it. The model's own weights are edited.

    mlp: v = W k + b, all of the MLP's output matrix (Meng et al., 2022). ov: v = W k with k a head's mixed value and W
    its columns of W_O. qk: W a head's rows of W_Q; what is recalled is the mean of the prompt's keys, as its last token
    sees them, under the head's softmax; the energy is Ramsauer et al.'s (2021). The keys are less their mean, which no
    softmax sees.

    Args:
        lm: the model.
        kind: which matrix.
        layer: the block.
        head: for ov and qk.
        rule: how a cue is written. hebbian: ΔW = α v* kᵀ; delta: (v* - Wk) kᵀ / ‖k‖²; rome: the same with C⁻¹k for k,
            C the mean k kᵀ over text plus a ridge of 0.001 of its mean eigenvalue; null-space: the same with k
            projected off the directions that hold 90% of text's ‖k‖² (after AlphaEdit, Fang et al., 2025).
        prompt: the text whose last token is operated on; for qk its keys are what is looked at.
        watch: measure this, too: the probability of a token after the prompt; for qk, the attention to a position.

    Raises:
        UserError: no such layer or head, or a model whose weights cannot be edited here.
    """

    matrix = "W"

    def __init__(
        self, lm: LM, kind: Kind, layer: int, head: int = 0, rule: Rule = "rome", prompt: str = "", watch: int = -1
    ) -> None:
        blocks, cfg = lm.bridge.blocks, lm.bridge.cfg
        for what, at, count in (("layer", layer, len(blocks)), ("head", head, cfg.n_heads)):
            if not 0 <= at < count:
                raise UserError(f"{what} {at} is not in 0…{count - 1} of {lm.name}")
        self.lm, self.kind, self.rule, self.layer, self.head = lm, kind, rule, layer, head
        self.prompt, self.watch, self.place = prompt, watch, f"blocks.{layer}.{LAYERS[kind]}"
        self.name = f"{lm.name} {self.place}" + ("" if kind == "mlp" else f" head {head} ({kind})")
        module = blocks[layer]
        try:
            for part in LAYERS[kind].split("."):
                module = getattr(module, part)
            bare = getattr(module, "_original_component", module)
            # GPT-2's Conv1D keeps the transpose of what Linear keeps.
            W = bare.weight.detach() if isinstance(bare, torch.nn.Linear) else bare.weight.detach().T
            bias = None if bare.bias is None else bare.bias.detach()
        except AttributeError:
            raise UserError(f"{lm.name} has no {self.place} with one matrix") from None
        own = slice(None)
        if kind != "mlp":
            width = W.shape[1 if kind == "ov" else 0] // cfg.n_heads
            own = slice(head * width, (head + 1) * width)
        self.columns = own if kind == "ov" else slice(None)
        self.W = W[:, own] if kind == "ov" else W[own]
        self.bias = None if bias is None or kind == "ov" else bias[own]
        self._looked_at = self._keys() if kind == "qk" and prompt else None

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"W": self.W}

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a text, after the token that begins one, if the model has it.

        Raises:
            UserError: there is nothing in it, or more than the model takes.
        """
        ids = _ids(self.lm, prompt)
        if not prompt:
            raise UserError("the prompt is empty; give at least one token")
        if len(ids) > self.lm.context_limit:
            raise UserError(f"the prompt has {len(ids)} tokens; {self.lm.name} takes {self.lm.context_limit}")
        return ids

    def token_id(self, token: str) -> int:
        """The id of a token.

        Raises:
            UserError: it is not one token.
        """
        ids = self.lm.tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(f"{token!r} is {len(ids)} tokens of {self.lm.name}; give one, such as ' dog'")
        return ids[0]

    def cue(self, prompt: str) -> Float[Tensor, " cue"]:
        """What the layer reads at a text's last token."""
        return self._inputs(torch.tensor([self.ids(prompt)]))[0, -1]

    def recalled(self, prompt: str) -> Association:
        """What the layer reads at a text's last token, with what that recalls now."""
        cue = self.cue(prompt)
        return Association(cue, self.recall(cue[None])[0])

    def raising(self, cue: Float[Tensor, " cue"], token: str) -> Float[Tensor, " value"]:
        """The output that raises a token most: its row of the unembedding, as long as the present output."""
        lens = read_unembedding(self.lm.name, self.lm.revision)
        row = lens.W[self.token_id(token)].to(cue)
        row = row - row.mean() if lens.centred else row
        return row * (self.recall(cue[None])[0].norm() / row.norm())

    def recall(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start value"]:
        return self._out(cues) if self._looked_at is None else self.looks(cues) @ self._looked_at[0]

    def looks(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start key"]:
        """qk: the head's attention from queries to the prompt's positions."""
        assert self._looked_at is not None
        keys, scale = self._looked_at
        return (scale * self._out(cues) @ keys.T).softmax(1)

    def key(self, position: int) -> Float[Tensor, " value"]:
        """qk: the key of one of the prompt's positions, as its last token sees it.

        Raises:
            UserError: no such position.
        """
        assert self._looked_at is not None
        keys, _ = self._looked_at
        if not 0 <= position < len(keys):
            raise UserError(f"position {position} is not in 0…{len(keys) - 1} of the prompt")
        return keys[position]

    def energy(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"] | None:
        """qk: ½‖x‖² - (1/β) log Σ exp(β x·key), which attention as an iteration does not increase; else None."""
        if self._looked_at is None:
            return None
        keys, scale = self._looked_at
        return 0.5 * x.square().sum(1) - (scale * x @ keys.T).logsumexp(1) / scale

    def change(self, what: Association, sign: int, form: Form) -> Change:
        k, v = what.cue.double(), what.value.double()
        right = k
        if self.rule == "rome":
            ridge = RIDGE * self.moment.diagonal().mean() * torch.eye(len(k), dtype=k.dtype, device=k.device)
            right = torch.linalg.solve(self.moment + ridge, k)
        elif self.rule == "null-space":
            values, vectors = torch.linalg.eigh(self.moment)
            quiet = vectors[:, values.cumsum(0) <= NULL * values.sum()]
            right = quiet @ (quiet.T @ k)
        if not bool(right.any()):
            raise UserError(f"{self.name}: the rule {self.rule} leaves nothing of the cue to write with")
        right = right / (right @ k)
        if self.kind == "qk" or self.rule == "hebbian":
            return Change(v, right)
        out = self.W.double() @ k + (0 if self.bias is None else self.bias.double())
        # Erasing takes the part along the value away; writing takes the output to the value.
        return Change(v * (v @ out) / (v @ v) if sign < 0 else v - out, right, exact=True)

    def probes(self, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        """What the layer reads at 512 positions of text."""
        read = self._inputs(self.text[:HELD]).flatten(0, 1)
        return read[torch.randperm(len(read), generator=generator)[:512].to(read.device)]

    def measures(self) -> dict[str, float]:
        """The model's cross-entropy on text, in nats, and what is watched."""
        ids = self.text[:HELD].to(self.lm.device)
        losses = cross_entropy(self.lm.logits(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        found = {"cross-entropy": float(losses.double().mean())}
        if self.watch >= 0 and self.kind == "qk":
            found["attention"] = float(self.looks(self.cue(self.prompt)[None])[0, self.watch])
        elif self.watch >= 0:
            logits = self.lm.logits(torch.tensor([self.ids(self.prompt)]))[0, -1]
            found["p(token)"] = float(logits.double().softmax(-1)[self.watch])
        return found

    @property
    def text(self) -> Int[Tensor, "sequence position"]:
        """Stories of the package, in the model's tokens; the first 16 are measured on, the others give the keys."""
        return _stories(self.lm)

    @cached_property
    def moment(self) -> Float[Tensor, "cue cue"]:
        """The mean k kᵀ of what the layer reads at 10,240 positions of text, in float64."""
        read = self._inputs(self.text[HELD:]).flatten(0, 1).double()
        return read.T @ read / len(read)

    def _out(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start out"]:
        return cues @ self.W.T if self.bias is None else cues @ self.W.T + self.bias

    def _inputs(self, ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position cue"]:
        return self.lm.tap(ids, [f"{self.place}.hook_in"])[f"{self.place}.hook_in"][..., self.columns]

    def _keys(self) -> tuple[Float[Tensor, "key value"], float]:
        """The head's keys at the prompt's positions as its last query sees them (turned back by its own position where
        positions are told by rotation), and what scores are multiplied with."""
        parts = read_parts(self.lm.bridge)
        if parts is None:
            raise UserError(f"{self.lm.name}: how its attention scales and turns its queries is not known here")
        ids, width, block = torch.tensor([self.ids(self.prompt)]), parts.d_head, parts.blocks[self.layer]
        if 0 < block.window < ids.shape[1]:
            raise UserError(f"the prompt has {ids.shape[1]} tokens, and layer {self.layer} looks back {block.window}")
        name = f"blocks.{self.layer}.attn.k.hook_out"
        keys = self.lm.tap(ids, [name])[name][0]
        # Several heads may share keys.
        group = self.lm.bridge.cfg.n_heads * width // keys.shape[1]
        keys = keys[:, self.head // group * width :][:, :width]
        if parts.rotary is not None:
            cos, sin = (t[0] for t in parts.rotary(keys[None], torch.arange(len(keys), device=keys.device)[None]))
            some = cos.shape[1]
            turned = _turned(_turned(keys[:, :some], cos, sin), cos[-1:], -sin[-1:])
            keys = torch.cat([turned, keys[:, some:]], 1)
        return keys - keys.mean(0), block.scale


def _ids(lm: LM, text: str) -> list[int]:
    ids, bos = list(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), lm.tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@lru_cache(maxsize=2)
def _stories(lm: LM) -> Int[Tensor, "sequence position"]:
    length, rows = min(CONTEXT, lm.context_limit), []
    for story in LocalFiles((BUNDLED,), "text").documents():
        ids = _ids(lm, str(story)[: 8 * length])[:length]
        if len(ids) == length:
            rows.append(ids)
        if len(rows) == ROWS:
            break
    return torch.tensor(rows)


def _turned(x: Float[Tensor, "key turned"], cos: Tensor, sin: Tensor) -> Float[Tensor, "key turned"]:
    first, second = x.chunk(2, 1)
    return x * cos + torch.cat([-second, first], 1) * sin
