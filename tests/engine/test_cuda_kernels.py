"""The Triton kernels against PyTorch's operators, on a CPU in Triton's interpreter."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from masklet.engine.cuda import fused
from masklet.engine.cuda.products import Norm

SCRIPT = """
import torch
from masklet.engine.cuda import fused
from masklet.engine.cuda.products import Norm
from masklet.engine.resizing import FrameResizer

torch.manual_seed(0)

def assert_agrees(function, tolerance):
    kernels = fused.kernels
    assert kernels is not None
    found = function()
    assert fused.kernels is kernels  # none failed
    fused.kernels = None
    expected, fused.kernels = function(), kernels
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()

for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    for dim in (4, 48, 256):
        norm = Norm(torch.rand(dim), torch.randn(dim), 1e-6)
        x, shared = torch.randn(2, 33, dim, dtype=dtype), torch.randn(1, 33, dim, dtype=dtype)
        for gelu in (False, True):
            assert_agrees(lambda: fused.layer_norm(x, norm, dtype, gelu=gelu), tolerance)
            assert_agrees(lambda: fused.add_norm(x, shared, norm, gelu=gelu), tolerance)
    y, cos, sin = torch.randn(2, 35, 120, dtype=dtype), torch.randn(35, 24), torch.randn(35, 24)
    for width in (24, 48):
        assert_agrees(lambda: fused.rotate(y, cos, sin, width), tolerance)
    cells, weights = torch.randn(2, 6, 2, 2, 2, 2, 12, dtype=dtype), torch.randn(2, 4, 12, dtype=dtype)
    assert_agrees(lambda: fused.draw_masks(cells, cells[:1], weights, 3), tolerance)
for frame_hw in ((48, 80), (70, 33)):
    resizer = FrameResizer.make(frame_hw, (64, 32), torch.device("cpu"))
    frame = torch.randint(0, 256, (*frame_hw, 3), dtype=torch.uint8)
    assert_agrees(lambda: resizer(frame, fused.resize_axis), 0)
"""


@pytest.mark.slow
def test_kernels_agree_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment, timeout=300)


class Broken:
    """A kernel that cannot be compiled."""

    def __getitem__(self, grid):
        raise RuntimeError("Failed to find C compiler")


def test_operators_take_the_place_of_kernels_that_fail(monkeypatch, caplog):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = SimpleNamespace(cdiv=lambda a, b: -(-a // b), next_power_of_2=lambda n: 1 << (n - 1).bit_length())
    monkeypatch.setattr(fused, "triton", sizes, raising=False)
    monkeypatch.setattr(fused, "kernels", SimpleNamespace(add_norm=Broken()))
    x, norm = torch.randn(2, 3, 8), Norm(torch.rand(8), torch.randn(8), 1e-6)
    for _ in range(2):
        assert torch.equal(fused.layer_norm(x, norm, torch.float32), norm(x))
    assert fused.kernels is None
    (record,) = caplog.records
    assert "Failed to find C compiler" in record.message
