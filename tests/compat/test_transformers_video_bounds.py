"""What masklet's video classes do beyond transformers': bounded memory, video files, kept corrections, folders."""

import gc
import importlib

import numpy as np
import pytest
import torch
from compat.torchvision_stub import has_torchvision
from compat.transformers_video import FRAMES, HW, SIDE, make_side, moving_rectangles_of, prompted, random_network

from masklet.compat import transformers as ours
from masklet.compat.transformers import video_frames
from masklet.compat.transformers.video_frames import ArrivedFrames
from masklet.errors import ImageError, PromptError, SessionError, VideoError

BOX = {"input_boxes": [[[95, 76, 144, 112]]]}
CLICK = {"input_points": [[[[40, 50]]]], "input_labels": [[[1]]]}


@pytest.fixture(scope="module")
def side():
    return make_side("masklet", random_network())


@pytest.fixture(scope="module")
def frames():
    return moving_rectangles_of(FRAMES)


@pytest.fixture
def session(side, frames):
    return side.processor.init_video_session(video=frames)


@pytest.fixture(scope="module")
def small_side(tiny_model):
    """A network of 64 pixels."""
    processor = ours.Sam2VideoProcessor(ours.Sam2ImageProcessor(size=64), ours.Sam2VideoVideoProcessor(size=64))
    return ours.Sam2VideoModel.from_network(tiny_model), processor


@pytest.fixture
def tensor_bytes():
    """Returns the size of all tensors that were made since and that Python can reach."""
    gc.freeze()  # what is there already is not searched again and again
    yield count_tensor_bytes
    gc.unfreeze()


def count_tensor_bytes():
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if type(value) in (torch.Tensor, torch.nn.Parameter):  # others hold no memory of their own
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


def test_a_stream_holds_a_bounded_number_of_tensors(small_side, image, tensor_bytes):
    model, processor = small_side
    session = processor.init_video_session()
    held = []
    for index in range(40):
        pixels = processor(images=np.roll(image, index, axis=1), return_tensors="pt").pixel_values[0]
        if index == 0:
            processor.add_inputs_to_inference_session(session, 0, 1, **CLICK, original_size=image.shape[:2])
        model(session, frame=pixels)
        if index in (20, 39):
            held.append(tensor_bytes())
    assert session.num_frames == 40
    assert 0 < held[1] <= held[0]
    outputs = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
    assert len(outputs) == 39
    assert outputs[10]["pred_masks"].shape == (1, 1, 16, 16)  # read from the file
    expected = processor(images=np.roll(image, 7, axis=1), return_tensors="pt").pixel_values[0]
    assert torch.equal(session.get_frame(7), expected)


def test_frames_of_a_video_are_read_when_they_are_needed(small_side, image, tensor_bytes):
    model, processor = small_side
    session = processor.init_video_session(video=[np.roll(image, index, axis=1) for index in range(40)])
    processor.add_inputs_to_inference_session(session, 0, 1, **CLICK)
    model(session, frame_idx=0)
    held = []
    for output in model.propagate_in_video_iterator(session):
        if output.frame_idx in (20, 39):
            held.append(tensor_bytes())
    assert 0 < held[1] <= held[0]


def test_frames_that_are_not_made_of_bytes_are_kept_as_they_are():
    palette = torch.linspace(-2, 2, 256).expand(3, -1)
    for dtype in (torch.float32, torch.bfloat16):
        arrived = ArrivedFrames(palette, dtype, torch.device("cpu"))
        frames = [
            torch.randn(3, 4, 8).to(dtype),
            palette.to(dtype)[:, :32].reshape(3, 4, 8),
            torch.zeros(3, 2, 2, dtype=dtype),
        ]
        for index, frame in enumerate([*frames, *frames]):
            arrived[index] = frame
        assert all(torch.equal(arrived[index], frame) for index, frame in enumerate([*frames, *frames]))


