"""The dock widget."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, Label, LineEdit, PushButton, create_widget
from napari.layers import Image, Labels, Points, Shapes
from napari.qt.threading import GeneratorWorker, create_worker

import masklet
from masklet import Segmenter
from masklet.integrations.napari.layer_session import FrameMasks, LayerSession
from masklet.integrations.napari.prompts import Key, LayerPrompt, paint, read_layers

if TYPE_CHECKING:
    from napari import Viewer

POINTS, BOXES, MASKS = "masklet points", "masklet boxes", "masklet masks"
MIDDLE_BUTTON = 3
"""Its number in vispy."""
HELP = (
    "Initialize, then click with the middle button: on the object; with Ctrl: beside it. Draw boxes in the layer "
    f"“{BOXES}”. The selected label is the object."
)


class SegmentWidget(Container):  # type: ignore[misc,unused-ignore]
    """Prompts in a Points and a Shapes layer, masks in a Labels layer.

    Work runs in one thread at a time. Prompts that change meanwhile are segmented next; tracking takes them between two
    frames.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.image = create_widget(annotation=Image, label="Image")
        self.model = LineEdit(
            label="Model", tooltip="A name, folder or file as for masklet.load; empty: the embedded model"
        )
        self.initialize = PushButton(text="Initialize")
        self.live = CheckBox(value=True, label="Segment at each click")
        self.segment_button = PushButton(text="Segment")
        self.direction = ComboBox(choices=["forward", "backward", "both"], label="Direction")
        self.track_button = PushButton(text="Track from this frame")
        self.stop_button = PushButton(text="Stop", enabled=False)
        self.reset_button = PushButton(text="Reset")
        self.status = Label(value=HELP)
        self.extend(
            [
                self.image,
                self.model,
                self.initialize,
                self.live,
                self.segment_button,
                self.direction,
                self.track_button,
                self.stop_button,
                self.reset_button,
                self.status,
            ]
        )
        self.status.native.setWordWrap(True)  # or a long message would widen the dock
        self.layer: Image | None = None
        self.points: Points | None = None
        self.boxes: Shapes | None = None
        self.labels: Labels | None = None
        self.worker: GeneratorWorker[FrameMasks, None, None] | None = None
        self._segmenters: dict[str, Segmenter] = {}
        self._session: LayerSession | None = None
        self._wanted: dict[Key, LayerPrompt] = {}  # written by the window's thread, read by the worker
        self._is_stale = False  # whether prompts changed since the worker began
        self.initialize.changed.connect(self.start)
        self.segment_button.changed.connect(self.segment)
        self.track_button.changed.connect(self.track)
        self.stop_button.changed.connect(self.stop)
        self.reset_button.changed.connect(self.reset)

    @property
    def has_frames(self) -> bool:
        """Whether the image layer is a stack."""
        return self.layer is not None and self.layer.ndim == 3

    def start(self) -> None:
        """Make the layers for prompts and masks of the chosen image."""
        if self.image.value is None:
            self.status.value = "Open an image first."
            return
        if self.image.value.ndim > 3:
            self.status.value = (
                f"{self.image.value.name} has {self.image.value.ndim} axes: expected an image or a stack."
            )
            return
        self._drop_session()
        self.layer = self.image.value
        placed = {"scale": self.layer.scale, "translate": self.layer.translate, "ndim": self.layer.ndim}
        features = {"object": np.zeros(0, int), "positive": np.zeros(0, bool)}
        self.points = self.viewer.add_points(
            name=POINTS,
            features=features,
            feature_defaults={"object": 1, "positive": True},
            face_color="positive",
            face_color_cycle=["#d62728", "#2ca02c"],
            size=max(3, min(self.layer.data.shape[:2]) // 60),
            **placed,
        )
        self.boxes = self.viewer.add_shapes(
            name=BOXES,
            features={"object": np.zeros(0, int)},
            feature_defaults={"object": 1},
            face_color="transparent",
            edge_color="#2ca02c",
            **placed,
        )
        shape = self.layer.data.shape[: self.layer.ndim]
        self.labels = self.viewer.add_labels(
            np.zeros(shape, np.int32), name=MASKS, scale=self.layer.scale, translate=self.layer.translate
        )
        self.points.events.data.connect(self._prompts_changed)
        self.boxes.events.data.connect(self._prompts_changed)
        self.labels.events.selected_label.connect(self._object_chosen)
        for layer in (self.layer, self.labels, self.points, self.boxes):
            layer.mouse_drag_callbacks.append(self._clicked)
        self._object_chosen()
        self.status.value = HELP

    def segment(self) -> None:
        """Segment all prompts that changed."""
        if self._check_ready():
            self._run(lambda session: session.segment(self._wanted), "Segmenting …")

    def track(self) -> None:
        """Track all objects from the frame that is shown."""
        if not self._check_ready():
            return
        if not self.has_frames:
            self.status.value = "Tracking needs a stack of frames: this layer is a single image."
            return
        direction, start = self.direction.value, int(self.viewer.dims.current_step[0])

        def frames(session: LayerSession) -> Generator[FrameMasks]:
            yield from session.segment(self._wanted)
            yield from session.track(direction, start, lambda: self._wanted)

        self._run(frames, "Tracking …")

    def stop(self) -> None:
        """Stop after the current frame. What was tracked stays."""
        if self.worker is not None:
            self.worker.quit()

    def reset(self) -> None:
        """Remove all prompts and masks."""
        if self.points is None or self.boxes is None or self.labels is None:
            return
        self._drop_session()
        with self.points.events.data.blocker(), self.boxes.events.data.blocker():
            self.points.data, self.boxes.data = np.zeros((0, self.points.ndim)), []
        self.labels.data = np.zeros_like(self.labels.data)
        self.status.value = HELP

    def _check_ready(self) -> bool:
        """Whether the layers are there; takes their prompts as they are now."""
        if self.points is None or self.boxes is None or self.labels is None:
            self.status.value = "Press Initialize first."
            return False
        if any(layer not in self.viewer.layers for layer in (self.points, self.boxes, self.labels)):
            self.status.value = "A layer of prompts or masks was removed: press Initialize again."
            return False
        size_hw = self.labels.data.shape[-2:]
        self._wanted = read_layers(
            self.points.data, self.points.features, self.boxes.data, self.boxes.features, size_hw
        )
        return True

    def _run(self, work: Callable[[LayerSession], Generator[FrameMasks]], message: str) -> None:
        """Start a thread, or let the one that runs take the prompts as they are now."""
        if self.worker is not None:
            self._is_stale = True
            return
        self._is_stale = False
        self.status.value = message
        self.stop_button.enabled = True

        def masks() -> Generator[FrameMasks]:
            yield from work(self._opened())

        self.worker = create_worker(masks, _start_thread=False, _ignore_errors=True)
        assert self.worker is not None
        self.worker.yielded.connect(self._show)
        self.worker.errored.connect(self._tell)
        self.worker.returned.connect(lambda _: self._say("Done."))
        self.worker.aborted.connect(lambda: self._say("Stopped."))
        self.worker.finished.connect(self._finish)
        self.worker.start()

    def _opened(self) -> LayerSession:
        """The session of the layer, made at its first use."""
        if self._session is None:
            assert self.layer is not None
            name = self.model.value.strip()
            if name not in self._segmenters:
                self._segmenters[name] = masklet.load(name or None)
            is_8bit = np.dtype(self.layer.dtype) == np.uint8
            limits = None if is_8bit else (float(self.layer.contrast_limits[0]), float(self.layer.contrast_limits[1]))
            self._session = LayerSession(
                self._segmenters[name], self.layer.data, has_frames=self.has_frames, value_range=limits
            )
        return self._session

    def _show(self, result: FrameMasks) -> None:
        """Write masks into the Labels layer."""
        if self.labels is None:
            return
        paint(self.labels.data[result.frame] if self.has_frames else self.labels.data, result.masks)
        self.labels.refresh()
        if self.has_frames:
            self.status.value = f"Frame {result.frame}"

    def _tell(self, error: Exception) -> None:
        self._say(str(error))

    def _say(self, message: str) -> None:
        self.status.value = message

    def _finish(self) -> None:
        self.worker = None
        self.stop_button.enabled = False
        if self._is_stale:
            self.segment()

    def _drop_session(self) -> None:
        self.stop()
        self._session = None

    def _prompts_changed(self, event: Any) -> None:
        if self.live.value and getattr(event, "action", "changed") in ("added", "removed", "changed"):
            self.segment()

    def _object_chosen(self, event: Any = None) -> None:
        """New prompts are for the selected label."""
        if self.points is None or self.boxes is None or self.labels is None:
            return
        chosen = int(self.labels.selected_label)
        self.points.feature_defaults = {"object": chosen, "positive": True}
        self.boxes.feature_defaults = {"object": chosen}

    def _clicked(self, layer: Any, event: Any) -> None:
        """The middle button adds a point; with Ctrl a background point."""
        if event.button == MIDDLE_BUTTON and self.points is not None:
            self.add_point(self.points.world_to_data(event.position), positive="Control" not in event.modifiers)

    def add_point(self, position: Any, *, positive: bool = True) -> None:
        """Add a point for the selected label, [frame,] row, column in pixels of the image layer."""
        assert self.points is not None
        assert self.labels is not None
        self.points.feature_defaults = {"object": int(self.labels.selected_label), "positive": positive}
        self.points.add(np.asarray(position))
