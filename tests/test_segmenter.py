import copy
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.errors import ConfigError, DeviceError, ImageError, ImageWarning, PromptError
from masklet.image import encoder_fingerprint
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
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


@pytest.fixture(scope="module")
def ct(image):
    """(raw, options, image): values of int16 in three of five bands that the options turn into the test image.

    0 to 255 are -1000 to 1550 in steps of ten. -2000 stands for missing and is black where the image is.
    """
    raw = np.zeros((48, 80, 5), np.int16)
    raw[..., [4, 2, 0]] = np.where(image == 0, -2000, image.astype(np.int16) * 10 - 1000)
    return raw, {"value_range": (-1000, 1550), "bands": (4, 2, 0), "nodata": -2000}


def test_every_verb_reads_values_in_the_same_way(sam, image, ct):
    raw, options = ct
    small = {"points_per_side": 4, "iou_threshold": 0.0, "stability_threshold": 0.0}
    for source in (raw, torch.from_numpy(raw).permute(2, 0, 1)):
        np.testing.assert_array_equal(sam.image(source, **options).image, image)
        masks = sam.everything(source, **options, **small)
        np.testing.assert_array_equal(masks.image, image)
    expected = sam.everything(image, **small)
    np.testing.assert_array_equal(masks.masks, expected.masks)
    assert list(sam.everything_tiled(raw, tile=100, **options, **small)) == expected.to_coco()
    for video in ([raw, raw], iter([raw])):
        np.testing.assert_array_equal(sam.video(video, **options).video[0].image, image)
    stream = sam.stream(**options)
    np.testing.assert_array_equal(stream.push(raw, {1: {"points": [(30, 20)]}}).masks.image, image)


@pytest.mark.parametrize("verb", ["image", "everything", "everything_tiled", "video"])
def test_options_that_make_no_sense_are_refused_by_every_verb(sam, image, verb):
    for options in ({"value_range": (5, 5)}, {"bands": (0, 1)}, {"nodata": "none"}):
        with pytest.raises(ConfigError, match=f"^{next(iter(options))} is "):
            getattr(sam, verb)(image, **options)
        with pytest.raises(ConfigError, match=f"^{next(iter(options))} is "):
            sam.stream(**options)


def test_12_bits_in_16_warn_and_a_range_mends_them(golden_folder):
    """With the embedded model, compared with the mask in the image of 8 bits."""
    sam = load()
    with Image.open(golden_folder / "inputs" / "truck.jpg") as truck:
        eight_bits = np.asarray(truck.convert("RGB").resize((900, 600)))
    twelve_bits = eight_bits.astype(np.uint16) * 16

    def mask(pixels, **options):
        return sam.image(pixels, **options).predict([(450, 300)]).masks[0]

    def iou(mask):
        return (mask & expected).sum() / (mask | expected).sum()

    expected = mask(eight_bits)
    with pytest.warns(ImageWarning, match=r"value_range='auto'") as caught:
        assert iou(mask(twelve_bits)) < 0.5
    assert [warning.filename for warning in caught] == [__file__]
    assert iou(mask(twelve_bits, value_range="auto")) > 0.9
    np.testing.assert_array_equal(mask(twelve_bits, value_range=(0, 255 * 16)), expected)


def test_a_stream_keeps_the_range_of_its_first_frame(sam, image):
    stream = sam.stream(value_range="auto")
    frames = [image.astype(np.int16) - 300, image.astype(np.int16) - 250]
    low, high = np.percentile(frames[0].astype(float), (0.5, 99.5), method="nearest")
    for frame in frames:
        expected = np.rint(((frame - low) / (high - low)).clip(0, 1) * 255)
        np.testing.assert_array_equal(stream.push(frame, {}).masks.image, expected)


def test_a_stream_that_refused_its_first_frame_takes_another(sam, image):
    stream = sam.stream(value_range="auto")
    with pytest.raises(PromptError):
        stream.push(image.astype(np.float32), {1: {"points": [(900, 900)]}})
    result = stream.push(image.astype(np.float32) * 8)
    np.testing.assert_array_equal(result.masks.image, sam.image(image * 1.0, value_range="auto").image)


