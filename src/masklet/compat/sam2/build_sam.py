"""Builders: networks and video predictors from the names of Meta's configurations, without Hydra."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from masklet import checkpoints
from masklet.checkpoints.meta import META_SIZES, released_config
from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.sam2_camera_predictor import SAM2CameraPredictor
from masklet.compat.sam2.sam2_video_predictor import SAM2VideoPredictor
from masklet.config import Sam2Config, edgetam_config
from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.segmenter import check_resolution, find_device

_CONFIG_FILE = re.compile(r"(?:.*/)?sam2(?P<v>\.1)?_hiera_(?P<size>t|s|b\+|l|tiny|small|base_plus|large)(?:\.yaml)?")
_EDGETAM_FILE = re.compile(r"(?:.*/)?edgetam(?:\.yaml)?")
_SIZES = dict(zip("tsbl", META_SIZES, strict=True))  # channels and blocks, by the first letter
FILL_HOLE_AREA = 8
"""Holes up to this many low-resolution pixels are filled in videos, unless post-processing is off."""


@dataclass
class Overrides:
    """What ``hydra_overrides_extra`` may change."""

    image_size: int | None = None
    dynamic_multimask: bool | None = None
    fill_hole_area: int | None = None
    max_prompted: int | None = None
    corrections_are_kept: bool = True
    non_overlap_masks: bool = False


def build_sam2(
    config_file: str | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> SAM2Base:
    """A network for ``SAM2ImagePredictor``, ``SAM2AutomaticMaskGenerator`` or training.

    Args:
        config_file: The name of one of Meta's configurations, such as ``configs/sam2.1/sam2.1_hiera_t.yaml``, of which
            only the size and the version matter, or ``configs/edgetam.yaml``. None: determined by the checkpoint.
        ckpt_path: One of Meta's ``.pt`` files, a model folder, or a name that ``masklet.load`` takes; None for a
            network with random weights.
        device: None is CUDA, then MPS, then the CPU. Meta's default is CUDA.
        mode: ``"eval"``, or ``"train"``.
        hydra_overrides_extra: Such as ``"++model.image_size=512"``; see ``read_overrides``.
        apply_postprocessing: Whether an unstable single mask is replaced by the best of three, as in Meta's demo.
        kwargs: Refused by name.

    Raises:
        CheckpointError: The checkpoint cannot be read, or has another size than the configuration.
        ConfigError: The configuration or an override is unknown.
        DeviceError: The device is not there.
    """
    overrides = read_overrides(hydra_overrides_extra)
    return SAM2Base(*_parts(config_file, ckpt_path, device, mode, overrides, apply_postprocessing, kwargs))


def build_sam2_video_predictor(
    config_file: str | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """A predictor for videos. Arguments are those of ``build_sam2``.

    Args:
        config_file: As in ``build_sam2``.
        ckpt_path: As in ``build_sam2``.
        device: As in ``build_sam2``.
        mode: As in ``build_sam2``.
        hydra_overrides_extra: As in ``build_sam2``.
        apply_postprocessing: Also fills small holes.
        vos_optimized: Ignored: it compiles Meta's network.
        kwargs: Refused by name.
    """
    overrides = read_overrides(hydra_overrides_extra)
    parts = _parts(config_file, ckpt_path, device, mode, overrides, apply_postprocessing, kwargs)
    return SAM2VideoPredictor(*parts, **_tracking_options(overrides, apply_postprocessing))


def build_sam2_camera_predictor(
    config_file: str | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> SAM2CameraPredictor:
    """A predictor for frames as they arrive, as forks for live video offer it. Arguments as in ``build_sam2``."""
    overrides = read_overrides(hydra_overrides_extra)
    parts = _parts(config_file, ckpt_path, device, mode, overrides, apply_postprocessing, kwargs)
    return SAM2CameraPredictor(*parts, **_tracking_options(overrides, apply_postprocessing))


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2Base:
    """As ``build_sam2`` for a Hub repository, such as ``facebook/sam2.1-hiera-tiny``."""
    return build_sam2(None, model_id, **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """As ``build_sam2_video_predictor`` for a Hub repository."""
    return build_sam2_video_predictor(None, model_id, **kwargs)


def read_overrides(texts: Sequence[str]) -> Overrides:
    """Reads Hydra overrides, ``++model.name=value``.

    Known are ``image_size``, ``fill_hole_area``, ``max_cond_frames_in_attn`` (-1: all), ``non_overlap_masks``,
    ``add_all_frames_to_correct_as_cond`` (False: corrections of tracked frames are lost when tracking starts again, as
    in Meta's predictor), ``sam_mask_decoder_extra_args.dynamic_multimask_via_stability``; and, where only one value is
    possible, ``memory_temporal_stride_for_eval=1``. Options for compilation are ignored.

    Raises:
        ConfigError: An override is unknown or has an impossible value.
    """
    found = Overrides()
    for text in texts:
        name, equals, value = text.lstrip("+").partition("=")
        name = name.removeprefix("model.")
        if not equals or name not in _READERS:
            known = ", ".join(_READERS)
            raise ConfigError(f"override {text!r} is unknown: expected ++model.NAME=VALUE, with one of {known}")
        try:
            _READERS[name](found, value)
        except ValueError as error:
            raise ConfigError(f"override {text!r} has an impossible value: {error}") from error
    return found


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return value.lower() == "true"


def _setter(field: str, read: Callable[[str], Any]) -> Callable[[Overrides, str], None]:
    return lambda overrides, value: setattr(overrides, field, read(value))


def _only(*possible: str) -> Callable[[Overrides, str], None]:
    def check(_: Overrides, value: str) -> None:
        if value.lower() not in possible:
            raise ValueError(f"expected {' or '.join(possible)}")

    return check


def _ignore(_: Overrides, value: str) -> None:
    """For options of compilation, which change no result."""


_READERS: dict[str, Callable[[Overrides, str], None]] = {
    "image_size": _setter("image_size", int),
    "fill_hole_area": _setter("fill_hole_area", int),
    "max_cond_frames_in_attn": _setter("max_prompted", lambda value: None if int(value) < 0 else int(value)),
    "non_overlap_masks": _setter("non_overlap_masks", _flag),
    "add_all_frames_to_correct_as_cond": _setter("corrections_are_kept", _flag),
    "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": _setter("dynamic_multimask", _flag),
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": _only("0.05"),
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": _only("0.98"),
    "binarize_mask_from_pts_for_mem_enc": _only("true"),
    "memory_temporal_stride_for_eval": _only("1"),
    "clear_non_cond_mem_around_input": _only("false"),
    "compile_image_encoder": _ignore,
    "vos_optimized": _ignore,
}


def _parts(
    config_file: str | None,
    ckpt_path: str | os.PathLike[str] | None,
    device: str | torch.device | None,
    mode: str,
    overrides: Overrides,
    apply_postprocessing: bool,
    kwargs: dict[str, Any],
) -> tuple[Sam2Model, ImageProcessor]:
    """A network, and how images are prepared for it."""
    if kwargs:
        raise ConfigError(f"no argument {', '.join(kwargs)}: expected those of build_sam2")
    if mode not in ("eval", "train"):
        raise ConfigError(f"mode is {mode!r}: expected eval or train")
    check_resolution(overrides.image_size)
    place = find_device("auto" if device is None else device)
    if ckpt_path is None:
        network = Sam2Model(_with_options(named_config(config_file), overrides, apply_postprocessing))
        processor = ImageProcessor(network.config.image_size)
    else:
        config, tensors = checkpoints.read(ckpt_path)
        if config_file is not None:
            _check_size(config, named_config(config_file), config_file, ckpt_path)
        network = Sam2Model.from_tensors(_with_options(config, overrides, apply_postprocessing), tensors)
        processor = ImageProcessor.from_pretrained(ckpt_path)
        if overrides.image_size is not None:
            processor = processor.with_size(overrides.image_size)
    return network.to(place).requires_grad_(True).train(mode == "train"), processor


def _tracking_options(overrides: Overrides, apply_postprocessing: bool) -> dict[str, Any]:
    """What ``TrackingPredictor`` takes beside the network."""
    filled = FILL_HOLE_AREA if apply_postprocessing else 0
    return {
        "fill_hole_area": filled if overrides.fill_hole_area is None else overrides.fill_hole_area,
        "max_prompted": overrides.max_prompted,
        "corrections_are_kept": overrides.corrections_are_kept,
        "non_overlap_masks": overrides.non_overlap_masks,
    }


def named_config(config_file: str | None) -> Sam2Config:
    """The configuration that one of Meta's names stands for.

    Raises:
        ConfigError: The name is unknown.
    """
    if _EDGETAM_FILE.fullmatch(config_file or ""):
        return edgetam_config()
    match = _CONFIG_FILE.fullmatch(config_file or "")
    if match is None:
        raise ConfigError(
            f"config_file is {config_file!r}: expected one of Meta's, such as configs/sam2.1/sam2.1_hiera_t.yaml, with "
            "t, s, b+ or l; configs/edgetam.yaml; or None with a checkpoint"
        )
    return released_config(*_SIZES[match["size"][0]], is_v2_1=match["v"] is not None)


def _with_options(config: Sam2Config, overrides: Overrides, apply_postprocessing: bool) -> Sam2Config:
    dynamic = apply_postprocessing if overrides.dynamic_multimask is None else overrides.dynamic_multimask
    decoder = replace(config.mask_decoder, dynamic_multimask_via_stability=dynamic)
    return replace(config, mask_decoder=decoder, image_size=overrides.image_size or config.image_size)


def _check_size(config: Sam2Config, named: Sam2Config, config_file: str, path: str | os.PathLike[str]) -> None:
    sizes = [(c.image_encoder.embed_dim_per_stage[0], c.image_encoder.blocks_per_stage) for c in (config, named)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{path} has {sizes[0][0]} channels and {sizes[0][1]} blocks per stage, but {config_file} stands for "
            f"{sizes[1]}: expected the configuration of the checkpoint, or config_file=None"
        )
