import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.errors import ConfigError, DeviceError, ImageError
from masklet.image import encoder_fingerprint
from masklet.processing import Sam2ImageProcessor
from masklet.segmenter import Segmenter, find_device, load


def test_a_folder_becomes_a_segmenter(tiny_folder, tiny_model, image):
    for name in (tiny_folder, str(tiny_folder)):
        sam = masklet.load(name)
        assert sam.model.dtype == torch.float32
        assert not sam.model.training
        assert sam.image(image).predict([(30, 20)]).masks.shape == (1, 48, 80)


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
def test_other_precisions_give_similar_masks(tiny_folder, image, dtype):
    sam = load(tiny_folder, dtype=dtype)
    assert sam.model.dtype == dtype
    encoded, exact = sam.image(image), load(tiny_folder).image(image)
    for prompt in ({"points": [(30, 20)]}, {"box": (20, 10, 50, 30)}, {"mask": np.eye(48, 80, dtype=bool)}):
        masks, expected = encoded.predict(**prompt), exact.predict(**prompt)
        assert masks.logits.dtype == masks.iou_scores.dtype == np.float32
        error = np.linalg.norm(masks.logits - expected.logits) / np.linalg.norm(expected.logits)
        assert error < {torch.float16: 0.05, torch.bfloat16: 0.3, torch.float64: 1e-4}[dtype]


@pytest.mark.parametrize("name", ["auto", "float32", "bfloat16", "float16"])
def test_a_dtype_may_be_given_by_name(tiny_folder, name):
    expected = torch.float32 if name == "auto" else getattr(torch, name)
    assert load(tiny_folder, dtype=name).model.dtype == load(tiny_folder, dtype=expected).model.dtype == expected


@pytest.mark.parametrize("dtype", ["half", torch.int8, torch.bool, None, np.float32])
def test_an_invalid_dtype_is_refused(tiny_folder, dtype):
    with pytest.raises(ConfigError) as caught:
        load(tiny_folder, dtype=dtype)
    assert str(caught.value) == (
        f"dtype is {dtype!r}: expected auto, float32, bfloat16, float16, or a floating-point torch.dtype"
    )


# Engines


def test_the_engine_is_the_one_requested(tiny_folder):
    for engine, expected in (("auto", "cpu"), ("cpu", "cpu"), ("eager", "eager")):
        assert load(tiny_folder, device="cpu", engine=engine).engine.name == expected
    assert load(tiny_folder, device="cpu", dtype="bfloat16").engine.name == "eager"


def test_a_segmenter_is_made_of_a_model_at_hand(tiny_model, sam, image):
    for engine in ("auto", "eager"):
        made = Segmenter.from_model(tiny_model, engine=engine)
        assert made.model is tiny_model
        assert made.image_processor.input_hw == (64, 64)
        masks, expected = made.image(image).predict([(30, 20)]), sam.image(image).predict([(30, 20)])
        np.testing.assert_allclose(masks.logits, expected.logits, rtol=1e-3, atol=1e-3)
    processor = Sam2ImageProcessor(96)
    assert Segmenter.from_model(tiny_model, processor).image_processor is processor
    with pytest.raises(ConfigError, match="engine is 'gpu': expected one of auto, eager, cpu"):
        Segmenter.from_model(tiny_model, engine="gpu")


def test_a_model_with_adapters_segments_as_one_with_the_adapters_merged(tiny_model, image):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "proj_out"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(copy.deepcopy(tiny_model), config).eval()
    masks = Segmenter.from_model(adapted.get_base_model()).image(image).predict([(30, 20)])
    merged = Segmenter.from_model(adapted.merge_and_unload()).image(image).predict([(30, 20)])
    np.testing.assert_allclose(masks.logits, merged.logits, rtol=1e-3, atol=1e-3)
    plain = Segmenter.from_model(tiny_model).image(image).predict([(30, 20)])
    assert np.abs(masks.logits - plain.logits).max() > 0.1


def test_a_model_in_training_mode_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"the model is in training mode: call model.eval\(\) first"):
        Segmenter.from_model(masklet.Sam2Model(tiny_config))


# Resolutions


def test_the_resolution_of_a_model_is_stored_with_it(tiny_folder, tmp_path, image):
    sam = load(tiny_folder, resolution=96)
    assert sam.model.config.image_size == 96
    assert sam.image(image).input_hw == (96, 96)
    sam.model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.image(image).input_hw == (96, 96)
    assert masklet.Sam2Processor.from_pretrained(tmp_path).image_processor.input_hw == (96, 96)


def test_saved_images_do_not_depend_on_the_resolution_of_the_model(tiny_folder):
    """Features have the resolution that they were encoded at, and the weights are the same."""
    models = [load(tiny_folder, resolution=resolution).model for resolution in (None, 96)]
    assert encoder_fingerprint(models[0]) == encoder_fingerprint(models[1])


@pytest.mark.parametrize("resolution", [0, 100, (64, 64), 64.0, "64"])
def test_an_invalid_resolution_is_refused_before_the_weights_are_fetched(resolution):
    with pytest.raises(ConfigError) as caught:
        load("no/such-model", resolution=resolution)
    assert str(caught.value) == (
        f"resolution is {resolution!r}: expected the side of a square, a multiple of 32 pixels. For other shapes give "
        "resolution=(height, width) with each image"
    )


def test_loading_changes_no_global_state(tiny_folder, image):
    random_before, threads = torch.get_rng_state(), torch.get_num_threads()
    sam = load(tiny_folder)
    sam.image(image).predict([(30, 20)])
    assert torch.equal(torch.get_rng_state(), random_before)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


# Devices


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_an_available_device_is_found(device):
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
def test_cuda_is_refused_if_it_is_not_available(tiny_folder, device):
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
def test_an_invalid_device_is_refused(device):
    with pytest.raises(DeviceError) as caught:
        find_device(device)
    assert str(caught.value) == f"no device {device!r}: expected auto, cpu, cuda, cuda:N or mps"


def test_the_device_and_the_engine_are_checked_before_the_weights_are_fetched():
    with pytest.raises(DeviceError):
        load("no/such-model", device="gpu")
    with pytest.raises(ConfigError, match="engine is 'gpu'"):
        load("no/such-model", engine="gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_masks(tiny_folder, image, encoded):
    masks = load(tiny_folder, device="cuda").image(image).predict([(30, 20)])
    expected = encoded.predict([(30, 20)])
    np.testing.assert_allclose(masks.logits, expected.logits, rtol=1e-2, atol=1e-2 * np.abs(expected.logits).max())


# Refusals


@pytest.mark.parametrize("resolution", [0, 100, (64, 100), 64.0, "64"])
def test_an_invalid_resolution_of_an_image_is_refused(sam, image, resolution):
    with pytest.raises(ConfigError) as caught:
        sam.image(image, resolution=resolution)
    assert str(caught.value) == (
        f"input size {resolution!r} does not fit the network: expected a multiple of 32 for the height and for the "
        "width"
    )


@pytest.mark.parametrize("source", [None, b"bytes", "missing.jpg", np.zeros((0, 5, 3), np.uint8), [[1, 2], [3, 4]]])
def test_anything_but_an_image_is_refused(sam, source):
    with pytest.raises(ImageError):
        sam.image(source)
