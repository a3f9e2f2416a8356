"""The site's reference shows every public name, and its guides quote errors that exist."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "masklet"
INTERNAL = {"serve.scheduler", "integrations.fiftyone.zoo"}
"""Modules with an ``__all__`` that users do not import: the HTTP API is their interface, or FiftyOne's."""
WITHOUT_A_PAGE = {"__version__"}
MADE_BY_THE_SITE = {"changelog.md", "contributing.md", "model-card.md", "reference/command-line.md"}
"""Pages that docs/scripts/site.py adds."""


def dotted(file):
    parts = file.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_modules():
    files = (file for file in sorted(SOURCES.rglob("*.py")) if "\n__all__ = " in file.read_text(encoding="utf-8"))
    return [name for file in files if (name := dotted(file)) not in INTERNAL]


def reference_pages():
    return [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))]


def resolve(path):
    """The object at a path of modules and attributes."""
    parts = path.split(".")
    for split in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            value = getattr(value, name)
        return value
    raise AssertionError(f"no module at {path}")


@pytest.fixture(scope="module")
def shown():
    """What the ``:::`` of the reference pages name."""
    return [resolve(path) for page in reference_pages() for path in re.findall(r"^::: (\S+)", page, re.MULTILINE)]


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_on_a_reference_page(shown, module):
    package, text = import_module(f"masklet.{module}".rstrip(".")), "\n".join(reference_pages())
    for name in set(package.__all__) - WITHOUT_A_PAGE:
        assert re.search(rf"\b{name}\b", text), f"{module}.{name} has no page"
        assert any(value is getattr(package, name) for value in shown), f"what {module}.{name} is has no page"


def test_the_public_modules_are_found():
    assert {"", "training", "engine", "masks", "compat.transformers", "video.policies"} <= set(public_modules())


def nav_pages(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_pages(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=WithoutTags)
    listed = [page for page in nav_pages(site["nav"]) if not page.startswith("https://")]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == pages | MADE_BY_THE_SITE


class WithoutTags(yaml.SafeLoader):
    """Reads ``!!python/…`` as nothing: mkdocs.yml configures a Markdown extension with it."""


WithoutTags.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def messages(tree):
    """The texts of a module, with … for what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


@pytest.mark.slow
def test_the_errors_that_troubleshooting_explains_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) > 15
    raised = [
        re.sub("…+", "…", text)
        for file in SOURCES.rglob("*.py")
        for text in messages(ast.parse(file.read_text(encoding="utf-8")))
    ]
    for message in quoted:
        parts = [part.strip() for part in re.sub("…+", "…", message).split("…") if part.strip(" ():×")]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in raised), message
