"""Writes docs/licences.md: what masklet and its extras depend on, and under which licences, as the packages state them.

    python docs/scripts/licences.py [--out docs/licences.md]

pip resolves the dependencies for this machine, from the index it is configured with; nothing is installed.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parents[2]
PAGE = """# Licences

masklet is under the [Apache License 2.0](https://github.com/masklet/masklet/blob/main/LICENSE), and so is the embedded
model. Models that it can load have [licences of their own](models.md).

This page lists what `pip install masklet` and its extras install on Linux, with the licences that the packages state
about themselves. On macOS and Windows, and with a PyTorch for CPUs, there are fewer: those of NVIDIA are parts of CUDA.
`python docs/scripts/licences.py` makes the page.

Copyleft licences, which ask for more than to be named: {copyleft}.
"""
COPYLEFT = re.compile(r"GPL|General Public|MPL|Mozilla|EPL|CDDL", re.IGNORECASE)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "licences.md")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sections, copyleft, seen = [], [], set[str]()
    for extra in ["", *project["optional-dependencies"]]:
        packages = [item for item in resolved(extra) if item["name"] != "masklet" and item["name"].lower() not in seen]
        seen |= {item["name"].lower() for item in packages}
        copyleft += [f"{item['name']} ({licence(item)})" for item in packages if COPYLEFT.search(licence(item))]
        title = f"`masklet[{extra}]`, in addition" if extra else "`masklet`"
        sections.append(f"## {title}\n\n{table(packages)}" if packages else f"## {title}\n\nNothing else.\n")
        print(extra or "masklet", len(packages), flush=True)
    page = PAGE.format(copyleft=", ".join(sorted(copyleft)))
    args.out.write_text("\n".join([page, *sections]), encoding="utf-8")


def resolved(extra: str) -> list[dict[str, Any]]:
    """The metadata of every package that an extra installs."""
    requirement = f"{ROOT}[{extra}]" if extra else str(ROOT)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*command, requirement], check=True, capture_output=True, text=True, timeout=1800)
    return [item["metadata"] for item in json.loads(done.stdout)["install"]]


def table(packages: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of packages, in alphabetical order."""
    rows = sorted(f"| {item['name']} | {licence(item)} |" for item in packages)
    return "\n".join(["| package | licence |", "|---|---|", *rows]) + "\n"


def licence(metadata: dict[str, Any]) -> str:
    """The licence as an SPDX expression where there is one, else as the classifiers or the free text have it."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers = [item for item in metadata.get("classifier", []) if item.startswith("License :: ")]
    named = [text for item in classifiers if (text := item.rpartition(" :: ")[2]) not in {"OSI Approved", "License"}]
    if named:
        return ", ".join(named)
    first_line = str(metadata.get("license") or "").strip().partition("\n")[0]
    return re.sub(r"\s+", " ", first_line)[:80].replace("|", "/") or "not stated in its metadata"


if __name__ == "__main__":
    main()
