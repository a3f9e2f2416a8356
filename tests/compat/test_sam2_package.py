"""Builders, names of weights, the automatic mask generator, helpers, and ``import sam2``."""

import copy
import importlib
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from edgetam import SMALL, random_edgetam
from pycocotools import mask as coco_mask

import masklet.compat.sam2 as meta
from masklet.checkpoints.meta import meta_tensors
from masklet.compat.sam2 import build_sam2, build_sam2_camera_predictor, build_sam2_video_predictor
from masklet.compat.sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from masklet.compat.sam2.build_sam import named_config, read_overrides
from masklet.compat.sam2.utils import amg, misc
from masklet.config import edgetam_config
from masklet.engine import make_engine
from masklet.errors import ConfigError, DeviceError
from masklet.everything.options import EverythingOptions
from masklet.model.edgetam.repvit import RepVitTrunk
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

FOUND = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def folder(sam, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    sam.model.save_pretrained(path)
    return path


@pytest.mark.parametrize("directory", ["", "configs/sam2.1/", "//etc/"])
@pytest.mark.parametrize(
    ("size", "channels"), [("t", 96), ("s", 96), ("b+", 112), ("l", 144), ("tiny", 96), ("base_plus", 112)]
)
def test_names_of_configurations(directory, size, channels):
    for version in ("sam2", "sam2.1"):
        for suffix in (".yaml", ""):
            config = named_config(f"{directory}{version}_hiera_{size}{suffix}")
            assert config.image_encoder.hidden_size == channels
            assert config.is_v2_1 == (version == "sam2.1")


@pytest.mark.parametrize("name", ["edgetam", "edgetam.yaml", "configs/edgetam.yaml", "sam2/configs/edgetam.yaml"])
def test_edgetam_has_a_configuration(name):
    assert named_config(name) == edgetam_config()


@pytest.mark.parametrize("name", [None, "", "sam_vit_h", "sam2_hiera_xl.yaml", "sam2.2_hiera_t.yaml"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="expected one of Meta's, such as configs/sam2.1/sam2.1_hiera_t.yaml"):
        named_config(name)


def test_a_network_with_random_weights_has_metas_parameters():
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", mode="train")
    assert sum(parameter.numel() for parameter in model.parameters()) == 38_962_498
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.image_size == 1024
    assert model.hidden_dim == 256


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("++model.image_size=512", "image_size", 512),
        ("model.fill_hole_area=3", "fill_hole_area", 3),
        ("++model.max_cond_frames_in_attn=4", "max_prompted", 4),
        ("++model.max_cond_frames_in_attn=-1", "max_prompted", None),
        ("++model.non_overlap_masks=True", "non_overlap_masks", True),
        ("++model.add_all_frames_to_correct_as_cond=false", "corrections_are_kept", False),
        ("++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true", "dynamic_multimask", True),
        ("++model.memory_temporal_stride_for_eval=1", "image_size", None),
        ("++model.compile_image_encoder=True", "image_size", None),
    ],
)
def test_overrides(text, field, value):
    assert getattr(read_overrides([text]), field) == value


@pytest.mark.parametrize(
    "text",
    [
        "++model.size=3",
        "image_size",
        "++model.image_size=big",
        "++model.memory_temporal_stride_for_eval=5",
        "++model.=1",
    ],
)
def test_other_overrides_are_refused_by_name(text):
    with pytest.raises(ConfigError, match=f"^override '{re.escape(text)}' "):
        read_overrides([text])


