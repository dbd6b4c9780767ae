"""delphi reads the latent cache that we wrote."""

from __future__ import annotations

from typing import Any

import torch
from common import serve
from delphi.config import ConstructorConfig, SamplerConfig  # pyright: ignore[reportMissingImports]
from delphi.latents import LatentDataset  # pyright: ignore[reportMissingImports]
from torch import Tensor


def read(job: dict[str, Any]) -> dict[str, Tensor]:
    # Of the tokeniser it wants to know only that there is one.
    data = LatentDataset(job["folder"], SamplerConfig(), ConstructorConfig(), tokenizer=object())  # pyright: ignore
    code = torch.zeros(*data.tokens.shape, job["latents"])
    seen = set()
    for buffer in data.buffers:
        for latent in buffer:
            seen.add(latent.latent.latent_index)
            where = latent.activation_data.locations
            assert (where[:, 2] == latent.latent.latent_index).all()
            code[where[:, 0], where[:, 1], where[:, 2]] = latent.activation_data.activations.float()
    assert len(seen) == int((code.amax((0, 1)) > 0).sum())
    return {"code": code, "tokens": data.tokens}


serve(read)
