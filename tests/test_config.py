from dataclasses import FrozenInstanceError, replace

import pytest

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import ConfigError


def test_the_default_is_sam_2_1_tiny():
    config = Sam2Config()
    assert (config.image_size, config.hidden_size, config.num_maskmem, config.is_v2_1) == (1024, 256, 7, True)
    assert config.image_encoder.embed_dim_per_stage == (96, 192, 384, 768)
    assert config.image_encoder.num_attention_heads_per_stage == (1, 2, 4, 8)


def test_configs_are_immutable_and_compare_by_value():
    config = Sam2Config()
    assert config == Sam2Config()
    assert hash(config) == hash(Sam2Config())
    assert replace(config, image_size=512) != config
    with pytest.raises(FrozenInstanceError):
        config.image_size = 512


def test_lists_become_tuples_so_that_configs_compare():
    encoder = Sam2ImageEncoderConfig(
        blocks_per_stage=[1, 2, 7, 2],
        global_attention_blocks=[5, 7, 9],
        window_size_per_stage=[8, 4, 14, 7],
        window_positional_embedding_background_size=[7, 7],
    )
    assert encoder == Sam2ImageEncoderConfig()
    assert hash(encoder) == hash(Sam2ImageEncoderConfig())


def test_global_blocks_are_optional():
    assert Sam2ImageEncoderConfig(global_attention_blocks=()).global_attention_blocks == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sam2Config(image_size=1000), "image_size is 1000: expected a multiple of 32 pixels"),
        (lambda: Sam2Config(image_size=0), "image_size is 0: expected whole numbers >= 1"),
        (lambda: Sam2Config(image_size=1024.0), "image_size is 1024.0: expected whole numbers >= 1"),
        (lambda: Sam2Config(image_size="1024"), "image_size is '1024': expected whole numbers >= 1"),
        (lambda: Sam2Config(num_maskmem=0), "num_maskmem is 0: expected whole numbers >= 1"),
        (
            lambda: Sam2Config(hidden_size=100),
            "hidden_size is 100: expected a multiple of 8 and of twice the 8 decoder heads",
        ),
        (
            lambda: Sam2Config(memory_encoder=Sam2MemoryEncoderConfig(output_channels=96)),
            "hidden_size 256 is not a multiple of the memory's 96 channels",
        ),
        (
            lambda: Sam2MemoryEncoderConfig(output_channels=6),
            "output_channels is 6: expected a multiple of 4",
        ),
        (lambda: Sam2PromptEncoderConfig(mask_input_channels=2), "mask_input_channels is 2: expected a multiple of 4"),
        (lambda: Sam2MaskDecoderConfig(mlp_dim=-1), "mlp_dim is -1: expected whole numbers >= 1"),
        (lambda: Sam2MemoryAttentionConfig(num_layers=0), "num_layers is 0: expected whole numbers >= 1"),
        (
            lambda: Sam2ImageEncoderConfig(blocks_per_stage=(1, 2, 7)),
            "blocks_per_stage is (1, 2, 7): expected four numbers, one for each stage",
        ),
        (
            lambda: Sam2ImageEncoderConfig(blocks_per_stage=(1, 2, 0, 2)),
            "blocks_per_stage is (1, 2, 0, 2): expected whole numbers >= 1",
        ),
        (
            lambda: Sam2ImageEncoderConfig(window_size_per_stage=(8, 4, 14)),
            "window_size_per_stage is (8, 4, 14): expected four numbers, one for each stage",
        ),
        (
            lambda: Sam2ImageEncoderConfig(window_size_per_stage=(8, 5, 14, 7)),
            "window_size_per_stage has 5: expected even sizes in all stages but the last, since windows are halved "
            "where the map is",
        ),
        (
            lambda: Sam2ImageEncoderConfig(window_positional_embedding_background_size=(7,)),
            "window_positional_embedding_background_size is (7,): expected (height, width) >= 1",
        ),
        (
            lambda: Sam2ImageEncoderConfig(hidden_size=97, num_attention_heads=2),
            "hidden_size 97 is not a multiple of num_attention_heads 2",
        ),
        (
            lambda: Sam2ImageEncoderConfig(global_attention_blocks=(5, 12)),
            "global attention block 12 does not exist: (1, 2, 7, 2) makes 12 blocks, counted from 0",
        ),
        (
            lambda: Sam2ImageEncoderConfig(global_attention_blocks=(-1,)),
            "global attention block -1 does not exist: (1, 2, 7, 2) makes 12 blocks, counted from 0",
        ),
    ],
)
def test_invalid_numbers_are_refused(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == message
