import numpy as np
import pytest

from masklet.integrations.napari.layer_session import LayerSession
from masklet.integrations.napari.prompts import Key, LayerPrompt, paint, read_layers
from masklet.segmenter import load


def test_points_and_boxes_become_prompts_of_frames_and_objects():
    points = np.array([[0, 10, 20], [0, 12, 22], [3, 99, -5], [1, 5, 5]], float)
    features = {"object": [1, 1, 2, 3], "positive": [True, False, True, False]}
    box = np.array([[0, 8, 4], [0, 8, 30], [0, 200, 30], [0, 200, 4]], float)
    found = read_layers(points, features, [box], {"object": [2]}, (90, 40))
    assert found == {
        Key(0, 1): LayerPrompt(((20, 10, 1), (22, 12, 0))),
        Key(3, 2): LayerPrompt(((0, 90, 1),)),
        Key(0, 2): LayerPrompt(box=(4, 8, 30, 90)),
    }


def test_painting_replaces_an_object_and_covers_others():
    labels = np.array([[1, 1, 2, 0]])
    paint(labels, {1: np.array([[False, True, True, False]])})
    assert labels.tolist() == [[0, 1, 1, 0]]


def moving_square():
    stack = np.random.default_rng(0).integers(0, 80, (3, 96, 128), dtype=np.uint8)
    for frame, image in enumerate(stack):
        image[30:62, 20 + 6 * frame : 52 + 6 * frame] = 230
    return stack


@pytest.mark.slow
def test_a_session_segments_changes_only_and_undoes_what_is_gone():
    session = LayerSession(load(), moving_square(), has_frames=True)
    wanted = {Key(0, 1): LayerPrompt(((36, 45, 1),))}
    (first,) = session.segment(wanted)
    assert (first.frame, list(first.masks)) == (0, [1])
    assert list(session.segment(wanted)) == []
    tracked = list(session.track("forward", 0, lambda: wanted))
    assert [result.frame for result in tracked] == [0, 1, 2]
    assert abs(int(tracked[2].masks[1].sum()) - 32 * 32) < 60
    (gone,) = session.segment({})
    assert not gone.masks[1].any()
    assert session.session.object_ids == ()