def test_the_oldest_frames_of_a_long_stream_are_dropped(monkeypatch):
    monkeypatch.setattr(video_frames, "STREAM_BYTES", 5000)
    arrived = ArrivedFrames(None, torch.float32, torch.device("cpu"))
    for index in range(20):
        arrived[index] = torch.full((3, 8, 8), float(index))
    assert len(arrived) == 20
    with pytest.raises(KeyError, match="too long ago"):
        arrived[0]
    assert arrived[17].unique().tolist() == [17]
    del arrived[18]
    assert 18 not in arrived
    with pytest.raises(KeyError, match="19 frames arrived"):
        arrived[18]


def test_frames_can_be_added_to_a_video(side, session, frames):
    prompted(side, session, 0, 1, **BOX)
    extra = side.processor(images=frames[0], return_tensors="pt").pixel_values[0]
    assert side.model(session, frame=extra).frame_idx == FRAMES
    assert session.num_frames == FRAMES + 1
    assert torch.equal(session.get_frame(FRAMES), extra)
    assert session.get_frame(1).shape == extra.shape
    with pytest.raises(PromptError, match=r"expected \(3, height, width\)"):
        session.add_new_frame(torch.zeros(2, 3, SIDE, SIDE))


def test_a_video_file_has_the_pixels_of_its_frames(side, tmp_path, frames):
    from PIL import Image

    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    session = side.processor.init_video_session(video=str(tmp_path))
    listed = side.processor.init_video_session(video=frames)
    assert (session.video_height, session.video_width, session.num_frames) == (*HW, FRAMES)
    assert torch.equal(session.get_frame(3), listed.get_frame(3))
    outputs = [
        [prompted(side, one, 0, 1, **BOX), *side.model.propagate_in_video_iterator(one)] for one in (session, listed)
    ]
    assert all(torch.equal(a.pred_masks, b.pred_masks) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        ([], VideoError, "list of images"),
        ("nowhere.mp4", VideoError, "there is no video"),
        (np.zeros((4, 8, 8)), VideoError, "array or tensor of four axes"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), VideoError, "2 videos: expected one"),
        ((frame for frame in ()), VideoError, "generator"),
    ],
)
def test_what_is_not_one_video_is_refused(side, video, error, message):
    with pytest.raises(error, match=message):
        side.processor.init_video_session(video=video)


def test_frames_of_another_size_are_refused(side, frames):
    session = side.processor.init_video_session(video=[frames[0], frames[1][:50]])
    with pytest.raises(ImageError, match="160×50, the first one 160×120"):
        session.get_frame(1)


def test_a_correction_is_kept_and_counts_as_a_prompted_frame(side, session):
    prompted(side, session, 0, 1, **BOX)
    before = list(side.model.propagate_in_video_iterator(session))
    side.processor.add_inputs_to_inference_session(session, 3, 1, **CLICK)
    again = list(side.model.propagate_in_video_iterator(session))  # from frame 0, without a call for frame 3
    assert [torch.equal(a.pred_masks, b.pred_masks) for a, b in zip(before, again, strict=True)] == [
        frame < 3 for frame in range(FRAMES)
    ]
    assert sorted(session.output_dict_per_obj[0]["cond_frame_outputs"]) == [0, 3]
    assert session.obj_with_new_inputs == []
    third = list(side.model.propagate_in_video_iterator(session))
    assert torch.equal(third[3].pred_masks, again[3].pred_masks)


def test_an_object_is_absent_before_its_first_prompt(side, session):
    prompted(side, session, 0, 1, **BOX)
    side.processor.add_inputs_to_inference_session(session, 2, 5, **CLICK)
    outputs = list(side.model.propagate_in_video_iterator(session, max_frame_num_to_track=3))
    assert [output.object_ids for output in outputs] == [[1, 5]] * 4
    assert [bool((output.pred_masks[1] == -1024).all()) for output in outputs] == [True, True, False, False]
    assert [output.object_score_logits[1].item() > 0 for output in outputs] == [False, False, True, True]
    assert list(session.output_dict_per_obj[1]["cond_frame_outputs"]) == [2]
    assert list(session.frames_tracked_per_obj[1]) == [3]


