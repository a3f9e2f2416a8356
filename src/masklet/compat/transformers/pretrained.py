"""What the drop-in models have in common: loading, saving, and the plain network under their names."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from masklet import checkpoints
from masklet.checkpoints import HubOptions
from masklet.checkpoints.transformers import config_to_json
from masklet.checkpoints.weights import read_weights
from masklet.compat.transformers.configuration import PreTrainedConfig, section_of
from masklet.config import Sam2Config as NetworkConfig
from masklet.errors import CheckpointError, ConfigError
from masklet.model.layers import KeepsFloat32

Network = TypeVar("Network", bound=nn.Module)
Model = TypeVar("Model", bound="Sam2PreTrainedModel")

_logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = ("trust_remote_code", "low_cpu_mem_usage", "proxies", "weights_only")
_OF_AUTO_CLASSES = ("_from_auto", "_commit_hash", "_from_pipeline", "adapter_kwargs")
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_VIDEO_TENSORS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "object_pointer_proj.",
    "no_memory_positional_encoding.",
    "memory_temporal_positional_encoding.",
    "no_object_pointer.",
    "occlusion_spatial_embedding_parameter.",
    "temporal_positional_encoding_projection_layer.",
    "spatial_perceiver.",
)
"""Weights that only videos need: image models leave them out."""


def shared_as(kind: type[Network], module: nn.Module, **values: Any) -> Network:
    """A module of another class with the same parameters, submodules and hooks.

    Args:
        kind: The class.
        module: What is shared.
        values: Further attributes.
    """
    shared = kind.__new__(kind)
    shared.__dict__.update(module.__dict__, **values)
    return shared


class Sam2PreTrainedModel(KeepsFloat32):
    """A model whose modules are those of a plain network of ``masklet.model``, under the same names.

    Norms and position tables stay in float32 when a model is cast to a narrower type.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    base_model_prefix = "sam2"
    main_input_name = "pixel_values"
    weights_prefix: ClassVar[str] = ""
    """What precedes the names of its weights in the folder of a whole SAM 2."""
    ignored_weights: ClassVar[tuple[str, ...]] = _VIDEO_TENSORS

    config: Any
    network_config: NetworkConfig
    """The numbers of the plain network."""

    # The plain network

    def _adopt(self, network: nn.Module) -> None:
        """Takes the modules, parameters and buffers of a plain network, but for those that it leaves out."""
        for kind in ("_modules", "_parameters", "_buffers"):
            parts = getattr(network, kind).items()
            getattr(self, kind).update((n, part) for n, part in parts if not f"{n}.".startswith(self.ignored_weights))

    def _viewed_as(
        self, kind: type[Network], *, modules: Mapping[str, nn.Module] | None = None, **values: Any
    ) -> Network:
        """Its own modules and parameters as a plain network. What is trained, moved or replaced here is what runs.

        The view is recreated each time, which takes microseconds, so that it is right after any change, copy or move.

        Args:
            kind: Class of the plain network.
            modules: Submodules to view in another way.
            values: Further attributes of the network.
        """
        view = kind.__new__(kind)
        nn.Module.__init__(view)
        view.__dict__.update(values)
        view.__dict__.update(
            _modules={**self._modules, **(modules or {})},
            _parameters=self._parameters,
            _buffers=self._buffers,
            training=self.training,
        )
        return view

    # Questions

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, except for norms and position tables, which are never narrower than float32."""
        return self.get_input_embeddings().projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def get_input_embeddings(self) -> Any:
        """The module that embeds patches."""
        raise NotImplementedError(f"{type(self).__name__} embeds no patches")

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers are learned; without those of ``nn.Embedding`` if asked."""
        left_out = {
            id(p) for m in self.modules() if exclude_embeddings and isinstance(m, nn.Embedding) for p in m.parameters()
        }
        counted = (p for p in self.parameters() if id(p) not in left_out and (p.requires_grad or not only_trainable))
        return sum(p.numel() for p in counted)

    def can_generate(self) -> bool:
        """Whether it writes text: no."""
        return False

    def _wants(self, name: str, given: bool | None) -> bool:
        """A switch of ``forward``, or else of the configuration."""
        return bool(getattr(self.config, name, False) if given is None else given)

    # Loading and saving

    @classmethod
    def _from_config(cls: type[Model], config: Any, **kwargs: Any) -> Model:
        """A model with random weights, as ``AutoModel.from_config`` asks for it."""
        dtype = _read_dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)))
        _check_attention(kwargs.pop("attn_implementation", None))
        model = cls(config, **kwargs)
        return model if dtype is None else model.to(dtype)

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Loads a model, ready for inference; its parameters can be trained after ``train()``.

        Args:
            pretrained_model_name_or_path: A name of ``masklet.load``, a Hub repository, a model folder, or one of
                Meta's ``.pt`` files.
            kwargs: As in transformers. ``dtype`` (``torch_dtype``): a type, its name, or ``"auto"``, the default, for
                that of the folder, or float32 for the embedded model. ``device_map``: a device, or ``"auto"`` for CUDA
                if there is one. ``config``: in place of the folder's. ``revision``, ``token``, ``cache_dir``,
                ``local_files_only``, ``force_download``, ``subfolder``: where the files are. ``use_safetensors``: True
                for safetensors only, False for ``pytorch_model.bin`` only. ``ignore_mismatched_sizes``: weights of
                another shape keep random values. ``output_loading_info``: returns (model, dict of missing, unexpected
                and mismatched names), and accepts missing weights, which keep random values. ``attn_implementation``:
                any of transformers' names; PyTorch chooses the kernel in any case. Settings of the configuration
                override it. ``resolution``: the side of the input that the weights were trained at, where the folder
                says otherwise. ``trust_remote_code`` and ``low_cpu_mem_usage`` are accepted and have no effect: no
                remote code is run, and memory is low always.

        Raises:
            CheckpointError: The checkpoint cannot be found, is damaged, or does not fit the configuration.
            ConfigError: The configuration asks for a network that this package cannot build.
            TypeError: A keyword argument is unknown.
        """
        hub = HubOptions.taken_from(kwargs)
        for name in (*_WITHOUT_EFFECT, *_OF_AUTO_CLASSES):
            kwargs.pop(name, None)
        config, use_safetensors = kwargs.pop("config", None), kwargs.pop("use_safetensors", None)
        dtype = _read_dtype(kwargs.pop("torch_dtype", kwargs.pop("dtype", None)))
        device = _read_device(kwargs.pop("device_map", None))
        attention = _check_attention(kwargs.pop("attn_implementation", None))
        returns_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        resolution = kwargs.pop("resolution", None)

        family = cls.config_class.model_type.split("_")[0]
        content, tensors = _read(pretrained_model_name_or_path, hub, use_safetensors, family)
        config, unused = _make_config(cls.config_class, config, content, hub, kwargs)
        if unused:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no argument {', '.join(unused)}")
        config.name_or_path = os.fspath(pretrained_model_name_or_path)
        config._attn_implementation = attention or config._attn_implementation
        if resolution is not None:
            cls._set_resolution(config, resolution)
        model, info = cls._with_tensors(config, tensors, may_differ=may_differ, may_miss=returns_info)
        stored = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
        if os.fspath(pretrained_model_name_or_path) == checkpoints.EMBEDDED:
            stored = torch.float32  # its file is narrow to be small
        model.config.dtype = dtype or stored
        model = model.to(device, dtype or stored).eval()
        return (model, info) if returns_info else model

    @classmethod
    def _set_resolution(cls, config: Any, side: int) -> None:
        raise TypeError(f"{cls.__name__}.from_pretrained takes no argument resolution")

    @classmethod
    def _with_tensors(
        cls: type[Model], config: Any, tensors: Mapping[str, Tensor], *, may_differ: bool, may_miss: bool
    ) -> tuple[Model, dict[str, Any]]:
        """A float32 model with these weights, and what did not fit."""
        with torch.device("meta"):  # spends no time on initial weights
            model = cls(config)
        expected = model.state_dict()
        tensors = _own_tensors(cls, tensors, expected)
        differing = {n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape}
        info: dict[str, Any] = {
            "missing_keys": expected.keys() - tensors.keys(),
            "unexpected_keys": {
                n for n in tensors.keys() - expected.keys() if not f"{n}.".startswith(cls.ignored_weights)
            },
            "mismatched_keys": {(n, tensors[n].shape, expected[n].shape) for n in differing},
            "error_msgs": [],
        }
        fitting = {
            n: t.float() if t.is_floating_point() else t
            for n, t in tensors.items()
            if n in expected and n not in differing
        }
        if (differing and not may_differ) or (info["missing_keys"] and not may_miss):
            known = {n: t for n, t in tensors.items() if n in expected}
            checkpoints.check_tensors(known, {n: tuple(t.shape) for n, t in expected.items()})
        if info["unexpected_keys"]:
            names = ", ".join(sorted(info["unexpected_keys"])[:3])
            _logger.warning("%s does not use %d weights: %s", cls.__name__, len(info["unexpected_keys"]), names)
        if len(fitting) < len(expected):
            model = cls(config)  # with initial weights for the rest
        model.load_state_dict(fitting, strict=False, assign=True)
        return model, info

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = "50GB",
        safe_serialization: bool = True,
        *,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a model folder that masklet and transformers load. An existing one is replaced whole, or not at all.

        Settings of a processor are written as well, unless the folder has some.

        Args:
            save_directory: Output folder; created if missing.
            is_main_process: False writes nothing: for all but one of several processes.
            state_dict: Weights to write in place of its own.
            push_to_hub: Whether to upload the folder afterwards, with ``repo_id``, ``token``, ``private``,
                ``commit_message``, ``revision`` and ``create_pr`` among ``kwargs``.
            max_shard_size: Bytes of a file of weights, or a text such as ``"5GB"``.
            safe_serialization: False writes ``pytorch_model.bin`` in place of ``model.safetensors``.
            dtype: Type of the stored weights; that of the model if None.
            kwargs: Arguments for ``push_to_hub``.

        Raises:
            CheckpointError: The folder cannot be written.
            TypeError: ``kwargs`` came without ``push_to_hub``.
        """
        if kwargs and not push_to_hub:
            raise TypeError(f"save_pretrained takes {', '.join(kwargs)} with push_to_hub=True only")
        if not is_main_process:
            return
        stored = dtype or self.dtype
        content = self.config.to_dict() | {
            "architectures": [type(self).__name__],
            "dtype": str(stored).removeprefix("torch."),
        }
        written = checkpoints.write(
            save_directory,
            self.network_config,
            self.state_dict() if state_dict is None else state_dict,
            dtype=stored,
            content=content,
            safe=safe_serialization,
            max_shard_size=max_shard_size,
            replaces_preprocessor=False,
        )
        if push_to_hub:
            checkpoints.push_folder(save_directory, written, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Saves the model to a temporary folder and uploads it. Returns the address of the commit.

        Args:
            repo_id: ``owner/name``; made if it does not exist.
            kwargs: ``token``, ``private``, ``commit_message``, ``revision``, ``create_pr``; and ``max_shard_size``,
                ``safe_serialization``, ``dtype`` as in ``save_pretrained``.
        """
        for_saving = {k: kwargs.pop(k) for k in ("max_shard_size", "safe_serialization", "dtype") if k in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **for_saving)
            names = sorted(path.name for path in Path(folder).iterdir())
            return checkpoints.push_folder(folder, names, repo_id=repo_id, **kwargs)


def _read(
    name_or_path: str | os.PathLike[str], hub: HubOptions, use_safetensors: bool | None, family: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of ``config.json``, and the weights."""
    if (path := checkpoints.meta_file(name_or_path, hub)) is not None:
        config, tensors = checkpoints.read_file(path)
        content = config_to_json(config)
    else:
        content = checkpoints.read_config(name_or_path, hub)
        tensors = {}
    if not str(content.get("model_type")).startswith(family):
        raise CheckpointError(
            f"{name_or_path} describes a model of type {content.get('model_type')!r}: expected {family} or "
            f"{family}_video"
        )
    return content, tensors or read_weights(name_or_path, hub, use_safetensors=use_safetensors)


def _make_config(
    kind: type[PreTrainedConfig], given: Any, content: dict[str, Any], hub: HubOptions, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The configuration, and the keyword arguments that are none of its settings."""
    if isinstance(given, PreTrainedConfig):
        return given, kwargs
    if given is not None:
        content = checkpoints.read_config(given, hub)
    return kind.from_dict(section_of(content, kind), return_unused_kwargs=True, **kwargs)


def _own_tensors(
    kind: type[Sam2PreTrainedModel], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The weights of a part, from those of a whole SAM 2; other weights as they are."""
    prefix = kind.weights_prefix
    if not prefix or expected.keys() & tensors.keys():
        return tensors
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _read_dtype(dtype: Any) -> torch.dtype | None:
    """A type, from its name too; None for that of the folder."""
    if dtype in (None, "auto"):
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype is {dtype!r}: expected a floating-point type such as torch.bfloat16, or 'auto'")
    return found


def _read_device(device_map: Any) -> torch.device | None:
    """The one device of a ``device_map``; None leaves the model on the CPU."""
    if isinstance(device_map, Mapping):
        if len(set(map(str, device_map.values()))) != 1:
            raise ConfigError(f"device_map is {device_map!r}: expected one device, since the model is not split")
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return None if device_map is None else torch.device(device_map)


def _check_attention(name: str | None) -> str | None:
    if name is not None and name not in _ATTENTIONS:
        raise ValueError(f"attn_implementation is {name!r}: expected one of {', '.join(_ATTENTIONS)}")
    return name
