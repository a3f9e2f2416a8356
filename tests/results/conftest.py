import numpy as np
import pytest
from mask_results import rectangles


@pytest.fixture
def three():
    """Two candidates for object 7, then one mask of object 2."""
    return rectangles((0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6), iou_scores=[0.6, 0.8, 0.7], object_ids=[7, 7, 2])


@pytest.fixture
def nothing():
    return rectangles(image=np.full((6, 8, 3), 9, np.uint8))


@pytest.fixture
def square():
    return rectangles((20, 20, 60, 60), size_hw=(80, 100), object_ids=[3], image=np.full((80, 100, 3), 200, np.uint8))
