"""The same work on Ray: real clusters of processes on this machine, an S3 server, and workers that die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from batch.test_runs import (
    ALL,
    command,
    discover,
    everything,
    images,  # noqa: F401
    masks_of,
    run,
    table,
    track,
    video,  # noqa: F401
)

import masklet
from masklet.batch.inputs import find_inputs
from masklet.batch.prompt_files import PromptTable
from masklet.batch.runs import Run
from masklet.batch.tasks import make_task
from masklet.cluster import segment
from masklet.cluster.runs import Cluster
from masklet.errors import ConfigError, MaskletError

pd = pytest.importorskip("pandas")
ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


WAIT = 300
"""Seconds after which a process hangs."""


@pytest.fixture(scope="module")
def local_ray():
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def worker_pids():
    """The processes of Ray that hold a worker of ours, by their titles."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"_WorkerOnRay" in path.read_bytes():
                yield int(path.parent.name)


def on_ray(work, workers=1):
    (*_, progress) = work(Cluster(workers=workers))
    return progress


def test_results_equal_those_of_one_process(local_ray, images, video, tmp_path, tiny_folder):  # noqa: F811
    (images / "bad.png").write_bytes(b"nothing")
    progress = on_ray(everything(images, tmp_path / "ray", tiny_folder), workers=2)
    assert (progress.done, progress.failed) == (5, 1)
    assert all(name.partition(":")[2] != str(os.getpid()) for name in progress.workers)
    run(everything(images, tmp_path / "here", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "ray"), table(tmp_path / "here"))
    assert on_ray(everything(images, tmp_path / "ray", tiny_folder)).skipped == 5
    steps = track(video, tmp_path / "ray-video", tiny_folder, chunk_frames=4)(Cluster(workers=1))
    assert [(step.frames, step.done) for step in steps] == [(0, 0), (4, 0), (8, 0), (9, 1)]
    run(track(video, tmp_path / "video", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "ray-video"), table(tmp_path / "video"))


@pytest.mark.parametrize("task", ["everything", "prompts", "track", "discover"])
def test_a_worker_that_dies_loses_nothing(task, local_ray, images, video, tmp_path, tiny_folder):  # noqa: F811
    """The first worker is killed when it has written its first part."""
    out = tmp_path / "out"
    killed = []

    def kill():
        while not killed:
            time.sleep(0.02)
            if list((out / "masks").glob("part-*.parquet")):
                for pid in worker_pids():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    for number in range(5, 40):
        (images / f"{number}.png").write_bytes((images / "0.png").read_bytes())
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b", "c"):
        (videos / f"{name}.mkv").write_bytes(video.read_bytes())
    prompts = PromptTable()
    prompts.at("", 1, 0).box = (5, 5, 30, 30)
    options = {"prompts": prompts, "model": {"name": str(tiny_folder)}}
    make = {
        "everything": lambda place: everything(images, place, tiny_folder),
        "prompts": lambda place: Run(str(images), str(place), make_task("prompts"), block=2, **options),
        "track": lambda place: track(video, place, tiny_folder, chunk_frames=1),
        "discover": lambda place: discover(videos, place, tiny_folder),
    }[task]
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        progress = on_ray(make(out))
    finally:
        killed.append(None)
        thread.join()
    assert (progress.done, progress.failed) == (progress.total, 0)
    assert killed[0] is not None
    run(make(tmp_path / "whole"))
    pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))


