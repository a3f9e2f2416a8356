"""A tiny network with the names of Meta's parts. Its objects stay in the image, though its weights are random."""

import copy

import pytest

from masklet.compat.sam2.network import SAM2Base
from masklet.engine import make_engine
from masklet.segmenter import Segmenter


@pytest.fixture(scope="session")
def sam(sam):
    model = copy.deepcopy(sam.model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    return Segmenter(make_engine(model), sam.image_processor)


@pytest.fixture(scope="session")
def meta_model(sam):
    """A copy whose weights may be trained."""
    return SAM2Base(copy.deepcopy(sam.model).requires_grad_(True), sam.image_processor)
