"""What chance puts into clips."""

import numpy as np
import pytest

from masklet.training.clips import EXPOSURES, PACES, draw_clip, draw_path


def test_a_clip_is_a_function_of_the_generator(made_up_sources, same_worlds):
    first, second, other = (draw_clip(made_up_sources, 3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same_worlds(first, second)
    assert not same_worlds(first, other)


def test_paths_begin_where_they_are():
    path = draw_path(np.random.default_rng(0), PACES)
    assert path.at(0) == pytest.approx(np.eye(3))
    assert np.abs(path.at(3) - np.eye(3)).max() > 1e-3


def test_time_goes_forward_or_backward_and_shutters_stay_open_at_times(made_up_sources):
    moments = [draw_clip(made_up_sources, 4, np.random.default_rng(seed)).moments for seed in range(60)]
    assert {m.shape for m in moments} == {(4, 1), (4, EXPOSURES)}
    middles = [m[:, m.shape[1] // 2].tolist() for m in moments]
    assert all(m in ([0, 1, 2, 3], [3, 2, 1, 0]) for m in middles)
    assert 0.3 < np.mean([m[0] == 0 for m in middles]) < 0.7


def test_the_ground_is_as_large_as_what_the_camera_sees(made_up_sources):
    corners = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1]]).T
    for seed in range(30):
        world = draw_clip(made_up_sources, 5, np.random.default_rng(seed))
        seen = np.stack([world.camera.path.at(time) @ corners for time in world.moments.ravel()])[:, :2]
        inside = (seen - world.ground_corner[:, None]) / world.ground_side
        assert inside.min() > -1e-9
        assert inside.max() < 1 + 1e-9
        assert max(np.ptp(inside, axis=(0, 2))) == pytest.approx(1)