def test_folders_of_models_are_built(folder, sam):
    model = build_sam2(None, folder, device="cpu", hydra_overrides_extra=["++model.image_size=64"])
    assert all(map(torch.equal, model.parameters(), sam.model.parameters()))
    assert not model.training
    assert model.image_size == 64
    assert not build_sam2(None, folder, "cpu", apply_postprocessing=False).network.mask_decoder.replaces_unstable
    with pytest.raises(ConfigError, match="but sam2.1_hiera_t.yaml stands for"):
        build_sam2("sam2.1_hiera_t.yaml", folder, device="cpu")
    with pytest.raises(ConfigError, match="mode is 'test': expected eval or train"):
        build_sam2(None, folder, device="cpu", mode="test")
    with pytest.raises(ConfigError, match="no argument load_from"):
        build_sam2(None, folder, device="cpu", load_from="hub")
    with pytest.raises(DeviceError):
        build_sam2(None, folder, device="cuda:99")


@pytest.fixture(scope="module")
def edgetam_file(tmp_path_factory):
    """A file as the authors publish it, and the network it was made of."""
    network = random_edgetam(edgetam_config(perceiver=SMALL.perceiver))  # few latents allow small inputs
    path = tmp_path_factory.mktemp("edgetam") / "edgetam.pt"
    torch.save({"model": meta_tensors(network.state_dict())}, path)
    return path, network


@pytest.mark.slow
def test_edgetam_is_built_from_the_authors_file(edgetam_file):
    path, network = edgetam_file
    model = build_sam2("configs/edgetam.yaml", path, "cpu", hydra_overrides_extra=["++model.image_size=256"])
    assert all(map(torch.equal, model.network.state_dict().values(), network.state_dict().values()))
    assert isinstance(model.image_encoder.trunk, RepVitTrunk)
    assert model.spatial_perceiver is model.network.spatial_perceiver
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, maps = model.network.encode(pixels), model.forward_image(pixels)["backbone_fpn"]
        assert all(map(torch.equal, maps, expected))
        assert model.image_encoder(pixels)["vision_features"].equal(expected.stride16)
    state = model.state_dict()
    assert state.keys() == torch.load(path)["model"].keys()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(state)
    assert all(map(torch.equal, other.state_dict().values(), state.values()))
    with pytest.raises(ConfigError, match=r"has 48 channels .* but sam2.1_hiera_t.yaml stands for"):
        build_sam2("sam2.1_hiera_t.yaml", path, device="cpu")


def test_edgetam_tracks_through_metas_predictor(edgetam_file, image):
    overrides = ["++model.image_size=256", "++model.fill_hole_area=0"]
    predictor = build_sam2_video_predictor("edgetam.yaml", edgetam_file[0], "cpu", hydra_overrides_extra=overrides)
    frames = [np.roll(image, 3 * index, axis=1) for index in range(3)]
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, frame_idx=0, obj_id=1, points=[[40, 20]], labels=[1])
    session = Segmenter(make_engine(predictor.network), ImageProcessor(256)).video(frames, max_prompted=None)
    session.prompt(0, 1, points=[(40, 20)])
    for (_, _, logits), expected in zip(predictor.propagate_in_video(state), session.track(), strict=True):
        assert (logits > 0).any()
        np.testing.assert_array_equal(logits[:, 0].numpy() > 0, expected.masks.masks)


def test_predictors_have_metas_postprocessing(folder):
    overrides = ["++model.image_size=64", "++model.non_overlap_masks=true"]
    for build in (build_sam2_video_predictor, build_sam2_camera_predictor):
        predictor = build(None, folder, "cpu", hydra_overrides_extra=overrides)
        assert predictor.fill_hole_area == 8
        assert predictor.non_overlap_masks
        assert build(None, folder, "cpu", apply_postprocessing=False).fill_hole_area == 0


def test_weights_are_saved_and_loaded_under_metas_names(meta_model):
    state = meta_model.state_dict()
    assert "sam_mask_decoder.transformer.layers.0.norm1.weight" in state
    assert "image_encoder.trunk.blocks.0.mlp.layers.1.bias" in state
    assert {"sam_prompt_encoder.point_embeddings.3.weight", "memory_encoder.fuser.layers.1.gamma"} <= state.keys()
    other = copy.deepcopy(meta_model)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    result = other.load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(map(torch.equal, other.state_dict().values(), state.values()))
    partial = {name: tensor for name, tensor in state.items() if name != "no_mem_embed"} | {
        "head.weight": torch.ones(1)
    }
    with pytest.raises(RuntimeError, match="missing no_mem_embed, unexpected head.weight"):
        other.load_state_dict(partial)
    result = other.load_state_dict(partial, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["no_mem_embed"], ["head.weight"])


