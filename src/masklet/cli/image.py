"""masklet image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from masklet.cli.groups import grouped
from masklet.cli.jobs import Job, make_jobs, report_failures, run_jobs
from masklet.cli.options import IMAGES, PROMPT_FILE, ModelOptions, OutputOptions, PixelOptions, WordOptions
from masklet.cli.prompts import Prompts, loaded, predict_words, prompts_of_file, read_prompts
from masklet.cli.sources import find_sources, opened
from masklet.cli.tables import show_table
from masklet.errors import PromptError

if TYPE_CHECKING:
    from masklet.results import Masks

Row: TypeAlias = tuple[str, ...]
NO_PROMPTS = Prompts({})


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The prompts of an image."""

    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[OBJECT@]X,Y[,LABEL]", help="Point in pixels; label 0 means not on the object. Repeatable."
        ),
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="[OBJECT@]X0,Y0,X1,Y1", help="Box in pixels. Repeatable: one object for each box."),
    ] = None
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[OBJECT@]PNG", help="Rough mask of the image's size: black is outside; grey edges are soft."
        ),
    ] = None

    prompts: Annotated[str | None, typer.Option(metavar="FILE", help=PROMPT_FILE)] = None

    def reader(self) -> Callable[[str], Prompts]:
        """Gives the prompts of an image by its name: those of the file, or else the same for every image."""
        if self.prompts is None:
            prompts = read_prompts(self.point or [], self.box or [], self.mask or [])
            return lambda name: prompts
        if self.point or self.box or self.mask:
            raise PromptError("--prompts came with --point, --box or --mask: expected either the file or these")
        from masklet.batch.prompt_files import read_prompt_file

        table = read_prompt_file(self.prompts)
        return lambda name: prompts_of_file(name, table.of(name))


@grouped
def segment(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help=f"{IMAGES}; - for the standard input."),
    ],
    *,
    prompt: PromptOptions,
    words: WordOptions,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Return all three candidates of each object instead of the best.")
    ] = False,
    fill_holes: Annotated[int, typer.Option(metavar="PIXELS", help="Fill holes that have fewer pixels.")] = 0,
    remove_islands: Annotated[int, typer.Option(metavar="PIXELS", help="Remove islands that have fewer pixels.")] = 0,
    output: OutputOptions,
    pixels: PixelOptions,
    model: ModelOptions,
) -> None:
    """Segment objects in images, prompted by points, boxes, rough masks or words.

    A prompt may name its object by a word or a number: --point cup@500,375 --box 2@10,20,300,400. Without names, all
    points are on one object. Several images get the same prompts, and their outputs are folders.
    """
    by_words = loaded(words.keywords)
    if by_words and prompt != PromptOptions():
        raise PromptError("--text came with --point, --box, --mask or --prompts: expected one or the other")
    prompts_for = (lambda name: NO_PROMPTS) if by_words else prompt.reader()
    keywords = pixels.keywords
    sources = find_sources(images, output.places)
    jobs = make_jobs(sources, output)
    sam = model.load()

    def work(job: Job) -> tuple[str, list[Row]]:
        prompts = prompts_for(job.name)
        start = perf_counter()
        encoded = sam.image(opened(job.source), **keywords)
        middle = perf_counter()
        options: Any = {"candidates": candidates, "fill_holes": fill_holes, "remove_islands": remove_islands}
        masks = predict_words(encoded, by_words, **options) if by_words else prompts.predict(encoded, **options)
        end = perf_counter()
        job.write(masks, prompts.names)
        title = f"{job.name}: encoded in {1000 * (middle - start):.0f} ms, segmented in {1000 * (end - middle):.0f} ms"
        return title, [((job.name, *row) if sources.is_batch else row) for row in rows_of(masks, prompts.names)]

    done, failures = run_jobs(jobs, work, is_batch=sources.is_batch)
    if not output.prints:
        columns = ("object", "score", "area", "box")
        rows = [row for _, rows in done for row in rows]
        if sources.is_batch:
            show_table(("image", *columns), rows)
        else:
            show_table(columns, rows, title=done[0][0])
    report_failures(failures)


def rows_of(masks: Masks, names: Mapping[int, str]) -> Iterator[Row]:
    """A row for each mask: its object, its score, its area and its box."""
    labels = [None] * len(masks) if masks.labels is None else masks.labels.tolist()
    columns = (masks.object_ids.tolist(), labels, masks.iou_scores, masks.areas, masks.boxes)
    for object_id, label, score, area, box in zip(*columns, strict=True):
        edges = ",".join(f"{edge:.0f}" for edge in box)
        yield label or names.get(object_id, str(object_id)), f"{score:.3f}", str(area), edges
