"""Many users of one server on this machine: latency of clicks, lost or foreign masks, memory.

    python benchmarks/serving.py [--users 200] [--seconds 60] [--cache-mb 256] [--json serving.json]

First 1, 8 and 32 users click, each on an image of its own: through the API, and then through one
predictor behind a lock, as Label Studio's example server does it: each click encodes its image again unless it was the
last one. Then all users have a video session each, and click and track for the given time, which begins when each has
clicked once. Every user's image has a square of its own colour and place, so a mask of another user is noticed. The
embedded model runs on the CPU. The benchmark fails if a mask is lost or wrong, or if memory grows beyond the cache and
what the requests at work take.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from PIL import Image
from rich.table import Table

import masklet
from masklet.masks import decode_rle
from masklet.video.writer import VideoWriter

SIDE, FRAMES, CLICKS = 128, 20, 4
LEVELS = (1, 8, 32)
REQUESTS_MB = 512
"""For requests at work, besides the cache: forty at a time are read, decoded and answered."""


def square_of(user: int) -> tuple[int, int]:
    """The corner of a user's square."""
    return 8 + 13 * (user % 7), 8 + 13 * (user // 7 % 7)


def picture(user: int, shift: int = 0) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a bright square on grey noise."""
    image = np.random.default_rng(user).integers(60, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    x, y = square_of(user)
    image[y : y + 32, x + shift : x + shift + 32] = (250, 60 + user % 190, 30)
    return image


class Client:
    """One user."""

    def __init__(self, address: str, user: int) -> None:
        self.address, self.user = address, user
        self.times: list[float] = []
        self.wrong = self.lost = self.refused = self.tracked = 0
        self.made: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """A request, repeated while the server is busy."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Authorization": f"Bearer secret-{self.user:04}"}
        while True:
            try:
                asked = urllib.request.Request(self.address + path, data, headers, method=method)
                with urllib.request.urlopen(asked) as reply:
                    content = reply.read()
                return json.loads(content) if content else None
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                self.refused += 1
                time.sleep(float(error.headers.get("Retry-After", 1)))

    def begin(self, *, video: bool) -> None:
        """Uploads an image or a video, and makes an object."""
        project = self.ask("POST", "/v1/projects", {"name": "load"})["id"]
        content = movie(self.user) if video else png(picture(self.user))
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        upload = start + content + b"\r\n--b--\r\n"
        media = self.ask("POST", f"/v1/projects/{project}/media", upload, "multipart/form-data; boundary=b")["id"]
        number = self.ask("POST", f"/v1/media/{media}/objects", {})["number"]
        self.made = {"media": media, "prompts": f"/v1/media/{media}/objects/{number}/prompts"}

    def click(self, frame: int = 0) -> None:
        """A click in the middle of the square, whose mask must cover it there."""
        x, y = square_of(self.user)
        start = time.perf_counter()
        mask = self.ask("POST", self.made["prompts"], {"frame": frame, "points": [[x + frame + 16, y + 16]]})
        self.times.append(time.perf_counter() - start)
        saved = self.ask("GET", f"/v1/media/{self.made['media']}/masks?frame={frame}")
        self.lost += [one["segmentation"] for one in saved] != [mask["segmentation"]]
        self.check(mask, frame)

    def check(self, mask: dict[str, Any], frame: int) -> None:
        """Counts a mask that does not cover the middle of the square."""
        x, y = square_of(self.user)
        inside = decode_rle([mask["segmentation"]])[0]
        self.wrong += not inside[y + 12 : y + 20, x + frame + 12 : x + frame + 20].any()

    def live(self, until: float) -> None:
        """Clicks and tracks until a time. Then checks what was tracked."""
        job = self.ask("POST", f"/v1/media/{self.made['media']}/tracking", {})
        while time.monotonic() < until:
            job = self.ask("GET", f"/v1/jobs/{job['id']}")
            if job["status"] != "running":
                job = self.ask("POST", f"/v1/media/{self.made['media']}/tracking", {"start": 0})
            time.sleep(1 + self.user % 5)
            if time.monotonic() < until:
                self.click()
        self.ask("DELETE", f"/v1/jobs/{job['id']}")
        while (job := self.ask("GET", f"/v1/jobs/{job['id']}"))["status"] == "running":
            time.sleep(1)
        (lane,) = self.ask("GET", f"/v1/media/{self.made['media']}/lanes")
        for first, last in lane["tracked"]:
            for frame in range(first, last + 1):
                (mask,) = self.ask("GET", f"/v1/media/{self.made['media']}/masks?frame={frame}")
                self.tracked += 1
                if mask["area"]:  # the embedded model may lose an object, but must not find another user's
                    self.check(mask, frame)


