"""The recipe for a GPU: packed data, examples of photos, and a trial of all of it on a CPU."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.errors import DataError
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Batch
from masklet.training.data_config import Augmentations
from recipes.nano import gpu_train, pack
from recipes.nano.annotated import FAMILY_SHARES, AnnotatedPhotos, example_of, filled, objects_in, panned
from recipes.nano.gpu_batches import MAX_REPEATS, Chunks, Feed, Material, PackedBatch, in_workers, unpacked
from recipes.nano.gpu_scores import HeldOut, scores_of
from recipes.nano.gpu_train import CLIPS, IMAGES, miniature, schedule
from recipes.nano.object_parts import parts_of
from recipes.nano.sources import read_sources


@pytest.fixture(scope="module")
def packed(archives, tmp_path_factory):
    """The small archives, packed into one file and unpacked again."""
    folder = tmp_path_factory.mktemp("packed")
    pack.pack(archives, folder / "all.zip", limit_mib=45)
    with zipfile.ZipFile(folder / "all.zip") as file:
        file.extractall(folder / "sources")
    return folder


@pytest.fixture(scope="module")
def material(packed):
    return Material.from_sources(read_sources(packed / "sources", held_out=False))


def facade():
    """A red wall with a green window, on blue: an image and its label map, where the wall has a hole."""
    labels = np.zeros((120, 160), np.uint8)
    labels[20:100, 30:130], labels[40:70, 60:100] = 1, 2
    colours = np.array([[0, 0, 200], [200, 0, 0], [0, 200, 0]], np.uint8)
    return Image.fromarray(colours[labels]), Image.fromarray(labels)


def test_packed_sources_are_read_like_the_originals_with_their_parts(archives, packed):
    before, after = (read_sources(folder, held_out=False) for folder in (archives, packed / "sources"))
    assert len(after.cutouts) == len(before.cutouts)
    assert after.instance_names == [f"{name.removesuffix('.jpg')}.webp" for name in before.instance_names]
    assert [np.unique(labels).tolist() for _, labels in after.instances] == [[0, 1]] * len(before.instances)
    assert len(after._parts) == len({id(cutout) for cutout in after.cutouts})
    for index in (0, -1):
        assert np.array_equal(after.parts_of_cutout(index), parts_of(after.cutouts[index]))


def test_images_are_scaled_until_they_fit_and_labels_stay_numbers(tmp_path):
    rng = np.random.default_rng(0)
    labels = Image.fromarray(rng.choice([0, 1, 7, 255], (40, 60)).astype(np.uint8).repeat(8, 0).repeat(8, 1))
    labels.putpalette([9, 8, 7] * 256)
    with zipfile.ZipFile(tmp_path / "instances-noise.zip", "w") as archive:
        for name, image, kind in (
            ("images/a.jpg", Image.fromarray(rng.integers(0, 256, (320, 480, 3), np.uint8)), "JPEG"),
            ("masks/a.png", labels, "PNG"),
        ):
            image.save(file := io.BytesIO(), kind)
            archive.writestr(name, file.getvalue())
    size, scale = pack.pack(tmp_path, tmp_path / "all.zip", limit_mib=0.06)
    assert size <= 0.06 * 2**20
    assert scale < 1
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        inner = zipfile.ZipFile(io.BytesIO(file.read("instances-noise.zip")))
    found = Image.open(io.BytesIO(inner.read("masks/a.png")))
    assert found.size == Image.open(io.BytesIO(inner.read("images/a.webp"))).size
    assert np.unique(np.asarray(found)).tolist() == [0, 1, 7, 255]
    with pytest.raises(DataError, match="do not fit into 0.001 MiB"):
        pack.pack(tmp_path, tmp_path / "all.zip", limit_mib=0.001)


def test_photos_are_more_than_half_and_no_source_more_than_a_fifth():
    assert 0.5 < sum(FAMILY_SHARES.values()) < 1
    assert max(FAMILY_SHARES.values()) <= 0.2


def test_families_are_drawn_by_their_shares():
    photos = AnnotatedPhotos({"facade": [facade()], "coco": [facade()] * 5, "oi": [facade()]})
    rng = np.random.default_rng(0)
    names = Counter(photos.draw(rng, 64, 2).name for _ in range(800))
    total = FAMILY_SHARES["facade"] + FAMILY_SHARES["coco"] + FAMILY_SHARES["oi"]
    for name, count in names.items():
        assert count / 800 == pytest.approx(FAMILY_SHARES[name] / total, abs=0.06)


@pytest.mark.parametrize("seed", range(8))
def test_masks_move_with_the_image(seed):
    """Each object has a colour of its own, so the truth can be read from the varied image."""
    geometry = Augmentations(flip=0.5, flip_vertical=0.5, crop=1.0)
    example = example_of(facade(), np.random.default_rng(seed), 96, 4, name="facade", augment=geometry)
    red, green = example.pixels[..., 0] > 100, example.pixels[..., 1] > 100
    expected = (red, green, red | green)
    for mask in example.masks:
        assert min((mask ^ one).mean() for one in expected) < 0.03


def test_an_object_with_holes_is_also_a_whole():
    labels = np.asarray(facade()[1])
    wall = labels == 1
    assert np.array_equal(filled(wall), labels > 0)
    assert filled(labels == 2) is None
    found = [objects_in(labels, np.random.default_rng(seed)) for seed in range(10)]
    assert {len(masks) for masks in found} == {2, 3}


def test_a_camera_pans_across_a_photo():
    clip = panned(facade(), np.random.default_rng(1), 96, 2, 4, name="facade")
    assert clip.pixels.shape == (4, 96, 96, 3)
    assert clip.masks.shape == (4, 2, 96, 96)
    assert not np.array_equal(clip.masks[0], clip.masks[-1])


@pytest.mark.parametrize("shape", [(8,), (3, 5, 16), (2, 3, 4, 5, 24)])
def test_masks_unpacked_on_the_device_are_those_that_numpy_unpacks(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    packed = np.packbits(masks, axis=-1, bitorder="little")
    expected = np.unpackbits(packed, axis=-1, bitorder="little").view(bool)
    found = unpacked(torch.from_numpy(packed))
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(expected, masks)
    assert unpacked(torch.empty(packed.shape, dtype=torch.uint8, device="meta")).shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_are_unpacked_alike_on_a_gpu():
    packed = torch.arange(256, dtype=torch.uint8).view(2, 4, 32)
    batch = PackedBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), packed, ("a", "b"))
    on_gpu = batch.pin_memory().to(torch.device("cuda"))
    assert torch.equal(on_gpu.targets.cpu(), unpacked(packed))


@pytest.mark.parametrize("phase", [IMAGES, CLIPS])
def test_a_chunk_is_a_function_of_its_number_and_masks_survive_packing(material, phase):
    stage = miniature(phase).stage
    chunks = Chunks(material, stage, ahead=0)
    one, again, other = (chunks.examples(number) for number in (3, 3, 4))
    assert np.array_equal(one[0].pixels, again[0].pixels)
    assert not np.array_equal(one[0].masks, other[0].masks)
    batch = expected_batch(chunks, 0)
    assert batch.targets.any((-1, -2)).float().mean() > 0.4  # of clips, objects leave
    chunks[0]
    found = chunks.slots.batch(0, ()).to(torch.device("cpu"))
    size = chunks.size
    assert torch.equal(found.pixels[:size], batch.pixels[:size])
    assert torch.equal(found.targets[:size], batch.targets[:size])
    assert set(chunks[0]) <= {"composed", "view0", *(f"view{n}" for n in range(60))}


def expected_batch(chunks, number):
    """What workers should give, by another way: examples stacked in this process."""
    first = number * chunks.per_batch
    made = [example for index in range(chunks.per_batch) for example in chunks.examples(first + index)]
    return Batch.from_examples(made)


def test_workers_give_the_batches_that_the_main_process_would(material):
    """Seven batches, which are more than the slots that they share."""
    stage = replace(miniature(IMAGES).stage, batch_size=18)  # three chunks each
    with Feed(material, stage, workers=2, pin=False) as feed:
        assert len(feed.chunks.slots.pixels) == 4
        for number, (_, repeats) in enumerate(islice(groupby(feed, key=id), 7)):
            found, expected = next(repeats).to(torch.device("cpu")), expected_batch(feed.chunks, number)
            assert torch.equal(found.pixels, expected.pixels)
            assert torch.equal(found.targets, expected.targets)
            assert found.names == expected.names
            assert len(list(repeats)) <= MAX_REPEATS


def test_closing_ends_the_workers_of_a_feed_that_was_never_read(material):
    before = set(multiprocessing.active_children())
    feed = Feed(material, miniature(IMAGES).stage, workers=1, pin=False)
    (worker,) = set(multiprocessing.active_children()) - before
    feed.close()
    feed.close()
    worker.join(60)
    assert not worker.is_alive()


def test_the_rate_rises_and_falls_to_zero():
    rates = [schedule(n / 100) for n in range(101)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[6:] == sorted(rates[6:], reverse=True)


def training_of(tmp_path):
    log = gpu_train.Log(tmp_path / "log.jsonl")
    return gpu_train.Training(Sam2Model.from_pretrained("nano"), torch.device("cpu"), tmp_path, log)


def batches_of(stage):
    batch = PackedBatch(
        torch.zeros(stage.batch_size, 3, 128, 128, dtype=torch.uint8),
        torch.full((stage.batch_size, stage.objects, 128, 16), 255, dtype=torch.uint8),
        ("a",) * stage.batch_size,
    )
    while True:
        yield batch


def test_memory_that_runs_out_splits_batches_and_a_loss_that_is_not_finite_is_left_out(tmp_path, monkeypatch):
    phase = miniature(IMAGES)
    training = training_of(tmp_path)
    step, failures = training._step, iter([torch.cuda.OutOfMemoryError("out of memory"), ValueError("loss nan"), None])

    def failing(*arguments):
        if (error := next(failures, None)) is not None:
            raise error
        return step(*arguments)

    monkeypatch.setattr(training, "_step", failing)
    training.train(phase, batches_of(phase.stage), seconds=0.5)
    assert training.micro_batches == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines if "problem" in line] == [
        "OutOfMemoryError: out of memory",
        "ValueError: loss nan",
    ]
    assert any(line.get("steps", 0) >= 1 for line in lines)
    assert not any(weight.isnan().any() for weight in training.ema.values())


def test_an_error_keeps_the_weights_and_the_scores(packed, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("no such batch")

    monkeypatch.setattr(gpu_train.Training, "train", broken)
    gpu_train.run(
        packed / "sources",
        tmp_path / "out",
        device=torch.device("cpu"),
        seconds=1,
        deadline_s=100,
        workers=0,
        phases=(miniature(IMAGES),),
        scored=1,
    )
    log = (tmp_path / "out/log.jsonl").read_text()
    assert "no such batch" in log
    assert masklet.load(tmp_path / "out/last") is not None
    assert '"of": "last"' in log


def test_scores_are_ious_of_each_source(packed):
    material = Material.from_sources(read_sources(packed / "sources", held_out=True))
    examples = [made for made in in_workers(HeldOut(material, count=2, size_px=256), 0) if made is not None]
    scores = scores_of(Sam2Model.from_pretrained("nano"), examples, seconds=100)
    assert {name.split()[1] for name in scores} == {"box", "click"}
    assert "composed box" in scores
    assert all(0 <= value <= 1 for value in scores.values())
    assert max(scores.values()) > 0.8  # grey boxes on grey, and red cut-outs


@pytest.mark.slow
def test_a_trial_on_a_cpu(packed, tmp_path):
    """The script as it runs on a GPU, with tiny batches, for nine seconds."""
    root = Path(gpu_train.__file__).parents[2]
    done = subprocess.run(
        ["bash", root / "recipes/nano/gpu.sh", packed / "all.zip", tmp_path / "out", "0.15"],
        env=os.environ | {"PYTHON": sys.executable, "GPU_TRAIN_OPTIONS": "--miniature --device cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert lines[-1]["done"]
    assert not [line for line in lines if "problem" in line]
    assert {line["phase"] for line in lines if line.get("steps", 0) >= 1} == {"images", "clips"}
    assert [line["of"] for line in lines if "scores" in line] == ["start", "last"]
    for name in ("start", "images", "clips", "last"):
        masklet.load(tmp_path / "out" / name)
    assert (tmp_path / "out/output.txt").read_text().startswith(done.stdout[:20])
