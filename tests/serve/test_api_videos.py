import json

import pytest
from serve.conftest import add_object, finished, upload

from masklet.serve import tracking

pytestmark = pytest.mark.slow


def masks_of(client, video, count=6):
    return [client.get(f"/v1/media/{video}/masks", params={"frame": frame}).json() for frame in range(count)]


def rle_of(reply):
    return {one["object"]: one["segmentation"] for one in reply}


def test_tracking_corrections_and_exports_equal_the_python_api(make_client, short_dog, sam, tmp_path):
    client = make_client()
    project = client.post("/v1/projects", json={"name": "dogs"}).json()["id"]
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video, name="dog")
    prompts = f"/v1/media/{video}/objects/{number}/prompts"
    first = client.post(prompts, json={"frame": 1, "points": [[80, 50]]}).json()
    session = sam.video(short_dog)
    assert first["segmentation"] == session.prompt(1, number, points=[(80, 50)]).to_rle()[0]
    job = client.post(f"/v1/media/{video}/tracking", json={"direction": "both"}).json()
    assert finished(client, job["id"]) | {"id": ""} == job | {"id": "", "status": "done", "done": 6}
    expected = {result.index: result.masks.to_rle()[0] for result in session.track(direction="both")}
    assert {frame: rle_of(one)[1] for frame, one in enumerate(masks_of(client, video))} == expected

    # Two corrections on one frame, the second in another process, then on to the end.
    corrected = client.post(prompts, json={"frame": 3, "points": [[20, 20, 0]]}).json()
    assert corrected["segmentation"] == session.prompt(3, number, points=[(20, 20, 0)]).to_rle()[0]
    other = make_client()
    corrected = other.post(prompts, json={"frame": 3, "points": [[85, 55]]}).json()
    assert "segmentation" in corrected, corrected
    assert corrected["segmentation"] == session.prompt(3, number, points=[(85, 55)]).to_rle()[0]
    job = client.post(f"/v1/media/{video}/tracking", json={"start": 3}).json()
    finished(client, job["id"])
    expected |= {result.index: result.masks.to_rle()[0] for result in session.track(3)}
    assert {frame: rle_of(one)[1] for frame, one in enumerate(masks_of(other, video))} == expected

    session.write(tmp_path / "masks.jsonl")
    exported = client.get(f"/v1/media/{video}/export?format=jsonl").text
    assert exported == (tmp_path / "masks.jsonl").read_text()
    for format in ("mp4", "gif", "png", "cvat", "mot", "mots"):
        assert client.get(f"/v1/media/{video}/export?format={format}").status_code == 200, format
    assert client.get(f"/v1/media/{video}/lanes").json() == [
        {"number": 1, "prompted": [1, 3], "tracked": [[0, 0], [2, 2], [4, 5]], "absent": []}
    ]


def test_undoing_a_correction_gives_the_tracked_mask_back(client, project, short_dog):
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video)
    prompts = f"/v1/media/{video}/objects/{number}/prompts"
    client.post(prompts, json={"frame": 0, "points": [[80, 50]]})
    finished(client, client.post(f"/v1/media/{video}/tracking", json={}).json()["id"])
    tracked = masks_of(client, video)
    assert client.post(prompts, json={"frame": 2, "box": [5, 5, 60, 60]}).status_code == 200
    assert masks_of(client, video) != tracked
    assert client.post(f"/v1/media/{video}/undo").json()["frame"] == 2
    assert masks_of(client, video) == tracked


def test_a_cancelled_job_keeps_its_frames_and_goes_on(client, project, short_dog):
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video)
    client.post(f"/v1/media/{video}/objects/{number}/prompts", json={"frame": 0, "points": [[80, 50]]})
    job = client.post(f"/v1/media/{video}/tracking", json={}).json()["id"]
    again = client.post(f"/v1/media/{video}/tracking", json={})
    assert again.status_code == 409
    assert "is being tracked: wait until it has finished, or cancel it first" in again.json()["detail"]
    client.delete(f"/v1/jobs/{job}")
    ended = finished(client, job)
    assert ended["status"] == "cancelled"
    assert 0 < ended["done"] < 6
    job = client.post(f"/v1/media/{video}/tracking", json={"resume": True}).json()
    assert job["total"] == 6 - ended["done"]
    assert finished(client, job["id"])["status"] == "done"
    assert all(masks_of(client, video))
    again = client.post(f"/v1/media/{video}/tracking", json={"resume": True})
    assert (again.status_code, again.json()["detail"]) == (
        409,
        "there is nothing to continue: tracking of dog.mp4 has ended",
    )


def test_events_report_every_frame_and_the_end(client, project, short_dog):
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video)
    client.post(f"/v1/media/{video}/objects/{number}/prompts", json={"frame": 2, "points": [[80, 50]]})
    job = client.post(f"/v1/media/{video}/tracking", json={"direction": "backward"}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as reply:
        lines = [line for line in reply.iter_lines() if line]
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
    assert kinds[-1] == "end"
    last = json.loads(lines[-1].removeprefix("data: "))
    assert (last["status"], last["done"], last["total"]) == ("done", 3, 3)


def test_a_restarted_server_knows_everything(make_client, short_dog):
    client = make_client()
    project = client.post("/v1/projects", json={"name": "dogs"}).json()["id"]
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video, name="dog")
    prompts = f"/v1/media/{video}/objects/{number}/prompts"
    client.post(prompts, json={"frame": 0, "points": [[80, 50]]})
    job = client.post(f"/v1/media/{video}/tracking", json={}).json()["id"]
    client.__exit__(None, None, None)
    again = make_client()
    (project,) = again.get("/v1/projects").json()
    (media,) = again.get(f"/v1/projects/{project['id']}/media").json()
    assert media["job"] in (job, None)
    if media["job"]:
        assert again.get(f"/v1/jobs/{job}").json()["status"] == "interrupted"
        job = again.post(f"/v1/media/{video}/tracking", json={"resume": True}).json()["id"]
        assert finished(again, job)["status"] == "done"
    assert all(masks_of(again, video))


@pytest.mark.parametrize(
    ("cache_bytes", "together"), [(1, 8), pytest.param(2**30, 1, marks=pytest.mark.slow)], ids=["cache", "places"]
)
def test_videos_that_take_turns_have_the_same_masks(cache_bytes, together, make_client, short_dog, sam, monkeypatch):
    monkeypatch.setattr(tracking, "SHARE", 2)
    monkeypatch.setattr(tracking, "TRACKED_TOGETHER", together)
    share, places = tracking.track_share, []
    monkeypatch.setattr(
        tracking, "track_share", lambda ws, *rest: (places.append(ws.videos_tracked), share(ws, *rest))[1]
    )
    client = make_client(cache_bytes=cache_bytes)
    project = client.post("/v1/projects", json={"name": "dogs"}).json()["id"]
    jobs = {}
    for frame in (0, 2):
        video = upload(client, project, short_dog)["id"]
        prompts = f"/v1/media/{video}/objects/{add_object(client, video)}/prompts"
        assert client.post(prompts, json={"frame": frame, "points": [[80, 50]]}).status_code == 200
        jobs[frame] = video, client.post(f"/v1/media/{video}/tracking", json={"direction": "both"}).json()["id"]
    for frame, (video, job) in jobs.items():
        assert finished(client, job)["status"] == "done"
        session = sam.video(short_dog)
        session.prompt(frame, 1, points=[(80, 50)])
        expected = {result.index: result.masks.to_rle()[0] for result in session.track(direction="both")}
        assert {index: rle_of(one)[1] for index, one in enumerate(masks_of(client, video))} == expected
