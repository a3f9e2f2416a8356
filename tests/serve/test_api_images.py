import json
import os
import socket

import numpy as np
import pytest
from serve.conftest import TRUCK, add_object, upload
from sqlmodel import select
from starlette.testclient import TestClient

import masklet
from masklet.masks import encode_rle
from masklet.serve.app import create_app
from masklet.serve.exports import IMAGE_FORMATS
from masklet.serve.settings import Settings
from masklet.serve.state.tables import Result


@pytest.fixture
def truck(client, project):
    return upload(client, project, TRUCK)["id"]


@pytest.fixture(scope="module")
def truck_server(tmp_path_factory, sam):
    """A server with the truck, whose object 1 is not prompted."""
    app = create_app(Settings(data=tmp_path_factory.mktemp("data")), sam)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        project = client.post("/v1/projects", json={"name": "test"}).json()["id"]
        truck = upload(client, project, TRUCK)["id"]
        add_object(client, truck)
        yield client, truck


def prompt(client, media, number, **body):
    reply = client.post(f"/v1/media/{media}/objects/{number}/prompts", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_prompts_give_the_masks_of_the_python_api(client, truck, sam):
    number = add_object(client, truck, name="truck")
    image = sam.image(TRUCK)
    first = prompt(client, truck, number, points=[[410, 315]])
    expected = image.predict(points=[(410, 315)])
    assert first["segmentation"] == expected.to_rle()[0]
    assert first["iou_score"] == float(expected.iou_scores[0])
    second = prompt(client, truck, number, points=[[560, 560, 0]])
    refined = image.predict(points=[(410, 315), (560, 560, 0)], mask=expected.logits)
    assert second["segmentation"] == refined.to_rle()[0]
    coco = client.get(f"/v1/media/{truck}/export?format=coco").json()
    dataset = masklet.Masks(refined.masks, refined.logits, refined.iou_scores, np.array([1])).to_coco_dataset(
        "truck.jpg", categories={1: "truck"}
    )
    assert coco == json.loads(json.dumps(dataset))
    (polygons,) = refined.to_polygons(tolerance=1)
    (mask,) = client.get(f"/v1/media/{truck}/masks?format=polygons&tolerance=1").json()
    assert mask["polygons"] == [[ring.tolist() for ring in polygon.rings] for polygon in polygons]


def test_a_mask_that_is_not_refined_is_kept_to_the_pixel_and_clicks_refine_it(truck_server, sam):
    client, truck = truck_server
    number = add_object(client, truck)
    drawn = np.zeros((1, 600, 900), bool)
    drawn[:, 320:350, 100:250] = True
    (rle,) = encode_rle(drawn)
    mask = prompt(client, truck, number, mask=rle, refine=False)
    assert (mask["segmentation"], mask["prompts"]) == (rle, {"points": [], "box": None, "mask": True})
    clicked = prompt(client, truck, number, points=[[150, 330]])
    expected = sam.image(TRUCK).predict(points=[(150, 330)], mask=drawn[0])
    assert clicked["segmentation"] == expected.to_rle()[0]
    for body, message in (
        ({"points": [[1, 1]], "refine": False}, "refine: false needs a mask, without points and box"),
        ({"mask": encode_rle(np.zeros((1, 600, 900), bool))[0], "refine": False}, "the mask is empty"),
    ):
        reply = client.post(f"/v1/media/{truck}/objects/{number}/prompts", json=body)
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith(message)


@pytest.mark.slow
def test_undo_and_redo_give_the_very_masks(client, truck):
    number = add_object(client, truck)
    first = prompt(client, truck, number, points=[[410, 315]])
    second = prompt(client, truck, number, box=[40, 130, 862, 440])
    masks = f"/v1/media/{truck}/masks"
    assert client.post(f"/v1/media/{truck}/undo").json() == {"undo": "prompt", "redo": "prompt", "frame": 0}
    assert client.get(masks).json() == [first]
    client.post(f"/v1/media/{truck}/redo")
    assert client.get(masks).json() == [second]
    assert client.delete(f"/v1/media/{truck}/objects/{number}").status_code == 204
    assert client.get(masks).json() == []
    for _ in range(3):
        client.post(f"/v1/media/{truck}/undo")
    assert client.get(masks).json() == []
    assert client.post(f"/v1/media/{truck}/undo").json()["undo"] is None
    assert client.post(f"/v1/media/{truck}/undo").status_code == 409
    for _ in range(3):
        client.post(f"/v1/media/{truck}/redo")
    assert client.get(masks).json() == [second]


@pytest.mark.slow
def test_stateless_requests_give_the_masks_of_the_python_api(client, sam):
    asked = {"objects": [{"name": "truck", "points": [[410, 315]]}, {"box": [570, 330, 700, 440]}]}
    with TRUCK.open("rb") as file:
        reply = client.post("/v1/predict", files={"image": file}, data={"prompts": json.dumps(asked)}).json()
    image = sam.image(TRUCK)
    expected = [image.predict(points=[(410, 315)]), image.predict(box=(570, 330, 700, 440))]
    assert [one["segmentation"] for one in reply["masks"]] == [one.to_rle()[0] for one in expected]
    assert reply["masks"][0]["name"] == "truck"


@pytest.mark.slow
def test_automatic_masks_become_objects(client, truck, sam):
    found = client.post(f"/v1/media/{truck}/everything", json={"points_per_side": 4}).json()
    expected = sam.everything(TRUCK, points_per_side=4)
    assert [one["segmentation"] for one in found] == expected.to_rle()
    kept = client.post(f"/v1/media/{truck}/objects-from-masks", json={"masks": found[:2]}).json()
    assert [one["number"] for one in kept] == [1, 2]
    masks = client.get(f"/v1/media/{truck}/masks").json()
    assert [one["segmentation"] for one in masks] == [one["segmentation"] for one in found[:2]]
    corrected = prompt(client, truck, 1, points=[[410, 315]])  # refines the mask that was found
    refined = sam.image(TRUCK).predict(points=[(410, 315)], mask=expected.masks[0])
    assert corrected["segmentation"] == refined.to_rle()[0]


@pytest.mark.slow
def test_every_format_of_an_image_is_exported(client, truck):
    number = add_object(client, truck, name="truck")
    nothing = client.get(f"/v1/media/{truck}/export?format=coco")
    assert (nothing.status_code, nothing.json()["detail"]) == (
        409,
        "there is nothing to export: truck.jpg has no masks",
    )
    prompt(client, truck, number, points=[[410, 315]])
    for format in IMAGE_FORMATS:
        reply = client.get(f"/v1/media/{truck}/export", params={"format": format})
        assert reply.status_code == 200, reply.text
        assert len(reply.content) > 100, format
    unknown = client.get(f"/v1/media/{truck}/export?format=pdf").json()["detail"]
    assert unknown.startswith("there is no export format 'pdf' of an image: expected coco,")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the prompt is empty: expected points, a box or a mask"),
        ({"points": [[5000, 5]]}, "point (5000, 5) is outside the image"),
        ({"points": [[1]]}, "points.0: List should have at least 2 items"),
        ({"points": [[1, 2]], "frame": 3}, "there is no frame 3: truck.jpg is an image, whose only frame is 0"),
        ({"box": [1, 2, 3]}, "box: List should have at least 4 items"),
        ({"mask": {"size": [4, 4], "counts": "0"}}, "the mask has size [4, 4]: expected [height, width] = [600, 900]"),
        ({"mask": {"size": [600, 900], "counts": "zz"}}, "the mask is not COCO's compressed run lengths"),
        ({"point": [[1, 2]]}, "point: Extra inputs are not permitted"),
    ],
)
def test_messages_say_what_is_wrong_with_a_prompt(truck_server, body, message):
    client, truck = truck_server
    reply = client.post(f"/v1/media/{truck}/objects/1/prompts", json=body)
    assert reply.status_code == 422
    assert message in reply.json()["detail"]