def test_a_module_that_holds_a_network_loads_its_own_weights(meta_model):
    def wrapped():
        return torch.nn.ModuleDict({"sam": copy.deepcopy(meta_model), "head": torch.nn.Linear(2, 2)})

    module, other = wrapped(), wrapped()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    state = module.state_dict()
    assert "sam.image_encoder.trunk.pos_embed" in state
    other.load_state_dict(state)
    assert all(map(torch.equal, other.state_dict().values(), state.values()))
    with pytest.raises(RuntimeError, match=r"Missing key.*sam\.network\.no_memory_embedding"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "sam.no_mem_embed"})


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_the_parts_of_a_copy_are_those_of_its_network(meta_model, copied):
    assert meta_model.engine.model is meta_model.network
    other = copied(meta_model)
    assert other.network is not meta_model.network
    assert other.image_encoder.trunk is other.network.vision_encoder.backbone
    assert other.sam_prompt_encoder.encoder is other.network.prompt_encoder
    assert other.sam_mask_decoder.decoder is other.network.mask_decoder
    assert other.engine.model is other.network


def test_the_parts_follow_the_precision_of_the_network(meta_model):
    model = copy.deepcopy(meta_model).eval()
    engine = model.engine
    assert model.to("cpu").engine is engine
    assert model.to(torch.bfloat16).engine.dtype == torch.bfloat16
    with torch.no_grad():
        output = model.image_encoder(torch.zeros(1, 3, 64, 64))
    assert {level.dtype for level in output["backbone_fpn"]} == {torch.bfloat16}
    assert model.double().sam_mask_decoder.conv_s0.weight.dtype == torch.float64


