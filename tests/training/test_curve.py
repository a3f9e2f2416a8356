"""The plot of a run."""

import xml.etree.ElementTree as ET

from masklet.training.curve import curve_svg

SVG = "{http://www.w3.org/2000/svg}"


def polylines(svg):
    """The points of each line of the plot."""
    return [
        [tuple(map(float, place.split(","))) for place in line.get("points").split()]
        for line in ET.fromstring(svg).iter(f"{SVG}polyline")
    ]


def test_lines_rise_with_training_and_validation_scores():
    steps = [{"step": step, "ious": [step / 2000, step / 1000]} for step in range(1, 1001)]
    prompted, corrected, validated = polylines(
        curve_svg([{"step": 0, "score": 0.5}, *steps, {"step": 1000, "score": 0.75}])
    )
    assert len(prompted) == len(corrected) == 80  # means of neighbours
    for line in (prompted, corrected, validated):
        assert line == sorted(line)
        assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)  # y points down
    assert all(above < below for (_, above), (_, below) in zip(corrected, prompted, strict=True))
    assert [x for x, _ in validated] == [40, 628]


def test_a_run_without_steps_has_a_plot():
    prompted, corrected, validated = polylines(curve_svg([{"step": 0, "score": 0.5}]))
    assert prompted == corrected == []
    assert validated == [(40, 140)]
