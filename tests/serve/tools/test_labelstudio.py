import base64
import io

import numpy as np
import pytest
from PIL import Image
from serve.tools.conftest import COUNT, is_nearly, square_box, square_mask

CONTROLS = {
    "brush": '<BrushLabels name="tag" toName="image"><Label value="Red"/><Label value="Other"/></BrushLabels>',
    "bitmask": '<BitmaskLabels name="tag" toName="image"><Label value="Red"/><Label value="Other"/></BitmaskLabels>',
    "polygon": '<PolygonLabels name="tag" toName="image"><Label value="Red"/><Label value="Other"/></PolygonLabels>',
    "rectangle": '<RectangleLabels name="tag" toName="image"><Label value="Red"/></RectangleLabels>',
}
POINT = {"type": "keypointlabels", "to_name": "image", "value": {"x": 28, "y": 47, "keypointlabels": ["Red"]}}
BOX = {
    "type": "rectanglelabels",
    "to_name": "image",
    "value": {
        "x": 100 * 20 / 128,
        "y": 100 * 30 / 96,
        "width": 100 * 32 / 128,
        "height": 100 * 32 / 96,
        "rectanglelabels": ["Other"],
    },
}


def config(control):
    return f'<View><Image name="image" value="$picture"/>{CONTROLS[control]}</View>'


def predict(client, text, context, control="bitmask"):
    body = {
        "tasks": [{"id": 1, "data": {"picture": f"data:image/png;base64,{text}"}}],
        "project": "1.123",
        "label_config": config(control),
        "params": {"login": None, "password": None, "context": context},
    }
    return client.post("/labelstudio/predict", json=body)


def regions(reply):
    (prediction,) = reply.json()["results"]
    return prediction["result"]


def bitmask(region):
    png = base64.b64decode(region["value"]["imageDataURL"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)))[..., 3] == 255


def test_calls_that_are_not_interactive_get_no_results(client, texts):
    for context in (None, {}):
        reply = predict(client, texts[0], context)
        assert (reply.status_code, reply.json()) == (200, {"results": []})


def test_it_introduces_itself(client):
    for path in ("/labelstudio/", "/labelstudio/health"):
        assert client.get(path).json() == {"status": "UP", "model_class": "masklet"}
    version = client.post("/labelstudio/setup", json={"project": "1.2", "schema": "<View/>"}).json()["model_version"]
    assert version.startswith("masklet-")
    assert client.get("/labelstudio/metrics").json() == {}


def test_webhooks_are_acknowledged(client):
    created = client.post("/labelstudio/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 1}})
    assert (created.status_code, created.json()["status"]) == (201, "ok")
    assert client.post("/labelstudio/webhook", json={"action": "SOMETHING"}).status_code == 200


def test_a_click_gives_a_bitmask_with_the_users_label(client, texts):
    (region,) = regions(predict(client, texts[0], {"result": [POINT]}))
    assert is_nearly(bitmask(region), square_mask(0))
    assert (region["type"], region["from_name"], region["to_name"]) == ("bitmasklabels", "tag", "image")
    assert region["value"]["bitmasklabels"] == ["Red"]
    assert (region["original_width"], region["original_height"]) == (128, 96)


def test_several_boxes_and_labels_are_several_objects(client, texts):
    elsewhere = {**BOX, "value": {**BOX["value"], "x": 70, "y": 60}}
    found = regions(predict(client, texts[0], {"result": [POINT, BOX, elsewhere]}))
    labels = [region["value"]["bitmasklabels"] for region in found]
    assert labels == [["Red"], ["Other"], ["Other"]]
    assert [is_nearly(bitmask(region), square_mask(0)) for region in found] == [True, True, False]


@pytest.mark.parametrize("negative", [{"is_positive": False}, {"value": {"positive": False}}])
def test_both_ways_of_saying_that_a_point_is_background_are_read(client, texts, negative):
    beside = {**POINT, **negative, "value": {**POINT["value"], "x": 90, "y": 10, **negative.get("value", {})}}
    (region,) = regions(predict(client, texts[0], {"result": [POINT, beside]}))
    assert is_nearly(bitmask(region), square_mask(0))
    reply = predict(client, texts[0], {"result": [beside]})
    assert reply.status_code == 422
    assert "only background points" in reply.text


def test_polygons_and_rectangles_are_in_percent(client, texts):
    (polygon,) = regions(predict(client, texts[0], {"result": [POINT]}, "polygon"))
    corners = np.array(polygon["value"]["points"]) * (1.28, 0.96)
    np.testing.assert_allclose([*corners.min(0), *corners.max(0)], square_box(0), atol=2)
    (rectangle,) = regions(predict(client, texts[0], {"result": [POINT]}, "rectangle"))
    value = rectangle["value"]
    found = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
    np.testing.assert_allclose(np.array(found) * (1.28, 0.96, 1.28, 0.96), square_box(0), atol=2)


@pytest.mark.slow
def test_label_studios_own_decoder_reads_brushes(client, texts):
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="decodes with Label Studio's own code: pip install label-studio-sdk"
    )
    (region,) = regions(predict(client, texts[0], {"result": [POINT]}, "brush"))
    channels = np.reshape(brush.decode_rle(region["value"]["rle"]), (96, 128, 4))
    assert is_nearly(channels[..., 3] == 255, square_mask(0))
    assert region["value"]["rle"] == brush.mask2rle((channels[..., 3] == 255).astype(np.uint8) * 255) or np.array_equal(
        brush.decode_rle(brush.mask2rle(channels[..., 3])), channels.ravel()
    )


