"""masklet image."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.atomic import replacing
from masklet.cli.options import Device, Dtype, EngineName, Model, Resolution
from masklet.cli.outputs import check_places, naming
from masklet.cli.tables import show_table
from masklet.errors import ImageError, PromptError

if TYPE_CHECKING:
    from masklet.results import Masks


def segment(
    image: Annotated[Path, typer.Argument(help="The image: JPEG, PNG, TIFF, WebP or any other format of Pillow.")],
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y[,LABEL]", help="Point in pixels; label 0 marks the background. Repeatable."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Box in pixels. Repeatable: one object for each box."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Rough mask of the image's size; all but black is inside.")
    ] = None,
    model: Model = "nano",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "auto",
    resolution: Resolution = None,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Return all three candidates of each object instead of the best.")
    ] = False,
    fill_holes: Annotated[int, typer.Option(metavar="PIXELS", help="Fill holes of fewer pixels.")] = 0,
    remove_islands: Annotated[int, typer.Option(metavar="PIXELS", help="Remove islands of fewer pixels.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Write the image with the masks over it.")] = None,
    mask_out: Annotated[Path | None, typer.Option(metavar="PNG", help="Write the masks.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="JSON", help="Write COCO annotations (RLE).")
    ] = None,
) -> None:
    """Segment objects of an image, prompted by points, boxes or a rough mask."""
    prompts: dict[str, Any] = {
        "points": [parse_numbers("--point", text, (2, 3)) for text in point or []] or None,
        "boxes": [parse_numbers("--box", text, (4,)) for text in box or []] or None,
    }
    if prompts["points"] is None and prompts["boxes"] is None and mask is None:
        raise PromptError("nothing to segment: give --point, --box or --mask (masklet image --help)")
    check_outputs(out=out, mask_out=mask_out)
    check_places([("--out", out), ("--mask-out", mask_out), ("--json", json_out)], inputs=[image])
    import masklet

    sam = masklet.load(model, device, dtype, engine=engine)
    start = perf_counter()
    encoded = sam.image(image, resolution=resolution)
    encode_ms = 1000 * (perf_counter() - start)
    prompts |= {"mask": None if mask is None else read_mask(mask)}
    prompts |= {"fill_holes": fill_holes, "remove_islands": remove_islands}
    start = perf_counter()
    masks = encoded.predict(**prompts, candidates=True).flatten() if candidates else encoded.predict(**prompts)
    predict_ms = 1000 * (perf_counter() - start)
    write_outputs(masks, out=out, mask_out=mask_out, json_out=json_out)
    show_masks(masks, title=f"{image.name}: encoded in {encode_ms:.0f} ms, segmented in {predict_ms:.0f} ms")


def show_masks(masks: Masks, *, title: str) -> None:
    """Prints a table with a row for each mask."""
    show_table(
        ("object", "score", "area", "box"),
        [
            (object_id, f"{score:.3f}", area, ",".join(f"{edge:.0f}" for edge in box))
            for object_id, score, area, box in zip(
                masks.object_ids, masks.iou_scores, masks.areas, masks.boxes, strict=True
            )
        ],
        title=title,
    )


def parse_numbers(option: str, text: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Parses comma-separated numbers.

    Raises:
        PromptError: These are not numbers, or not as many as the option takes.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        expected = " or ".join(map(str, counts))
        raise PromptError(f"{option} {text!r}: expected {expected} numbers in pixels, separated by commas")
    return numbers


def read_mask(path: Path) -> Any:
    """Reads a mask image as (height, width) bool: pixels that are neither black nor transparent are inside."""
    from masklet.images.reading import pixels_of

    pixels = pixels_of(path)  # as stored: 1 of 65535 is inside, and 8 bits would lose it
    if pixels.ndim == 2:
        return pixels > 0
    return pixels[..., :3].any(axis=2) & pixels[..., 3:].all(axis=2)


def check_outputs(*, out: Path | None, mask_out: Path | None) -> None:
    """Refuses images of an unknown format before the work starts."""
    from PIL import Image

    if out is not None and Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ImageError(f"--out {out}: expected a name that ends in .png, .jpg or the suffix of another image format")
    if mask_out is not None and mask_out.suffix.lower() != ".png":
        raise ImageError(f"--mask-out {mask_out}: expected a name that ends in .png, which is lossless")


def write_outputs(masks: Masks, *, out: Path | None, mask_out: Path | None, json_out: Path | None) -> None:
    """Writes the requested files."""
    for path, write in (
        (out, lambda file: masks.overlay().save(file)),
        (mask_out, masks.save),
        (json_out, lambda file: file.write_text(json.dumps(masks.to_coco()), encoding="utf-8")),
    ):
        if path is None:
            continue
        with naming(path), replacing(path) as unfinished:
            write(unfinished)