def test_messages_say_what_is_not_there(truck_server):
    client, truck = truck_server
    for method, path, status, message in (
        ("GET", "/v1/media/none/masks", 404, "there is no such image or video, or it belongs to another user"),
        ("GET", f"/v1/media/{truck}/objects/9/mask.png", 404, "there is no object 9 in truck.jpg"),
        ("GET", f"/v1/media/{truck}/objects/1/mask.png", 404, "object 1 has no mask in frame 0"),
        ("DELETE", f"/v1/media/{truck}/objects/1/prompts", 409, "object 1 has no prompts in frame 0"),
        ("POST", f"/v1/media/{truck}/redo", 409, "there is nothing to redo"),
        ("GET", "/v1/jobs/none", 404, "there is no such tracking job, or it belongs to another user"),
    ):
        reply = client.request(method, path)
        assert (reply.status_code, reply.json()["detail"]) == (status, message)
    tracking = client.post(f"/v1/media/{truck}/tracking", json={})
    assert (tracking.status_code, tracking.json()["detail"]) == (409, "truck.jpg is an image: only videos are tracked")


def test_masks_that_no_undo_leads_to_are_deleted(client, truck):
    number = add_object(client, truck)
    for x in (410, 300, 500):
        prompt(client, truck, number, points=[[x, 315]])
    for _ in range(2):
        client.post(f"/v1/media/{truck}/undo")
    kept = client.get(f"/v1/media/{truck}/masks").json()
    prompt(client, truck, number, points=[[450, 300]])
    with client.app.state.workspace.database.reading() as db:
        assert len(db.exec(select(Result)).all()) == 2  # the one that is shown, and the one before it
    client.post(f"/v1/media/{truck}/undo")
    assert client.get(f"/v1/media/{truck}/masks").json() == kept


def test_what_a_killed_process_left_is_removed_after_a_day(make_client, tmp_path):
    client = make_client()
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = upload(client, project, TRUCK)["id"]
    data = tmp_path / "data"
    for name in ("uploads/half", "uploads/new"):
        (data / name).write_bytes(b"x")
    (data / "exports" / "old").mkdir()
    for path in (data / "uploads" / "half", data / "uploads" / media, data / "exports" / "old"):
        os.utime(path, (0, 0))
    gone, alive = (data / "sessions" / f"{socket.gethostname()}~{pid}~ab" for pid in (2**22 + 1, os.getpid()))
    for folder in (gone, alive):
        folder.mkdir()
    make_client()
    assert (gone.exists(), alive.exists()) == (False, True)
    assert {path.name for path in (data / "uploads").iterdir()} == {media, "new"}
    assert not list((data / "exports").iterdir())