@pytest.mark.parametrize(
    ("label_config", "context", "message"),
    [
        ("<View", {"result": [POINT]}, "is not XML"),
        ("<!DOCTYPE x><View/>", {"result": [POINT]}, "has a declaration"),
        ('<View><Image name="image" value="$picture"/></View>', {"result": [POINT]}, "no tag that can show a mask"),
        (config("brush").replace("picture", "other"), {"result": [POINT]}, "the task has no media in its data"),
        (config("brush"), {"result": [{**POINT, "value": {"x": 5}}]}, "keypointlabels.y"),
        (config("brush"), {"event": "dance"}, "event 'dance': expected one of capabilities"),
    ],
)
def test_errors_say_what_is_wrong(client, texts, label_config, context, message):
    body = {
        "tasks": [{"id": 1, "data": {"picture": f"data:image/png;base64,{texts[0]}"}}],
        "label_config": label_config,
        "params": {"context": context},
    }
    reply = client.post("/labelstudio/predict", json=body)
    assert reply.status_code == 422
    assert message in reply.json()["detail"]


VIDEO_CONFIG = '<View><Video name="video" value="$clip"/><VideoRectangle name="box" toName="video"/></View>'


@pytest.fixture
def act(client, label_studio):
    """A function from a context to the prediction for a task with a video."""

    def act(context):
        body = {
            "tasks": [{"id": 7, "data": {"clip": "/data/clip.gif"}}],
            "project": "2.1",
            "label_config": VIDEO_CONFIG,
            "params": {"context": context},
        }
        reply = label_studio.client.post("/labelstudio/predict", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()["results"][0]

    return act


def video_region(name, *keyframes):
    value = {"framesCount": COUNT, "duration": COUNT / 10, "sequence": list(keyframes), "labels": ["Red"]}
    return {"id": name, "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}


def keyframe(number, frame, **changes):
    x0, y0, x1, y1 = np.array(square_box(frame)) * (100 / 128, 100 / 96, 100 / 128, 100 / 96)
    return {"frame": number, "enabled": True, "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, **changes}


def pixels(key):
    x0, y0 = key["x"] * 1.28, key["y"] * 0.96
    return [x0, y0, x0 + key["width"] * 1.28, y0 + key["height"] * 0.96]


@pytest.mark.slow
def test_boxes_of_several_objects_are_tracked_from_where_they_were_drawn(act):
    drawn = [video_region("a", keyframe(1, 0)), video_region("b", keyframe(3, 2))]
    first, second = act({"result": drawn})["result"]
    assert (first["id"], second["id"]) == ("a", "b")
    assert [key["frame"] for key in first["value"]["sequence"]] == [1, 2, 3, 4, 5]
    assert [key["frame"] for key in second["value"]["sequence"]] == [3, 4, 5]
    for key in [*first["value"]["sequence"], *second["value"]["sequence"]]:
        np.testing.assert_allclose(pixels(key), square_box(key["frame"] - 1), atol=3)


@pytest.mark.slow
def test_boxes_that_were_sent_are_no_prompts_but_a_moved_one_is(act):
    (region,) = act({"result": [video_region("c", keyframe(1, 0))]})["result"]
    again = act({"result": [region]})["result"]
    assert again[0]["value"]["sequence"] == region["value"]["sequence"]
    moved = {**region, "value": {**region["value"], "sequence": [dict(key) for key in region["value"]["sequence"]]}}
    moved["value"]["sequence"][2]["width"] /= 2
    (corrected,) = act({"result": [moved]})["result"]
    assert corrected["value"]["sequence"][2]["width"] == moved["value"]["sequence"][2]["width"]
    assert corrected["value"]["sequence"][1] == region["value"]["sequence"][1]


@pytest.mark.slow
def test_an_interactive_video_is_prompted_and_tracked_by_events(act):
    assert act({"event": "capabilities"})["prompts"] == ["point", "box"]
    assert act({"event": "prewarm", "frame": 1})["status"] == "ok"
    (region,) = act({"event": "predict", "frame": 1, "result": [POINT], "object_id": "a"})["result"]
    assert is_nearly(bitmask(region), square_mask(0))
    started = act({"event": "track", "frame": 1, "max_frames": 100, "object_id": "a"})
    assert (started["event"], started["total_frames"]) == ("track_started", COUNT)
    masks = []
    while True:
        progress = act({"event": "track_progress", "session_id": started["session_id"]})
        masks += progress["frames"]
        if progress["done"]:
            break
    assert [one["frame"] for one in masks] == [1, 2, 3, 4, 5]
    assert all(is_nearly(bitmask({"value": one}), square_mask(one["frame"] - 1)) for one in masks)
    assert act({"event": "release"})["status"] == "released"
    assert act({"event": "track_progress", "session_id": started["session_id"]})["error"].startswith("this tracking")
