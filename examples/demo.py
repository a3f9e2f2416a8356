"""Segments an image and tracks a dog through a video with the embedded model, offline.

Prompts of the image: a point, a box, and a point with another one beside the object. Prompt of the video: a box in the
first frame. Prints two tables and writes the images and the video to demo/.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

import masklet

HERE = Path(__file__).parent
OUT = Path("demo")
PROMPTS: dict[str, dict[str, Any]] = {
    "click": {"points": [(410, 315)]},
    "box": {"box": (40, 130, 862, 440)},
    "click-and-background": {"points": [(410, 315), (560, 560, 0)]},
}
DOG = (288, 108, 480, 200)


def image_table(sam: masklet.Segmenter) -> Table:
    """Predicts the masks of three prompts on one encoded image."""
    start = perf_counter()
    image = sam.image(HERE / "images" / "truck.jpg")
    encode_ms = 1000 * (perf_counter() - start)

    table = Table("prompt", "score", "area (pixels)", "milliseconds", title="The embedded model on truck.jpg")
    table.add_row("(encode once)", "", "", f"{encode_ms:.0f}")
    for name, prompt in PROMPTS.items():
        start = perf_counter()
        mask = image.predict(**prompt, fill_holes=1500, remove_islands=1500)
        milliseconds = 1000 * (perf_counter() - start)
        mask.overlay().save(OUT / f"{name}.png")
        table.add_row(name, f"{mask.iou_scores[0]:.3f}", str(mask.areas[0]), f"{milliseconds:.0f}")
    return table


def video_table(sam: masklet.Segmenter) -> Table:
    """Prompts the dog in frame 0 and tracks it to the end of the video."""
    start = perf_counter()
    video = sam.video(HERE / "videos" / "dog.mp4")
    video.prompt(frame=0, object="dog", box=DOG)
    scores = [result.iou_scores[0] for result in video.track()]
    seconds = perf_counter() - start
    video.write(OUT / "dog.mp4")

    table = Table("object", "frames", "frames/s", "mean score", title="The embedded model on dog.mp4")
    table.add_row("dog", str(len(scores)), f"{len(scores) / seconds:.1f}", f"{sum(scores) / len(scores):.3f}")
    return table


def main() -> None:
    """Segments the image, then the video."""
    OUT.mkdir(exist_ok=True)
    sam = masklet.load()
    for task in (image_table, video_table):
        Console().print(task(sam))
    print(f"The images and the video are in {OUT.resolve()}.")


if __name__ == "__main__":
    main()
