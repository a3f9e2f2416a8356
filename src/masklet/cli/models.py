"""masklet models."""

from __future__ import annotations

from masklet.cli.tables import show_table


def list_models() -> None:
    """List the models that have a name: their size, speed and licence, and where they come from."""
    from masklet.checkpoints import KNOWN_MODELS

    show_table(
        ("name", "parameters", "size", "speed", "licence", "from"),
        [
            (m.name, f"{m.parameters / 1e6:.1f} M", f"{m.megabytes} MB", m.speed, m.licence, m.source)
            for m in KNOWN_MODELS
        ],
        title="Hub repositories, model folders and Meta's .pt files are loaded as well.",
    )
