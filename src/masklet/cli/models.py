"""masklet models."""

from __future__ import annotations

from masklet.cli.tables import show_table


def list_models() -> None:
    """List the models that can be asked for by name."""
    from masklet.checkpoints import KNOWN_MODELS

    show_table(
        ("name", "parameters", "size", "from"),
        [(m.name, f"{m.parameters / 1e6:.1f} M", f"{m.megabytes} MB", m.source) for m in KNOWN_MODELS],
        title="A Hub repository, a model folder or one of Meta's .pt files will do as well.",
    )
