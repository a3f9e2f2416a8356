"""Segment a photo with the embedded model, offline: a click, a box, and a click with one beside the object.

Prints a table and writes the pictures under demo/.
"""

from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table

import masklet

HERE = Path(__file__).parent
OUT = Path("demo")
PROMPTS = {
    "click": {"points": [(410, 315)]},
    "box": {"box": (40, 130, 862, 440)},
    "click-and-background": {"points": [(410, 315), (560, 560, 0)]},
}


def main() -> None:
    """Run the three prompts on one encoded photo."""
    sam = masklet.load()
    start = perf_counter()
    photo = sam.image(HERE / "photos" / "truck.jpg")
    encode_ms = 1000 * (perf_counter() - start)

    table = Table("prompt", "score", "area (pixels)", "milliseconds", title="The embedded model on truck.jpg")
    table.add_row("(encode once)", "", "", f"{encode_ms:.0f}")
    for name, prompt in PROMPTS.items():
        start = perf_counter()
        mask = photo.predict(**prompt, fill_holes=1500, remove_islands=1500).best
        milliseconds = 1000 * (perf_counter() - start)
        OUT.mkdir(exist_ok=True)
        mask.overlay().save(OUT / f"{name}.png")
        table.add_row(name, f"{mask.scores[0]:.3f}", str(mask.areas[0]), f"{milliseconds:.0f}")
    Console().print(table)
    print(f"The pictures are in {OUT.resolve()}.")


if __name__ == "__main__":
    main()
