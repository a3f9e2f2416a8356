"""Meta's image predictor: shapes, state, errors, and the fine-tuning recipe that many repositories share."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.compat.sam2.sam2_image_predictor import SAM2ImagePredictor
from masklet.errors import PromptError
from masklet.model.prompt_encoder import Prompts

HW, LOW = (48, 80), (16, 16)
POINT, LABEL = np.array([[35, 20]]), np.array([1])
BOX = np.array([20, 10, 50, 30])
PROMPTS = {
    "nothing": ({}, None),
    "a point": ({"point_coords": POINT, "point_labels": LABEL}, None),
    "points": ({"point_coords": [[35, 20], [5, 5]], "point_labels": [1, 0]}, None),
    "a box": ({"box": BOX}, None),
    "a nested box": ({"box": BOX[None]}, None),
    "a box and a point": ({"box": BOX, "point_coords": POINT, "point_labels": [0]}, None),
    "a mask": ({"mask_input": np.zeros((1, *LOW), np.float32)}, None),
    "a mask and a point": (
        {"mask_input": np.ones((1, *LOW), np.float32), "point_coords": POINT, "point_labels": LABEL},
        None,
    ),
    "boxes": ({"box": np.stack([BOX, BOX + 5, BOX - 5])}, 3),
    "points of objects": ({"point_coords": np.full((2, 4, 2), 20.0), "point_labels": np.ones((2, 4))}, 2),
    "boxes and points": (
        {"box": np.stack([BOX, BOX + 5]), "point_coords": np.full((2, 1, 2), 20), "point_labels": np.ones((2, 1))},
        2,
    ),
    "outside": ({"point_coords": [[-5, 100]], "point_labels": [1]}, None),
    "tensors": ({"point_coords": torch.tensor(POINT), "point_labels": torch.tensor(LABEL)}, None),
}


@pytest.fixture
def predictor(meta_model, image):
    predictor = SAM2ImagePredictor(meta_model)
    predictor.set_image(image)
    return predictor


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPTS)
def test_shapes_and_types_are_metas(predictor, kind, multimask):
    prompt, objects = PROMPTS[kind]
    leading = () if objects is None else (objects,)
    count = 3 if multimask else 1
    masks, iou_scores, logits = predictor.predict(**prompt, multimask_output=multimask)
    assert masks.shape == (*leading, count, *HW)
    assert iou_scores.shape == (*leading, count)
    assert logits.shape == (*leading, count, *LOW)
    assert masks.dtype == iou_scores.dtype == logits.dtype == np.float32
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert np.abs(logits).max() <= 32
    as_logits = predictor.predict(**prompt, multimask_output=multimask, return_logits=True)[0]
    np.testing.assert_array_equal(as_logits > 0, masks > 0)


def test_the_results_are_those_of_an_encoded_image(predictor, sam, image):
    encoded = sam.image(image)
    for prompt, kwargs in (
        ({"point_coords": POINT, "point_labels": LABEL}, {"points": POINT, "candidates": True}),
        ({"box": BOX, "multimask_output": False}, {"box": BOX, "multimask": False}),
    ):
        masks, iou_scores, logits = predictor.predict(**prompt)
        expected = encoded.predict(**kwargs)
        np.testing.assert_array_equal(masks > 0, expected.masks.reshape(masks.shape))
        np.testing.assert_allclose(logits, expected.logits.reshape(logits.shape).clip(-32, 32), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(iou_scores, expected.iou_scores.reshape(iou_scores.shape), atol=1e-6)


def test_coordinates_may_be_shares_of_the_image(predictor):
    in_pixels = predictor.predict(POINT, LABEL, BOX)
    shares = predictor.predict(POINT / [80, 48], LABEL, BOX / [80, 48, 80, 48], normalize_coords=False)
    np.testing.assert_allclose(shares[2], in_pixels[2], atol=1e-4)


def test_batches_are_predicted_image_by_image(meta_model, image):
    predictor, images = SAM2ImagePredictor(meta_model), [image, image[:30, :60]]
    predictor.set_image_batch(images)
    boxes = [BOX, np.stack([BOX, BOX + 5]).clip(0, 29)]
    masks, iou_scores, logits = predictor.predict_batch(box_batch=boxes, multimask_output=False)
    assert [m.shape for m in masks] == [(1, 48, 80), (2, 1, 30, 60)]
    assert [s.shape for s in iou_scores] == [(1,), (2, 1)]
    for one, box, low_res in zip(images, boxes, logits, strict=True):
        predictor.set_image(one)
        np.testing.assert_allclose(predictor.predict(box=box, multimask_output=False)[2], low_res, atol=1e-4)
    with pytest.raises(RuntimeError, match="expected set_image_batch before predict_batch"):
        predictor.predict_batch(box_batch=boxes)


def test_the_state_that_others_read(predictor, meta_model):
    assert predictor._is_image_set
    assert not predictor._is_batch
    assert predictor._orig_hw == [HW]
    assert predictor._features["image_embed"].shape == (1, 32, 4, 4)
    assert [level.shape for level in predictor._features["high_res_feats"]] == [(1, 4, 16, 16), (1, 8, 8, 8)]
    assert predictor._bb_feat_sizes == [(16, 16), (8, 8), (4, 4)]
    assert predictor.get_image_embedding() is predictor._features["image_embed"]
    assert predictor.device == meta_model.device
    assert predictor.mask_threshold == 0
    predictor.reset_predictor()
    assert predictor._features is None
    for call in (predictor.get_image_embedding, lambda: predictor.predict(POINT, LABEL)):
        with pytest.raises(RuntimeError, match=r"no image is set: call set_image\(image\) first"):
            call()


def test_points_need_labels(predictor):
    with pytest.raises(PromptError, match="point_coords came without point_labels"):
        predictor.predict(POINT)


def test_exif_is_not_applied_so_that_masks_fit_the_array(meta_model, image):
    rotated = Image.fromarray(image)
    rotated.getexif()[274] = 6
    predictor = SAM2ImagePredictor(meta_model)
    predictor.set_image(rotated)
    assert predictor.predict(POINT, LABEL)[0].shape[1:] == HW


def test_holes_and_islands_of_low_resolution_masks_are_cleaned(meta_model):
    logits = torch.full((1, 1, *LOW), -5.0)
    logits[..., 2:12, 2:12] = 5
    logits[..., 5, 5:7] = -5  # a hole of two pixels
    logits[..., 14, 14] = 5  # an island of one
    transforms = SAM2ImagePredictor(meta_model, max_hole_area=2, max_sprinkle_area=1)._transforms
    cleaned = transforms.postprocess_masks(logits, LOW)[0, 0]
    assert (cleaned[5, 5:7] > 0).all()
    assert cleaned[14, 14] < 0
    kept = SAM2ImagePredictor(meta_model, max_hole_area=1)._transforms.postprocess_masks(logits, LOW)[0, 0]
    torch.testing.assert_close(kept, logits[0, 0])


def recipe_loss(predictor):
    """One step of the fine-tuning recipe, as many repositories have it."""
    mask_input, coords, labels, box = predictor._prep_prompts(
        POINT, LABEL, box=None, mask_logits=None, normalize_coords=True
    )
    assert mask_input is None
    assert box is None
    sparse, dense = predictor.model.sam_prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    assert sparse.shape == (1, 2, 32)
    assert dense.shape == (1, 32, 4, 4)
    fine = [level[-1].unsqueeze(0) for level in predictor._features["high_res_feats"]]
    logits, iou_scores, tokens, object_scores = predictor.model.sam_mask_decoder(
        image_embeddings=predictor._features["image_embed"][-1].unsqueeze(0),
        image_pe=predictor.model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=fine,
    )
    assert logits.shape == (1, 3, *LOW)
    assert iou_scores.shape == (1, 3)
    assert tokens.shape == (1, 3, 32)
    assert object_scores.shape == (1, 1)
    masks = torch.sigmoid(predictor._transforms.postprocess_masks(logits, predictor._orig_hw[-1])[:, 0])
    target = torch.zeros(1, *HW)
    target[:, 10:30, 20:50] = 1
    loss = -(target * torch.log(masks + 1e-5) + (1 - target) * torch.log(1 - masks + 1e-5)).mean()
    return loss + (iou_scores[:, 0] - 0.5).abs().mean()


def test_the_recipe_gives_the_gradients_of_the_network(predictor, meta_model):
    network = meta_model.network
    predictor.model.sam_mask_decoder.train(True)
    predictor.model.sam_prompt_encoder.train(True)
    network.zero_grad()
    recipe_loss(predictor).backward()
    trained = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    features = network.encode(predictor._transforms(np.zeros((4, 4, 3), np.uint8))[None])  # replaced below
    fine, embedding = predictor._features["high_res_feats"], predictor._features["image_embed"]
    features = features._replace(stride4=fine[0], stride8=fine[1], stride16=embedding)
    points = torch.tensor([[[[35 * 64 / 80, 20 * 64 / 48]]]], dtype=torch.float32)
    decoded = network.decode(
        features, Prompts(points, torch.ones(1, 1, 1).long()), multimask=True, conditioned=embedding
    )
    masks = torch.nn.functional.interpolate(decoded.logits[0], HW, mode="bilinear", align_corners=False)[:, 0].sigmoid()
    target = torch.zeros(1, *HW)
    target[:, 10:30, 20:50] = 1
    loss = -(target * torch.log(masks + 1e-5) + (1 - target) * torch.log(1 - masks + 1e-5)).mean()
    (loss + (decoded.iou_scores[0, :, 0] - 0.5).abs().mean()).backward()
    assert {name.split(".")[0] for name in trained} == {"mask_decoder", "prompt_encoder"}
    for name, parameter in network.named_parameters():
        if name in trained:
            torch.testing.assert_close(trained[name], parameter.grad, rtol=1e-4, atol=1e-7)
    meta_model.eval()


def test_a_trained_network_predicts_with_its_new_weights(meta_model, image):
    model = copy.deepcopy(meta_model)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(image)
    before = predictor.predict(POINT, LABEL)[2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = recipe_loss(predictor)
    first.backward()
    optimizer.step()
    assert np.abs(predictor.predict(POINT, LABEL)[2] - before).max() > 1e-4
    assert recipe_loss(predictor) < first


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point_coords": [[1, "x"]], "point_labels": [1]}, "point_coords: expected numbers"),
        ({"point_coords": [[[1, 2]], [[1, 2], [3, 4]]], "point_labels": [1]}, "point_coords: expected numbers"),
        ({"point_coords": [[1, np.inf]], "point_labels": [1]}, "point_coords: expected finite numbers"),
        ({"point_coords": [1, 2, 3], "point_labels": [1]}, "point_coords of shape"),
        ({"point_coords": POINT, "point_labels": [1, 0]}, "point_labels of shape"),
        ({"point_coords": POINT, "point_labels": [-2]}, "point_labels hold -2"),
        ({"box": [1, 2, 3]}, "box of shape"),
        ({"box": BOX, "mask_input": True}, "mask_input of shape"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(predictor, prompt, message):
    with pytest.raises(PromptError, match=message):
        predictor.predict(**prompt)


def test_repeated_images_decode_several_objects(predictor):
    model = predictor.model
    coords = torch.tensor([[[28.0, 26.0]], [[10.0, 10.0]]])
    sparse, dense = model.sam_prompt_encoder(points=(coords, torch.ones(2, 1)), boxes=None, masks=None)
    arguments = {
        "image_embeddings": predictor._features["image_embed"],
        "image_pe": model.sam_prompt_encoder.get_dense_pe(),
        "multimask_output": False,
        "high_res_features": predictor._features["high_res_feats"],
    }
    both = model.sam_mask_decoder(
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, repeat_image=True, **arguments
    )
    one = model.sam_mask_decoder(
        sparse_prompt_embeddings=sparse[1:], dense_prompt_embeddings=dense[1:], repeat_image=False, **arguments
    )
    for together, alone in zip(both, one, strict=True):
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_prompt_embeddings_have_metas_tokens(meta_model):
    encode = meta_model.sam_prompt_encoder
    coords, labels = torch.rand(3, 2, 2) * 64, torch.ones(3, 2)
    boxes, masks = torch.tensor([[1.0, 2, 30, 40]]).expand(3, 4), torch.randn(3, 1, *LOW)
    for arguments, tokens in (
        (((coords, labels), None, None), 3),  # "not a point" ends points
        (((coords, labels), boxes, None), 4),  # but not boxes
        ((None, boxes, None), 2),
        ((None, None, masks), 0),
        (((coords, labels), boxes, masks), 4),
    ):
        sparse, dense = encode(*arguments)
        assert sparse.shape == (3, tokens, 32)
        assert dense.shape == (3, 32, 4, 4)
    as_points = encode((boxes.reshape(3, 2, 2), torch.tensor([[2, 3]]).expand(3, 2)), None, None)[0][:, :2]
    torch.testing.assert_close(as_points, encode(None, boxes, None)[0])
