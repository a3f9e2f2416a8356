"""The widget in napari itself, without a window."""

import os
import time
import warnings

import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # napari's own, while it is imported
    pytest.importorskip("napari", reason="needs napari and a Qt: pip install 'masklet[napari]' 'napari[all]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def widget():
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    from masklet.integrations.napari.widget import SegmentWidget

    app = QApplication.instance() or QApplication([])
    viewer = ViewerModel()
    stack = np.random.default_rng(0).integers(0, 80, (3, 96, 128), dtype=np.uint8)
    for frame, image in enumerate(stack):
        image[30:62, 20 + 6 * frame : 52 + 6 * frame] = 230
    layer = viewer.add_image(stack, name="stack")
    widget = SegmentWidget(viewer)
    widget.image.choices = [layer]

    def wait():
        while widget.worker is not None:
            app.processEvents()
            time.sleep(0.01)

    widget.wait = wait
    widget.start()
    return widget


def areas(widget, label=1):
    return (widget.labels.data == label).sum((1, 2)).tolist()


def test_a_click_segments_tracking_goes_on_and_reset_clears(widget):
    widget.add_point([0, 45, 36])
    widget.wait()
    first, *others = areas(widget)
    assert abs(first - 32 * 32) < 60
    assert others == [0, 0]
    widget.viewer.dims.set_current_step(0, 0)
    widget.track()
    widget.wait()
    assert all(abs(area - 32 * 32) < 60 for area in areas(widget))
    widget.reset()
    assert not widget.labels.data.any()


def test_an_error_is_shown_in_the_widget(widget):
    widget.track()
    widget.wait()
    assert "nothing to track" in widget.status.value


def test_the_manifest_names_the_widget():
    from pathlib import Path

    from npe2 import PluginManifest

    import masklet.integrations.napari as plugin

    manifest = PluginManifest.from_file(Path(plugin.__file__).parent / "napari.yaml")
    manifest.validate_imports()
    assert manifest.contributions.widgets[0].display_name == "Segment and track"
