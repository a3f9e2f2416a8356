"""Options that several commands take, under the same names.

A command takes single options by their types, such as ``Model``, or a group of them, such as ``ModelOptions``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.cli.outputs import STANDARD
from masklet.errors import ConfigError

if TYPE_CHECKING:
    from masklet.segmenter import Segmenter

MODEL, PIXELS, GRID, ADVANCED = "Model", "Values of pixels", "Automatic masks", "Automatic masks: rarely needed"
"""Panels of the help."""
OUT, JSON = ("--out", "-o"), ("--json", "--jsonl")
"""The names of the options for the overlay and for JSON, in every command."""
PROMPT_FILE = "Prompts of many inputs and objects: a .json, .jsonl, .csv or .parquet file, or a COCO data set."
"""The help of ``--prompts``; see ``masklet.batch.prompt_files``."""
IMAGES = "Images, folders of images, or patterns such as 'images/*.jpg'"
"""The help of the arguments that ``find_sources`` reads."""


def _completion(*values: str) -> Any:
    """Completes the value of an option in a shell."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from masklet.checkpoints import KNOWN_MODELS  # slow: imports torch

    return [model.name for model in KNOWN_MODELS if model.name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        help="A name that masklet models lists, a model folder, or a .pt file.",
        autocompletion=_complete_model,
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:N or mps.",
        autocompletion=_completion("auto", "cpu", "cuda", "mps"),
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision: auto, float32, bfloat16 or float16. auto is float32, with products in bfloat16 on many CPUs.",
        autocompletion=_completion("auto", "float32", "bfloat16", "float16"),
        rich_help_panel=MODEL,
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="How the network runs: auto, eager, cpu or cuda.",
        autocompletion=_completion("auto", "eager", "cpu", "cuda"),
        rich_help_panel=MODEL,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        help="Input side of the network, a multiple of 32.", show_default="the model's", rich_help_panel=MODEL
    ),
]

ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH|auto",
        help="Values that become black and white; auto uses percentiles of the image.",
        show_default="the range of the type",
        rich_help_panel=PIXELS,
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        metavar="N[,N,N]",
        help="Band to use as grey, or bands to use as red, green and blue, counted from 0.",
        rich_help_panel=PIXELS,
    ),
]
NoData = Annotated[
    float | None,
    typer.Option("--nodata", metavar="VALUE", help="Value of missing pixels; may be nan.", rich_help_panel=PIXELS),
]

POLICY_HELP = "Memory policy: paper, sam3, samurai, dam4sam or sam2long (docs/tracking.md)."
complete_policy = _completion("paper", "sam3", "samurai", "dam4sam", "sam2long")
Policy = Annotated[str, typer.Option(help=POLICY_HELP, autocompletion=complete_policy)]

