"""Functions captured as CUDA graphs at first use, for each bucket of objects; plain launches where that fails.

A captured function reads fixed inputs and writes fixed outputs: inputs are copied in before a replay, and results are
copied out after it. Replays of one engine follow each other, whatever the threads and streams of its callers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16)
"""Numbers of objects that functions are captured for; above them, multiples of the last."""
MAX_GRAPHS = 32
"""Functions of one engine that stay captured. The one used longest ago is dropped first."""
FREE_SHARE = 0.1
"""Share of the device's memory that a capture must leave free."""
WARM_UPS = 2
"""Plain runs before a capture, in which libraries choose their algorithms and allocate their workspaces."""

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]
Replay = Callable[[], Tensors]
"""Runs a captured function and returns its fixed outputs."""


class NotCaptured(Exception):
    """Why a function cannot be captured."""


class GraphBackend(Protocol):
    """What captures functions."""

    def capture(self, function: Callable[[], Tensors]) -> Replay:
        """Capture a function of fixed inputs. Raises ``NotCaptured``."""

    def begin(self) -> None:
        """Called before inputs are copied in: waits for the last replay, on the device."""

    def end(self) -> None:
        """Called after results were copied out."""


class CudaGraphs:
    """Captures with ``torch.cuda.graph``. All graphs share one pool of memory, since they run one after another."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None  # a handle of torch
        self._done: torch.cuda.Event | None = None

    def capture(self, function: Callable[[], Tensors]) -> Replay:  # noqa: D102
        with torch.cuda.device(self.device):
            self._check_memory(self._warm_up(function))
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads, such as the one that reads a video, go on allocating memory meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    outputs = function()
            except RuntimeError as error:  # also out of memory
                raise NotCaptured(str(error).partition("\n")[0]) from error
            self._pool = graph.pool()

        def replay() -> Tensors:
            graph.replay()
            return outputs

        return replay

    def begin(self) -> None:  # noqa: D102
        if self._done is not None:
            torch.cuda.current_stream(self.device).wait_event(self._done)

    def end(self) -> None:  # noqa: D102
        self._done = self._done or torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(self.device))

    def _warm_up(self, function: Callable[[], Tensors]) -> int:
        """Run a function plainly, on another stream as captures need it. Returns the bytes it needed at most."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function()
        current.wait_stream(stream)
        return torch.cuda.max_memory_allocated() - before

    def _check_memory(self, needed: int) -> None:
        """Raise ``NotCaptured`` if the pool might take too much memory."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        if needed + FREE_SHARE * total > free:
            raise NotCaptured(f"it needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} of {total / 1e6:.0f} MB are free")


@dataclass(frozen=True)
class CapturedFunction:
    """A captured function, and the places of its inputs."""

    replay: Replay
    inputs: tuple[Tensor | None, ...]
    kept: tuple[object, ...]  # what the graph reads besides its inputs: it must outlive the graph

    def __call__(self, inputs: Sequence[Tensor | None], count: int) -> Tensors:
        """Run for ``count`` objects; places of further objects keep what they held, and their results are left out."""
        for fixed, given in zip(self.inputs, inputs, strict=True):
            if fixed is not None and given is not None:
                (fixed if len(fixed) == len(given) else fixed[: len(given)]).copy_(given, non_blocking=True)
        return tuple(output[:count].clone() for output in self.replay())


class GraphRunner:
    """Runs functions through graphs, or plainly without a backend. Thread-safe.

    Args:
        backend: What captures.
        device: Where the fixed inputs lie. What comes from the host is copied there; that of the inputs if None.
    """

    def __init__(self, backend: GraphBackend | None, device: torch.device | None = None) -> None:
        self.backend = backend
        self.device = device
        self._captured: OrderedDict[Hashable, CapturedFunction | None] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return sum(function is not None for function in self._captured.values())

    def run(
        self,
        function: Function,
        bound: tuple[object, ...],
        inputs: Sequence[Tensor | None],
        *,
        count: int = 1,
        recurs: bool = True,
    ) -> Tensors:
        """The results of ``function(*bound, *inputs)``.

        Args:
            function: Its results have ``count`` rows.
            bound: Its first arguments: weights and constants, the same objects each time, or numbers.
            inputs: Tensors of ``count`` rows, or of one row that all share.
            count: Number of objects, padded to a bucket where the function is captured.
            recurs: Whether inputs of these shapes are certain to recur. Otherwise they are captured the second time.
        """
        if self.backend is None:
            return function(*bound, *inputs)
        with self._lock:
            key = self._key(function, bound, inputs, count)
            if key not in self._captured:
                if not (recurs or self._was_seen(key)):
                    return function(*bound, *inputs)
                self._captured[key] = self._capture(function, bound, inputs, count)
            self._captured.move_to_end(key)
            while len(self._captured) > MAX_GRAPHS:
                self._captured.popitem(last=False)
            captured = self._captured[key]
            if captured is None:
                return function(*bound, *inputs)
            self.backend.begin()
            outputs = captured(inputs, count)
            self.backend.end()
            return outputs

    def _key(
        self, function: Function, bound: tuple[object, ...], inputs: Sequence[Tensor | None], count: int
    ) -> Hashable:
        constants = tuple(value if isinstance(value, int) else id(value) for value in bound)
        shapes = tuple(None if t is None else (len(t) == 1, t.shape[1:], t.dtype) for t in inputs)
        return id(function), constants, shapes, bucket_of(count)

    def _was_seen(self, key: Hashable) -> bool:
        seen = key in self._seen
        self._seen[key] = None
        while len(self._seen) > MAX_GRAPHS:
            self._seen.popitem(last=False)
        return seen

    def _capture(
        self, function: Function, bound: tuple[object, ...], inputs: Sequence[Tensor | None], count: int
    ) -> CapturedFunction | None:
        """None where plain launches remain; the reason is logged."""
        assert self.backend is not None
        try:
            # Ordinary tensors, which can be written in every mode of torch.
            with torch.inference_mode(False), torch.no_grad():
                fixed = tuple(None if t is None else _place(t, bucket_of(count), self.device) for t in inputs)
                for place, given in zip(fixed, inputs, strict=True):
                    if place is not None and given is not None:
                        place[: len(given)].copy_(given)
                replay = self.backend.capture(lambda: function(*bound, *fixed))
        except (NotCaptured, torch.cuda.OutOfMemoryError) as error:
            name = type(function).__name__
            logger.warning("%s for %d objects runs without a CUDA graph: %s", name, bucket_of(count), error)
            return None
        return CapturedFunction(replay, fixed, (function, *bound))


def bucket_of(objects: int) -> int:
    """The number of objects that a batch is padded to."""
    for bucket in BUCKETS:
        if objects <= bucket:
            return bucket
    return -(-objects // BUCKETS[-1]) * BUCKETS[-1]


def _place(like: Tensor, bucket: int, device: torch.device | None) -> Tensor:
    """A fixed input: one row where all objects share it."""
    rows = bucket if len(like) > 1 else 1
    return torch.zeros((rows, *like.shape[1:]), dtype=like.dtype, device=device or like.device)