def test_objects_may_be_added_one_by_one(side, session, frames):
    """In transformers, only the last call before a forward pass counts."""
    for name, inputs in ((1, BOX), (2, CLICK)):
        side.processor.add_inputs_to_inference_session(session, 0, name, **inputs)
    one_by_one = side.model(session, frame_idx=0).pred_masks
    for row, inputs in enumerate((BOX, CLICK)):
        alone = side.processor.init_video_session(video=frames)
        assert torch.equal(one_by_one[row : row + 1], prompted(side, alone, 0, 1, **inputs).pred_masks)


def test_stored_outputs_are_tracked(side, session, frames):
    other = side.processor.init_video_session(video=frames)
    prompted(side, other, 0, 1, **BOX)
    session.store_output(
        session.obj_id_to_idx(9), 0, output_value=dict(other.output_dict_per_obj[0]["cond_frame_outputs"][0])
    )
    for ours_, others in zip(
        side.model.propagate_in_video_iterator(session), side.model.propagate_in_video_iterator(other), strict=True
    ):
        assert torch.equal(ours_.pred_masks, others.pred_masks)
    session.store_output(0, 2, "pred_masks", torch.ones(1, 1, SIDE // 4, SIDE // 4), is_conditioning_frame=False)
    assert (session.get_output(0, 2, "pred_masks", is_conditioning_frame=False) == 1).all()
    session.store_output(0, 1, output_value={"pred_masks": torch.ones(1)})
    with pytest.raises(SessionError, match="no object_pointer"):
        side.model(session, frame_idx=3)


def test_results_of_another_model_are_refused(side, session, small_side):
    prompted(side, session, 0, 1, **BOX)
    with pytest.raises(SessionError, match="reset_inference_session"):
        small_side[0](session, frame_idx=1)
    session.reset_inference_session()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, PromptError, "neither frame nor frame_idx"),
        ({"frame_idx": 99}, KeyError, "the video has the frames 0 to 5"),
        ({"frame_idx": -1}, KeyError, "the video has the frames 0 to 5"),
    ],
)
def test_frames_that_are_not_there_are_refused(side, session, call, error, message):
    prompted(side, session, 0, 1, **BOX)
    with pytest.raises(error, match=message):
        side.model(session, **call)


def test_errors_of_a_session_without_objects_or_frames(side, session):
    with pytest.raises(PromptError, match="no objects"):
        side.model(session, frame_idx=0)
    with pytest.raises(KeyError, match="no frames yet"):
        ours.Sam2VideoInferenceSession().get_frame(0)
    stream = side.processor.init_video_session()
    with pytest.raises(PromptError, match="no objects"):
        side.model(stream, frame=torch.zeros(3, SIDE, SIDE))
    assert stream.num_frames is None  # the frame was not taken


@pytest.mark.parametrize("size", [[[48, 64]], [48], "4848"])
def test_sizes_of_a_stream_that_make_no_sense_are_refused(side, size):
    with pytest.raises(PromptError, match="original_size is"):
        side.processor.add_inputs_to_inference_session(
            side.processor.init_video_session(), 0, 1, **CLICK, original_size=size
        )


@pytest.mark.parametrize(
    ("frame", "ids", "inputs", "message"),
    [
        ([], 1, CLICK, r"frame_idx is \[\]: expected a whole number"),
        (0, [[1]], CLICK, r"object is \[1\]: expected an id"),
        (0, 1, {"input_masks": {}}, r"a mask is \{\}: expected numbers"),
    ],
)
def test_frames_ids_and_masks_that_are_none_are_refused(side, session, frame, ids, inputs, message):
    with pytest.raises(PromptError, match=message):
        side.processor.add_inputs_to_inference_session(session, frame, ids, **inputs)


