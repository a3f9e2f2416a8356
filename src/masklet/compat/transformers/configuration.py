"""Configurations: nested, mutable and saved as ``config.json``, as in transformers.

They hold whatever they are given. What a network is built from is ``masklet.config.Sam2Config``, which a model makes of
its configuration and which refuses what this package cannot build.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from masklet import checkpoints, config
from masklet.checkpoints import HubOptions
from masklet.checkpoints.transformers import config_from_json, config_to_json
from masklet.compat.transformers.settings import json_text
from masklet.errors import CheckpointError, ConfigError

Config = TypeVar("Config", bound="PreTrainedConfig")

_DEFAULTS = config_to_json(config.Sam2Config())


class PreTrainedConfig:
    """Settings by attribute. Subclasses name their defaults and the sections that are configurations themselves.

    Args:
        kwargs: Settings; those that are not given have the defaults of SAM 2.1 tiny. Other names are kept and saved,
            as in transformers, and have no effect.
    """

    model_type: ClassVar[str] = ""
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        self.architectures: list[str] | None = None
        self.dtype: Any = None
        self.name_or_path = ""
        self.return_dict = True
        self.output_attentions = False
        self.output_hidden_states = False
        self._attn_implementation = kwargs.pop("attn_implementation", "sdpa")
        for name, value in {**self.defaults, **kwargs}.items():
            if name != "model_type":
                setattr(self, name, copy.deepcopy(value))
        for name, kind in self.sub_configs.items():
            section = getattr(self, name, None)
            if not isinstance(section, PreTrainedConfig):
                setattr(self, name, kind(**(section or {})))

    @property
    def torch_dtype(self) -> Any:
        """The older name of ``dtype``."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    @property
    def use_return_dict(self) -> bool:
        """The older name of ``return_dict``."""
        return self.return_dict

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreTrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        content: dict[str, Any] = {"model_type": self.model_type} if self.model_type else {}
        for name, value in vars(self).items():
            if (
                name in _UNSAVED
                or name.startswith("_")
                or (name in _UNSAVED_AT_REST and value == _UNSAVED_AT_REST[name])
            ):
                continue
            if isinstance(value, PreTrainedConfig):
                value = value.to_dict()
            elif isinstance(value, torch.dtype):
                value = str(value).removeprefix("torch.")
            content[name] = copy.deepcopy(value)
        return content

    to_diff_dict = to_dict

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of ``config.json``. ``use_diff`` is ignored: every setting is written."""
        return json_text(self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes ``config.json``."""
        checkpoints.write_text(Path(json_file_path), self.to_json_string())

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets several settings."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls: type[Config], config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """The configuration of a ``config.json``'s content; keyword arguments that it knows override it.

        Args:
            config_dict: The content.
            kwargs: Settings; ``return_unused_kwargs=True`` returns (configuration, those that it does not know).
        """
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        made = cls(**{name: value for name, value in config_dict.items() if name != "transformers_version"})
        known = {name: kwargs.pop(name) for name in list(kwargs) if hasattr(made, name)}
        for name, value in known.items():
            is_section = name in cls.sub_configs and isinstance(value, Mapping)
            setattr(made, name, cls.sub_configs[name](**value) if is_section else value)
        return (made, kwargs) if returns_unused else made

    @classmethod
    def from_json_file(cls: type[Config], json_file: str | os.PathLike[str]) -> Config:
        """The configuration of a file."""
        return cls.from_dict(checkpoints.read_json(Path(json_file)))

    @classmethod
    def from_pretrained(cls: type[Config], pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The configuration of a model; keyword arguments as in ``Sam2Model.from_pretrained`` and ``from_dict``."""
        hub = HubOptions.taken_from(kwargs)
        content = checkpoints.read_config(pretrained_model_name_or_path, hub)
        return cls.from_dict(section_of(content, cls), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes ``config.json`` into a folder, and uploads it if asked: see ``Sam2Model.save_pretrained``."""
        self.to_json_file(Path(save_directory) / checkpoints.CONFIG)
        if push_to_hub:
            checkpoints.push_folder(save_directory, [checkpoints.CONFIG], **kwargs)


_UNSAVED = ("name_or_path",)
_UNSAVED_AT_REST = {
    "architectures": None,
    "dtype": None,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Settings that are written only where they differ from these."""


def section_of(content: dict[str, Any], kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """The part of a ``config.json`` that a configuration is of: all of it, or a section."""
    if content.get("model_type") == kind.model_type:
        return content
    if kind.sub_configs and kind.sub_configs.keys() <= content.keys():  # the image half of a model of videos
        return {name: content[name] for name in (*kind.sub_configs, "everything", "dtype") if name in content}
    for value in content.values():
        if isinstance(value, dict) and (found := section_of(value, kind)) is not value:
            return found
        if isinstance(value, dict) and value.get("model_type") == kind.model_type:
            return value
    return content


class Sam2HieraDetConfig(PreTrainedConfig):
    """The trunk of the image encoder. Pairs, such as ``patch_stride``, may be one number."""

    model_type = "sam2_hiera_det_model"
    defaults = _DEFAULTS["vision_config"]["backbone_config"]


class Sam2VisionConfig(PreTrainedConfig):
    """The image encoder: ``backbone_config``, and the feature pyramid."""

    model_type = "sam2_vision_model"
    defaults = {k: v for k, v in _DEFAULTS["vision_config"].items() if k != "backbone_config"}
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"backbone_config": Sam2HieraDetConfig}


class Sam2PromptEncoderConfig(PreTrainedConfig):
    """The prompt encoder; its ``image_size`` is the side of the network's input."""

    model_type = "sam2_prompt_encoder"
    defaults = _DEFAULTS["prompt_encoder_config"]


class Sam2MaskDecoderConfig(PreTrainedConfig):
    """The mask decoder."""

    model_type = "sam2_mask_decoder"
    defaults = _DEFAULTS["mask_decoder_config"]


class Sam2Config(PreTrainedConfig):
    """The image half of a SAM 2.

    Args:
        vision_config: ``Sam2VisionConfig``, or a dict of its settings.
        prompt_encoder_config: ``Sam2PromptEncoderConfig``, or a dict of its settings.
        mask_decoder_config: ``Sam2MaskDecoderConfig``, or a dict of its settings.
        kwargs: Further settings.

    Raises:
        ConfigError: A setting is one of ``masklet.config.Sam2Config``, which would have no effect here.
    """

    model_type = "sam2"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": Sam2VisionConfig,
        "prompt_encoder_config": Sam2PromptEncoderConfig,
        "mask_decoder_config": Sam2MaskDecoderConfig,
    }
    vision_config: Any
    prompt_encoder_config: Any
    mask_decoder_config: Any

    def __init__(
        self,
        vision_config: Any = None,
        prompt_encoder_config: Any = None,
        mask_decoder_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if self.model_type == "sam2" and (plain := sorted(_PLAIN_FIELDS & kwargs.keys())):
            raise ConfigError(
                f"{plain[0]} is a setting of masklet.config.Sam2Config: expected it in vision_config, "
                "prompt_encoder_config or mask_decoder_config, or import that class"
            )
        super().__init__(
            vision_config=vision_config,
            prompt_encoder_config=prompt_encoder_config,
            mask_decoder_config=mask_decoder_config,
            **kwargs,
        )


_PLAIN_FIELDS = {field.name for field in fields(config.Sam2Config)} - {"everything"}


def network_config(model_config: PreTrainedConfig, *, has_memory: bool) -> config.Sam2Config:
    """The numbers of the network that a configuration asks for.

    Raises:
        ConfigError: It asks for a network that this package cannot build; the error names the setting.
    """
    try:
        return config_from_json(model_config.to_dict(), has_memory=has_memory, where=type(model_config).__name__)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