def test_what_cannot_be_written_ends_the_run_with_the_reason(local_ray, images, tmp_path, tiny_folder):  # noqa: F811
    """By default of the setting that retries errors, Ray would run the block again without end."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_text("a file where the folder is to be")
    with pytest.raises(MaskletError, match=r"^a worker cannot continue: cannot write .*/out/masks/part-\w+.parquet: "):
        on_ray(everything(images, tmp_path / "out", tiny_folder))


def test_a_driver_that_is_killed_is_continued(local_ray, images, tmp_path, tiny_folder):  # noqa: F811
    for number in range(5, 30):
        (images / f"{number}.png").write_bytes((images / "0.png").read_bytes())
    out = tmp_path / "out"
    arguments = command(images, out, tiny_folder, "--json", "--cluster", "local", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "masklet", *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    process.stdout.readline()  # before the first part
    done = json.loads(process.stdout.readline())["done"]
    process.kill()
    timer.cancel()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert 0 < done < 30
    progress = on_ray(everything(images, out, tiny_folder))
    assert progress.skipped >= done
    assert progress.skipped + progress.done == 30
    run(everything(images, tmp_path / "whole", tiny_folder))
    pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))


def test_rows_of_a_data_set_become_rows_of_masks(local_ray, images, video, tiny_folder):  # noqa: F811
    dataset = ray.data.read_images(str(images), include_paths=True)
    rows = segment(dataset, model=str(tiny_folder), options=ALL).to_pandas()
    sam = masklet.load(tiny_folder)
    for name, found in rows.groupby("input"):
        found = found.sort_values("object", key=lambda ids: ids.astype(int))
        np.testing.assert_array_equal(masks_of(found), sam.everything(name, **ALL).masks)
    prompts = [{"object": "ball", "frame": 0, "x": 20, "y": 20}]
    items = [{"path": str(video), "prompts": prompts}, {"path": "nothing.mp4", "prompts": prompts}]
    rows = segment(ray.data.from_items(items), "track", model=str(tiny_folder)).to_pandas()
    failed = rows[rows.error.notna()]
    assert failed.input.tolist() == ["nothing.mp4"]
    assert "nothing.mp4" in failed.error.iloc[0]
    session = sam.video(video)
    session.prompt(0, "ball", points=[(20, 20)])
    expected = np.concatenate([result.masks.masks for result in session.track()])
    found = rows[rows.error.isna()].sort_values("frame")
    np.testing.assert_array_equal(masks_of(found), expected)


def test_a_cluster_that_is_too_small_is_refused(local_ray, images, tmp_path, tiny_folder):  # noqa: F811
    with pytest.raises(MaskletError, match="3 CPUs and 0 GPUs: 3 workers .* do not fit"):
        on_ray(everything(images, tmp_path / "out", tiny_folder), workers=3)
    with pytest.raises(ConfigError, match="above 0"):
        Cluster(workers=0)


@pytest.fixture
def s3():
    """A real S3 server in another process."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(environment)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    file_system = s3fs.S3FileSystem(skip_instance_cache=True)
    file_system.mkdir("bucket")
    yield file_system
    server.stop()
    os.environ.clear()
    os.environ.update(before)


def test_images_and_results_in_s3(s3, images, video, tmp_path, tiny_folder, monkeypatch):  # noqa: F811
    for path in images.rglob("*.png"):
        s3.pipe_file(f"bucket/images/{path.relative_to(images).as_posix()}", path.read_bytes())
    s3.pipe_file("bucket/videos/clip.mkv", video.read_bytes())
    one = find_inputs("s3://bucket/images", [".png"])[0]
    stamp = one.stamp()
    type(s3).clear_instance_cache()
    assert one.stamp() == stamp  # in a worker, too, which has not listed the folder
    run(everything("s3://bucket/images", "s3://bucket/out", tiny_folder, formats=("coco",)))
    run(everything(images, tmp_path / "here", tiny_folder))
    s3.get("bucket/out", str(tmp_path / "copy"), recursive=True)
    pd.testing.assert_frame_equal(table(tmp_path / "copy"), table(tmp_path / "here"))
    with monkeypatch.context() as patch:
        patch.setattr(type(s3), "_cat_file", None)  # the listing shows that the images are the same
        patch.setattr(type(s3), "_get_file", None)
        assert run(everything("s3://bucket/images", "s3://bucket/out", tiny_folder)).skipped == 5
    assert {a["image_id"] for a in json.loads((tmp_path / "copy/annotations.json").read_text())["annotations"]}
    work = track("s3://bucket/videos/clip.mkv", "s3://bucket/tracks", tiny_folder, chunk_frames=4)
    assert run(work).done == 1
    s3.get("bucket/tracks", str(tmp_path / "tracks"), recursive=True)
    run(track(video, tmp_path / "video", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "tracks"), table(tmp_path / "video"))


TWO_NODES = """
import os
import sys
import ray
from ray.cluster_utils import Cluster as Nodes
from batch.test_runs import everything
from masklet.cluster.runs import Cluster

folder, model = sys.argv[1:]
os.chdir("/")  # relative paths are those of the command, not of the folder in which the cluster was started
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
second = nodes.add_node(num_cpus=2)
os.chdir(folder)
progress = None
for number, progress in enumerate(everything("images", "out", model)(Cluster(nodes.address, workers=2))):
    if number == 3:
        nodes.remove_node(second, allow_graceful=False)
print("DONE", progress.done, progress.failed)
ray.shutdown()
nodes.shutdown()
"""


def test_a_node_that_dies_loses_nothing(images, tmp_path, tiny_folder):  # noqa: F811
    for number in range(5, 30):
        (images / f"{number}.png").write_bytes((images / "0.png").read_bytes())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path), str(tiny_folder)],
        capture_output=True, text=True, env=environment, check=False, timeout=WAIT,
    )  # fmt: skip
    assert "DONE 30 0" in process.stdout, process.stderr[-3000:]
    run(everything(images, tmp_path / "whole", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))


def test_without_ray_there_is_a_clear_error(monkeypatch, images, tmp_path, tiny_folder):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MaskletError, match=r"pip install 'masklet\[cluster\]'"):
        on_ray(Run(str(images), str(tmp_path / "out"), make_task("everything"), model={"name": str(tiny_folder)}))
