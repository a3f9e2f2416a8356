"""The image encoder beside its plain form."""

import pytest
import torch
import torch.nn.functional as F

from masklet.model.neck import _matrix, _product


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_skip_connections_are_as_convolved_one_after_the_other(tiny_model, pixel_values, dtype):
    model = (
        tiny_model.to(dtype)
        if dtype == torch.float32
        else type(tiny_model).from_tensors(tiny_model.config, tiny_model.state_dict()).to(dtype)
    )
    with torch.inference_mode():
        maps = model.vision_encoder.backbone(pixel_values.to(dtype))
        found = model.encode(pixel_values)
        convs = list(model.vision_encoder.neck.convs)[::-1]
        lateral = [conv(m.permute(0, 3, 1, 2)) for conv, m in zip(convs, maps, strict=True)]
        expected = [
            model.mask_decoder.conv_s0(lateral[0]),
            model.mask_decoder.conv_s1(lateral[1]),
            lateral[2] + F.interpolate(lateral[3], scale_factor=2.0, mode="nearest"),
        ]
    # In bfloat16 the product is nearer to the truth than two roundings.
    rtol = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for mine, plain in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == plain.shape
        assert (mine - plain).float().norm() <= rtol * plain.float().norm()


def test_both_convolutions_of_a_skip_connection_learn(tiny_model, pixel_values):
    model = (
        type(tiny_model)
        .from_tensors(tiny_model.config, {name: weight.clone() for name, weight in tiny_model.state_dict().items()})
        .requires_grad_()
    )
    neck, decoder = model.vision_encoder.neck.convs, model.mask_decoder
    pairs = [(neck[3], decoder.conv_s0), (neck[2], decoder.conv_s1)]
    finest, fine, _ = model.encode(pixel_values)
    (finest.square().sum() + fine.square().sum()).backward()
    found = [(a.weight.grad.clone(), b.bias.grad.clone()) for a, b in pairs]
    model.zero_grad()
    maps = model.vision_encoder.backbone(pixel_values)
    loss = sum(b(a(m.permute(0, 3, 1, 2))).square().sum() for (a, b), m in zip(pairs, maps, strict=False))
    loss.backward()
    for (a, b), grads in zip(pairs, found, strict=True):
        for mine, plain in zip(grads, (a.weight.grad, b.bias.grad), strict=True):
            assert (mine - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("size_hw", [(16, 16), (24, 8), (7, 40)])
def test_positions_are_stretched_as_by_bicubic_interpolation(tiny_model, size_hw):
    trunk = tiny_model.vision_encoder.backbone
    stretched = F.interpolate(trunk.pos_embed, size=size_hw, mode="bicubic", align_corners=False)
    window = trunk.pos_embed_window
    tiled = window.tile(1, 1, 10, 10)[..., : size_hw[0], : size_hw[1]]
    torch.testing.assert_close(trunk.positions(size_hw), (stretched + tiled).permute(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_what_is_made_of_weights_alone_is_not_narrowed_where_products_are(tiny_model):
    """Training in bfloat16 multiplies so; the weights stay float32."""
    convs = tiny_model.vision_encoder.neck.convs[3], tiny_model.mask_decoder.conv_s0
    trunk = tiny_model.vision_encoder.backbone
    plain = [*_product(*map(_matrix, convs)), trunk.positions((16, 16))]
    with torch.autocast("cpu", torch.bfloat16):
        narrowed = [*_product(*map(_matrix, convs)), trunk.positions((16, 16))]
    assert all(mine.equal(other) for mine, other in zip(narrowed, plain, strict=True))
