"""Training: ``train`` fine-tunes a model on masks of your own, or trains one from scratch.

``Run`` does the same and accepts examples, validation scenes, an initialiser, optimizers and an extra loss of your own.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from masklet.errors import ConfigError

if TYPE_CHECKING:
    from masklet.datasets.scenes import Frame as Frame
    from masklet.datasets.scenes import Scene as Scene
    from masklet.training.batches import Batch as Batch
    from masklet.training.batches import Example as Example
    from masklet.training.batches import Examples as Examples
    from masklet.training.config import LoraConfig as LoraConfig
    from masklet.training.config import Stage as Stage
    from masklet.training.config import TrainingConfig as TrainingConfig
    from masklet.training.config_files import read_config as read_config
    from masklet.training.data_config import Augmentations as Augmentations
    from masklet.training.data_config import DataConfig as DataConfig
    from masklet.training.losses import LossWeights as LossWeights
    from masklet.training.prompts import PromptRates as PromptRates
    from masklet.training.run import Run as Run
    from masklet.training.run import Summary as Summary
    from masklet.training.run import train as train

_HOMES = {
    "batches": ("Batch", "Example", "Examples"),
    "config": ("LoraConfig", "Stage", "TrainingConfig"),
    "config_files": ("read_config",),
    "data_config": ("Augmentations", "DataConfig"),
    "losses": ("LossWeights",),
    "prompts": ("PromptRates",),
    "run": ("Run", "Summary", "train"),
}
_HOME = {name: f"masklet.training.{home}" for home, names in _HOMES.items() for name in names}
_HOME |= {name: "masklet.datasets.scenes" for name in ("Frame", "Scene")}

__all__ = sorted(_HOME)  # noqa: PLE0605


def check_installed() -> None:
    """Checks for the packages that runs need, other than peft, which only adapters need.

    Raises:
        ConfigError: One is not installed.
    """
    for name in ("yaml", "accelerate"):
        if find_spec(name) is None:
            raise ConfigError(f'training needs {name}, which is not installed: pip install "masklet[train]"')


def __getattr__(name: str) -> object:
    check_installed()
    if name not in _HOME:
        raise AttributeError(f"module 'masklet.training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
