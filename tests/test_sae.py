"""A trained SAE: encode and decode in closed form, at the store's scale."""

from __future__ import annotations

import pytest
import torch

from hsae.learner import Learner
from hsae.rules.backprop import Backprop
from hsae.sae import SAE, Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.setup import Setup

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
    assert SAE(W, B, W * 2, B_DEC, ReLU()).to("cpu").W_dec is not moved.W_enc


def test_every_tensor_moves_to_another_device():
    own = {"log_gain": torch.zeros(3), "magnitude_bias": B}
    moved = SAE(W, B, W * 2, B_DEC, Gated(), parameters=own).to("meta")
    tensors = (moved.W_enc, moved.b_enc, moved.W_dec, moved.b_dec, *moved.parameters.values())
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.parameters.keys() == own.keys()


def test_a_variants_own_parameters_decide_the_code():
    x = torch.tensor([[1.0, 3.0]])
    # Drives: 1, 6 - 1, 2 + 0.5.
    jump = SAE(W, B, W, B_DEC, JumpReLU(), parameters={"log_threshold": torch.tensor([0.9, 6.0, 2.0]).log()})
    assert torch.equal(jump.encode(x), torch.tensor([[1.0, 0.0, 2.5]]))
    cut = SAE(W, B, W, B_DEC, BatchTopK(), parameters={"threshold": torch.tensor(2.0)})
    assert torch.equal(cut.encode(x), torch.tensor([[0.0, 5.0, 2.5]]))
    gain = {"log_gain": torch.tensor([2.0, 1.0, 3.0]).log(), "magnitude_bias": torch.tensor([0.5, -9.0, 0.0])}
    gated = SAE(W, B, W, B_DEC, Gated(), parameters=gain)
    torch.testing.assert_close(gated.encode(x), torch.tensor([[2.5, 0.0, 7.5]]))
    torch.testing.assert_close(gated.encode_latents(x, [2, 0]), torch.tensor([[7.5, 2.5]]))


def test_training_folds_its_centre_and_decoder_bias_into_the_saes_biases():
    centre = torch.tensor([0.3, -0.2])
    for tied in (True, False):
        setup = Setup(Backprop(), None if tied else Backprop(), tied=tied, decoder_bias=not tied)
        learner = Learner("x", setup, seed=0, latents=5, centre=centre)
        x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        learner.update(learner.statistics(learner.forward(x)))
        forward, sae = learner.forward(x), learner.sae(4.0)
        torch.testing.assert_close(sae.encode(x / 4), forward.code)
        torch.testing.assert_close(sae(x / 4) * 4 - x, forward.error)
