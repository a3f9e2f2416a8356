"""FFmpeg's filters on one frame."""

from __future__ import annotations

from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame


def filtered(frame: VideoFrame, *filters: tuple[str, str]) -> VideoFrame:
    """The frame that a chain of filters makes of one frame.

    Args:
        frame: The frame.
        filters: The name and the arguments of each filter.
    """
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    for name, arguments in (*filters, ("buffersink", "")):
        added = graph.add(name, arguments)
        last.link_to(added)
        last = added
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()
