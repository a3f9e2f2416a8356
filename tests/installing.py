"""Installs the wheel in dist/ into fresh environments that have only what it declares, and tries it there.

    python tests/installing.py extras [EXTRA …]  # each extra by itself: imports its modules; without one, runs the demo
    python tests/installing.py lowest            # the lowest declared versions: runs the demo and the tests of QUICK

`make test-install` and `make test-lowest` call it. An environment is removed after its turn. PYTHON in the environment
names another interpreter than this one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "",
    "train",
    "batch",
    "cluster",
    "text",
    "export",
    "tiff",
    "serve",
    "postgresql",
    "napari",
    "fiftyone",
    "cvat",
)
NEEDS = {  # modules that can be imported with these extras only; all others can be imported without any
    "masklet.serve": {"serve", "postgresql"},
    "masklet.training": {"train"},
    "masklet.integrations.napari": {"napari"},
    "masklet.integrations.fiftyone": {"fiftyone"},
    "masklet.integrations.cvat": {"cvat"},
    "masklet.cluster": {"cluster"},
    "masklet.batch": {"batch", "cluster"},
    "masklet.export": {"export"},
    "masklet.images.tiff": {"tiff"},
    "masklet.images.windows": {"tiff"},
    "masklet.engine.cuda.kernels": set(),  # Triton, which comes with PyTorch where it can be used
}
LOWEST = ("train", "batch", "export", "tiff", "serve")
"""Extras whose lowest versions are tried together."""
QUICK = ["tests/masks", "tests/images", "tests/everything", "tests/test_prompts.py", "tests/test_image.py"]
QUICK += ["-k", "not ycbcr"]  # the lowest Pillow cannot read such TIFFs, which it writes itself
QUICK += ["-W", "ignore:Corrupt EXIF data"]  # it warns of damaged TIFFs before masklet refuses them
IMPORT_ALL = """
import importlib, json, pathlib, sys, traceback
import masklet
root = pathlib.Path(masklet.__path__[0])
failed = {}
for file in sorted(root.rglob("*.py")):
    parts = ("masklet", *file.relative_to(root).with_suffix("").parts)
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] in ("__main__", "env") or "versions" in parts:  # programs, and migrations that Alembic runs
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps(failed))
"""


def main() -> None:
    """Runs what the command line asks for, and ends with status 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("extras", "lowest"))
    parser.add_argument("extras", nargs="*", default=EXTRAS)
    args = parser.parse_args()
    (wheel,) = (ROOT / "dist").glob("*.whl")
    problems = try_lowest(wheel) if args.kind == "lowest" else try_extras(wheel, args.extras)
    sys.exit("\n".join(problems) or None)


def try_extras(wheel: Path, extras: Iterable[str]) -> list[str]:
    """Imports every module with each extra by itself; returns what went wrong."""
    problems = []
    for extra in extras:
        with environment() as python:
            install(python, f"{wheel}[{extra}]" if extra else str(wheel))
            failed = json.loads(run(python, "-c", IMPORT_ALL))
            unexpected = {name: error for name, error in failed.items() if not is_of_another(name, extra)}
            problems += [f"[{extra}] {name}: {error}" for name, error in unexpected.items()]
            if not extra:
                run_demo(python)
            print(
                f"[{extra}]: {len(unexpected)} modules failed, {len(failed) - len(unexpected)} need others", flush=True
            )
    return problems


def is_of_another(module: str, *installed: str) -> bool:
    """Whether a module may fail, since it belongs to other extras than those that are installed."""
    owners = [extras for prefix, extras in NEEDS.items() if f"{module}.".startswith(f"{prefix}.")]
    return bool(owners) and not any(extras & set(installed) for extras in owners)


def try_lowest(wheel: Path) -> list[str]:
    """Runs the demo and some tests with the lowest versions of the declared dependencies."""
    with environment() as python:
        # Only requirements that uv reads itself count as direct, not those of the wheel.
        options = ["--resolution", "lowest-direct", "--requirements", str(ROOT / "pyproject.toml")]
        options += [option for extra in LOWEST for option in ("--extra", extra)]
        install(python, *options, str(wheel))
        print(run("uv", "pip", "freeze", "--python", python))
        failed = json.loads(run(python, "-c", IMPORT_ALL))
        problems = [f"{name}: {error}" for name, error in failed.items() if not is_of_another(name, *LOWEST)]
        run_demo(python)
        install(python, "pytest", "hypothesis")
        print(run(python, "-m", "pytest", "-p", "no:cacheprovider", *QUICK, cwd=ROOT))
    return problems


@contextmanager
def environment() -> Iterator[str]:
    """The interpreter of a fresh environment, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="masklet-install-"))
    try:
        run("uv", "venv", "--quiet", "--python", os.environ.get("PYTHON", sys.executable), str(folder / "venv"))
        yield str(folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    finally:
        shutil.rmtree(folder)


def install(python: str, *requirements: str) -> None:
    """Installs into an environment, from the index that uv is configured with."""
    run("uv", "pip", "install", "--quiet", "--python", python, *requirements)


def run_demo(python: str) -> None:
    """Runs the demo outside the repository, so that only the installed package can be found."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        print(run(python, "examples/demo.py", cwd=folder))


def run(*command: str, cwd: str | Path | None = None) -> str:
    """The output of a command.

    Raises:
        SystemExit: It failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where uv is
    environment = {**os.environ, "PATH": path}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=3600)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:300]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
