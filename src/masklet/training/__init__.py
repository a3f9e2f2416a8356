"""Training: ``train`` fine-tunes a model on masks of your own, or trains one from nothing."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from masklet.errors import ConfigError

if TYPE_CHECKING:
    from masklet.training.config import DataConfig as DataConfig
    from masklet.training.config import LoraConfig as LoraConfig
    from masklet.training.config import Stage as Stage
    from masklet.training.config import TrainingConfig as TrainingConfig
    from masklet.training.config import read_config as read_config
    from masklet.training.losses import LossWeights as LossWeights
    from masklet.training.prompts import PromptRates as PromptRates
    from masklet.training.run import Run as Run
    from masklet.training.run import Summary as Summary
    from masklet.training.run import train as train

_HOMES = {
    "config": ("DataConfig", "LoraConfig", "Stage", "TrainingConfig", "read_config"),
    "losses": ("LossWeights",),
    "prompts": ("PromptRates",),
    "run": ("Run", "Summary", "train"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


for _name in ("yaml", "accelerate"):  # peft is asked for by those who want adapters
    if find_spec(_name) is None:
        raise ConfigError(f'training needs {_name}, which is not installed: pip install "masklet[train]"')


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'masklet.training' has no attribute {name!r}")
    return getattr(import_module(f"masklet.training.{_HOME[name]}"), name)
