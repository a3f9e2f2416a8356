"""Joins points and boxes, which are separate inputs in transformers.js, for a graph that takes labelled points.

Either may be missing: points alone come with no boxes (batch, 0, 4), boxes alone with points (batch, 1, 0, 2) and
labels (batch, objects, 0). A branch for that would be an ``If``, which browsers refuse, so missing boxes become
padding. It is written in ONNX's own text format, since torch.export takes axes of length 0 for constants.
"""

from __future__ import annotations

from typing import Any

FRONT = """
<ir_version: 8, opset_import: ["" : {opset}]>
front (
  float[batch, point_objects, num_points, 2] input_points,
  int64[batch, label_objects, num_points] input_labels,
  float[batch, box_objects, 4] input_boxes
) => (float[batch, objects, tokens, 2] front_points, int64[batch, objects, tokens] front_labels)
<int64[1] one = {{1}}, int64[1] two = {{2}}, int64[4] corner_shape = {{0, 0, 2, 2}},
 int64[1, 1, 2] corner_labels = {{2, 3}}>
{{
  batch = Shape <start = 0, end = 1> (input_labels)
  label_count = Shape <start = 1, end = 2> (input_labels)
  box_count = Shape <start = 1, end = 2> (input_boxes)
  objects = Max (label_count, box_count)
  missing = Sub (objects, box_count)
  corners = Reshape (input_boxes, corner_shape)
  missing_corner_shape = Concat <axis = 0> (batch, missing, two, two)
  missing_corners = ConstantOfShape <value = float[1] {{-10}}> (missing_corner_shape)
  box_points = Concat <axis = 1> (corners, missing_corners)
  box_label_shape = Concat <axis = 0> (batch, box_count, two)
  box_labels = Expand (corner_labels, box_label_shape)
  missing_label_shape = Concat <axis = 0> (batch, missing, two)
  missing_labels = ConstantOfShape <value = int64[1] {{-10}}> (missing_label_shape)
  all_box_labels = Concat <axis = 1> (box_labels, missing_labels)
  point_shape = Concat <axis = 0> (one, objects, one, one)
  points = Expand (input_points, point_shape)
  label_shape = Concat <axis = 0> (one, objects, one)
  labels = Expand (input_labels, label_shape)
  front_points = Concat <axis = 2> (box_points, points)
  front_labels = Concat <axis = 2> (all_box_labels, labels)
}}
"""


def with_boxes(decoder: Any, *, opset: int) -> Any:
    """The decoder with the inputs ``input_points``, ``input_labels`` and ``input_boxes``.

    Args:
        decoder: An ONNX model whose first two inputs are points and labels, boxes among them.
        opset: Opset of the decoder.
    """
    import onnx

    front = onnx.parser.parse_model(FRONT.format(opset=opset))
    front.ir_version = decoder.ir_version
    points, labels = (entry.name for entry in list(decoder.graph.input)[:2])
    merged = onnx.compose.merge_models(
        front,
        onnx.compose.add_prefix(decoder, "decoder/", rename_inputs=False, rename_outputs=False),
        io_map=[("front_points", points), ("front_labels", labels)],
    )
    merged.producer_name = decoder.producer_name
    return merged
