"""Records of how the results in a folder were made, so that a later run redoes those that are out of date.

A hidden file in the folder has a line of JSON for each finished output. It is only appended to, so a process that is
killed loses nothing but the line it was writing: that image is processed again.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from masklet import atomic
from masklet.cli.outputs import naming

FILE = ".masklet.jsonl"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The latest record of each output in a folder, by its name. Superseded lines are removed from the file."""
    file = folder / FILE
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    records: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            records[record["output"]] = record
        except (ValueError, LookupError, TypeError):  # cut off when a process was killed
            continue
    records = {name: record for name, record in records.items() if "settings" in record}
    if len(records) < len(lines):
        with atomic.replacing(file) as unfinished:
            unfinished.write_text("".join(json.dumps(record) + "\n" for record in records.values()), encoding="utf-8")
    return records


def forget(output: Path) -> None:
    """Records that an output is about to change, if its folder has records."""
    if (output.parent / FILE).exists():
        _append(output, {})


def record(outputs: Iterable[Path], source: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Records that outputs are finished, with the state of the image and the settings they were made from."""
    for output in outputs:
        _append(output, {"input": source, "settings": settings})


def _append(output: Path, content: Mapping[str, Any]) -> None:
    file_of_records = output.parent / FILE
    with naming(file_of_records), file_of_records.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"output": output.name, **content}) + "\n")


def state_of(source: Path) -> dict[str, Any]:
    """What distinguishes a file from a later version of it; empty if it cannot be read, which its reader reports."""
    digest = sha256()
    try:
        stat = source.stat()
        with source.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return {}
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest.hexdigest()}


def is_unchanged(source: Path, state: Mapping[str, Any]) -> bool:
    """Whether a file has the content it had. It is read only if its time has changed."""
    stat = source.stat()
    if stat.st_size != state.get("size"):
        return False
    return stat.st_mtime_ns == state.get("mtime_ns") or state_of(source).get("sha256") == state.get("sha256")


class Finished:
    """Finds which outputs of earlier runs are up to date, and why others are not."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps(settings))  # as they are read from a file
        self.records: dict[Path, dict[str, dict[str, Any]]] = {}
        self.reasons: Counter[str] = Counter()
        """Why images whose outputs exist are processed again, with the number of images."""

    def includes(self, source: Path, outputs: list[Path]) -> bool:
        """Whether all outputs of an image exist and are up to date."""
        if not outputs or not all(map(os.path.exists, (source, *outputs))):  # False if a name is too long
            return False
        reason = next(filter(None, (self._reason(source, path) for path in outputs)), None)
        if reason is not None:
            self.reasons[reason] += 1
        return reason is None

    def _reason(self, source: Path, output: Path) -> str | None:
        folder = output.parent
        if folder not in self.records:
            self.records[folder] = read_records(folder)
        made = self.records[folder].get(output.name)
        if made is None:
            return "no record of how the results were made"
        if not is_unchanged(source, made.get("input", {})):
            return "the image has changed"
        return difference(made["settings"], self.settings)

    def explain(self) -> None:
        """Prints why images are processed again."""
        for reason, count in self.reasons.items():
            print(f"masklet: processing {count} image{'s' * (count != 1)} again: {reason}", file=sys.stderr)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What has changed between two settings, None if nothing has."""
    names = [name for name in dict.fromkeys([*now, *before]) if now.get(name) != before.get(name)]
    changes = (f"{name} was {_text(before.get(name))}, now {_text(now.get(name))}" for name in names)
    return ", ".join(changes) or None


def _text(value: Any) -> str:
    return "not given" if value is None else str(value)
