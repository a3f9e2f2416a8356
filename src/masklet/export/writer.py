"""Exports a model as a folder of ONNX graphs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save

from masklet.atomic import naming, replacing_all, sweep
from masklet.checkpoints.preprocessor import PreprocessorConfig, preprocessor_to_json
from masklet.checkpoints.transformers import config_to_json
from masklet.config import STRIDE, SizeHW
from masklet.errors import CheckpointError, ConfigError
from masklet.export.boxes import with_boxes
from masklet.export.graph_files import TOLERANCE, check_model, largest_difference, shapes_of, trace
from masklet.export.layouts import LAYOUTS, Graph, graphs_of
from masklet.export.manifest import GLUE, MANIFEST, Manifest
from masklet.export.precision import PRECISIONS, in_precision, precision_of, quantized
from masklet.model.fingerprint import fingerprint
from masklet.model.sam2 import Sam2Model
from masklet.numbers import shown, whole_number
from masklet.processing import ImageProcessor, check_input_size
from masklet.segmenter import Segmenter, load
from masklet.version import __version__

MIN_OPSET, MAX_OPSET = 18, 22
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportedGraph:
    """One graph of an export."""

    file: Path
    precision: str
    num_bytes: int
    difference: float | None
    """Greatest difference from torch, relative to the largest value of an output; None if it was not checked."""


def to_onnx(
    model: Segmenter | str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    layout: str = "masklet",
    resolution: int | SizeHW | None = None,
    precision: str = "fp32",
    opset: int = MIN_OPSET,
    check: bool = True,
) -> list[ExportedGraph]:
    """Exports a model as a folder of ONNX graphs. Files of the same names are replaced, all of them or none.

    Args:
        model: A segmenter, or what ``load`` takes: a name, a model folder, a ``.pt`` file, None for the embedded model.
        folder: Output folder; created if missing.
        layout: ``"masklet"`` for images and videos, which ``load(folder, engine="onnx")`` runs without torch;
            ``"transformersjs"``, which transformers.js' ``Sam2Model`` loads; ``"samexporter"``, for X-AnyLabeling,
            AnyLabeling and others that feed its encoder and decoder.
        resolution: Input size of the network instead of the model's own: a side or (height, width), multiples of 32.
        precision: ``"fp32"``; ``"fp16"``, for the image encoder and the memory attention, where errors do not add up
            from frame to frame; ``"int8"``, matrix products with 8-bit weights. Inputs and outputs are float32.
        opset: ONNX opset, from 18 to 22.
        check: Whether to run each graph with onnxruntime on random inputs and compare with torch.

    Returns:
        The graphs.

    Raises:
        ConfigError: An argument is invalid, or the layout does not fit the model.
        CheckpointError: The model cannot be read; the folder cannot be written; a graph differs from torch.
        ModuleNotFoundError: A package of ``pip install masklet[export]`` is missing.
    """
    _check_arguments(layout, precision)
    opset = whole_number("opset", opset, ConfigError)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConfigError(
            f"opset is {opset}: expected {MIN_OPSET} to {MAX_OPSET}. Older ones lack layer normalisation, and newer "
            "ones have fused operators that TensorRT refuses"
        )
    check_packages()
    if resolution is not None:
        check_input_size(resolution)
    sam = model if isinstance(model, Segmenter) else load(model, device="cpu", dtype="float32", engine="eager")
    network = _plain_network(sam.model)
    processor = sam.image_processor if resolution is None else sam.image_processor.with_size(resolution)
    if layout == "transformersjs" and len(set(processor.input_hw)) > 1:
        raise ConfigError(f"resolution is {processor.input_hw}: the layout transformersjs takes squares only")
    if layout == "masklet" and network.config.perceiver is not None:
        network.config.perceiver.check_input(processor.input_hw)
    plans = graphs_of(layout, precision, has_memory=network.config.has_memory)
    with _writing(Path(folder), [plan.file for plan in plans] + _other_files(layout, network)) as files:
        done = [_export(plan, network, processor.input_hw, files[plan.file], precision, opset, check) for plan in plans]
        exported, described = zip(*done, strict=True)
        graphs = {plan.name: text for plan, text in zip(plans, described, strict=True)}
        for name, content in _contents(layout, network, processor, graphs, opset).items():
            files[name].write_bytes(content)
    return [
        ExportedGraph(Path(folder) / plan.file, kind, size, difference)
        for plan, (kind, size, difference) in zip(plans, exported, strict=True)
    ]


def check_packages() -> None:
    """Raises a ModuleNotFoundError if a package of the extra is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"exporting needs {', '.join(missing)}, which is not installed: pip install 'masklet[export]'",
            name=missing[0],
        )


