"""A trained SAE: encode and decode in closed form, at the store's scale."""

from __future__ import annotations

import pytest
import torch

from hsae.sae import SAE, Variant
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK

W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
B = torch.tensor([0.0, -1.0, 0.5])
B_DEC = torch.tensor([10.0, 20.0])


def test_encode_and_decode_by_hand():
    sae = SAE(W, B, W, B_DEC, ReLU(), scale=2.0)
    x = torch.tensor([[[1.0, 3.0]], [[-1.0, 0.0]]])
    # Scaled: (2, 6) and (-2, 0). Drives: 2, 12 - 1, 4 + 0.5; and -2, -1, 2.5.
    code = torch.tensor([[[2.0, 11.0, 4.5]], [[0.0, 0.0, 2.5]]])
    assert torch.equal(sae.encode(x), code)
    by_hand = torch.tensor([[[2.0 - 4.5, 22.0 + 4.5]], [[-2.5, 2.5]]])
    assert torch.equal(sae.decode(code), (by_hand + B_DEC) / 2)
    assert torch.equal(sae(x), sae.decode(code))
    assert torch.equal(sae.encode(x[0, 0]), code[0, 0])
    assert (sae.latents, sae.width) == (3, 2)


def test_folding_the_scale_keeps_the_function():
    for variant in (ReLU(), TopK(k=2)):
        sae = SAE(W, B, W * 3, B_DEC, variant, scale=0.25)
        x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(sae.folded()(x), sae(x))
        torch.testing.assert_close(sae.folded().encode(x) * 0.25, sae.encode(x))
        assert sae.folded().scale == 1


@pytest.mark.parametrize("variant", [ReLU(), TopK(k=1)])
def test_some_latents_are_those_of_the_whole_code(variant: Variant):
    sae = SAE(W, B, W, B_DEC, variant, scale=2.0)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.encode_latents(x, [2, 0]), sae.encode(x)[:, [2, 0]])


def test_a_tied_sae_stays_tied_on_another_device():
    moved = SAE(W, B, W, B_DEC, ReLU()).to("cpu")
    assert moved.W_dec is moved.W_enc
