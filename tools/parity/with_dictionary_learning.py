"""dictionary_learning reads what we wrote, and writes what we are to read."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from common import bare, rows, serve, shake
from torch import Tensor

# For harvesting, which its reader's module does too.
for name in ("datasets", "zstandard", "nnsight"):
    stand_in = types.ModuleType(name)
    stand_in.load_dataset = stand_in.LanguageModel = None  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[name] = stand_in
bare("dictionary_learning")

from dictionary_learning import dictionary  # noqa: E402  # pyright: ignore
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402  # pyright: ignore
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402  # pyright: ignore
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402  # pyright: ignore
from dictionary_learning.utils import load_dictionary  # noqa: E402  # pyright: ignore

OWN = {cls.__name__: cls for cls in (BatchTopKSAE, MatryoshkaBatchTopKSAE, AutoEncoderTopK)}


def read(job: dict[str, Any]) -> dict[str, Tensor]:
    if made := job.get("make"):
        cls = OWN.get(made) or getattr(dictionary, made)
        sae = cls(job["width"], job["latents"], **job["options"])
        shake(*(value for name, value in sae.named_parameters() if name not in ("W_enc", "encoder.weight")))
        if hasattr(sae, "threshold"):
            sae.threshold.data.abs_()
        config = {"trainer": {"dict_class": made, "activation_dim": job["width"], "dict_size": job["latents"]}}
        config["trainer"] |= {"layer": 3, "lm_name": "bundled", **job["options"]}
    else:
        sae, config = load_dictionary(job["folder"], device="cpu")
    if "save" in job:
        Path(job["save"]).mkdir(parents=True)
        torch.save(sae.state_dict(), Path(job["save"], "ae.pt"))
        Path(job["save"], "config.json").write_text(json.dumps(config))
    code = sae.encode(rows(job))
    return {"code": code, "reconstruction": sae.decode(code)}


serve(read)