def test_ids_may_be_an_array(side, session):
    side.processor.add_inputs_to_inference_session(session, 0, np.array([3, 5]), input_boxes=[[[5, 5, 60, 40]] * 2])
    assert side.model(session, frame_idx=0).object_ids == [3, 5]


def test_unknown_labels_are_refused(side, session):
    with pytest.raises(PromptError, match="input_labels hold 5"):
        side.processor.add_inputs_to_inference_session(
            session, 0, 1, input_points=[[[[1, 2], [3, 4]]]], input_labels=[[[1, 5]]]
        )


def test_outputs_may_be_tuples_and_state_may_lie_elsewhere(side, frames):
    session = side.processor.init_video_session(video=frames, inference_state_device="meta")
    side.processor.add_inputs_to_inference_session(session, 0, 1, **BOX)
    ids, masks, scores, frame = side.model(session, frame_idx=0, return_dict=False)
    assert (ids, frame) == ([1], 0)
    assert masks.device.type == scores.device.type == "cpu"
    assert session.output_dict_per_obj[0]["cond_frame_outputs"][0]["pred_masks"].device.type == "meta"


# Folders


@pytest.fixture(scope="module")
def folder(side, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "video"
    side.model.save_pretrained(folder)
    side.processor.save_pretrained(folder)
    return folder


def test_folders_are_opened_again(side, folder, frames):
    model = ours.Sam2VideoModel.from_pretrained(folder, corrections_are_kept=False)
    processor = ours.Sam2VideoProcessor.from_pretrained(folder, point_pad_value=-20)
    assert not model.config.corrections_are_kept
    assert (processor.target_size, processor.point_pad_value) == (SIDE, -20)
    session = processor.init_video_session(video=frames)
    processor.add_inputs_to_inference_session(session, 0, 1, **BOX)
    again = side.processor.init_video_session(video=frames)
    expected = prompted(side, again, 0, 1, **BOX).pred_masks
    torch.testing.assert_close(model(session, frame_idx=0).pred_masks, expected)
    assert ours.Sam2VideoVideoProcessor.from_pretrained(folder).to_dict() == side.processor.video_processor.to_dict()


def test_the_video_processor_of_a_folder_has_its_own_settings(tmp_path):
    processor = ours.Sam2VideoProcessor(
        ours.Sam2ImageProcessor(size=64), ours.Sam2VideoVideoProcessor(size=64, image_mean=0.5)
    )
    processor.save_pretrained(tmp_path)
    assert ours.Sam2VideoProcessor.from_pretrained(tmp_path).video_processor.image_mean == (0.5,) * 3
    (tmp_path / "processor_config.json").unlink()
    read = ours.Sam2VideoProcessor.from_pretrained(tmp_path)
    assert read.video_processor.image_mean == (0.5,) * 3
    assert read.image_processor.image_mean != (0.5,) * 3


def test_transformers_opens_our_folders_and_we_open_theirs(side, folder, tmp_path):
    if not has_torchvision():
        pytest.skip("transformers' processors need torchvision")
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__module__.startswith("transformers.models")
    assert processor.video_processor.size["height"] == processor.target_size == SIDE
    assert transformers.AutoVideoProcessor.from_pretrained(folder).size["width"] == SIDE
    model = transformers.AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "Sam2VideoModel"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    weights = ours.Sam2VideoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in side.model.state_dict().items())
    assert ours.Sam2VideoProcessor.from_pretrained(tmp_path).video_processor.size == {"height": SIDE, "width": SIDE}


def test_the_configuration_is_that_of_transformers():
    theirs = importlib.import_module("transformers").Sam2VideoConfig().to_dict()
    config = ours.Sam2VideoConfig()
    assert config.model_type == theirs["model_type"] == "sam2_video"
    for name in ("num_maskmem", "memory_attention_num_layers", "memory_encoder_output_channels", "image_size"):
        assert getattr(config, name) == theirs[name]
    assert type(config.mask_decoder_config) is ours.Sam2VideoMaskDecoderConfig
