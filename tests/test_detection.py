"""Words: detectors of every kind, and labels that stay with masks. Detectors are callables, or tiny and random."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet.cli import app
from masklet.detection import Detector, load_detector, word_of
from masklet.errors import ConfigError, DetectorError, PromptError
from masklet.video.outputs import json_line

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
BOXES = [[4.0, 6.0, 30.0, 40.0], [40.0, 8.0, 70.0, 40.0]]


def finds(image, words):
    """A detector that finds two cups and a lid, one cup twice."""
    assert image.shape == (48, 80, 3)
    assert image.dtype == np.uint8
    boxes = [BOXES[0], [5, 6, 30, 40], BOXES[1], [60, 20, 90, 60], [10, 10, 10, 20], [1, 1, 9, 9]]
    return boxes, [0.6, 0.5, 0.9, 0.8, 0.9, 0.1], ["cup", "cup", "cup", "lid", "cup", "lid"]


def test_boxes_become_masks_with_labels_from_the_surest_on(sam):
    image = sam.image(IMAGE)
    masks = image.predict(text=["cup", "lid"], detector=finds)
    # Duplicates, empty boxes and those below the threshold are left out; boxes end where the image does.
    expected = image.predict(boxes=[BOXES[1], [60, 20, 80, 48], BOXES[0]])
    np.testing.assert_array_equal(masks.logits, expected.logits)
    assert masks.labels.tolist() == ["cup", "lid", "cup"]
    assert masks[1].labels.tolist() == ["lid"]
    assert image.predict(text="cup", detector=finds, detection_threshold=0.85).labels.tolist() == ["cup"]
    assert len(image.predict(text="cup", detector=finds, candidates=True)) == 3


@pytest.fixture
def decoded(sam, monkeypatch):
    """The number of objects in each call of the mask decoder with prompts."""
    calls, decode = [], sam.engine.decode

    def counting(features, prompts=None, **options):
        calls.extend([] if prompts is None else [len(prompts)])
        return decode(features, prompts, **options)

    monkeypatch.setattr(sam.engine, "decode", counting)
    return calls


def test_boxes_of_all_words_are_decoded_in_one_batch(sam, decoded):
    options = {"text": ["cup", "lid"], "detector": finds}
    assert len(sam.image(IMAGE).predict(**options)) == 3
    assert len(sam.everything(IMAGE, **options)) == 3
    assert decoded == [3, 3]
    decoded.clear()
    session = sam.video([IMAGE] * 3)
    masks = session.prompt(0, **options)
    assert decoded == [3]
    assert masks.labels.tolist() == ["cup", "lid", "cup"]
    list(session.track())
    assert decoded == [3]  # tracked objects have no prompts
    decoded.clear()
    two = sam.video([IMAGE] * 3, max_objects=2)
    assert two.prompt(0, **options).labels.tolist() == ["cup", "lid", "cup"]
    assert decoded == [2, 1]


def test_new_objects_of_a_searched_frame_are_prompted_in_one_batch(sam, decoded):
    session = sam.video([IMAGE] * 3)
    options = {"text": ["cup", "lid"], "detector": finds, "min_object": 0, "same_iou": 1.0}
    first = next(session.everything(**options))
    assert len(first.object_ids) == 3
    assert decoded == [3, 3]  # boxes to masks, and masks to objects


def test_objects_that_are_prompted_together_are_as_if_each_was_prompted_alone(sam):
    together, alone = sam.video(VIDEO), sam.video(VIDEO)
    together.prompt(0, text=["cup", "lid"], detector=moving_finds)
    for number, box in enumerate(moving_finds(IMAGE, [])[0], start=1):
        alone.prompt(0, number, box=box)
    for session in (together, alone):  # a correction adds to the box
        session.prompt(0, 2, points=[(50, 20, 0)])
    for ours, expected in zip(together.track(), alone.track(), strict=True):
        scale = np.abs(expected.masks.logits).max()
        np.testing.assert_allclose(ours.masks.logits, expected.masks.logits, atol=1e-3 * scale)
        np.testing.assert_allclose(ours.object_scores, expected.object_scores, rtol=1e-3)


def test_everything_that_words_name(sam):
    masks = sam.everything(IMAGE, text=["cup", "lid"], detector=finds, packed=True)
    assert masks.labels.tolist() == ["cup", "lid", "cup"]
    assert masks.to_coco_dataset("a.jpg")["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "lid"}]
    with pytest.raises(
        ConfigError, match="points_per_side is an option of the grid of points, which text does not use"
    ):
        sam.everything(IMAGE, text="cup", detector=finds, points_per_side=4)


def test_a_detector_that_finds_nothing_gives_no_masks(sam):
    masks = sam.image(IMAGE).predict(text="cup", detector=lambda image, words: ([], [], []))
    assert len(masks) == 0
    assert masks.labels.tolist() == []
    assert masks.to_coco() == []


def one_box(label, score=0.9):
    return {"score": score, "label": label, "box": {"xmin": 4, "ymin": 6, "xmax": 30, "ymax": 40}}


@pytest.mark.parametrize(
    "found",
    [
        ([BOXES[0]], [0.9], ["lid"]),
        (np.array([BOXES[0]]), np.array([0.9]), np.array([1])),
        (torch.tensor([BOXES[0]]), torch.tensor([0.9]), torch.tensor([1])),
        [one_box("lid")],
        {"boxes": torch.tensor([BOXES[0]]), "scores": torch.tensor([0.9]), "labels": [0], "text_labels": ["lid"]},
        {"boxes": torch.tensor([BOXES[0]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([1])},
    ],
)
def test_what_detectors_return(found):
    detections = Detector(lambda image, words: found, ["cup", "lid"])(IMAGE)
    np.testing.assert_array_equal(detections.boxes, [BOXES[0]])
    np.testing.assert_allclose(detections.scores, [0.9])
    assert detections.labels == ("lid",)


def test_detections_of_supervision():
    sv = pytest.importorskip("supervision")
    named = sv.Detections(
        np.array([BOXES[0]]), confidence=np.array([0.9]), class_id=np.array([7]), data={"class_name": np.array(["lid"])}
    )
    numbered = sv.Detections(np.array([BOXES[0]]), confidence=np.array([0.9]), class_id=np.array([1]))
    for found in (named, numbered):
        assert Detector(lambda image, words, found=found: found, ["cup", "lid"])(IMAGE).labels == ("lid",)
    assert len(Detector(lambda image, words: sv.Detections.empty(), "cup")(IMAGE)) == 0


def test_a_pipeline_is_called_once_for_all_words():
    calls = []

    class Pipeline:
        task, processor = "zero-shot-object-detection", None

        def __call__(self, image, *, candidate_labels, threshold):
            calls.append((image.size, candidate_labels, threshold))
            return [one_box("lid")]

    detections = Detector(Pipeline(), ["cup", "lid"], threshold=0.4)(IMAGE)
    assert detections.labels == ("lid",)
    assert calls == [((80, 48), ["cup", "lid"], 0.4)]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("a red cup", "a red cup"),
        ("a red cup.", "a red cup"),
        ("cup", "a red cup"),  # a part of the words
        ("Lid", "lid"),
        ("lid cup", "a red cup"),  # two words in one place: the first that was asked for
        ("table", "table"),
        ("", ""),
        (1, "lid"),
        (9, "9"),
    ],
)
def test_labels_are_the_words_that_were_asked_for(label, expected):
    assert word_of(label, ["a red cup", "lid"]) == expected


def test_the_ids_of_transformers_are_not_taken_for_words():
    found = {"boxes": [BOXES[0], BOXES[1]], "scores": [0.9, 0.8], "labels": [5, 6], "text_labels": ["lid", ""]}
    assert Detector(lambda image, words: found, ["cup", "lid"])(IMAGE).labels == (
        "lid",
    )  # nothing was recognised in the other


def vocabulary(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cup", "red", "lid", "a"]
    path = Path(folder) / "vocab.txt"
    path.write_text("\n".join(words))
    return str(path)


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizerFast(vocabulary(tmp_path_factory.mktemp("vocabulary")))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
        ),
        text_config=transformers.BertConfig(
            vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        num_feature_levels=4,
    )
    model = transformers.GroundingDinoForObjectDetection(config).eval()
    return model, transformers.GroundingDinoProcessor(images, tokenizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_against_the_steps_of_grounding_dino(grounding_dino):
    """One pass for all words, with the text threshold and the tokens that its post-processing needs."""
    model, processor = grounding_dino
    words, calls = ["a red cup", "lid"], []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = Detector((model, processor), words, threshold=0.0)._detect(IMAGE.copy(), words)
    assert len(calls) == 1
    inputs = processor(images=Image.fromarray(IMAGE), text=[words], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.25, target_sizes=[(48, 80)]
    )
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    torch.testing.assert_close(found["scores"], expected["scores"])
    assert list(found["text_labels"]) == list(expected["text_labels"])
    assert len(found["boxes"]) == 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_of_transformers_runs_its_model_once_for_all_words(grounding_dino):
    """Its own call runs the model once for each word."""
    transformers = pytest.importorskip("transformers")
    model, processor = grounding_dino
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    pipeline = transformers.pipeline("zero-shot-object-detection", model=model, processor=processor, **parts)
    words, calls = ["a red cup", "lid"], []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    found = Detector(pipeline, words, threshold=0.0)._detect(IMAGE.copy(), words)
    hook.remove()
    assert len(calls) == 1
    expected = Detector((model, processor), words, threshold=0.0)._detect(IMAGE.copy(), words)
    torch.testing.assert_close(found["boxes"], expected["boxes"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_detector_is_loaded_from_a_folder(grounding_dino, tmp_path):
    for part in grounding_dino:
        part.save_pretrained(tmp_path)
    words = ["a red cup", "lid"]
    found, expected = (
        Detector(one, words, threshold=0.0)._detect(IMAGE, words) for one in (str(tmp_path), grounding_dino)
    )
    torch.testing.assert_close(found["boxes"], expected["boxes"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_against_the_steps_of_owlv2(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizerFast(vocabulary(tmp_path))
    text = {"vocab_size": 10, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 64, "patch_size": 16}
    heads = {"num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**text, **heads, "max_position_embeddings": 16},
        vision_config={**vision, **heads},
        projection_dim=32,
    )
    model = transformers.Owlv2ForObjectDetection(config).eval()
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64})

    class Processor:  # of OWLv2 without its own tokenizer, whose vocabulary is too large for a test
        def __call__(self, images_=None, *, images=None, text=None, return_tensors=None):
            tokens = tokenizer(text[0], padding="max_length", max_length=8, return_tensors="pt")
            pixels = image_processor(images=images, return_tensors="pt")
            return transformers.BatchFeature(
                {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], **pixels}
            )

        def post_process_grounded_object_detection(self, outputs, threshold=0.1, target_sizes=None, text_labels=None):
            (found,) = image_processor.post_process_object_detection(outputs, threshold, target_sizes)
            return [{**found, "text_labels": [text_labels[0][number] for number in found["labels"].tolist()]}]

    image_processor = images
    words = ["cup", "lid"]
    found = Detector((model, Processor()), words, threshold=0.0)._detect(IMAGE.copy(), words)
    assert len(found["boxes"]) == 16  # a box for each patch
    assert found["text_labels"] == [words[number] for number in found["labels"].tolist()]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": []}, PromptError, r"text is \[\]: expected words, such as 'a truck' or \['car', 'person'\]"),
        ({"text": " "}, PromptError, "text is ' ': expected words"),
        ({"text": 3}, PromptError, "text is 3: expected words"),
        ({"text": "cup", "points": [(3, 3)]}, PromptError, "text came with points, boxes or a mask"),
        ({"text": None}, PromptError, "detector came without text: expected the words to look for"),
        ({"text": "cup", "detector": 5}, ConfigError, "detector is 5: expected a name on the Hugging Face Hub"),
        (
            {"text": "cup", "detector": torch.nn.Identity()},
            ConfigError,
            r"expected .*\(model, processor\) of transformers",
        ),
        (
            {"text": "cup", "detection_threshold": 2},
            PromptError,
            "detection_threshold is 2: expected a finite number|number",
        ),
        ({"text": "cup", "detector": lambda *_: "no"}, DetectorError, "the detector returned 'no': expected boxes"),
        ({"text": "cup", "detector": lambda *_: ([1, 2], [1], ["cup"])}, DetectorError, "the detector returned"),
        (
            {"text": "cup", "detector": lambda *_: (BOXES, [1], ["cup"])},
            DetectorError,
            "2 boxes, 1 scores and 1 labels",
        ),
    ],
)
def test_words_that_make_no_sense_are_refused(sam, arguments, error, message):
    with pytest.raises(error, match=message):
        sam.image(IMAGE).predict(**{"detector": finds, **arguments})


def test_an_encoded_image_from_a_file_has_no_pixels_to_look_at(sam, tmp_path):
    sam.image(IMAGE).save(tmp_path / "e.safetensors")
    with pytest.raises(PromptError, match="has no pixels"):
        sam.load_image(tmp_path / "e.safetensors").predict(text="cup", detector=finds)


def test_without_the_extra_and_without_a_network_the_error_says_so(monkeypatch, tmp_path):
    with pytest.raises(
        DetectorError, match="cannot load the detector '.*nothing-here': .* needs a network the first time"
    ):
        load_detector(tmp_path / "nothing-here")

    def unreachable(name, filename):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("masklet.detection.hf_hub_download", unreachable)
    with pytest.raises(
        DetectorError, match="'owner/name' is not in the local cache and the Hub cannot be reached. To work offline"
    ):
        load_detector("owner/name")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DetectorError, match=r"needs the package transformers: pip install 'masklet\[text\]', or pass"):
        load_detector()


# Videos


def moving_finds(image, words):
    return [[4, 6, 30, 40], [40, 8, 70, 40]], [0.9, 0.8], ["cup", "lid"]


VIDEO = [np.roll(IMAGE, 2 * index, axis=1) for index in range(8)]


@pytest.fixture
def found(sam):
    session = sam.video(VIDEO)
    masks = session.prompt(text=["cup", "lid"], frame=0, detector=moving_finds)
    return session, masks


def test_words_prompt_the_objects_of_a_frame(sam, found):
    session, masks = found
    assert session.object_ids == (1, 2)
    assert masks.labels.tolist() == ["cup", "lid"]
    plain = sam.video(VIDEO)
    alone = plain.prompt(0, box=[4, 6, 30, 40])
    np.testing.assert_allclose(alone.logits, masks[0].logits, rtol=1e-3, atol=1e-3)  # decoded in one batch
    assert session.prompt(3, text="cup", detector=lambda *_: ([], [], [])).labels is None
    with pytest.raises(PromptError, match="text came with another prompt or an object's id"):
        session.prompt(0, "cup", text="cup", detector=moving_finds)


def test_labels_stay_with_masks_through_tracking_saving_and_exports(sam, found, tmp_path):
    session, _ = found
    session.prompt(0, "unnamed", points=[(20, 20)])
    for result in session.track():
        assert result.masks.labels.tolist() == ["cup", "lid", "object"]
    session.save(tmp_path / "s")
    for again in (session, sam.resume(tmp_path / "s", VIDEO)):
        again.write(tmp_path / "masks.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
        assert {tuple(one["label"] for one in line["objects"]) for line in lines} == {("cup", "lid", "object")}
        again.export(tmp_path / "tracks.xml")
        text = (tmp_path / "tracks.xml").read_text()
        assert all(f"<name>{name}</name>" in text for name in ("cup", "lid"))
    assert [one["category_id"] for one in result.masks.to_coco()] == [1, 2, 3]
    assert "label" not in json_line(replace(result, masks=replace(result.masks, labels=None)))


def test_every_n_frames_new_objects_join_by_iou(sam):
    """As automatic objects do: what overlaps a known object is that object, and keeps its id and label."""
    looks = []

    def detector(image, words):
        looks.append(len(looks))
        return (
            ([[4, 6, 30, 40]], [0.9], ["cup"])
            if not looks[-1]
            else ([[4, 6, 30, 40], [40, 8, 70, 40]], [0.9, 0.8], ["lid", "lid"])
        )

    still = [IMAGE] * 6
    session = sam.video(still)
    options = {"text": ["cup", "lid"], "detector": detector, "every": 3, "min_object": 0, "same_iou": 0.0}
    results = list(session.everything(**options))
    assert len(looks) == 2
    assert all(result.object_ids == (1,) for result in results)  # at IoU 0 everything is the known object
    looks.clear()
    session = sam.video(still)
    results = list(session.everything(**{**options, "same_iou": 1.0}))
    assert [result.object_ids for result in results[:3]] == [(1,)] * 3
    assert results[3].object_ids[0] == 1
    assert len(results[3].object_ids) > 1
    assert results[3].masks.labels[0] == "cup"
    assert set(results[3].masks.labels[1:].tolist()) == {"lid"}


def test_labels_are_checked_and_saved_with_masks(tmp_path):
    masks = masklet.Masks(
        np.zeros((1, 4, 4), bool),
        np.zeros((1, 1, 1), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, int),
        None,
        ["a"],
    )
    masks.save(tmp_path / "m.npz")
    assert masklet.Masks(**np.load(tmp_path / "m.npz")).labels.tolist() == ["a"]
    assert masks.to_labelme("a.jpg", polygons=True)["shapes"] == []
    for wrong in (["a", "b"], [""], []):
        with pytest.raises(ValueError, match="expected a text for each of 1 masks"):
            masklet.Masks(masks.masks, masks.logits, masks.iou_scores, masks.object_ids, None, wrong)


# The command line


@pytest.fixture
def command(monkeypatch):
    """Runs commands, whose detector is the callable of this module."""
    loaded = []
    monkeypatch.setattr("masklet.detection.load_detector", lambda name: loaded.append(name) or finds_anywhere)
    return lambda *arguments: (CliRunner().invoke(app, list(map(str, arguments))), loaded)


def finds_anywhere(image, words):
    height, width = image.shape[:2]
    return [[width / 4, height / 4, width / 2, height / 2]], [0.9], [words[0]]


def test_words_on_the_command_line(command, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    out = tmp_path / "a.json"
    result, loaded = command("image", tmp_path / "a.png", "--text", "a cup", "--json", out)
    assert result.exit_code == 0, result.output
    assert loaded == ["IDEA-Research/grounding-dino-tiny"]
    assert [one["name"] for one in json.loads(out.read_text())["categories"]] == ["a cup"]
    result, loaded = command("everything", tmp_path / "a.png", "--text", "lid", "--detector", "mine", "--json", out)
    assert result.exit_code == 0, result.output
    assert loaded[-1] == "mine"
    assert [one["name"] for one in json.loads(out.read_text())["categories"]] == ["lid"]


@pytest.mark.slow
def test_words_on_the_command_line_without_a_network(tmp_path):
    """A process, whose cache is empty."""
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "masklet",
        "image",
        tmp_path / "a.png",
        "--text",
        "a cup",
        "--out",
        tmp_path / "o.png",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode != 0
    message = "masklet: the detector 'IDEA-Research/grounding-dino-tiny' is not in the local cache and the Hub cannot"
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.png").exists()


@pytest.mark.slow
def test_words_for_videos_on_the_command_line(command, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(VIDEO[:3]):
        Image.fromarray(frame).save(folder / f"{index}.png")
    for arguments in (("video", folder), ("everything", folder, "--every", 2, "--min-object", 1)):
        out = tmp_path / "out.jsonl"
        result, _ = command(*arguments, "--text", "cup", "--json", out, "--policy", "sam2long")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [one["label"] for one in lines[0]["objects"]] == ["cup"]
        assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("image", "a.png", "--detector", "x", "--point", "3,3"), "--detector is an option of --text: give both"),
        (("image", "a.png", "--text", "x", "--point", "3,3"), "--text came with --point, --box, --mask or --prompts"),
        (("everything", "a.png", "--policy", "sam3"), "--policy sam3 is for videos"),
        (("video", "a.mp4", "--live", "--text", "x"), "--text is for files"),
    ],
)
def test_options_that_do_not_fit_are_refused(command, arguments, message):
    result, _ = command(*arguments)
    assert result.exit_code != 0
    assert message in " ".join(f"{result.output} {result.exception}".split())