def png(image: np.ndarray) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def movie(user: int) -> bytes:
    """A short video of the moving square as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with VideoWriter(path) as video:
            for shift in range(FRAMES):
                video.write(picture(user, shift))
        return path.read_bytes()


def together(clients: list[Client], work: Any) -> list[BaseException]:
    """Runs all users at the same time; their errors."""
    errors: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            work(client)
        except BaseException as error:  # counted and shown
            errors.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def behind_a_lock(sam: masklet.Segmenter, users: int, clicks: int) -> list[float]:
    """Latencies of the same clicks with one predictor behind a lock, which holds the last image."""
    lock, times = threading.Lock(), list[float]()
    held: dict[str, Any] = {"user": None, "image": None}

    def run(user: int) -> None:
        content, (x, y) = png(picture(user)), square_of(user)
        for click in range(clicks + 1):
            start = time.perf_counter()
            with lock:
                if held["user"] != user:
                    held.update(user=user, image=sam.image(io.BytesIO(content)))
                held["image"].predict(points=[(x + 16, y + 16)])
            if click:  # as in the server, the first one is not counted, which encodes the image in any case
                times.append(time.perf_counter() - start)
            time.sleep(0.01)  # the answer travels, and others have the lock

    threads = [threading.Thread(target=run, args=(user,)) for user in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def percentiles(times: list[float]) -> tuple[float, float, float]:
    """Median, 95 % and 99 %, in milliseconds."""
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.95, 0.99)]
    return statistics.median(ordered) * 1e3, at[0] * 1e3, at[1] * 1e3


def resident_mb(pid: int) -> float:
    """Peak resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cache-mb", type=float, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        tokens = " ".join(f"user{user}:secret-{user:04}" for user in range(options.users))
        command = [sys.executable, "-m", "masklet", "serve", "--port", "0", "--data", data]
        command += ["--cache", str(options.cache_mb / 1024)]
        environment = {**os.environ, "MASKLET_TOKENS": tokens}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        address = server.stdout.readline().split(" (")[0].removeprefix("masklet: ")
        try:
            results = measure(address, server.pid, options)
        finally:
            server.terminate()
            server.wait()
    setting = {
        "users": options.users,
        "seconds": options.seconds,
        "cache MB": options.cache_mb,
        "cores": os.cpu_count(),
        "load average": round(os.getloadavg()[1]),
    }
    report(results_table(results), setting, results, options.json)
    if results["load"]["lost"] or results["load"]["wrong"] or results["load"]["errors"]:
        sys.exit("masks were lost or belong to other users, or requests failed")
    if results["load"]["grown_mb"] > options.cache_mb + REQUESTS_MB:
        sys.exit("the server takes more memory than its cache and the requests may")


def measure(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    sam, results = masklet.load(), dict[str, Any](clicks=[])
    for users in [level for level in LEVELS if level <= options.users]:
        clients = [Client(address, user) for user in range(users)]
        together(clients, lambda client: client.begin(video=False))
        together(clients, Client.click)  # encodes the images, in both ways of serving
        for client in clients:
            client.times.clear()
        together(clients, lambda client: [client.click() for _ in range(CLICKS)])
        times = [one for client in clients for one in client.times]
        results["clicks"].append(
            {"users": users, "server_ms": percentiles(times), "lock_ms": percentiles(behind_a_lock(sam, users, CLICKS))}
        )
        results.setdefault("start_mb", resident_mb(pid))  # with the model, after one user's clicks
    clients = [Client(address, user) for user in range(options.users)]
    errors = together(clients, lambda client: client.begin(video=True))
    errors += together(clients, Client.click)
    first = [one for client in clients for one in client.times]
    for client in clients:
        client.times.clear()
    until = time.monotonic() + options.seconds
    errors += together(clients, lambda client: client.live(until))
    times = [one for client in clients for one in client.times]
    results["load"] = {
        "users": options.users,
        "clicks": len(times),
        "first_ms": percentiles(first),
        "ms": percentiles(times or [0.0]),
        "tracked": sum(client.tracked for client in clients),
        "lost": sum(client.lost for client in clients),
        "wrong": sum(client.wrong for client in clients),
        "refused": sum(client.refused for client in clients),
        "errors": [str(error) for error in errors[:5]],
        "grown_mb": resident_mb(pid) - results["start_mb"],
    }
    return results


def results_table(results: dict[str, Any]) -> Table:
    """The figures for people."""
    table = Table("", "median ms", "95 %", "99 %")
    for row in results["clicks"]:
        table.add_row(f"{row['users']} users click: server", *(f"{one:.0f}" for one in row["server_ms"]))
        table.add_row(f"{row['users']} users click: predictor behind a lock", *(f"{one:.0f}" for one in row["lock_ms"]))
    load = results["load"]
    table.add_row(f"{load['users']} users click at once", *(f"{one:.0f}" for one in load["first_ms"]))
    table.add_row(f"{load['users']} users click and track", *(f"{one:.0f}" for one in load["ms"]))
    counts = ", ".join(f"{load[name]} {name}" for name in ("clicks", "tracked", "lost", "wrong", "refused"))
    table.add_row(counts, "", "", "")
    table.add_row(f"memory: {results['start_mb']:.0f} MB, and {load['grown_mb']:.0f} MB more", "", "", "")
    return table


if __name__ == "__main__":
    main()
