"""Records what modules return while a model runs, for ``output_hidden_states`` and ``output_attentions``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def recording(modules: Iterable[nn.Module], *, wanted: bool, with_first_input: bool = False) -> Iterator[list[Tensor]]:
    """Collects the outputs of modules in the order in which they run.

    Args:
        modules: Modules whose outputs are tensors.
        wanted: False records nothing and costs nothing.
        with_first_input: Whether the input of the first of them comes first.
    """
    recorded: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if with_first_input and not recorded:
            recorded.append(inputs[0])
        recorded.append(output)

    with ExitStack() as hooks:
        for module in modules if wanted else ():
            hooks.enter_context(module.register_forward_hook(record))
        yield recorded
