"""Initial weights."""

import torch

from masklet.training.loop import initial_model
from recipes.nano.initialise import initialise


def test_the_image_embedding_varies_as_much_as_the_constants_added_to_it(recipe):
    model = initial_model(recipe.training, initialise)
    generator = torch.Generator().manual_seed(0)
    embedding = model.encode(torch.randn(1, 3, 64, 64, generator=generator))[-1]
    constant = model.prompt_encoder.no_mask_embed.weight
    assert embedding.std((-2, -1)).mean() > 0.5 * constant.std()


def test_a_cell_attends_to_the_prompt_at_its_position(recipe):
    model = initial_model(recipe.training, initialise)
    attention = model.mask_decoder.transformer.layers[0].cross_attn_image_to_token
    positions = model.shared_image_embedding.grid((4, 4))
    scores = attention.q_proj(positions) @ attention.k_proj(positions).T
    assert (scores.argmax(-1) == torch.arange(16)).float().mean() > 0.8
