"""Mutation testing: small changes of the source, each of which a test should notice.

``python -m soak.mutants --count 210 --json mutants.json`` changes operators, constants and conditions at random places
(the same for a seed), and runs the tests of the module on each. What survives is printed, with its line. A survivor is
an equivalent program, or lacks a test. Every mutant is tested in a process forked from one that has imported torch, and
the change exists in memory only.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

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
CPU_SECONDS = 120
PATIENCE = 1200


def changes_of(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """The nodes that can be changed, and how each is described."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
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


def run_tests(module: str, tree: ast.Module | None) -> int:
    """The exit status of pytest in a forked process, which imports the changed module; 0 if all tests pass."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if tree is not None:
            import_changed(str(SOURCE / module), tree)
        import pytest

        tests = [str(TESTS / name) for name in MODULES[module]]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu and not recipe"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported once, for all children
        os._exit(int(pytest.main([*options, *tests])))
    until = time.monotonic() + PATIENCE
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, 9)
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(done[1])


def import_changed(path: str, tree: ast.Module) -> None:
    """Importing the file gives the changed module."""
    plain = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str):
        return compile(tree, path, "exec") if self.path == path else plain(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code


def main() -> None:
    """Tests as many mutants as wanted, spread over the modules."""
    parser = argparse.ArgumentParser(prog="python -m soak.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=210)
    parser.add_argument("--only", choices=MODULES, action="append", help="a module; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    modules = options.only or [module for module in MODULES if (SOURCE / module).exists()]
    report: dict[str, dict] = {}
    for module in modules:
        if run_tests(module, None):
            sys.exit(f"the tests of {module} fail without a change")
        text = (SOURCE / module).read_text()
        count = len(changes_of(ast.parse(text)))
        chosen = random.Random(f"{options.seed} {module}").sample(
            range(count), min(count, -(-options.count // len(modules)))
        )
        outcomes: Counter[str] = Counter()
        survivors = []
        for place in sorted(chosen):
            tree = ast.parse(text)
            node, what = changes_of(tree)[place]
            mutate(node)
            status = run_tests(module, ast.fix_missing_locations(tree))
            outcomes["survived" if status == 0 else "killed"] += 1
            if status == 0:
                survivors.append(f"{what}: {text.splitlines()[getattr(node, 'lineno', 1) - 1].strip()}")
        report[module] = {**outcomes, "survivors": survivors}
        print(module, json.dumps(report[module], indent=1, ensure_ascii=False), flush=True)
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
