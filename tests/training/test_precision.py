"""Where products are computed in bfloat16."""

import pytest
import torch

from masklet.training.precision import autocast


@pytest.mark.parametrize("enabled", [True, False])
def test_products_are_narrowed_if_enabled_whatever_the_surrounding_code_does(enabled):
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=not enabled), autocast(x.device, enabled=enabled):
        assert (x @ x).dtype == (torch.bfloat16 if enabled else torch.float32)


def test_autocast_is_never_called_for_mps(monkeypatch):
    monkeypatch.setattr(torch, "autocast", None)
    for enabled in (True, False):
        with autocast(torch.device("mps"), enabled=enabled):
            pass
