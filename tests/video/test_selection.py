"""What frames read and which clicks count: shared by tracking with torch and without."""

import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from masklet.errors import ConfigError, ImageError, PromptError, SpoolError
from masklet.video.frame_prompts import joined_clicks
from masklet.video.logit_bytes import pack_logits, unpack_logits
from masklet.video.policy import MemorySelection, PaperPolicy
from masklet.video.selection import batches_of, memory_columns, select_memory
from masklet.video.stream_frames import LatestFrame, check_frame_size, check_stream, time_of_frame


@dataclass
class Object:
    """An object with results in frames 0 to 9, which was prompted in the first."""

    maps: dict[int, str]
    prompted: set[int] = field(default_factory=lambda: {0})

    def __contains__(self, frame: object) -> bool:
        return frame in range(10)


def test_modules_that_both_trackers_use_import_no_torch():
    modules = "selection", "frame_prompts", "logit_bytes", "stream_frames", "session_objects", "plan", "policy"
    imports = ", ".join(f"masklet.video.{name}" for name in modules)
    script = f"import sys; sys.modules['torch'] = None; import {imports}, masklet.everything.assembly"
    script += ", masklet.results.predictions"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_maps_that_are_gone_are_left_out_where_the_video_cannot_go_back():
    policy = PaperPolicy(num_maskmem=3)
    one = Object(maps={0: "", 8: ""})
    rewinding = select_memory(policy, 10, one, step=1, can_rewind=True)
    assert [frame for frame, _ in rewinding.maps] == [0, 9, 8]
    assert [frame for frame, _ in select_memory(policy, 10, one, step=1, can_rewind=False).maps] == [0, 8]
    assert select_memory(policy, 10, Object(maps={}), step=1, can_rewind=False) == rewinding


def test_key_weights_go_with_their_maps():
    selection = MemorySelection(((0, 2), (9, 0)), (), 16, 3, key_weights=(2.0, 3.0))

    class Weighted:
        def select(self, frame, history, *, step):
            return selection

    assert select_memory(Weighted(), 10, Object({9: ""}), step=1, can_rewind=False).key_weights == (3.0,)


def selection_of(*, maps: int, pointers: int = 1) -> MemorySelection:
    read = [(frame, frame) for frame in range(1, maps)]
    return MemorySelection(((0, 6), *read), tuple((frame, 15.0 - frame) for frame in range(pointers)), 16, 7)


def test_objects_of_one_shape_share_a_batch():
    selections = {name: selection_of(maps=1 + (name == "b")) for name in "abcd"}
    assert list(batches_of(selections, 2, fixed=False)) == [["a", "c"], ["d"], ["b"]]
    assert list(batches_of(selections, 3, fixed=True)) == [["a", "b", "c"], ["d"]]


def test_columns_are_padded_to_the_fixed_shape():
    columns = memory_columns([selection_of(maps=2), selection_of(maps=3, pointers=2)], fixed=True)
    assert columns.map_slots.tolist() == [[6, 1, 0, 0, 0, 0, 0], [6, 1, 2, 0, 0, 0, 0]]
    assert columns.is_empty.sum(1).tolist() == [7 + 16 - 3, 7 + 16 - 5]
    np.testing.assert_allclose(columns.pointer_distances[1, :3], [1, 14 / 15, 0], rtol=1e-6)
    assert columns.map_weights is None


@pytest.mark.parametrize(
    ("earlier", "later", "kept"),
    [
        ([1], [0], [0, 1]),
        ([1, 0], [2, 3], [2, 3, 0, 1]),
        ([2, 3, 1], [0], [0, 1, 2, 3]),
        ([2, 3, 1], [2, 3, 0], [3, 4, 2, 5]),
    ],
)
def test_a_new_box_replaces_an_earlier_one_and_corners_come_first(earlier, later, kept):
    assert joined_clicks(np.array(earlier), np.array(later)).tolist() == kept


def test_logits_return_from_their_bytes_and_damage_is_noticed():
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    packed = pack_logits(logits)
    np.testing.assert_array_equal(unpack_logits(packed, (3, 5)), logits)
    for data, size_hw in ((packed, (3, 4)), (packed[:-9], (3, 5)), (b"nothing", (3, 5))):
        with pytest.raises(SpoolError, match="a stored mask is damaged"):
            unpack_logits(data, size_hw)


def test_streams_have_increasing_times_one_size_and_no_past():
    assert time_of_frame(3, None, fps=30, previous=0.0) == 0.1
    assert time_of_frame(0, -1.0, fps=30, previous=0.0) == -1.0
    with pytest.raises(PromptError, match="frame 3 is at 1 s, and the frame before it at 1 s: expected increasing"):
        time_of_frame(3, 1.0, fps=30, previous=1.0)
    with pytest.raises(ImageError, match="frame 3 is 4×2, the frames before it 8×6: expected one size"):
        check_frame_size((2, 4), (6, 8), 3)
    with pytest.raises(ConfigError, match="reads frame 1 in frame 3 of a stream"):
        LatestFrame(3, "features")(1)
    with pytest.raises(PromptError, match="max_prompted is None"):
        check_stream(PaperPolicy(), 30)
