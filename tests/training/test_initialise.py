"""First weights."""

import torch

from masklet.training.loop import Trainer


def test_the_image_and_the_prompt_are_heard_in_the_decoder_from_the_first_step(tiny_run):
    model = Trainer(tiny_run).model
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_image_embeddings(torch.randn(1, 3, 64, 64, generator=generator))[-1]
    constant = model.prompt_encoder.no_mask_embed.weight
    assert embedding.std((-2, -1)).mean() > 0.5 * constant.std()


def test_a_cell_looks_at_the_prompt_that_lies_on_it(tiny_run):
    model = Trainer(tiny_run).model
    attention = model.mask_decoder.transformer.layers[0].cross_attn_image_to_token
    positions = model.shared_image_embedding.grid((4, 4))
    scores = attention.q_proj(positions) @ attention.k_proj(positions).T
    assert (scores.argmax(-1) == torch.arange(16)).float().mean() > 0.8