def test_a_resumed_session_reads_its_images_as_before(sam, image, ct, tmp_path):
    raw, options = ct
    frames = [raw, raw + np.int16(1)]
    for value_range in (options["value_range"], "auto"):
        session = sam.video(frames, **{**options, "value_range": value_range})
        session.prompt(0, points=[(30, 20)])
        session.save(tmp_path / "a.masklet")
        resumed = sam.resume(tmp_path / "a.masklet", frames[::-1])
        assert resumed.video.image_options == session.video.image_options
        np.testing.assert_array_equal(resumed.video[1].image, session.video[0].image)
    tifffile = pytest.importorskip("tifffile")
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / f"{number}.tif", frame, photometric="minisblack", planarconfig="contig")
    session = sam.video(tmp_path, **options)
    session.prompt(0, points=[(30, 20)])
    session.save(tmp_path / "a.masklet")
    np.testing.assert_array_equal(sam.resume(tmp_path / "a.masklet").video[0].image, image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_give_similar_masks(tiny_folder, image, dtype):
    sam = load(tiny_folder, dtype=dtype)
    assert sam.model.dtype == dtype
    encoded, exact = sam.image(image), load(tiny_folder, dtype="float32").image(image)
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
    processor = ImageProcessor(96)
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
        Segmenter.from_model(Sam2Model(tiny_config))


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


@pytest.mark.parametrize("resolution", [0, 100, (64, 64), 64.0, "64", True, 2**40])
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


def test_what_goes_to_another_process_arrives_whole(sam, image):
    encoded = sam.image(image)
    again, encoded_again = pickle.loads(pickle.dumps((sam, encoded)))
    expected = encoded.predict(points=[(20, 30)]).logits
    np.testing.assert_array_equal(again.image(image).predict(points=[(20, 30)]).logits, expected)
    np.testing.assert_array_equal(encoded_again.predict(points=[(20, 30)]).logits, expected)
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: save\(path\), then sam.resume\(path\)"):
        pickle.dumps(sam.video([image, image]))


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
    masks = load(tiny_folder, device="cuda", dtype="float32").image(image).predict([(30, 20)])
    expected = load(tiny_folder, device="cpu", dtype="float32").image(image).predict([(30, 20)])
    np.testing.assert_allclose(masks.logits, expected.logits, rtol=1e-2, atol=1e-2 * np.abs(expected.logits).max())


# Refusals


@pytest.mark.parametrize("resolution", [0, 100, (64, 100), 64.5, "64"])
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


@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_the_model_of_a_segmenter_can_be_trained_in_place(tiny_folder, tiny_model, image, engine):
    sam = load(tiny_folder, engine=engine, dtype="float32")
    before = sam.image(image).predict(box=(20, 10, 50, 30))
    optimizer = torch.optim.SGD(sam.model.parameters(), lr=0.1)
    prompts = Prompts(boxes=torch.tensor([[[16.0, 13, 40, 40]]]))
    features = sam.model.encode(sam.image_processor.pixel_values(image))
    sam.model.decode(features, prompts, multimask=False).logits.sigmoid().mean().backward()
    assert {name.split(".")[0] for name, weight in sam.model.named_parameters() if weight.grad is not None} == {
        "vision_encoder",
        "prompt_encoder",
        "mask_decoder",
        "no_memory_embedding",
    }
    optimizer.step()
    after = sam.image(image).predict(box=(20, 10, 50, 30))
    assert after.logits.mean() < before.logits.mean()
    trained = Segmenter.from_model(copy.deepcopy(sam.model), sam.image_processor, engine=engine)
    np.testing.assert_array_equal(after.logits, trained.image(image).predict(box=(20, 10, 50, 30)).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_loaded_in_inference_mode_can_be_trained(tiny_folder, image, dtype):
    with torch.inference_mode():
        sam = load(tiny_folder, dtype=dtype)
        sam.image(image).predict([(30, 20)])
    features = sam.model.encode(sam.image_processor.pixel_values(image))
    prompts = Prompts(torch.tensor([[[[24.0, 26]]]]), torch.ones(1, 1, 1, dtype=torch.long))
    sam.model.decode(features, prompts, multimask=True).logits.float().mean().backward()
    assert sam.model.get_parameter("mask_decoder.iou_token.weight").grad.any()
