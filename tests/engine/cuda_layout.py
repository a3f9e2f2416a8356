"""The layout of the cuda engine on a processor: fixed places, buckets, replays; and counting its operators."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masklet.engine.cuda.graphs import NotCaptured

KERNELS = ("scaled_dot_product_attention", "upsample")
"""Composite operators that are one kernel on a GPU."""
READ_BACKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "item")
"""Operators that wait for the device."""


class ReplayedGraphs:
    """As CudaGraphs, but a replay calls the function again, and writes its results into the same places."""

    def __init__(self):
        self.captures = self.replays = 0

    def capture(self, function):
        self.captures += 1
        fixed = tuple(torch.empty_like(output) for output in function())

        def replay():
            self.replays += 1
            for place, output in zip(fixed, function(), strict=True):
                place.copy_(output)
            return fixed

        return replay

    def begin(self):
        pass

    def end(self):
        pass


class KeptResults(ReplayedGraphs):
    """A replay leaves the results of the capture as they are: it costs the host nothing, as on a device."""

    def capture(self, function):
        self.captures += 1
        fixed = tuple(output.clone() for output in function())

        def replay():
            self.replays += 1
            return fixed

        return replay


class NoGraphs(ReplayedGraphs):
    """Captures nothing."""

    def capture(self, function):
        self.captures += 1
        raise NotCaptured("it needs 3 MB, and 2 of 80 MB are free")


class Operators(TorchDispatchMode):
    """Counts the operators that launch something, and notes those that read back from the device."""

    def __init__(self, device=None):
        super().__init__()
        self.launched = Counter()
        self.read_back = Counter()
        self.mixed = Counter()  # with tensors of the host beside those of the device
        self.device = None if device is None else torch.device(device)

    @property
    def count(self):
        return sum(self.launched.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not any(kernel in name for kernel in KERNELS):
            with self:
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = function(*args, **(kwargs or {}))
        if not function.is_view and self.launches(args, result):
            self.launched[name] += 1
        if name in READ_BACKS or self.has_boolean_index(name, args) or self.leaves_device(args, result):
            self.read_back[name] += 1
        on_host = any(is_on(torch.device("cpu"), value) and value.ndim for value in flat(args))
        if self.device is not None and name != "copy_" and on_host and any(is_on(self.device, v) for v in flat(args)):
            self.mixed[name] += 1
        return result

    def launches(self, args, result):
        """Host tensors launch nothing on a device."""
        return self.device is None or any(is_on(self.device, value) for value in (*flat(args), *flat([result])))

    def has_boolean_index(self, name, args):
        return name.startswith("index") and any(
            isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8) for value in flat(args[1:2])
        )

    def leaves_device(self, args, result):
        results = [value for value in flat([result]) if isinstance(value, torch.Tensor)]
        return (
            self.device is not None
            and any(is_on(self.device, value) for value in flat(args))
            and any(value.device.type == "cpu" for value in results)
        )


def is_on(device, value):
    return isinstance(value, torch.Tensor) and value.device.type == device.type


def flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value
