"""Traces modules to ONNX graphs, and checks them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from masklet.errors import CheckpointError
from masklet.export.layouts import Graph, Inputs
from masklet.export.manifest import FINGERPRINT_KEY

FORBIDDEN = ("If", "Loop", "Attention", "RotaryEmbedding", "RMSNormalization")
"""Operators that runtimes refuse: onnxruntime-web has no If, TensorRT no fused operators of opset 23."""
FOLDED_ELEMENTS = 2**26
"""Constants of up to so many elements are computed while exporting."""
TOLERANCE = 1e-4
"""Greatest difference of a float32 graph from torch, relative to the largest value of each output."""


def trace(module: nn.Module, graph: Graph, inputs: Inputs, *, opset: int, fingerprint: str) -> Any:
    """The module as an ONNX model.

    Args:
        module: A module in evaluation mode.
        graph: Names and axes.
        inputs: An example, by name.
        opset: Opset of the operators.
        fingerprint: Fingerprint of the network, stored in the metadata.

    Raises:
        CheckpointError: The model is not valid ONNX, or contains operators that runtimes refuse.
    """
    import onnx
    from onnxscript import optimizer

    axes = [dict.fromkeys(graph.dynamic.get(name, ()), torch.export.Dim.DYNAMIC) for name in inputs]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple(axes),
            input_names=list(inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
        assert program is not None
        optimizer.optimize(program.model, input_size_limit=FOLDED_ELEMENTS, output_size_limit=FOLDED_ELEMENTS)
    model = program.model_proto
    model.producer_name = "masklet"
    del model.metadata_props[:]
    _without_traces(model.graph)
    onnx.helper.set_model_props(model, {FINGERPRINT_KEY: fingerprint})
    return model


def check_model(model: Any, name: str, opset: int) -> None:
    """Raise a CheckpointError unless this is valid ONNX that common runtimes take."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckpointError(f"{name} is not valid ONNX: {error}") from error
    found = {node.op_type for node in model.graph.node}
    if refused := sorted(found & set(FORBIDDEN)):
        raise CheckpointError(f"{name} holds {', '.join(refused)}, which common runtimes refuse")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != opset:
        raise CheckpointError(f"{name} needs opset {versions.get('')}: expected {opset}")


def largest_difference(model: Any, module: nn.Module, inputs: Inputs) -> float:
    """The greatest difference between onnxruntime and torch, relative to the largest value of each output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    given = {name: value.numpy() for name, value in inputs.items()}
    found = session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})
    return max(
        float(np.abs(ours - theirs.numpy()).max() / max(np.abs(theirs.numpy()).max(), 1e-12))
        for ours, theirs in zip(found, expected, strict=True)
    )


def shapes_of(model: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """The types and shapes of inputs and outputs; axes of any length are named."""
    import onnx

    def described(values: Any) -> dict[str, dict[str, Any]]:
        return {
            value.name: {
                "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        }

    return {"inputs": described(model.graph.input), "outputs": described(model.graph.output)}


def _without_traces(graph: Any) -> None:
    """Remove the stack traces that torch stores in nodes: they name folders of this machine."""
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices of torch's exporter, which concern its own code."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
