"""The bundled model's network in plain torch: GPT-Neo in TinyStories-1M's layout, and its way into transformers.

`Net` computes the same function as transformers' GPTNeoForCausalLM, only faster on a CPU: one fused attention call with
narrow heads (narrow_attention.py), and a loss that never holds more than a few hundred rows of logits.
`save_folder` writes a Hugging Face folder and checks that transformers computes the same logits from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from narrow_attention import attention
from tokenizers import Tokenizer
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

N_LAYERS, WIDTH, N_HEADS, CONTEXT, WINDOW, VOCAB = 8, 64, 16, 512, 256, 4096
END_OF_TEXT = "<|endoftext|>"


class Block(nn.Module):
    """One layer; odd layers see a local window only, as in GPT-Neo."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.window = CONTEXT if index % 2 == 0 else WINDOW
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        for linear in (self.q, self.k, self.v, self.fc):
            nn.init.normal_(linear.weight, std=WIDTH**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * N_LAYERS * WIDTH) ** -0.5)
        nn.init.normal_(self.proj.weight, std=(8 * N_LAYERS * WIDTH) ** -0.5)
        for bias in (self.out.bias, self.fc.bias, self.proj.bias):
            nn.init.zeros_(bias)

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side, shape (batch, time, 3 * width)."""
        return F.linear(self.ln_1(x), torch.cat([self.q.weight, self.k.weight, self.v.weight]))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.out(attention(self.qkv(x).float(), N_HEADS, self.window))
        return x + self.mlp(x)


class _TiedLoss(torch.autograd.Function):
    """Sum of the cross-entropies of x @ w.T against the targets, and its gradients, in slices of the rows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        total, dx, dw = x.new_zeros(()), torch.empty_like(x), torch.zeros_like(w)
        with torch.autocast("cpu", enabled=False):
            w = w.to(dtype)
            for i in range(0, len(x), 256):
                part, target = x[i : i + 256].to(dtype), targets[i : i + 256, None]
                logp = torch.log_softmax((part @ w.T).float(), dim=-1)
                total -= logp.gather(1, target).sum()
                p = logp.exp_().scatter_add_(1, target, x.new_full(target.shape, -1.0)).to(dtype)
                dx[i : i + 256] = p @ w
                dw += p.T @ part
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        dx, dw = ctx.saved_tensors
        return dx * grads[0], dw * grads[0], None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.wte.weight, std=0.05)
        nn.init.normal_(self.wpe.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(i) for i in range(N_LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The stream after the last norm, shape (batch, time, width), of ids at positions 0, 1, ..."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self.hidden(ids), self.wte.weight)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross-entropy of rows of CONTEXT + 1 tokens."""
        x = self.hidden(ids[:, :-1]).flatten(0, 1)
        return _TiedLoss.apply(x, self.wte.weight, ids[:, 1:].flatten()) / len(x)


def _hf_names() -> dict[str, str]:
    """This network's parameter names and the ones GPTNeoForCausalLM gives them."""
    names = {"wte.weight": "transformer.wte.weight", "wpe.weight": "transformer.wpe.weight"}
    names |= {f"ln_f.{part}": f"transformer.ln_f.{part}" for part in ("weight", "bias")}
    theirs = {"ln_1": "ln_1", "ln_2": "ln_2", "out": "attn.attention.out_proj", "fc": "mlp.c_fc", "proj": "mlp.c_proj"}
    for i in range(N_LAYERS):
        for mine, other in theirs.items():
            names |= {f"blocks.{i}.{mine}.{p}": f"transformer.h.{i}.{other}.{p}" for p in ("weight", "bias")}
        for kind in "qkv":
            names[f"blocks.{i}.{kind}.weight"] = f"transformer.h.{i}.attn.attention.{kind}_proj.weight"
    return names


def end_id(tokenizer: Tokenizer) -> int:
    """The id of the end-of-text token."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    if found is None:
        raise ValueError(f"the tokeniser has no {END_OF_TEXT}")
    return found


def hf_config(tokenizer: Tokenizer) -> GPTNeoConfig:
    end = end_id(tokenizer)
    return GPTNeoConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=WIDTH, num_layers=N_LAYERS, num_heads=N_HEADS,
        attention_types=[[["global", "local"], N_LAYERS // 2]], window_size=WINDOW, intermediate_size=4 * WIDTH,
        activation_function="gelu_new", bos_token_id=end, eos_token_id=end, tie_word_embeddings=True,
        resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


@torch.no_grad()
def save_folder(net: Net, tokenizer: Tokenizer, folder: Path) -> float:
    """Writes a Hugging Face folder; returns the largest difference of logits between transformers and `net`.

    Raises ValueError if that difference, on random tokens over the full context, exceeds 1e-4.
    """
    model = GPTNeoForCausalLM(hf_config(tokenizer))
    own, names = net.state_dict(), _hf_names()
    result = model.load_state_dict({names[name]: value for name, value in own.items()}, strict=False)
    if result.unexpected_keys or set(result.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"the weights do not fit: {result}")
    model.tie_weights()
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = model.config.eos_token_id
    model.generation_config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT, model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }  # the name in older releases
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    loaded = GPTNeoForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    difference = float((loaded(ids).logits - net(ids)).abs().max())
    if difference > 1e-4:
        raise ValueError(f"transformers' logits differ by {difference}")
    return difference


def load_folder(folder: Path) -> tuple[Net, Tokenizer]:
    """Reads a folder written by `save_folder`."""
    theirs = GPTNeoForCausalLM.from_pretrained(folder).state_dict()
    net = Net()
    net.load_state_dict({mine: theirs[other] for mine, other in _hf_names().items()})
    return net.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
