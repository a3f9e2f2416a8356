import subprocess
import sys

import pytest

import masklet
from masklet import errors

PUBLIC_NAMES = """
    CandidateMasks CheckpointError ConfigError DataError DetectorError DeviceError EncodedImage FrameResult ImageError
    LiveVideo MaskletError Masks PromptError Sam2Config Sam2EverythingConfig Sam2HieraDetConfig Sam2HieraDetModel
    Sam2ImageEncoderConfig Sam2ImageProcessor Sam2MaskDecoderConfig Sam2MemoryAttentionConfig
    Sam2MemoryEncoderConfig Sam2Model Sam2PreTrainedModel Sam2Processor Sam2PromptEncoderConfig Sam2VideoConfig
    Sam2VideoInferenceSession Sam2VideoModel Sam2VideoProcessor Sam2VideoVideoProcessor Sam2VisionConfig
    Sam2VisionModel Segmenter SessionError SpoolError TrainingError VideoError VideoSession VideoStream
    __version__ load load_detector
"""


def test_the_public_names_are_these():
    assert sorted(masklet.__all__) == sorted(PUBLIC_NAMES.split())
    assert sorted(dir(masklet)) == sorted(PUBLIC_NAMES.split())


@pytest.mark.parametrize("name", PUBLIC_NAMES.split())
def test_every_public_name_is_the_name_of_its_object(name):
    value = getattr(masklet, name)
    assert getattr(value, "__name__", name) == name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'masklet' has no attribute 'lode'"):
        _ = masklet.lode


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("PromptError", ValueError),
        ("ImageError", ValueError),
        ("ConfigError", ValueError),
        ("CheckpointError", OSError),
        ("DeviceError", RuntimeError),
        ("VideoError", ValueError),
        ("SessionError", ValueError),
        ("SpoolError", OSError),
        ("DataError", ValueError),
        ("TrainingError", RuntimeError),
    ],
)
def test_each_error_is_also_the_builtin_it_resembles(error, builtin):
    assert issubclass(getattr(errors, error), (errors.MaskletError, builtin))
    assert issubclass(getattr(errors, error), builtin)


@pytest.mark.parametrize(
    "code",
    [
        "import masklet",
        "import masklet; masklet.__version__; dir(masklet); masklet.MaskletError; masklet.Sam2EverythingConfig()",
        "import sys, masklet.cli; sys.argv = ['masklet', '--help']\ntry: masklet.cli.main()\nexcept SystemExit: pass",
        "import sys, masklet.cli; sys.argv = ['masklet', 'image', '--help']\n"
        "try: masklet.cli.main()\nexcept SystemExit: pass",
        "import sys, masklet.cli; sys.argv = ['masklet', 'everything', '--help']\n"
        "try: masklet.cli.main()\nexcept SystemExit: pass",
    ],
    ids=["import", "config", "help", "help of image", "help of everything"],
)
def test_torch_is_imported_only_where_it_is_needed(code):
    code += "\nimport sys; print({'torch', 'numpy', 'PIL', 'huggingface_hub', 'av'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"


def test_importing_changes_nothing_global():
    code = """
import os, warnings, logging, torch
before = (torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32,
          torch.is_grad_enabled(), dict(os.environ), list(warnings.filters), list(logging.root.handlers),
          torch.initial_seed())
from masklet import *
after = (torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32,
         torch.is_grad_enabled(), dict(os.environ), list(warnings.filters), list(logging.root.handlers),
         torch.initial_seed())
changed = [index for index, (old, new) in enumerate(zip(before, after)) if old != new]
print(changed)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_undeclared_package_is_imported():
    """Every module imports without typing_extensions, which packages that masklet needs may bring, or may not."""
    code = """
import builtins, pkgutil, sys
from importlib import import_module
import masklet, torch, accelerate, peft, huggingface_hub

importer = builtins.__import__
def without(name, scope=None, *args):
    if name.partition(".")[0] == "typing_extensions" and (scope or {}).get("__name__", "").startswith("masklet"):
        raise ModuleNotFoundError(name)
    return importer(name, scope, *args)
builtins.__import__ = without

# They load their plug-ins themselves. Ray Serve needs grpc_reflection.
PROGRAMS = ("cvat_sdk", "fiftyone", "grpc_reflection", "magicgui", "napari", "ray")
WITH_TORCH = ("triton",)  # comes with PyTorch where it can be used
failed = []
for module in pkgutil.walk_packages(masklet.__path__, "masklet."):
    if not module.name.endswith("__main__"):
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in PROGRAMS + WITH_TORCH:
                failed.append(module.name)
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"
