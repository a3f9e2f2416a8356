"""Random worlds for clips."""

import numpy as np
import pytest

from recipes.nano.clip_worlds import EXPOSURES, SPRITE_PACES, sample_clip_world, sample_motion


def test_a_world_is_a_function_of_the_generator(sources, same_worlds):
    first, second, other = (sample_clip_world(sources, 3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same_worlds(first, second)
    assert not same_worlds(first, other)


def test_motions_are_the_identity_at_time_0():
    motion = sample_motion(np.random.default_rng(0), SPRITE_PACES)
    assert motion.at(0) == pytest.approx(np.eye(3))
    assert np.abs(motion.at(3) - np.eye(3)).max() > 1e-3


def test_time_runs_forward_or_backward_and_some_clips_have_motion_blur(sources):
    exposures = [sample_clip_world(sources, 4, np.random.default_rng(seed)).exposures for seed in range(60)]
    assert {m.shape for m in exposures} == {(4, 1), (4, EXPOSURES)}
    times = [m[:, m.shape[1] // 2].tolist() for m in exposures]
    assert all(m in ([0, 1, 2, 3], [3, 2, 1, 0]) for m in times)
    assert 0.3 < np.mean([m[0] == 0 for m in times]) < 0.7


def test_the_background_is_as_large_as_what_the_camera_sees(sources):
    corners = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1]]).T
    for seed in range(30):
        world = sample_clip_world(sources, 5, np.random.default_rng(seed))
        visible = np.stack([world.camera.motion.at(time) @ corners for time in world.exposures.ravel()])[:, :2]
        inside = (visible - world.background_corner[:, None]) / world.background_side
        assert inside.min() > -1e-9
        assert inside.max() < 1 + 1e-9
        assert max(np.ptp(inside, axis=(0, 2))) == pytest.approx(1)
