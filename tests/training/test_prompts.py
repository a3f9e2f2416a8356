"""The simulated user."""

import pytest
import torch

from masklet.training.prompts import boxes_around, correction_click, coverage, covered_cells, first_prompt, uniform


def enlarged(cells):
    """Targets that cover exactly these cells."""
    return cells.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.fixture
def targets():
    masks = torch.zeros(2, 3, 16, 24, dtype=torch.bool)
    masks[0, 0, 2:5, 3:9] = True
    masks[0, 1, 15, 23] = True
    masks[0, 2] = True
    masks[1, 0, :, 4] = True
    masks[1, 1, 7:9, 0:2] = True
    masks[1, 2, 3, 3] = masks[1, 2, 12, 20] = True
    return masks


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def at(masks, points):
    """Whether each point (batch, objects, 2) lies in its mask."""
    cells = (points / 4).floor().long()
    batch, objects = torch.meshgrid(*map(torch.arange, masks.shape[:2]), indexing="ij")
    return masks[batch, objects, cells[..., 1], cells[..., 0]]


def test_boxes_enclose_their_masks_exactly(targets):
    assert boxes_around(targets)[0].tolist() == [[3, 2, 9, 5], [23, 15, 24, 16], [0, 0, 24, 16]]


def test_coverage_is_the_share_of_each_cell():
    target = torch.zeros(1, 2, 8, 12, dtype=torch.bool)
    target[0, 0, :4, :6] = True
    target[0, 1, 3:5, 8:] = True
    assert coverage(target).tolist() == [[[[1, 0.5, 0], [0, 0, 0]], [[0, 0, 0.25], [0, 0, 0.25]]]]
    assert covered_cells(target).sum((-2, -1)).tolist() == [[2, 0]]


def test_boxes_are_exact_to_the_pixel():
    target = torch.zeros(1, 50, 64, 64, dtype=torch.bool)
    target[:, :, 21:42, 13] = target[:, :, 25, 13:50] = target[:, :, 26:40, 20:40] = True
    prompt = first_prompt(target, torch.Generator().manual_seed(0), box_share=1.0)
    is_exact = (prompt.points.flatten(2) == torch.tensor([13.0, 21.0, 50.0, 42.0])).all(-1)
    assert 10 < is_exact.sum() < 40  # the others are noisy


def test_first_prompts_are_clicks_inside_or_boxes_around_with_equal_chance(targets, generator):
    boxes, targets, cells = 0, enlarged(targets), targets
    exact = boxes_around(targets)
    for _ in range(200):
        prompt = first_prompt(targets, generator)
        assert prompt.points.shape == (2, 3, 2, 2)
        is_box = prompt.labels[..., 0] == 2
        boxes += int(is_box.sum())
        assert (prompt.labels[is_box] == torch.tensor([2, 3])).all()
        assert (prompt.labels[~is_box] == torch.tensor([1, -10])).all()
        assert at(cells, prompt.points[:, :, 0])[~is_box].all()
        assert ((prompt.points.flatten(2) - exact)[is_box].abs() <= 2).all()
        assert (prompt.points >= 0).all()
        assert (prompt.points <= torch.tensor([96, 64])).all()
    assert 500 < boxes < 700  # of 1200


def test_half_of_the_boxes_are_exact(generator):
    targets = torch.zeros(1, 800, 64, 64, dtype=torch.bool)
    targets[:, :, 20:40, 10:50] = True
    prompt = first_prompt(enlarged(targets), generator)
    boxes = prompt.points[prompt.labels[..., 0] == 2].flatten(1)
    is_exact = (boxes == torch.tensor([40.0, 80.0, 200.0, 160.0])).all(-1)
    assert 0.4 < is_exact.float().mean() < 0.6


def test_half_of_the_clicks_are_centred(generator):
    targets = torch.zeros(1, 400, 16, 16, dtype=torch.bool)
    targets[:, :, 2:9, 3:10] = targets[:, :, 12:14, 12:14] = True
    prompt = first_prompt(enlarged(targets), generator)
    clicks = prompt.points[prompt.is_single_click][:, 0]
    is_centred = (clicks == torch.tensor([(6 + 0.5) * 4, (5 + 0.5) * 4])).all(-1)
    assert 0.4 < is_centred.float().mean() < 0.6


def test_the_centre_of_a_mask_that_fills_the_image_is_that_of_the_image():
    targets = torch.ones(1, 64, 36, 36, dtype=torch.bool)
    prompt = first_prompt(targets, torch.Generator().manual_seed(0))
    assert (prompt.points[:, :, 0] == 4.5 * 4).all(-1).any()


def test_a_single_click_is_distinguished_from_a_box_and_from_two_clicks(targets, generator):
    first = first_prompt(enlarged(targets), generator)
    assert torch.equal(first.is_single_click, first.labels[..., 0] == 1)
    assert not first.extended(
        correction_click(~targets, targets, uniform((*targets.shape[:2], 3), generator))
    ).is_single_click.any()


def test_corrections_fall_where_the_mask_is_wrong_with_the_right_label(targets, generator):
    predicted = targets.roll(2, -1)
    for _ in range(20):
        click = correction_click(predicted, targets, uniform((*targets.shape[:2], 3), generator))
        wrong = predicted ^ targets
        is_wrong_somewhere = wrong.flatten(2).any(-1)
        inside = at(targets, click.points[:, :, 0])
        assert at(wrong, click.points[:, :, 0])[is_wrong_somewhere].all()
        assert (click.labels[..., 0] == inside.long()).all()


def test_a_perfect_mask_is_clicked_inside(targets, generator):
    click = correction_click(targets, targets, uniform((*targets.shape[:2], 3), generator))
    assert at(targets, click.points[:, :, 0]).all()
    assert (click.labels == 1).all()


def test_corrections_follow_the_first_prompt(targets, generator):
    first = first_prompt(enlarged(targets), generator)
    both = first.extended(correction_click(~targets, targets, uniform((*targets.shape[:2], 3), generator)))
    assert both.points.shape == (2, 3, 3, 2)
    assert both.labels.shape == (2, 3, 3)
    assert torch.equal(both.points[:, :, :2], first.points)


def test_the_same_generator_state_makes_the_same_prompts(targets):
    prompts = [first_prompt(enlarged(targets), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(prompts[0].points, prompts[1].points)
