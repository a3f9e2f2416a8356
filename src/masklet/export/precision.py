"""Graphs in other precisions than float32."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from masklet.model.sam2 import Sam2Model

PRECISIONS = ("fp32", "fp16", "int8")


def in_precision(model: Sam2Model, precision: str, *, takes_half: bool) -> Sam2Model:
    """The network to trace: a copy in float16 where that was asked for and is allowed."""
    if precision == "fp16" and takes_half:
        return copy.deepcopy(model).to(torch.float16)
    return model


def precision_of(precision: str, *, takes_half: bool) -> str:
    """What a graph is stored in when an export asks for a precision."""
    return "fp32" if precision == "fp16" and not takes_half else precision


def quantized(model: Any) -> Any:
    """An ONNX model with matrix products of 8-bit weights; activations are quantized as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    properties = {entry.key: entry.value for entry in model.metadata_props}
    # Shapes are already inferred and constants folded; without this mark, the quantizer warns that they are not.
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load(path)
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, properties)
    return quantized
