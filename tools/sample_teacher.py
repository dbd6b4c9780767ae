"""Step 1 of making the bundled model: sample training stories from a small teacher language model.

The teacher is stories260K (Llama architecture, 260,032 parameters) as a Hugging Face folder.  It was trained on a
stream of stories with a begin-of-text token between them, so every batch row here is such a stream: it runs up to the
end of the context, then keeps the newest tokens as its next context, which are read in one pass.  Tokens less probable
than `min_p` times the most probable one are left out of the draw.  Only whole stories, from one begin-of-text token to
the next, are written, each followed by a line `<|endoftext|>`.

    python tools/sample_teacher.py --teacher TEACHER_FOLDER --out work/teacher0.txt --seed 0

Several processes with different seeds and output files may run side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

END_LINE = "\n<|endoftext|>\n"


class Teacher:
    """A Llama network with a preallocated key/value cache; all rows of a batch stand at the same position."""

    def __init__(self, folder: Path, batch: int) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.n_layers: int = config["num_hidden_layers"]
        self.n_q: int = config["num_attention_heads"]
        self.n_kv: int = config["num_key_value_heads"]
        self.d_head: int = config.get("head_dim") or config["hidden_size"] // self.n_q
        self.context: int = config["max_position_embeddings"]
        self.eps: float = config["rms_norm_eps"]
        self.bos: int = config["bos_token_id"]
        self.eos: int = config["eos_token_id"]
        self.embed = weights["model.embed_tokens.weight"]
        self.unembed = weights.get("lm_head.weight", self.embed)
        self.norm = weights["model.norm.weight"]
        self.layers = []
        for i in range(self.n_layers):
            part = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if f".layers.{i}." in k}
            names = ("q_proj", "k_proj", "v_proj")
            self.layers.append(
                {
                    "ln1": part["input_layernorm.weight"],
                    "ln2": part["post_attention_layernorm.weight"],
                    "qkv": torch.cat([part[f"self_attn.{name}.weight"] for name in names]),
                    "o": part["self_attn.o_proj.weight"],
                    "gate_up": torch.cat([part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"]]),
                    "down": part["mlp.down_proj.weight"],
                }
            )
        theta = config["rope_parameters"]["rope_theta"]
        freq = theta ** (-torch.arange(0, self.d_head, 2, dtype=torch.float32) / self.d_head)
        angle = torch.outer(torch.arange(self.context, dtype=torch.float32), freq)
        self.cos = torch.cat([angle.cos(), angle.cos()], dim=-1)
        self.sin = torch.cat([angle.sin(), angle.sin()], dim=-1)
        self.k_cache = torch.zeros(self.n_layers, batch, self.n_kv, self.d_head, self.context)
        self.v_cache = torch.zeros(self.n_layers, batch, self.n_kv, self.context, self.d_head)

    def _rotate(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Rotary position embedding of x, shape (batch, heads, time, d_head), the first time step at `start`."""
        half = self.d_head // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        end = start + x.shape[2]
        return x * self.cos[start:end] + turned * self.sin[start:end]

    def forward(self, ids: torch.Tensor, start: int, rows: slice = slice(None)) -> torch.Tensor:
        """Reads ids, shape (batch, time), into the cache: a whole context from position 0, or one token at `start`.

        Returns the logits after the last token, shape (batch, vocabulary).
        """
        b, t = ids.shape
        end = start + t
        x = F.embedding(ids, self.embed)
        for i, layer in enumerate(self.layers):
            qkv = F.linear(F.rms_norm(x, x.shape[-1:], layer["ln1"], self.eps), layer["qkv"])
            qkv = qkv.view(b, t, self.n_q + 2 * self.n_kv, self.d_head).transpose(1, 2)
            qk = self._rotate(qkv[:, : self.n_q + self.n_kv], start)
            keys, values = self.k_cache[i, rows], self.v_cache[i, rows]
            q, k, v = qk[:, : self.n_q], qk[:, self.n_q :], qkv[:, self.n_q + self.n_kv :]
            keys[:, :, :, start:end] = k.transpose(2, 3)
            values[:, :, start:end] = v
            if t == 1:  # the query heads that share a key/value head are the rows of one small product
                q = q.reshape(b * self.n_kv, self.n_q // self.n_kv, self.d_head) * self.d_head**-0.5
                scores = torch.bmm(q, keys.flatten(0, 1)[:, :, :end])
                z = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1)[:, :end]).reshape(b, 1, -1)
            else:
                z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                z = z.transpose(1, 2).reshape(b, t, -1)
            x = x + F.linear(z, layer["o"])
            gate, up = F.linear(F.rms_norm(x, x.shape[-1:], layer["ln2"], self.eps), layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(F.rms_norm(x[:, -1], x.shape[-1:], self.norm, self.eps), self.unembed)


def draw(logits: torch.Tensor, temperature: float, min_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token per row from the softmax of logits / temperature, improbable tokens left out; shape (batch,)."""
    p = torch.softmax(logits / temperature, dim=-1)
    p = p.masked_fill(p < min_p * p.amax(dim=-1, keepdim=True), 0.0)
    total = p.cumsum(dim=-1)
    u = torch.rand(len(p), 1, generator=generator) * total[:, -1:]
    index = torch.searchsorted(total, u, right=True).squeeze(1)
    return index.clamp_(max=p.shape[1] - 1)


def split_stories(rows: list[list[int]], ends: set[int]) -> list[list[int]]:
    """Cuts each row at its end tokens, in place; returns the whole stories and leaves the tail in the row."""
    stories = []
    for row in rows:
        cut = 0
        for i, token in enumerate(row):
            if token in ends:
                if i > cut:
                    stories.append(row[cut:i])
                cut = i + 1
        del row[:cut]
    return stories


@torch.inference_mode()
def sample(args: argparse.Namespace) -> None:
    """Samples until the minutes or the characters asked for are reached and writes the stories to args.out."""
    teacher = Teacher(args.teacher, args.batch)
    tokenizer = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
    generator = torch.Generator().manual_seed(args.seed)
    ends = {teacher.bos, teacher.eos}
    window = torch.full((args.batch, 1), teacher.bos)
    rows: list[list[int]] = [[] for _ in range(args.batch)]
    started, chars, stories_written = time.time(), 0, 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as out:
        while time.time() - started < 60 * args.minutes and chars < 1e6 * args.megabytes:
            tokens = torch.empty(args.batch, teacher.context, dtype=torch.long)
            have = window.shape[1]
            tokens[:, :have] = window
            for position in range(have, teacher.context):
                if position == have:
                    parts = [teacher.forward(window[i : i + 32], 0, slice(i, i + 32)) for i in range(0, args.batch, 32)]
                    logits = torch.cat(parts)
                else:
                    logits = teacher.forward(tokens[:, position - 1 : position], position - 1)
                tokens[:, position] = draw(logits, args.temperature, args.min_p, generator)
            for row, new in zip(rows, tokens[:, have:].tolist(), strict=True):
                row.extend(new)
            window = tokens[:, -args.keep :].clone()
            texts = tokenizer.decode_batch(split_stories(rows, ends))
            kept = [text.strip() for text in texts if len(text.strip()) >= args.min_chars]
            out.writelines(text + END_LINE for text in kept)
            out.flush()
            stories_written += len(kept)
            chars += sum(map(len, kept))
            seconds = time.time() - started
            print(f"{seconds:6.0f} s  {stories_written} stories  {chars / 1e6:.2f} M characters", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="Hugging Face folder of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="text file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--megabytes", type=float, default=1e9, help="stop at this many million characters")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.02)
    parser.add_argument("--keep", type=int, default=192, help="tokens kept as the next context")
    parser.add_argument("--min-chars", type=int, default=100, help="shorter stories are dropped")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sample(args)


if __name__ == "__main__":
    main()
