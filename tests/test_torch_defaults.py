"""Every verb gives the same results whatever torch's defaults and modes are."""

import ast
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch_settings import default_device, default_dtype, deterministic

import masklet
from masklet import Masks, Sam2Model, Sam2Processor
from masklet.masks import stability_scores

BOX = (20, 10, 50, 30)


SETTINGS = {
    "device meta": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "deterministic": deterministic,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def arrays_of(masks):
    return [masks.masks, masks.logits, masks.iou_scores, masks.object_ids]


def of_frames(results):
    return [array for result in results for array in (*arrays_of(result.masks), result.object_scores, result.time)]


def predictions(sam, image, folder):
    encoded = sam.image(image)
    clicked = encoded.predict([(30, 20), (70, 40, 0)])
    candidates = encoded.predict([[(30, 20)], [(70, 40)]], candidates=True)
    found = [
        clicked,
        candidates.best,
        candidates.flatten(),
        encoded.predict(boxes=[BOX, (1, 1, 9, 9)], fill_holes=4, remove_islands=4),
        encoded.predict(box=BOX, mask=clicked.logits),
        encoded.predict(mask=np.eye(48, 80, dtype=bool)),
        encoded.predict([[(30, 20)], [(3, 2), (70, 40)]], mask=candidates.best.logits).without_overlap(),
    ]
    encoded.save(folder / "encoded.safetensors")
    found.append(sam.load_image(folder / "encoded.safetensors").predict(box=BOX))
    found[0].save(folder / "masks.json")
    found.append(Masks.from_coco(found[0].to_coco()))
    found.append(sam.image(torch.from_numpy(image).permute(2, 0, 1), resolution=(96, 160)).predict([(30, 20)]))
    return [array for masks in found for array in arrays_of(masks)]


def automatic_masks(sam, image, folder):
    options = {"points_per_side": 4, "iou_threshold": 0.0, "stability_threshold": 0.0, "box_nms": 1.0}
    arrays = arrays_of(sam.everything(image, crops=1, crop_nms=1.0, min_area=9, **options))
    arrays += arrays_of(sam.everything(image, refine=True, **options))
    assert len(arrays[0]) > 1, "the comparison is of something"
    return [*arrays, *sam.everything_tiled(image, tile=40, **options)]


def tracking(sam, image, folder):
    frames = [np.roll(image, step, axis=1) for step in range(4)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    video = sam.video(folder)
    arrays = arrays_of(video.prompt(0, "a", box=BOX))
    arrays += arrays_of(video.prompt(1, "b", points=[(60, 40)]))
    arrays += arrays_of(video.prompt(0, "c", mask=np.tri(48, 80) > 0))
    tracking = video.track()
    arrays += of_frames([next(tracking), next(tracking)])
    tracking.close()
    video.save(folder / "session.masklet")
    resumed = sam.resume(folder / "session.masklet")
    arrays += of_frames(resumed.resume_tracking())
    arrays += arrays_of(resumed.prompt(2, "a", points=[(30, 20, 0)]))
    resumed.write(folder / "results")
    arrays += [np.array(Image.open(file)) for file in sorted((folder / "results").iterdir())]
    stream = sam.stream()
    arrays += of_frames([stream.push(frames[0], {1: {"box": BOX}}), stream.push(frames[1])])
    found = sam.video(frames).everything(every=2, points_per_side=2, iou_threshold=0.0, stability_threshold=0.0)
    return [*arrays, *of_frames(found)]


def drop_in(sam, image, folder):
    processor = Sam2Processor.from_pretrained(folder.parent / "model")
    model = Sam2Model.from_pretrained(folder.parent / "model")
    labels = np.eye(48, 80, dtype=int)
    clicks = [[[[30, 20]]], [[[30, 20]]]]
    boxes = [[BOX], [BOX]]
    inputs = processor([image, image], [labels, labels], clicks, input_boxes=boxes, return_tensors="pt")
    with torch.no_grad():  # gradients would need the plain network, which differs in the last bits
        output = model(**inputs)
    (masks, _) = processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], apply_non_overlapping_constraints=True
    )
    of_arrays = processor.post_process_masks(output.pred_masks.detach().numpy(), [[48, 80], (48, 80)], binarize=False)
    sized = processor(input_boxes=[[BOX]], original_sizes=[[48, 80]], return_tensors="pt")["input_boxes"]
    tensors = [*inputs.values(), output.pred_masks, output.iou_scores, masks, *of_arrays, sized]
    tensors.append(stability_scores(output.pred_masks))
    return [tensor.detach().numpy() for tensor in tensors]


@pytest.fixture(scope="module")
def run(tiny_model, image, tmp_path_factory):
    """Loads the small model under a setting, and runs one of the functions above with it."""
    folder = tmp_path_factory.mktemp("defaults")
    tiny_model.save_pretrained(folder / "model")
    number = iter(range(1000))

    def run(function, setting):
        own = folder / str(next(number))
        own.mkdir()
        with setting():
            return function(masklet.load(folder / "model"), image, own)

    return run


@pytest.fixture(scope="module")
def expected(run):
    """The results under torch's own defaults, computed once for each function."""
    known = {}

    def expected(function):
        if function not in known:
            known[function] = run(function, nullcontext)
        return known[function]

    return expected


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("function", [predictions, automatic_masks, tracking, drop_in])
def test_results_do_not_depend_on_torchs_defaults(run, expected, function, setting):
    results, wanted = run(function, SETTINGS[setting]), expected(function)
    assert len(results) == len(wanted)
    for result, value in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(result, value)
        assert getattr(result, "dtype", None) == getattr(value, "dtype", None)


CONSTRUCTORS = {"tensor", "as_tensor", "asarray", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"}
CONSTRUCTORS |= {"rand", "randn", "randint", "randperm", "scalar_tensor"}


def test_every_tensor_is_made_on_a_named_device(repository):
    """A new network's weights are on the default device, as those of any module; nothing else is."""
    unnamed = []
    for path in sorted((repository / "src/masklet").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        weights = {
            id(made)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("Parameter", "register_buffer")
            for made in ast.walk(call)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and id(call) not in weights:
                is_torch = isinstance(call.func.value, ast.Name) and call.func.value.id == "torch"
                if is_torch and call.func.attr in CONSTRUCTORS and "device" not in {k.arg for k in call.keywords}:
                    unnamed.append(f"{path.name}:{call.lineno} {ast.unparse(call)}")
    assert not unnamed
