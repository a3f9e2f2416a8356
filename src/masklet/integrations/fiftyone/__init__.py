"""A source of models for FiftyOne's model zoo.

::

    from masklet.integrations.fiftyone import register

    register()  # once
    model = foz.load_zoo_model("masklet-image")
    dataset.apply_model(model, label_field="masks", prompt_field="boxes")
"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["register"]


def register() -> Path:
    """Adds the models "masklet-image" and "masklet-video" to FiftyOne's zoo on this machine.

    Returns:
        The folder in the zoo, which is replaced if it is there.
    """
    import fiftyone

    # FiftyOne imports the folder under its own name, which must not be that of this package.
    folder = Path(fiftyone.config.model_zoo_dir) / "masklet_models"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", "__init__.py"):
        shutil.copyfile(Path(__file__).parent / "zoo" / name, folder / name)
    return folder
