"""Where products are computed in bfloat16 or float16."""

from types import SimpleNamespace

import pytest
import torch

from masklet.training import precision as precision_module
from masklet.training.precision import DTYPES, autocast, precision_for, tf32

GPU = torch.device("cuda")


@pytest.mark.parametrize("precision", DTYPES)
def test_products_are_narrowed_as_asked_whatever_the_surrounding_code_does(precision):
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "float32"), autocast(x.device, precision):
        assert (x @ x).dtype == DTYPES[precision]


def test_autocast_is_never_called_for_mps(monkeypatch):
    monkeypatch.setattr(torch, "autocast", None)
    for precision in DTYPES:
        with autocast(torch.device("mps"), precision):
            pass


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_takes_bfloat16_on_gpus_that_have_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_for("auto", GPU) == expected
    assert precision_for("float32", GPU) == "float32"


@pytest.mark.parametrize(("flags", "expected"), [((False, True), "bfloat16"), ((False, False), "float32")])
def test_auto_takes_bfloat16_on_processors_that_have_it(monkeypatch, flags, expected):
    amx, avx = flags
    checks = SimpleNamespace(_is_amx_tile_supported=lambda: amx, _is_avx512_bf16_supported=lambda: avx)
    monkeypatch.setattr(precision_module.torch, "cpu", checks)
    assert precision_for("auto", torch.device("cpu")) == expected
    assert precision_for("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(("precision", "allowed"), [("bfloat16", True), ("float32", False)])
def test_tf32_is_allowed_in_a_step_alone_and_not_in_float32(precision, allowed):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with tf32(GPU, precision):
        assert matmul.allow_tf32 == allowed
    assert matmul.allow_tf32 == before