WORDS = "Words"
DETECTOR = "IDEA-Research/grounding-dino-tiny"


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """Words instead of clicks."""

    text: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Words for objects, such as 'a truck'. Repeatable.", rich_help_panel=WORDS),
    ] = None
    detector: Annotated[
        str | None,
        typer.Option(
            help="Zero-shot detector: a name on the Hugging Face Hub, or a folder (pip install masklet[text]).",
            show_default=DETECTOR,
            rich_help_panel=WORDS,
        ),
    ] = None
    detection_threshold: Annotated[
        float | None,
        typer.Option(help="Least score of a detection.", show_default="0.3", rich_help_panel=WORDS),
    ] = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``EncodedImage.predict``, without those that are not given; none without words.

        Raises:
            MaskletError: There is a detector, but no words.
        """
        options = given(**vars(self))
        if options and self.text is None:
            raise ConfigError(f"--{next(iter(options)).replace('_', '-')} is an option of --text: give both")
        return options


# Options of automatic masks, of masklet everything and masklet eval --everything.
PointsPerSide = Annotated[
    int | None,
    typer.Option(
        help="Points along each side of the image; more find smaller objects.", show_default="32", rich_help_panel=GRID
    ),
]
Crops = Annotated[
    int | None,
    typer.Option(
        help="Layers of crops that are searched too, for small objects.", show_default="0", rich_help_panel=GRID
    ),
]
CropOverlap = Annotated[
    float | None,
    typer.Option(
        help="Overlap of crops, as a share of the image's shorter side.", show_default="0.34", rich_help_panel=ADVANCED
    ),
]
CropPointsDivisor = Annotated[
    int | None,
    typer.Option(
        help="Divide the points per side by this in each layer of crops.", show_default="1", rich_help_panel=ADVANCED
    ),
]
CropNms = Annotated[
    float | None, typer.Option(help="As --box-nms, but between crops.", show_default="0.7", rich_help_panel=ADVANCED)
]
MinArea = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", help="Remove holes and islands that have fewer pixels.", rich_help_panel=GRID),
]
IouThreshold = Annotated[
    float | None,
    typer.Option(help="Keep only masks with a higher predicted IoU.", show_default="the model's", rich_help_panel=GRID),
]
StabilityThreshold = Annotated[
    float | None,
    typer.Option(
        help="Keep only masks with at least this stability score.", show_default="the model's", rich_help_panel=GRID
    ),
]
StabilityOffset = Annotated[
    float | None,
    typer.Option(help="Offset of the stability score, in logits.", show_default="1", rich_help_panel=ADVANCED),
]
BoxNms = Annotated[
    float | None,
    typer.Option(
        help="Keep only one of several boxes that overlap with a higher IoU.",
        show_default="0.7",
        rich_help_panel=ADVANCED,
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option("--refine", help="Improve each mask once; four times slower.", rich_help_panel=GRID),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and how it runs."""

    model: Model = "nano"
    device: Device = "auto"
    dtype: Dtype = "auto"
    engine: EngineName = "auto"
    resolution: Resolution = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of ``masklet.load``."""
        return {
            "name": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "engine": self.engine,
            "resolution": self.resolution,
        }

    def load(self) -> Segmenter:
        """Loads the model."""
        import masklet

        return masklet.load(**self.keywords)


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """How values of an image become colours."""

    value_range: ValueRange = None
    bands: Bands = None
    nodata: NoData = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``Segmenter.image`` and similar methods, without those that are not given.

        Raises:
            ConfigError: One of them is invalid.
        """
        from masklet.images.options import ImageOptions

        value_range: Any = self.value_range
        if value_range not in (None, "auto"):
            value_range = _numbers("--value-range", value_range, float, "expected two numbers, as in 0,4095, or auto")
        bands = self.bands
        numbers = None if bands is None else _numbers("--bands", bands, int, "expected numbers, as in 0 or 2,1,0")
        keywords = given(value_range=value_range, bands=numbers, nodata=self.nodata)
        ImageOptions(**keywords)
        return keywords


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Options of ``EverythingOptions``; None for its defaults."""

    points_per_side: PointsPerSide = None
    iou_threshold: IouThreshold = None
    stability_threshold: StabilityThreshold = None
    min_area: MinArea = None
    crops: Crops = None
    refine: Refine = None
    crop_overlap: CropOverlap = None
    crop_points_divisor: CropPointsDivisor = None
    crop_nms: CropNms = None
    stability_offset: StabilityOffset = None
    box_nms: BoxNms = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``Segmenter.everything``, without those that are not given."""
        return given(**vars(self))


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the masks of images are written. ``-`` is the standard output."""

    out: Annotated[
        Path | None,
        typer.Option(
            *OUT, metavar="IMAGE", help="Write the image with the masks painted over it; - for the standard output."
        ),
    ] = None
    json: Annotated[
        Path | None,
        typer.Option(
            *JSON,
            metavar="JSON",
            help="Write a COCO data set (RLE); a .jsonl file gets only the annotations, one per line; - for the "
            "standard output.",
        ),
    ] = None
    polygons: Annotated[
        float | None,
        typer.Option(
            metavar="PIXELS",
            help="Write polygons instead of run lengths to the JSON, simplified by at most this; 0: exact.",
        ),
    ] = None
    mask_out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write all masks to one image; - for the standard output."),
    ] = None
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a folder for each image, with a PNG for each mask.")
    ] = None

    def __post_init__(self) -> None:
        for name, path in vars(self).items():
            if path == Path("/dev/stdout"):  # the table would overwrite it
                object.__setattr__(self, name, STANDARD)

    @property
    def places(self) -> list[Path]:
        """The files and folders that are written."""
        paths = (self.out, self.json, self.mask_out, self.masks)
        return [path for path in paths if path is not None and path != STANDARD]

    @property
    def prints(self) -> bool:
        """Whether one of them is the standard output, which then has nothing else."""
        return STANDARD in vars(self).values()


def _numbers(option: str, text: str, kind: type[float], expected: str) -> tuple[float, ...]:
    """Numbers that are separated by commas."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: {expected}") from None


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
