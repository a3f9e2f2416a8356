"""A network whose objects stay in the image, though its weights are random."""

import copy

import pytest

from masklet.engine import make_engine
from masklet.segmenter import Segmenter


@pytest.fixture(scope="session")
def sam(sam):
    model = copy.deepcopy(sam.model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    return Segmenter(make_engine(model), sam.image_processor)
