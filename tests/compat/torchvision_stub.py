"""Makes torchvision importable beside a torch that its compiled operators do not fit."""

import functools
import sys
import warnings
from types import ModuleType


@functools.cache
def has_torchvision():
    """Whether torchvision's transforms can be imported, which transformers' processors need."""
    for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
        sys.modules.setdefault(name, ModuleType(name))  # they describe the operators
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision.transforms.v2  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True
