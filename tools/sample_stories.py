"""Step 3 of making the bundled model: sample stories from the finished model into a parquet file.

    python tools/sample_stories.py --model hsae/assets/bundled --out hsae/assets/stories.parquet --seed 0
    python tools/sample_stories.py --model hsae/assets/bundled --show 1 --seed 1

Every story begins after an end-of-text token at position 0 and is kept only if it ends by itself within the context of
512 tokens.  Tokens less probable than `min_p` times the most probable one are left out of the draw.  Stories that are
very short, not valid text or equal to an earlier one are dropped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from bundled_net import CONTEXT, N_HEADS, N_LAYERS, WIDTH, Block, Net, end_id, load_folder
from narrow_attention import attention_step, load_kernel
from sample_teacher import draw


class Sampler:
    """Draws stories in batches with a preallocated key/value cache; finished rows leave the batch now and then."""

    def __init__(self, net: Net, batch: int, end: int) -> None:
        self.net, self.batch, self.end, self.d_head = net, batch, end, WIDTH // N_HEADS
        self.k_cache = torch.zeros(N_LAYERS, batch * N_HEADS, self.d_head, CONTEXT)
        self.v_cache = torch.zeros(N_LAYERS, batch * N_HEADS, self.d_head, CONTEXT)

    def _attend(self, block: Block, layer: int, x: torch.Tensor, position: int) -> torch.Tensor:
        n = len(x) * N_HEADS
        q, k, v = block.qkv(x).view(len(x), 3, N_HEADS, self.d_head).unbind(dim=1)
        self.k_cache[layer, :n, :, position] = k.reshape(n, self.d_head)
        self.v_cache[layer, :n, :, position] = v.reshape(n, self.d_head)
        keys, values, first = self.k_cache[layer, :n], self.v_cache[layer, :n], max(0, position + 1 - block.window)
        z = attention_step(q.reshape(n, self.d_head), keys, values, first, position + 1)
        return block.out(z.reshape(len(x), WIDTH))

    def step(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """Logits, shape (rows, vocabulary), after the tokens `ids` of all rows at one position."""
        x = self.net.wte(ids) + self.net.wpe.weight[position]
        for layer, block in enumerate(self.net.blocks):
            assert isinstance(block, Block)
            x = x + self._attend(block, layer, x, position)
            x = x + block.mlp(x)
        return F.linear(self.net.ln_f(x), self.net.wte.weight)

    def _keep(self, rows: torch.Tensor, old: int, length: int) -> None:
        """Moves the rows kept, out of `old`, to the front of the cache."""
        for layer in range(N_LAYERS):
            for cache in (self.k_cache, self.v_cache):
                part = cache[layer, : old * N_HEADS].view(old, N_HEADS, self.d_head, CONTEXT)
                part[: len(rows), :, :, :length] = part[rows, :, :, :length]

    def stories(self, temperature: float, min_p: float, generator: torch.Generator) -> list[list[int]]:
        """The token ids of the stories of one batch that ended by themselves, in the order of the batch's rows."""
        tokens = torch.full((self.batch, CONTEXT + 1), self.end)
        done = torch.zeros(self.batch, dtype=torch.bool)
        number = torch.arange(self.batch)
        finished: dict[int, list[int]] = {}
        for position in range(CONTEXT):
            new = draw(self.step(tokens[:, position], position), temperature, min_p, generator)
            tokens[:, position + 1] = new
            ended = (new == self.end) & ~done
            finished |= zip(number[ended].tolist(), tokens[ended, 1 : position + 1].tolist(), strict=True)
            done |= ended
            if done.all():
                break
            if done.float().mean() > 0.1:
                rows = torch.nonzero(~done).flatten()
                self._keep(rows, len(done), position + 1)
                tokens, done, number = tokens[rows], done[rows], number[rows]
        return [finished[row] for row in sorted(finished)]


@torch.inference_mode()
def sample(args: argparse.Namespace) -> None:
    net, tokenizer = load_folder(args.model)
    with tempfile.TemporaryDirectory() as folder:
        load_kernel(Path(folder))
    sampler = Sampler(net, args.show or args.batch, end_id(tokenizer))
    generator = torch.Generator().manual_seed(args.seed)
    if args.show:
        for ids in sampler.stories(args.temperature, args.min_p, generator):
            print(tokenizer.decode(ids).strip(), end="\n\n")
        return
    kept: dict[str, int] = {}
    total, ended, drawn, started = 0, 0, 0, time.time()
    while total < args.tokens:
        batch = sampler.stories(args.temperature, args.min_p, generator)
        drawn, ended = drawn + args.batch, ended + len(batch)
        for text in (text.strip() for text in tokenizer.decode_batch(batch)):
            if len(text) >= args.min_chars and "\ufffd" not in text and text not in kept and total < args.tokens:
                kept[text] = len(tokenizer.encode(text).ids)
                total += kept[text]
        print(f"{time.time() - started:5.0f} s  {len(kept)} stories  {total} tokens  "
              f"{ended} of {drawn} drawn ended by themselves", flush=True)  # fmt: skip
    part = args.out.with_suffix(".part")
    pq.write_table(
        pa.table({"text": list(kept)}), part, compression="zstd", compression_level=22, use_dictionary=False,
        data_page_size=1 << 26,
    )  # fmt: skip
    os.replace(part, args.out)
    print(f"wrote {args.out}: {len(kept)} stories, {total} tokens, {args.out.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder written by train_bundled.py")
    parser.add_argument("--out", type=Path, help="parquet file to write, one column `text`")
    parser.add_argument("--show", type=int, default=0, help="print this many stories instead of writing a file")
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.005)
    parser.add_argument("--min-chars", type=int, default=100, help="shorter stories are dropped")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not args.show and args.out is None:
        parser.error("--out or --show is needed")
    torch.set_num_threads(args.threads)
    sample(args)


if __name__ == "__main__":
    main()
