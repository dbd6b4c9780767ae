"""What TransformerLens calls a hook point, and what the modules of a transformers model call the same activation."""

from __future__ import annotations

import re

# The list of blocks within a transformers model; "layers" for all others.
BLOCKS = {"GPT2": "h", "GPTNeoFor": "h", "GPTJ": "h", "Bloom": "h", "Falcon": "h", "OPT": "decoder.layers"}


def residual_layer(hook: str) -> int | None:
    """The block whose output a hook point is, counted from 0; -1 before the first. None for other hook points.

    What goes into a block is what came out of the one before: `blocks.4.hook_resid_pre` is block 3's output.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
    return None if found is None else int(found[1]) - (found[2] == "pre")


def canonical(hook: str) -> str:
    """The one name of a hook point that has two: residual streams by the block that they come out of."""
    layer = residual_layer(hook)
    return hook if layer is None or layer < 0 else f"blocks.{layer}.hook_resid_post"


def block_of(hook: str) -> int | None:
    """The number in a hook point's name; None if it has none."""
    found = re.match(r"blocks\.(\d+)\.", hook)
    return None if found is None else int(found[1])


def module_of(hook: str, architecture: str) -> str | None:
    """The module whose output a hook point is, as sparsify and delphi name it; None where no module gives it.

    Args:
        hook: TransformerLens' name.
        architecture: the class of the transformers model, such as `LlamaForCausalLM`.
    """
    blocks = next((name for start, name in BLOCKS.items() if architecture.startswith(start)), "layers")
    layer = residual_layer(hook)
    if layer is not None:
        return f"{blocks}.{layer}" if layer >= 0 else None
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", hook):
        return f"{blocks}.{found[1]}.mlp"
    return None


def hook_of(module: str) -> str:
    """The hook point that a module's name stands for; empty for one that is not of these."""
    found = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)(\.mlp)?", module)
    return "" if found is None else f"blocks.{found[1]}.hook_{'mlp_out' if found[2] else 'resid_post'}"
