"""samexporter's own inference code feeds the graphs of its layout. ``make test-controls`` installs it."""

import numpy as np
import pytest

from masklet.export import to_onnx

pytest.importorskip("cv2", reason="needs samexporter and what it imports: make test-controls")
sam2_onnx = pytest.importorskip("samexporter.sam2_onnx", reason="needs samexporter: make test-controls")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]


@pytest.fixture(scope="module")
def theirs(eager, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool")
    to_onnx(eager, folder, layout="samexporter", check=False)
    names = (str(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
    return sam2_onnx.SegmentAnything2ONNX(*names, providers=["CPUExecutionProvider"])


def test_prompts_of_samexporter_give_the_masks_of_eager(theirs, eager):
    """Of the size of the input, since samexporter resizes in another way. Its images are BGR."""
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    image[10:30, 20:50] += 150
    embedding, encoded = theirs.encode(np.ascontiguousarray(image[..., ::-1])), eager.image(image)
    point, background = ({"type": "point", "data": xy, "label": is_on} for xy, is_on in (((30, 20), 1), ((5, 50), 0)))
    cases = [
        ([point], {"points": [(30, 20)]}),
        ([point, background], {"points": [(30, 20), (5, 50, 0)]}),
        ([{"type": "rectangle", "data": [20, 10, 50, 30]}], {"box": (20, 10, 50, 30)}),
    ]
    for prompt, ours in cases:
        found = np.asarray(theirs.predict_masks(embedding, prompt)).reshape(64, 64) > 0
        expected = encoded.predict(**ours, multimask=True).masks[0]
        assert 0 < expected.mean() < 1
        assert (found == expected).mean() > 0.99
