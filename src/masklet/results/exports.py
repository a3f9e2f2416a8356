"""The exports of ``Masks``: in plain dicts and text, and as classes of other packages."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from masklet.config import SizeHW
from masklet.masks import Polygon, Rle, encode_rle, mask_areas, mask_boxes, patch_polygons, patches
from masklet.results import exporters
from masklet.results.exporters import Categories


class MaskExports:
    """What exporters need from ``Masks``, and the methods that call them. Only ``Masks`` derives from it."""

    masks: np.ndarray
    iou_scores: np.ndarray
    object_ids: np.ndarray
    labels: np.ndarray | None

    @property
    def size_hw(self) -> SizeHW:
        """(height, width) of the image."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def boxes(self) -> np.ndarray:
        """(masks, 4) float32: x0, y0, x1, y1, edges in pixels of the image; zeros for an empty mask."""
        return mask_boxes(self.masks)

    @property
    def areas(self) -> np.ndarray:
        """(masks,) int64, in pixels of the image."""
        return mask_areas(self.masks)

    def to_coco(
        self,
        *,
        image_id: int = 1,
        category_id: int = 1,
        categories: Categories | None = None,
        names: Sequence[str] | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
    ) -> list[dict[str, Any]]:
        """COCO instances, one per mask, numbered from 1: plain dicts that ``json`` writes and pycocotools loads.

        Each has ``segmentation`` (compressed run lengths, or polygons), ``bbox`` [x, y, width, height], ``area``,
        ``score``, ``id``, ``image_id``, ``category_id``, ``iscrowd`` 0 and, beyond the format, ``object_id``. Box and
        area are those of the exact mask.

        Args:
            image_id: Id of all instances.
            category_id: Id of the first class; the others follow.
            categories: The classes: one name for all masks, a list with a name for each mask, or {object id: name}. By
                default the labels of masks that were found by words, and otherwise "object".
            names: All classes in the order of their numbers, so that numbers agree between images. By default those of
                ``categories`` in the order in which they are first named.
            polygons: A list of polygons, one for each connected component. A COCO polygon cannot have holes: a hole
                becomes part of the outer ring, connected by a line that runs both ways. pycocotools fills exact
                polygons exactly. Empty masks are left out.
            tolerance: Leaves out points of polygons, see ``to_polygons``.

        Raises:
            ValueError: A mask has no class; a name is not among ``names``; ``tolerance`` is invalid.
        """
        classes = self._classes(categories, names)
        return exporters.coco_instances(
            self, classes, image_id=image_id, category_id=category_id, polygons=polygons, tolerance=tolerance
        )

    def to_coco_dataset(
        self,
        image_path: str | os.PathLike[str],
        *,
        image_id: int = 1,
        category_id: int = 1,
        categories: Categories | None = None,
        names: Sequence[str] | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
    ) -> dict[str, Any]:
        """A whole COCO data set of this image, with ``images``, ``annotations`` and ``categories``.

        Args:
            image_path: ``file_name`` of the image.
            image_id: Id of the image and all instances.
            category_id: As in ``to_coco``, like the other arguments.
            categories: As in ``to_coco``.
            names: As in ``to_coco``.
            polygons: As in ``to_coco``.
            tolerance: As in ``to_coco``.

        Raises:
            ValueError: As in ``to_coco``.
        """
        classes = self._classes(categories, names)
        ids = {"image_id": image_id, "category_id": category_id}
        instances = exporters.coco_instances(self, classes, polygons=polygons, tolerance=tolerance, **ids)
        return exporters.coco_data(instances, image_path, self.size_hw, names=classes.names, **ids)

    def to_rle(self) -> list[Rle]:
        """The masks as COCO's compressed run lengths."""
        return encode_rle(self.masks)

    def to_polygons(self, *, tolerance: float = 0.0) -> list[list[Polygon]]:
        """The outlines of each mask, one polygon for each connected component; none for an empty mask.

        Args:
            tolerance: In pixels. 0: outlines are exact. Otherwise points are left out (Douglas and Peucker): exact and
                simplified outlines are nowhere farther apart than this. Rings do not cross or touch. Holes and
                components stay, however small, with at least three points. Each mask is simplified on its own, so
                neighbours that share a border may overlap, or separate, by up to twice the tolerance.

        Raises:
            ValueError: ``tolerance`` is negative or not finite.
        """
        return [patch_polygons(patch, tolerance=tolerance) for patch in patches(self.masks)]

    def to_geojson(
        self,
        transform: exporters.Affine | None = None,
        *,
        categories: Categories | None = None,
        tolerance: float = 0.0,
    ) -> dict[str, Any]:
        """A GeoJSON FeatureCollection (RFC 7946), one Feature per mask; outlines keep holes.

        Args:
            transform: a, b, c, d, e, f in rasterio's order: x' = a x + b y + c, y' = d x + e y + f, from pixels to map
                coordinates; or rasterio's own object. By default coordinates are pixels, y down.
            categories: As in ``to_coco``: the property ``class``.
            tolerance: In pixels, not in map units: leaves out points, see ``to_polygons``.

        Returns:
            Plain dicts. Properties are ``object_id``, ``score`` and ``area`` in pixels. An empty mask has no geometry.

        Raises:
            ValueError: ``transform`` or ``tolerance`` is malformed; a mask has no class.
        """
        return exporters.geojson_collection(self, transform, self._labels(categories), tolerance)

    def to_labelme(
        self,
        image_path: str | os.PathLike[str],
        *,
        label: str = "object",
        categories: Categories | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
    ) -> dict[str, Any]:
        """The content of a labelme file, to be written by ``json``.

        Each connected component is a polygon, or a mask if it has holes. Components of one object share its id as
        ``group_id``.

        Args:
            image_path: The image, relative to the folder of the JSON file.
            label: The class of all objects, unless there are ``categories``.
            categories: The classes, as in ``to_coco``.
            polygons: Components with holes are polygons as well, as in ``to_coco``: for X-AnyLabeling and for old
                versions of labelme, which do not support masks.
            tolerance: Leaves out points of polygons, see ``to_polygons``. Masks stay exact.

        Raises:
            ValueError: A mask has no class; ``tolerance`` is invalid.
        """
        chosen = self._categories(categories)
        labels = self._classes(label if chosen is None else chosen).labels
        return exporters.labelme_page(self, image_path, labels, polygons=polygons, tolerance=tolerance)

    def to_label_studio(
        self,
        image: str,
        *,
        categories: Categories | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
        from_name: str | None = None,
        to_name: str = "image",
    ) -> dict[str, Any]:
        """A Label Studio task with the masks as its prediction. Label Studio imports a JSON list of tasks.

        Args:
            image: The image's address, as Label Studio knows it.
            categories: The classes, as in ``to_coco``: labels of the project.
            polygons: Regions are polygons, one for each connected component, with holes as in ``to_coco``; otherwise
                brush masks, in run lengths. Empty masks are left out.
            tolerance: Leaves out points of polygons, see ``to_polygons``.
            from_name: Name of the labels' tag in the project's configuration. By default that of the templates: "tag"
                of BrushLabels, "label" of PolygonLabels.
            to_name: Name of the image's tag, whose value is $ followed by the same name.

        Raises:
            ValueError: A mask has no class; ``tolerance`` is invalid; the image has 2**30 pixels or more.
        """
        return exporters.label_studio_task(
            self,
            image,
            self._classes(categories).labels,
            polygons=polygons,
            tolerance=tolerance,
            from_name=from_name,
            to_name=to_name,
        )

    def to_cvat(
        self,
        image_path: str | os.PathLike[str],
        *,
        image_id: int = 0,
        categories: Categories | None = None,
        names: Sequence[str] | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
    ) -> str:
        """The XML of "CVAT for images 1.1", UTF-8, with a mask for each object that is not empty.

        For several images, see ``masklet.results.exporters.cvat_document``.

        Args:
            image_path: Name of the image in CVAT's task.
            image_id: Its number in the task, from 0.
            categories: The classes, as in ``to_coco``: labels of the task.
            names: All labels of the task; by default those of ``categories``.
            polygons: Polygons instead of masks, one for each connected component, with holes as in ``to_coco``.
                Components of one mask form a group.
            tolerance: Leaves out points of polygons, see ``to_polygons``.

        Raises:
            ValueError: A mask has no class; a name has control characters; ``tolerance`` is invalid.
        """
        page = (image_path, self, categories)
        return exporters.cvat_document([page], image_id=image_id, names=names, polygons=polygons, tolerance=tolerance)

    def to_yolo(
        self,
        class_id: int = 0,
        *,
        categories: Categories | None = None,
        names: Sequence[str] | None = None,
        tolerance: float = 0.0,
    ) -> str:
        """Lines of a YOLO segmentation label file, one for each mask that is not empty.

        A line is the class, then x and y of each point, from 0 to 1. All components and holes of a mask are one ring,
        connected by lines that run both ways: filled by the even-odd rule, it gives the mask.

        Args:
            class_id: The class of all masks, or of the first name; the others follow.
            categories: The classes, as in ``to_coco``.
            names: All classes, as in the data set's YAML file, see ``to_coco``.
            tolerance: Leaves out points, see ``to_polygons``.

        Raises:
            ValueError: A mask has no class; a name is not among ``names``; ``tolerance`` is invalid.
        """
        return exporters.yolo_text(self, self._class_ids(class_id, categories, names), tolerance)

    def to_supervision(
        self, class_id: int = 0, *, categories: Categories | None = None, names: Sequence[str] | None = None
    ) -> Any:
        """``supervision.Detections`` with boxes, masks, scores as ``confidence`` and object ids as ``tracker_id``.

        Args:
            class_id: As in ``to_yolo``.
            categories: The classes, as in ``to_coco``: ``class_id`` and ``data["class_name"]``.
            names: All classes, see ``to_coco``.

        Raises:
            ModuleNotFoundError: The package supervision is not installed.
            ValueError: A mask has no class.
        """
        return exporters.detections(self, self._class_ids(class_id, categories, names), self._labels(categories))

    def to_pandas(self, *, categories: Categories | None = None) -> Any:
        """A ``pandas.DataFrame`` with a row for each mask.

        Columns: ``object_id``, ``score``, ``area`` in pixels, ``x0``, ``y0``, ``x1``, ``y1``, ``class`` if there are
        ``categories`` (as in ``to_coco``), and ``segmentation``, COCO's run lengths.

        Raises:
            ModuleNotFoundError: The package pandas is not installed.
            ValueError: A mask has no class.
        """
        return exporters.data_frame(self, self._labels(categories))

    def _classes(self, categories: Categories | None, names: Sequence[str] | None = None) -> exporters.Classes:
        return exporters.read_classes(self._categories(categories), self.object_ids.tolist(), names)

    def _labels(self, categories: Categories | None) -> list[str] | None:
        categories = self._categories(categories)
        return None if categories is None else self._classes(categories).labels

    def _categories(self, categories: Categories | None) -> Categories | None:
        """Those that were given, or else the labels of the masks."""
        return self.labels.tolist() if categories is None and self.labels is not None else categories

    def _class_ids(self, first: int, categories: Categories | None, names: Sequence[str] | None) -> list[int]:
        return [first + number for number in self._classes(categories, names).numbers]
