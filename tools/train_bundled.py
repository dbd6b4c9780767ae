"""Step 2 of making the bundled model: train its tokeniser and its network.

    python tools/train_bundled.py --real TINYSTORIES_TRAIN.txt --teacher work/teacher0.txt work/teacher1.txt \
        --valid TINYSTORIES_VALID.txt --work work --out work/bundled --minutes 61

The text is real TinyStories and stories sampled from the teacher (sample_teacher.py), both with lines `<|endoftext|>`
between stories; --real-share of the rows of each batch come from the real ones, however often these repeat.  Rows are
packed contexts of 512 tokens.  Muon (torch 2.9 or later) trains the matrices of the layers, AdamW the rest; matrix
products are in bfloat16 with float32 weights, in float32 at the end.  The learning rate warms up, stays, and falls
linearly to 0 over the last --decay of the minutes.  The run saves its state to the work folder every few minutes and
goes on from there when started again; --export writes the folder from the saved state and ends.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bundled_data import Documents, nats_per_char, read_stories, read_validation, train_tokenizer
from bundled_net import Net, end_id, save_folder
from narrow_attention import load_kernel
from tokenizers import Tokenizer


class Batches:
    """Batches with a given share of rows of real text."""

    def __init__(self, real: Documents, teacher: Documents, size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.real, self.teacher, self.size = real.forever(self.rng), teacher.forever(self.rng), size

    def next(self, real_share: float) -> torch.Tensor:
        n_real = int(self.rng.binomial(self.size, real_share))
        sources: list[Iterator[torch.Tensor]] = [self.real] * n_real + [self.teacher] * (self.size - n_real)
        return torch.stack([next(source) for source in sources])


def make_optimizers(net: Net, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in net.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    vectors = [p for p in net.parameters() if p.ndim == 1]
    tables = [net.wte.weight, net.wpe.weight]
    adam_groups = [{"params": vectors}, {"params": tables}]
    if args.optimizer == "adamw":
        adam_groups.append({"params": matrices, "weight_decay": 0.05})
    adam = torch.optim.AdamW(adam_groups, lr=args.adam_lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
    if args.optimizer == "adamw":
        return [adam]
    muon = torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, adam]


def rate(progress: float, warmup: float, decay: float) -> float:
    """The learning rate's factor at a part of the run: up, level, and down to 0."""
    return max(0.0, min(1.0, (progress + 1e-4) / warmup, (1.0 - progress) / decay))


def prepared(args: argparse.Namespace) -> tuple[Tokenizer, Documents, Documents]:
    real = read_stories(args.real)
    path = args.work / "tokenizer.json"
    if not path.exists():
        train_tokenizer(real).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    teacher = [story for source in args.teacher for story in read_stories(source)]
    return tokenizer, Documents(real, tokenizer), Documents(teacher, tokenizer)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    net, state_path, state = Net(), args.work / f"{args.name}.pt", {}
    if state_path.exists():
        state = torch.load(state_path)
        net.load_state_dict(state["net"])
    if args.export:
        difference = save_folder(net.eval(), Tokenizer.from_file(str(args.work / "tokenizer.json")), args.out)
        print(f"wrote {args.out} at step {state['step']}; logits agree with transformers to {difference:.1e}")
        return
    print("fast attention:", load_kernel(args.work))
    tokenizer, real, teacher = prepared(args)
    print(f"{len(real.tokens)} real tokens, {len(teacher.tokens)} teacher tokens", flush=True)
    stories = read_validation(args.valid)[:200]
    valid = [encoding.ids for encoding in tokenizer.encode_batch(stories)]
    end, chars = end_id(tokenizer), sum(map(len, stories))
    optimizers = make_optimizers(net, args)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, seconds, mean = state.get("step", 0), state.get("seconds", 0.0), state.get("mean", 0.0)
    for optimizer, saved in zip(optimizers, state.get("optimizers", []), strict=False):
        optimizer.load_state_dict(saved)
    batches = Batches(real, teacher, args.batch, args.seed + step)

    def save() -> None:
        part = state_path.with_suffix(".part")
        saved = [optimizer.state_dict() for optimizer in optimizers]
        torch.save({"net": net.state_dict(), "optimizers": saved, "step": step, "seconds": seconds, "mean": mean}, part)
        os.replace(part, state_path)

    last, last_save = time.time(), time.time()
    while seconds < 60 * args.minutes:
        progress = seconds / (60 * args.minutes)
        factor = rate(progress, args.warmup, args.decay)
        for optimizer, lrs in zip(optimizers, base, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        decaying = progress > 1 - args.decay
        rows = batches.next(args.real_share_decay if decaying else args.real_share)
        with torch.autocast("cpu", torch.bfloat16, enabled=progress < 1 - args.exact):
            loss = net.loss(rows)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        now = time.time()
        seconds, last = seconds + now - last, now
        if step % args.report == 0:
            nats = nats_per_char(net, valid, end, chars)[0]
            tokens = step * args.batch * 512
            print(f"step {step}  {seconds:5.0f} s  {tokens / 1e6:.2f} M tokens  lr x{factor:.3f}  "
                  f"train {mean:.4f}  valid {nats:.4f} nats/char", flush=True)  # fmt: skip
            last = time.time()
        if now - last_save > 60 * args.save_minutes:
            save()
            last_save = time.time()
    save()
    difference = save_folder(net.eval(), tokenizer, args.out)
    print(f"wrote {args.out} after {step} steps, {step * args.batch * 512} tokens, {seconds:.0f} s; "
          f"logits agree with transformers to {difference:.1e}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, nargs="+")
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the run's state")
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--name", default="run", help="name of the run's state file in the work folder")
    parser.add_argument("--minutes", type=float, default=61.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=0.006)
    parser.add_argument("--real-share", type=float, default=0.4)
    parser.add_argument("--real-share-decay", type=float, default=0.4, help="the same while the rate falls")
    parser.add_argument("--warmup", type=float, default=0.02, help="part of the minutes")
    parser.add_argument("--decay", type=float, default=0.4, help="part of the minutes")
    parser.add_argument("--exact", type=float, default=0.1, help="last part of the minutes, in float32 throughout")
    parser.add_argument("--report", type=int, default=250, help="steps")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