def _check_arguments(layout: Any, precision: Any) -> None:
    for name, value, known in (("layout", layout, LAYOUTS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"{name} is {shown(value)}: expected one of {', '.join(known)}")


def _plain_network(model: Sam2Model) -> Sam2Model:
    """The network in float32 on the CPU; the one that was given does not change."""
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return model
    copied = Sam2Model(model.config)
    copied.load_state_dict({name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()})
    return copied.eval()


def _other_files(layout: str, network: Sam2Model) -> list[str]:
    if layout == "masklet":
        return [MANIFEST, GLUE] if network.config.has_memory else [MANIFEST]
    return ["config.json", "preprocessor_config.json"] if layout == "transformersjs" else []


def _export(
    plan: Graph, network: Sam2Model, input_hw: SizeHW, path: Path, precision: str, opset: int, check: bool
) -> tuple[tuple[str, int, float | None], dict[str, Any]]:
    """Write one graph. Returns what ``ExportedGraph`` holds, and its entry in the manifest."""
    identity = fingerprint(network.config, network.state_dict().values())
    module = plan.build(in_precision(network, precision, takes_half=plan.takes_half), input_hw).eval()
    inputs = plan.example(network, input_hw)
    traced = trace(module, plan, inputs, opset=opset, fingerprint=identity)
    kind = precision_of(precision, takes_half=plan.takes_half)
    graph = quantized(traced) if kind == "int8" else traced
    difference = None
    if check:
        module = module if kind == "fp32" else plan.build(network, input_hw).eval()
        difference = largest_difference(graph, module, inputs)
        if kind == "fp32" and not difference <= TOLERANCE:
            raise CheckpointError(
                f"{plan.file} differs from torch by {difference:.1e} of its largest value: expected {TOLERANCE:.0e} at "
                "most. Please report it, with the model and the versions of torch and onnxruntime"
            )
    graph = with_boxes(graph, opset=opset) if plan.takes_boxes else graph
    check_model(graph, plan.file, opset)
    content = graph.SerializeToString()
    path.write_bytes(content)
    described = {"file": plan.file, "precision": kind, "bytes": len(content), **shapes_of(graph)}
    return (kind, len(content), difference), described


def _contents(
    layout: str, network: Sam2Model, processor: ImageProcessor, graphs: Mapping[str, Any], opset: int
) -> dict[str, bytes]:
    """The files beside the graphs."""
    if layout == "samexporter":
        return {}
    if layout == "transformersjs":
        return _transformersjs_files(network, processor.config)
    config = network.config
    manifest = Manifest(
        masklet=__version__,
        fingerprint=fingerprint(config, network.state_dict().values()),
        input_hw=processor.input_hw,
        image_mean=processor.config.image_mean,
        image_std=processor.config.image_std,
        rescale_factor=processor.config.rescale_factor,
        hidden_size=config.hidden_size,
        memory_channels=config.memory_encoder.output_channels,
        memory_tokens=config.tokens_per_memory((processor.input_hw[0] // STRIDE, processor.input_hw[1] // STRIDE)),
        rounds_memory=not config.is_edgetam,
        num_maskmem=config.num_maskmem,
        has_memory=config.has_memory,
        replaces_unstable=config.mask_decoder.dynamic_multimask_via_stability,
        everything=asdict(config.everything),
        opset=opset,
        graphs=graphs,
    )
    contents = {MANIFEST: manifest.text().encode()}
    if config.has_memory:
        weights = network.mask_downsample.state_dict().items()
        contents[GLUE] = save({f"mask_downsample.{name}": weight.detach().numpy() for name, weight in weights})
    return contents


def _transformersjs_files(network: Sam2Model, processor: PreprocessorConfig) -> dict[str, bytes]:
    """The settings that transformers.js reads: of the image half of the network."""
    config = replace(network.config, has_memory=False, image_size=processor.input_hw[0])
    settings = preprocessor_to_json(processor, processor_class="Sam2Processor")
    files = {"config.json": config_to_json(config), "preprocessor_config.json": settings}
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}


@contextmanager
def _writing(folder: Path, files: list[str]) -> Iterator[dict[str, Path]]:
    """Paths to write the files of a folder to: all take their places at the end, or none and no new folder is left."""
    is_new = not folder.exists()
    with naming(folder, CheckpointError):
        try:
            if not is_new:
                sweep(folder)
            with replacing_all(*(folder / name for name in files)) as unfinished:
                yield dict(zip(files, unfinished, strict=True))
        except BaseException:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
