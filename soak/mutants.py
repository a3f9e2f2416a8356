"""Mutation testing: small changes of the source, each of which a test should notice.

``python -m soak.mutants --count 210 --json mutants.json`` changes operators, constants and conditions in functions, at
random places (the same for a seed), and runs the tests of the module on each. What survives is printed, with its line.
A survivor is an equivalent program, or lacks a test.

Tests are collected once. Every mutant is a fork in which the changed code takes the place of the function's.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import pytest

SOURCE = Path(__file__).parents[1] / "src/masklet"
TESTS = Path(__file__).parents[1] / "tests"
MODULES = {
    "prompts.py": ["test_prompts.py"],
    "mask_prompts.py": ["test_prompts.py", "video/test_prompts.py"],
    "masks/logits.py": ["masks/test_logits.py"],
    "masks/cleaning.py": ["masks/test_cleaning.py"],
    "masks/run_lengths.py": ["masks/test_run_lengths.py"],
    "masks/polygons.py": ["masks/test_polygons.py"],
    "masks/rings.py": ["masks/test_rings.py", "masks/test_polygons.py"],
    "masks/boxes.py": ["masks/test_boxes.py"],
    "masks/simplification.py": ["masks/test_polygons.py"],
    "video/memory.py": ["video/test_stacks.py", "video/test_policy.py", "video/test_tracking.py"],
    "video/policy.py": ["video/test_policy.py", "video/test_policies.py"],
    "video/stacks.py": ["video/test_stacks.py"],
    "video/tracks.py": ["video/test_tracking.py", "video/test_prompts.py"],
    "engine/cpu/image_encoder.py": ["engine/test_cpu_image_encoder.py", "engine/test_engines.py"],
    "engine/cpu/mask_decoder.py": ["engine/test_engines.py"],
    "engine/cpu/memory_attention.py": ["engine/test_cpu_memory_attention.py", "engine/test_engines.py"],
    "engine/cpu/threads.py": ["engine/test_cpu_threads.py"],
    "engine/base.py": ["engine/test_engines.py"],
    "engine/eager.py": ["engine/test_engines.py"],
}
"""Modules, and the quickest tests that are theirs."""
SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CPU_SECONDS, PATIENCE, POLL_SECONDS = 40, 240, 0.02
HARNESS_ERROR = 77


def changes_of(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """The nodes that can be changed, and how each is described."""
    found: list[tuple[ast.AST, str]] = []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node): node for function in functions for part in function.body for node in ast.walk(part)}
    for node in inside.values():
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
            found.append((node, f"line {line}: {type(node.ops[0]).__name__} → {SWAPPED[type(node.ops[0])].__name__}"))
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED and not is_type(node):
            found.append((node, f"line {line}: {type(node.op).__name__} → {SWAPPED[type(node.op)].__name__}"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append((node, f"line {line}: not removed"))
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            found.append((node, f"line {line}: {node.value} → {changed_constant(node.value)}"))
    return found


def is_type(node: ast.AST) -> bool:
    """Texts are put together, too."""
    return any(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in ast.walk(node))


def changed_constant(value: float) -> float:
    """Another value."""
    return not value if isinstance(value, bool) else value + 1


def mutate(node: ast.AST) -> None:
    """Changes the node in place."""
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPPED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPPED[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = changed_constant(node.value)


class Mutants:
    """A plugin of pytest that runs no test itself, but those of each mutant in a fork."""

    def __init__(self, modules: list[str], count: int, seed: int, report: Path) -> None:
        self.modules, self.seed, self.report = modules, seed, report
        self.each = -(-count // len(modules))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tests the mutants of one module after the other."""
        found: dict[str, dict] = {}
        for module in self.modules:
            paths = [TESTS / name for name in MODULES[module]]
            items = sorted(
                (item for item in session.items if item.path in paths), key=lambda one: paths.index(one.path)
            )
            if self.fails(session, items, None, None):
                sys.exit(f"the tests of {module} fail without a change")
            found[module] = self.mutants_of(module, session, items)
            print(module, json.dumps(found[module], indent=1, ensure_ascii=False), flush=True)
            self.report.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return True

    def mutants_of(self, module: str, session: pytest.Session, items: list[pytest.Item]) -> dict:
        """How many of a module's mutants were killed, and the others."""
        text = (SOURCE / module).read_text()
        places = range(len(changes_of(ast.parse(text))))
        chosen = random.Random(f"{self.seed} {module}").sample(places, min(len(places), self.each))
        outcomes, survivors = Counter[str](), []
        for place in sorted(chosen):
            tree = ast.parse(text)
            node, what = changes_of(tree)[place]
            mutate(node)
            is_killed = self.fails(session, items, SOURCE / module, tree)
            outcomes["killed" if is_killed else "survived"] += 1
            if not is_killed:
                survivors.append(f"{what}: {text.splitlines()[getattr(node, 'lineno', 1) - 1].strip()}")
        return {**outcomes, "survivors": survivors}

    def fails(
        self, session: pytest.Session, items: list[pytest.Item], path: Path | None, tree: ast.Module | None
    ) -> bool:
        """Whether a test fails, takes too long or ends the process, with the changed functions in place."""
        child = os.fork()
        if child == 0:
            try:
                code = None if tree is None else compile(ast.fix_missing_locations(tree), str(path), "exec")
                os._exit(int(run_items(session, items, path, code)))
            finally:  # an error of this program
                traceback.print_exc()
                os._exit(HARNESS_ERROR)
        waited = 0.0  # not by the clock, since both processes may be stopped for a while
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if (waited := waited + POLL_SECONDS) > PATIENCE:
                os.kill(child, 9)
            time.sleep(POLL_SECONDS)
        status = os.waitstatus_to_exitcode(done[1])
        assert status != HARNESS_ERROR
        return status != 0


def run_items(session: pytest.Session, items: list[pytest.Item], path: Path | None, code: CodeType | None) -> bool:
    """Runs tests until one fails, with changed functions in place."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    if path is not None and code is not None:
        replace_functions(path, code)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for item, following in zip(items, [*items[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return True
    return False


def replace_functions(path: Path, module: CodeType) -> None:
    """Every function of the file gets its new code, wherever it is in use."""
    changed = {(code.co_name, code.co_firstlineno): code for code in codes_of(module)}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(path):
            code = function.__code__
            function.__code__ = changed[code.co_name, code.co_firstlineno]


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """All code inside of a module's."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes_of(constant)


def main() -> None:
    """Tests as many mutants as wanted, spread over the modules."""
    parser = argparse.ArgumentParser(prog="python -m soak.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=210)
    parser.add_argument("--only", choices=MODULES, action="append", help="a module; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    modules = options.only or list(MODULES)
    tests = dict.fromkeys(str(TESTS / name) for module in modules for name in MODULES[module])
    chosen = ["-m", "not slow and not gpu and not recipe"]
    plugin = Mutants(modules, options.count, options.seed, options.json)
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, *tests], [plugin])


if __name__ == "__main__":
    main()
