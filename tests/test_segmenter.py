import io

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.errors import ConfigError, DeviceError, ImageError
from masklet.segmenter import find_device, load


def test_a_folder_becomes_a_segmenter(tiny_folder, tiny_model, image):
    for name in (tiny_folder, str(tiny_folder)):
        sam = masklet.load(name)
        assert sam.model.dtype == torch.float32
        assert not sam.model.training
        assert sam.image(image).predict([(30, 20)]).masks.shape == (3, 48, 80)


def test_every_source_of_an_image_gives_the_same_masks(sam, image, tmp_path):
    pil_image = Image.fromarray(image)
    pil_image.save(tmp_path / "image.png")
    file = io.BytesIO()
    pil_image.save(file, "PNG")
    expected = sam.image(image).predict([(30, 20)])
    for source in (
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        file,
        pil_image,
        torch.tensor(image).permute(2, 0, 1),
    ):
        masks = sam.image(source).predict([(30, 20)])
        np.testing.assert_array_equal(masks.logits, expected.logits)
        np.testing.assert_array_equal(masks.image, image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_run_and_agree(tiny_folder, image, dtype):
    sam = load(tiny_folder, dtype=dtype)
    assert sam.model.dtype == dtype
    encoded, exact = sam.image(image), load(tiny_folder).image(image)
    for prompt in ({"points": [(30, 20)]}, {"box": (20, 10, 50, 30)}, {"mask": np.eye(48, 80, dtype=bool)}):
        masks, expected = encoded.predict(**prompt), exact.predict(**prompt)
        assert masks.logits.dtype == masks.iou_scores.dtype == np.float32
        error = np.linalg.norm(masks.logits - expected.logits) / np.linalg.norm(expected.logits)
        assert error < {torch.float16: 0.05, torch.bfloat16: 0.3, torch.float64: 1e-4}[dtype]


@pytest.mark.parametrize("dtype", ["float16", "half", torch.int8, torch.bool, None, np.float32])
def test_a_dtype_that_is_none_is_refused(tiny_folder, dtype):
    with pytest.raises(ConfigError) as caught:
        load(tiny_folder, dtype=dtype)
    assert str(caught.value) == f"dtype is {dtype!r}: expected 'auto' or a floating-point torch.dtype"


def test_loading_is_free_of_state(tiny_folder, image):
    random_before, threads = torch.get_rng_state(), torch.get_num_threads()
    sam = load(tiny_folder)
    sam.image(image).predict([(30, 20)])
    assert torch.equal(torch.get_rng_state(), random_before)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


# Devices


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_that_is_there_is_found(device):
    assert find_device(device).type == "cpu"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto") == torch.device(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", torch.device("cuda")])
def test_cuda_that_is_not_there_is_refused(tiny_folder, device):
    with pytest.raises(DeviceError) as caught:
        load(tiny_folder, device=device)
    assert str(caught.value) == (
        f"device {str(device)!r} is not available here (torch {torch.__version__}, 0 CUDA devices): use device='cpu' "
        "or 'auto', or install a torch built for it"
    )
    assert isinstance(caught.value, RuntimeError)


def test_a_cuda_device_beyond_the_last_is_refused():
    with pytest.raises(DeviceError, match=r"device 'cuda:99' is not available here \(torch .* CUDA devices\)"):
        find_device("cuda:99")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", 3.5, None, ["cpu"]])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(DeviceError) as caught:
        find_device(device)
    assert str(caught.value) == f"no device {device!r}: expected auto, cpu, cuda, cuda:N or mps"


def test_the_device_is_looked_at_before_the_weights_are_fetched():
    with pytest.raises(DeviceError):
        load("no/such-model", device="gpu")


@pytest.mark.gpu
@pytest.mark.gpu
def test_a_graphics_card_draws_the_same_masks(tiny_folder, image, encoded):
    masks = load(tiny_folder, device="cuda").image(image).predict([(30, 20)])
    expected = encoded.predict([(30, 20)])
    np.testing.assert_allclose(masks.logits, expected.logits, rtol=1e-2, atol=1e-2 * np.abs(expected.logits).max())


# Refusals


@pytest.mark.parametrize("resolution", [0, 100, (64, 100), 64.0, "64"])
def test_a_resolution_that_does_not_fit_is_refused(sam, image, resolution):
    with pytest.raises(ConfigError) as caught:
        sam.image(image, resolution=resolution)
    assert str(caught.value) == (
        f"input size {resolution!r} does not fit the network: expected a multiple of 32 for the height and for the "
        "width"
    )


@pytest.mark.parametrize("source", [None, b"bytes", "missing.jpg", np.zeros((0, 5, 3), np.uint8), [[1, 2], [3, 4]]])
def test_what_is_no_image_is_refused(sam, source):
    with pytest.raises(ImageError):
        sam.image(source)
