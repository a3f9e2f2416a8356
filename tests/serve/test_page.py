import re
from pathlib import Path

import pytest

import masklet.serve

STATIC = Path(masklet.serve.__file__).parent / "static"
PAIRS = [
    ("text", "panel", 4.5),
    ("text", "back", 4.5),
    ("text", "stage", 4.5),
    ("dim", "panel", 4.5),
    ("dim", "back", 4.5),
    ("accent-text", "accent", 4.5),
    ("danger", "panel", 4.5),
    ("edge", "panel", 3),
    ("focus", "panel", 3),
    ("focus", "stage", 3),
]
"""Foreground, background, and the least contrast of WCAG 2.2 AA: 1.4.3 for text, 1.4.11 for controls."""


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("selector", [":root", ':root[data-theme="dark"]', ':root:not([data-theme="light"])'])
def test_colours_have_the_contrast_of_wcag_aa(selector):
    block = re.search(rf"{re.escape(selector)} \{{(.*?)\}}", (STATIC / "style.css").read_text(), re.DOTALL)[1]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for front, back, least in PAIRS:
        low, high = sorted(map(luminance, (colours[front], colours[back])))
        assert (high + 0.05) / (low + 0.05) >= least, (front, back)


def test_the_page_loads_nothing_from_elsewhere():
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn", text), file.name


def test_every_control_has_a_name():
    page = (STATIC / "index.html").read_text()
    for tag, rest, content in re.findall(r"<(button|select|input)\b([^>]*)>([^<]*)", page):
        name = re.search(r'\bid="([^"]+)"', rest)
        before = page[: page.index(rest)]
        is_wrapped = before.rfind("<label") > before.rfind("</label>")
        is_named = "aria-label" in rest or "aria-hidden" in rest or is_wrapped or (tag == "button" and content.strip())
        assert is_named, name[1] if name else rest
