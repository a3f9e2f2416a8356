"""Masks in other formats: files, plain dicts, text, and other packages' classes.

Coordinates are pixels of the image, x right and y down, along the edges of pixels: the first pixel spans 0 to 1.
"""

from masklet.results.exporters.classes import Categories, Classes, read_classes
from masklet.results.exporters.coco import coco_data, coco_instance, coco_instances, stable_id
from masklet.results.exporters.cvat import cvat_document
from masklet.results.exporters.files import index_map, save_masks
from masklet.results.exporters.geojson import Affine, geojson_collection
from masklet.results.exporters.label_studio import label_studio_task
from masklet.results.exporters.labelme import labelme_page
from masklet.results.exporters.packages import data_frame, detections
from masklet.results.exporters.yolo import yolo_text

__all__ = [
    "Affine",
    "Categories",
    "Classes",
    "coco_data",
    "coco_instance",
    "coco_instances",
    "cvat_document",
    "data_frame",
    "detections",
    "geojson_collection",
    "index_map",
    "label_studio_task",
    "labelme_page",
    "read_classes",
    "save_masks",
    "stable_id",
    "yolo_text",
]
