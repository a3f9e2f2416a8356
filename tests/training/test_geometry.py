"""The lesson before the first image."""

import torch

from masklet.training.geometry import noise_embeddings, random_shapes
from masklet.training.loop import Trainer


def test_shapes_are_of_all_sizes_and_none_is_empty():
    shapes = random_shapes(20, 10, 128, torch.Generator().manual_seed(0))
    assert shapes.shape == (20, 10, 128, 128)
    shares = shapes.float().mean((-2, -1))
    assert shares.min() > 0
    assert shares.min() < 0.02
    assert shares.max() > 0.3


def test_noise_has_the_form_of_an_encoded_image(tiny_run):
    model = Trainer(tiny_run).model
    encoded = model.get_image_embeddings(torch.zeros(2, 3, 64, 64))
    noise = noise_embeddings(tiny_run.model, 2, 64, torch.Generator())
    assert [n.shape for n in noise] == [e.shape for e in encoded]


def test_the_lesson_teaches_the_decoder_and_leaves_the_image_encoder_alone(tiny_run):
    trainer, untaught = Trainer(tiny_run), Trainer(tiny_run)
    ious = list(trainer.teach_geometry())
    assert len(ious) == tiny_run.geometry_steps
    assert all(0 <= iou <= 1 for iou in ious)
    for name, weight in untaught.model.state_dict().items():
        taught = trainer.model.state_dict()[name]
        if name.startswith("vision_encoder"):
            assert taught.equal(weight), name
        assert trainer.ema[name].equal(taught), name
    decoders = [t.model.mask_decoder.mask_tokens.weight for t in (trainer, untaught)]
    assert not torch.equal(*decoders)


def test_the_lesson_is_a_function_of_the_seed(tiny_run):
    taught = [Trainer(tiny_run) for _ in range(2)]
    one, other = (list(t.teach_geometry()) for t in taught)
    assert one == other
    for first, second in zip(*(t.model.state_dict().values() for t in taught), strict=True):
        assert first.equal(second)
