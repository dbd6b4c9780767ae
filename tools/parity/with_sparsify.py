"""sparsify reads what we wrote, and writes what we are to read."""

from __future__ import annotations

from typing import Any

import torch
from common import bare, rows, serve, shake
from torch import Tensor

bare("sparsify")

from sparsify.config import SparseCoderConfig  # noqa: E402  # pyright: ignore
from sparsify.sparse_coder import SparseCoder  # noqa: E402  # pyright: ignore


def read(job: dict[str, Any]) -> dict[str, Tensor]:
    if "make" in job:
        sae = SparseCoder(job["width"], SparseCoderConfig(num_latents=job["latents"], k=job["options"]["k"]))
        shake(sae.encoder.bias, sae.b_dec, sae.W_dec)
    else:
        sae = SparseCoder.load_from_disk(job["folder"])
    if "save" in job:
        sae.save_to_disk(job["save"])
    x = rows(job)
    top = sae.encode(x)
    code = torch.zeros(len(x), sae.num_latents).scatter_(1, top.top_indices, top.top_acts)
    return {"code": code, "reconstruction": sae.decode(top.top_acts, top.top_indices)}


serve(read)