def test_parts_are_frozen_by_metas_names(meta_model):
    model = copy.deepcopy(meta_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("image_encoder" not in name)
    assert not any(parameter.requires_grad for parameter in model.image_encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.sam_mask_decoder.parameters())
    assert len(list(model.parameters())) == len(list(model.network.parameters()))
    assert model.memory_attention is model.network.memory_attention
    model.sam_mask_decoder.train(True)
    assert model.network.mask_decoder.training
    model.eval()
    assert not model.sam_mask_decoder.training
    assert not model.network.mask_decoder.training


def test_images_are_encoded_to_metas_maps(meta_model):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, encoded = meta_model.forward_image(pixels), meta_model.image_encoder(pixels)
        fine = meta_model.sam_mask_decoder.conv_s0(encoded["backbone_fpn"][0])
        torch.testing.assert_close(output["backbone_fpn"][0], fine)
    assert [level.shape[1:] for level in output["backbone_fpn"]] == [(4, 16, 16), (8, 8, 8), (32, 4, 4)]
    assert [level.shape for level in encoded["backbone_fpn"]] == [(2, 32, 16, 16), (2, 32, 8, 8), (2, 32, 4, 4)]
    assert [level.shape for level in output["vision_pos_enc"]] == [(2, 32, 16, 16), (2, 32, 8, 8), (2, 32, 4, 4)]
    assert output["vision_features"] is output["backbone_fpn"][-1]
    with pytest.raises(NotImplementedError):
        meta_model(pixels)


def test_automatic_masks_are_those_of_the_segmenter(meta_model, sam, image):
    rows = SAM2AutomaticMaskGenerator(meta_model, **FOUND, crop_n_layers=1).generate(image)
    masks = sam.everything(
        image, points_per_side=6, iou_threshold=0.0, stability_threshold=0.0, box_nms=1.0, crop_nms=1.0, crops=1
    )
    assert len(rows) == len(masks) > 3
    for row, mask, score, area in zip(rows, masks.masks, masks.iou_scores, masks.areas, strict=True):
        assert list(row) == [
            "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
        ]  # fmt: skip
        np.testing.assert_array_equal(row["segmentation"], mask)
        assert row["area"] == area
        assert row["predicted_iou"] == pytest.approx(score)
        assert 0 <= row["stability_score"] <= 1
        x, y, width, height = row["bbox"]
        assert mask[y : y + height + 1, x : x + width + 1].sum() == area
        ((point_x, point_y),) = row["point_coords"]
        left, top, crop_width, crop_height = row["crop_box"]
        assert left <= point_x < left + crop_width
        assert top <= point_y < top + crop_height
        cells = np.array([point_x - left, point_y - top]) / [crop_width, crop_height] * 6 - 0.5
        np.testing.assert_allclose(cells, cells.round(), atol=1e-3)  # on the grid


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in pycocotools
@pytest.mark.parametrize("refine", [False, True])
def test_run_lengths_are_the_same_masks(meta_model, image, refine):
    outputs = [
        SAM2AutomaticMaskGenerator(meta_model, **FOUND, output_mode=mode, use_m2m=refine).generate(image)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    ]
    for binary, plain, compressed in zip(*outputs, strict=True):
        np.testing.assert_array_equal(amg.rle_to_mask(plain["segmentation"]), binary["segmentation"])
        np.testing.assert_array_equal(coco_mask.decode(compressed["segmentation"]), binary["segmentation"])
        assert isinstance(compressed["segmentation"]["counts"], str)


def test_points_of_ones_own_one_mask_each_and_a_threshold(meta_model, image):
    grid = np.array([[0.3, 0.4], [0.6, 0.55]])
    arguments = FOUND | {
        "points_per_side": None,
        "point_grids": [grid],
        "multimask_output": False,
        "box_nms_thresh": 2.0,
    }
    rows, wide = (
        SAM2AutomaticMaskGenerator(meta_model, **arguments, mask_threshold=threshold).generate(image)
        for threshold in (0.0, -1000.0)
    )
    size = np.array(image.shape[1::-1])
    found = sorted(tuple(row["point_coords"][0]) for row in rows)
    np.testing.assert_allclose(found, grid * size, atol=1e-4)
    assert [row["area"] for row in wide] == [size.prod()] * 2  # every logit is above it


@pytest.mark.parametrize(
    "arguments",
    [{"output_mode": "png"}, {"point_grids": [np.zeros((1, 2))]}, {"points_per_side": None}, {"points": 3},
     {"pred_iou_thresh": 7}],
)  # fmt: skip
def test_invalid_arguments_of_the_generator_are_refused(meta_model, arguments):
    with pytest.raises(ConfigError):
        SAM2AutomaticMaskGenerator(meta_model, **arguments)


def test_helpers_of_amg():
    generator = np.random.default_rng(0)
    masks = generator.random((3, 7, 5)) > 0.6
    masks[1] = False
    masks[2, 0, 0] = True
    for mask, rle in zip(masks, amg.mask_to_rle_pytorch(torch.from_numpy(masks)), strict=True):
        assert rle["size"] == [7, 5]
        assert sum(rle["counts"]) == 35
        assert amg.area_from_rle(rle) == mask.sum()
        np.testing.assert_array_equal(amg.rle_to_mask(rle), mask)
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert amg.coco_encode_rle(rle)["counts"] == expected["counts"].decode()
    boxes = amg.batched_mask_to_box(torch.from_numpy(masks)[None])
    assert boxes.shape == (1, 3, 4)
    rows, columns = np.nonzero(masks[0])
    assert boxes[0, 0].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert boxes[0, 1].tolist() == [0, 0, 0, 0]
    assert amg.box_xyxy_to_xywh(boxes[0, 0]).tolist()[2:] == [np.ptp(columns), np.ptp(rows)]
    assert [len(grid) for grid in amg.build_all_layer_point_grids(8, 2, 2)] == [64, 16, 4]
    np.testing.assert_allclose(amg.build_point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    crops, layers = amg.generate_crop_boxes((60, 90, 3), 1, 0.0)
    assert crops == [[0, 0, 90, 60], [0, 0, 45, 30], [0, 30, 45, 60], [45, 0, 90, 30], [45, 30, 90, 60]]
    assert layers == [0, 1, 1, 1, 1]
    assert [batch[0] for batch in amg.batch_iterator(2, [1, 2, 3])] == [[1, 2], [3]]
    with pytest.raises(ValueError, match="expected one length"):
        next(amg.batch_iterator(2, [1], [1, 2]))
    assert amg.calculate_stability_score(torch.tensor([[[-2.0, 0.5, 3.0]]]), 0.0, 1.0).tolist() == [0.5]


def test_regions_and_points_of_misc(image):
    mask = np.zeros((12, 12), bool)
    mask[1:9, 1:9] = True
    mask[4, 4] = False
    mask[11, 11] = True
    filled, changed = amg.remove_small_regions(mask, 2, "holes")
    assert changed
    assert filled[4, 4]
    assert not amg.remove_small_regions(mask, 2, "islands")[0][11, 11]
    assert not amg.remove_small_regions(mask, 1, "islands")[1]
    logits = torch.where(torch.from_numpy(mask), 3.0, -3.0)[None, None]
    assert misc.fill_holes_in_mask_scores(logits, 1)[0, 0, 4, 4] > 0
    assert misc.mask_to_box(logits > 0)[0, 0].tolist() == [1, 1, 11, 11]
    first = misc.concat_points(None, torch.zeros(1, 2, 2), torch.ones(1, 2))
    assert misc.concat_points(first, torch.zeros(1, 1, 2), torch.ones(1, 1))["point_labels"].shape == (1, 3)
    frames, height, width = misc.load_video_frames([image, image], 64)
    assert (len(frames), height, width, frames[0].shape) == (2, 48, 80, (3, 64, 64))


def test_options_have_metas_defaults():
    options = EverythingOptions()
    ours = SAM2AutomaticMaskGenerator.__init__.__defaults__
    assert ours[2:6] == (options.iou_threshold, options.stability_threshold, options.stability_offset, 0.0)


@pytest.fixture
def importing_sam2():
    """Forgets the modules that are imported under Meta's names."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "sam2"]:
        del sys.modules[name]


def test_code_that_imports_sam2_finds_these_classes(importing_sam2):
    meta.install()
    meta.install()
    assert importlib.import_module("sam2") is meta
    for name, classes in {
        "build_sam": ["build_sam2", "build_sam2_video_predictor_hf"],
        "sam2_image_predictor": ["SAM2ImagePredictor"],
        "sam2_video_predictor": ["SAM2VideoPredictor"],
        "sam2_camera_predictor": ["SAM2CameraPredictor"],
        "automatic_mask_generator": ["SAM2AutomaticMaskGenerator"],
        "modeling.sam2_base": ["SAM2Base"],
        "utils.amg": ["mask_to_rle_pytorch"],
        "utils.misc": ["load_video_frames"],
        "utils.transforms": ["SAM2Transforms"],
    }.items():
        module = importlib.import_module(f"sam2.{name}")
        assert all(vars(module)[one].__module__.startswith("masklet.compat.sam2.") for one in classes)
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    assert SAM2ImagePredictor.from_pretrained("nano", device="cpu").model.image_size == 512


def test_another_sam2_is_not_replaced(importing_sam2):
    sys.modules["sam2"] = sys
    with pytest.raises(ImportError, match=r"call install\(\) before the first import of sam2"):
        meta.install()
    assert sys.modules["sam2"] is sys
