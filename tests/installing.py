"""Installs the wheel in dist/ into fresh environments that have only what it declares, and tries it there.

    python tests/installing.py extras [EXTRA …]  # each extra by itself: imports and uses its modules; or only the demo
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
    "masklet.integrations.napari.widget": set(),  # a Qt, which users choose: "napari[all]"
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
QUICK += ["-W", "ignore:Corrupt EXIF data"]  # the lowest Pillow warns of damaged TIFFs before masklet refuses them
USES = {  # what extras are for: their modules import many packages at first use
    "train": """
import numpy, pathlib
from PIL import Image
from masklet.training import train
for kind in ("images", "masks"):
    pathlib.Path("data", kind).mkdir(parents=True)
for i in range(3):
    pixels = numpy.zeros((60, 80), numpy.uint8)
    pixels[10:40, 10 + i : 50] = 1
    Image.fromarray(pixels * 200).save(f"data/images/{i}.png")
    Image.fromarray(pixels).save(f"data/masks/{i}.png")
stage = {"steps": 1, "train": "lora", "batch_size": 1, "rounds": 1, "input_size": 128}
print(train({"data": {"layout": "folder", "path": "data"}, "lora": {"rank": 2}, "stages": [stage]}, "run"))
""",
    "batch": """
import sys
from masklet.cli import main
sys.argv = ["masklet", "batch", "examples/images", "--out", "results", "--points-per-side", "2"]
main()
""",
    "export": """
from masklet.export import to_onnx
import masklet
to_onnx("nano", "onnx")
masklet.load("onnx", engine="onnx").image("examples/images/truck.jpg").predict(points=[(410, 315)])
""",
    "tiff": """
import numpy, tifffile
import masklet
tifffile.imwrite("a.tif", numpy.zeros((64, 64, 5), numpy.uint16), compression="zlib", tile=(16, 16))
list(masklet.load().everything_tiled("a.tif", tile=64, points_per_side=1, bands=(0, 1, 2), value_range=(0, 9)))
""",
}
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
            elif extra in USES:
                run_with_examples(python, "-c", USES[extra])
            print(
                f"[{extra}]: {len(unexpected)} modules failed, {len(failed) - len(unexpected)} need others", flush=True
            )
    return problems


def is_of_another(module: str, *installed: str) -> bool:
    """Whether a module may fail, since it belongs to other extras than those that are installed."""
    prefixes = [prefix for prefix in NEEDS if f"{module}.".startswith(f"{prefix}.")]
    return bool(prefixes) and not NEEDS[max(prefixes, key=len)] & set(installed)


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
    """Runs the demo."""
    run_with_examples(python, "examples/demo.py")


def run_with_examples(*command: str) -> None:
    """Runs a command outside the repository, so that only the installed package can be found, and prints its output."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        print(run(*command, cwd=folder))


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
