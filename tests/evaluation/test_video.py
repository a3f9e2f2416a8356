"""The measurement on videos, with a tracker of known answers and with a network."""

from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from masklet.errors import ImageError, VideoError
from masklet.evaluation.agreement import region_j
from masklet.evaluation.clicks import next_click
from masklet.evaluation.grid import Extremes
from masklet.evaluation.video import TrackScore, evaluate_videos, label_map, read_videos, summarise_videos


def test_where_masks_overlap_the_highest_logit_wins():
    logits = np.float32([[[3, 1], [-1, -1]], [[2, 2], [-2, 5]]])
    assert label_map(logits, (2, 2)).tolist() == [[1, 2], [0, 2]]
    assert label_map(np.zeros((1, 2, 2), np.float32), (4, 4)).max() == 0  # above 0, not at it


SIZE_HW = (48, 64)


def write_video(folder, name, labels):
    (folder / "JPEGImages" / name).mkdir(parents=True)
    (folder / "Annotations" / name).mkdir(parents=True)
    for index, values in enumerate(labels):
        pixels = np.repeat(40 + 80 * (values[..., None] % 255), 3, -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / name / f"{index:05}.jpg")
        image = Image.fromarray(values)
        image.putpalette(bytes(range(256)) * 3)  # a shorter palette would clip the numbers
        image.save(folder / "Annotations" / name / f"{index:05}.png")


def moving(frames):
    """Object 2 is static and disappears on frame 2, object 5 moves 8 pixels a frame; the corner is void."""
    video = []
    for index in range(frames):
        values = np.zeros(SIZE_HW, np.uint8)
        values[4:12, 4:12] = 2 * (index < 2)
        values[20:36, 8 + 8 * index : 24 + 8 * index] = 5
        values[-4:, -4:] = 255
        video.append(values)
    return video


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path, "square", moving(5))
    return tmp_path


def test_a_folder_in_the_layout_of_davis_is_read(folder):
    (video,) = read_videos(folder)
    assert video.name == "square"
    assert [path.name for path in video.images] == [f"{index:05}.jpg" for index in range(5)]
    assert np.unique(video.labels(0)).tolist() == [0, 2, 5]
    assert np.unique(video.labels(3)).tolist() == [0, 5]


def test_videos_may_lie_in_a_folder_480p_as_in_davis(folder):
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p").mkdir()
        (folder / kind / "square").rename(folder / kind / "480p" / "square")
    (video,) = read_videos(folder)
    assert (video.name, len(video.images), len(video.annotations)) == ("square", 5, 5)


@dataclass
class Scripted:
    """A segmenter and its session in one, with given masks whatever the prompts."""

    tracked: list  # for each frame, {(kind of prompt, object): (height, width) bool}
    clicked: dict = field(default_factory=dict)  # for each object, its masks after 1, 2, 3 clicks; empty if missing
    prompts: list = field(default_factory=list)
    decided: list | None = None  # like ``tracked``: what the policy decides on at the end, if it decides late
    policy: object = None

    def video(self, images, policy):
        self.policy = policy
        return SimpleNamespace(
            video=SimpleNamespace(size_hw=SIZE_HW),
            prompt=self.prompt,
            track=self.track,
            decides_late=self.decided is not None,
            results=self.results,
        )

    def results(self, *, with_images):
        assert with_images
        return Scripted(self.decided).track(0, len(self.decided) - 2)

    def prompt(self, frame, name, *, mask=None, points=None):
        self.prompts.append((frame, name, mask if points is None else points))
        answers = self.clicked.get(name, [])
        clicks = sum(other == name for _, other, _ in self.prompts)
        return SimpleNamespace(masks=[answers[min(clicks, len(answers)) - 1] if answers else np.zeros(SIZE_HW, bool)])

    def track(self, start, end):
        for index in range(start, end + 1):
            logits = np.stack([np.where(mask, np.float32(1), -1) for mask in self.tracked[index].values()])
            masks = SimpleNamespace(logits=logits, image=np.zeros((*SIZE_HW, 3), np.uint8))
            yield SimpleNamespace(index=index, object_ids=tuple(self.tracked[index]), masks=masks)


def truths(video, *numbers):
    """The masks of a perfect tracker."""
    return [
        {(kind, number): video.labels(i) == number for number in numbers for kind in ("mask", "clicks")}
        for i in range(len(video.images))
    ]


def test_what_a_policy_decides_late_is_scored_when_the_video_is_done(folder):
    (video,) = read_videos(folder)
    nothing = [{name: np.zeros(SIZE_HW, bool) for name in frame} for frame in truths(video, 2, 5)]
    sam = Scripted(nothing, decided=truths(video, 2, 5))
    assert [score.j for score in evaluate_videos(sam, [video], policy="sam2long")] == [1, 1]
    assert sam.policy == "sam2long"


def test_a_perfect_tracker_scores_one_and_the_baseline_scores_the_first_mask(folder):
    (video,) = read_videos(folder)
    sam = Scripted(truths(video, 2, 5))
    scores = list(evaluate_videos(sam, [video]))
    assert [(score.video, score.object, score.frames) for score in scores] == [("square", 2, 3), ("square", 5, 3)]
    for score in scores:
        assert (score.j, score.f, score.j_and_f, score.clicks_j, score.clicks_f, score.clicks_j_and_f) == (1,) * 6
    prompts = {(frame, number): mask for frame, (kind, number), mask in sam.prompts if kind == "mask"}
    assert prompts.keys() == {(0, 2), (0, 5)}
    np.testing.assert_array_equal(prompts[0, 5], video.labels(0) == 5)
    # On frames 1, 2, 3 object 2, which disappears, scores 1, 0, 0. Object 5 overlaps its first mask by half, then not.
    assert [score.baseline_j for score in scores] == pytest.approx([1 / 3, (1 / 3 + 0 + 0) / 3])


def test_each_object_is_clicked_three_times_on_errors_of_its_mask(folder):
    """Object 5 is 16×16 at (8, 20). Its first mask is its left half; the second is right but has a surplus square."""
    (video,) = read_videos(folder)
    truth = video.labels(0) == 5
    left, beside = truth & (np.arange(64) < 16), np.zeros(SIZE_HW, bool)
    beside[2:15, 40:53] = True
    sam = Scripted(truths(video, 2, 5), {("clicks", 5): [left, truth | beside, truth]})
    list(evaluate_videos(sam, [video]))
    clicks = {n: [(frame, p) for frame, name, p in sam.prompts if name == ("clicks", n)] for n in (2, 5)}
    assert clicks[5] == [(0, [(15, 27, 1)]), (0, [(19, 23, 1)]), (0, [(46, 8, 0)])]
    assert clicks[2] == [(0, [(7, 7, 1)])] * 3  # its mask stays empty


def test_mask_and_click_prompts_are_scored_separately(folder):
    (video,) = read_videos(folder)
    tracked = truths(video, 2, 5)
    for masks in tracked:
        masks["clicks", 5] = np.zeros(SIZE_HW, bool)
    two, five = evaluate_videos(Scripted(tracked), [video])
    assert (five.j, five.clicks_j, five.clicks_f, two.clicks_j) == (1, 0, 0, 1)


def test_an_object_counts_from_the_frame_it_appears_on(folder):
    """Object 9 appears on frame 2 of 5. A wrong mask of it on frame 1 does not change the scores of the others."""
    labels = moving(5)
    for index in (2, 3, 4):
        labels[index][40:46, 10:20] = 9
    write_video(folder, "late", labels)
    video, _ = read_videos(folder)
    tracked = truths(video, 2, 5, 9)
    wrong = tracked[1]["mask", 5]
    tracked[1] = {("mask", 9): wrong, ("clicks", 9): wrong, **{n: m for n, m in tracked[1].items() if n[1] != 9}}
    sam = Scripted(tracked)
    scores = {score.object: score for score in evaluate_videos(sam, [video])}
    assert {frame for frame, (_, number), _ in sam.prompts if number == 9} == {2}
    assert [(scores[n].frames, scores[n].j) for n in (2, 5, 9)] == [(3, 1), (3, 1), (1, 1)]
    assert scores[9].baseline_j == 1


def test_an_object_that_appears_later_is_tracked_as_if_the_video_began_there(sam, folder):
    labels = [np.where(values == 5, 1, 0).astype(np.uint8) for values in moving(5)]
    for name, first in (("late", 2), ("short", 0)):
        write_video(folder, name, [np.zeros_like(labels[0])] * first + labels)
    late, short, _ = read_videos(folder)
    one, other = (next(evaluate_videos(sam, [video])) for video in (late, short))
    assert replace(one, video="short") == other


def test_an_object_is_prompted_when_tracking_reaches_its_first_frame(folder):
    labels = moving(6)
    for values in labels[2:]:
        values[40:46, 10:20] = 9
    write_video(folder, "late", labels)
    video, _ = read_videos(folder)
    sam, calls = Scripted(truths(video, 2, 5, 9)), []
    track = sam.track

    def tracked(start, end):
        calls.append((start, end, {number for _, (_, number), _ in sam.prompts}))
        yield from track(start, end)

    sam.track = tracked
    list(evaluate_videos(sam, [video]))
    assert calls == [(0, 1, {2, 5}), (2, 4, {2, 5, 9})]


def test_the_first_and_the_last_frame_are_not_scored(folder):
    (video,) = read_videos(folder)
    truth = truths(video, 2, 5)
    wrong = {name: ~mask for name, mask in truth[0].items()}
    assert all(score.j == 1 for score in evaluate_videos(Scripted([wrong, *truth[1:4], wrong]), [video]))
    assert all(score.j < 1 for score in evaluate_videos(Scripted([truth[0], wrong, *truth[2:]]), [video]))


def test_the_extremes_get_the_worst_frame_of_each_object(folder):
    (video,) = read_videos(folder)
    tracked = truths(video, 2, 5)
    tracked[2]["mask", 5] = np.zeros(SIZE_HW, bool)
    extremes = Extremes()
    names = []
    extremes.add = lambda name, score, *arrays: names.append((name, score, [array.shape for array in arrays]))
    scores = list(evaluate_videos(Scripted(tracked), [video], extremes=extremes))
    arrays = [(*SIZE_HW, 3), SIZE_HW, SIZE_HW]
    assert names == [
        ("square 2, J 1.000 in frame 1; J&F", 1, arrays),
        ("square 5, J 0.000 in frame 2; J&F", pytest.approx(scores[1].j_and_f), arrays),
    ]


def test_two_evaluations_of_a_network_give_the_same_scores(sam, folder):
    write_video(folder, "single", [np.where(values == 5, 1, 0).astype(np.uint8) for values in moving(4)])
    scores, again = (list(evaluate_videos(sam, read_videos(folder))) for _ in range(2))
    assert scores == again
    assert [(s.video, s.object, s.frames) for s in scores] == [("single", 1, 2), ("square", 2, 3), ("square", 5, 3)]
    assert all(0 <= value <= 1 for score in scores for value in list(asdict(score).values())[3:])
    for score in scores:
        assert score.j_and_f == pytest.approx((score.j + score.f) / 2)


def test_clicks_are_those_of_a_user_who_corrects_a_session(sam, folder):
    """A session with the object alone gives the same score, so the evaluation adds nothing to the prompts."""
    write_video(folder, "single", [np.where(values == 5, 1, 0).astype(np.uint8) for values in moving(4)])
    video = read_videos(folder)[0]
    session, truth = sam.video(video.images), video.labels(0) > 0
    mask = np.zeros_like(truth)
    for _ in range(3):
        mask = session.prompt(0, points=[next_click(mask, truth).point]).masks[0]
    js = [region_j(r.masks.masks[0], video.labels(r.index) > 0) for r in session.track(end=2) if r.index]
    (score,) = evaluate_videos(sam, [video])
    assert score.clicks_j == pytest.approx(np.mean(js))


def test_means_are_over_objects_not_videos():
    one = TrackScore("a", 1, 9, 0.2, 0.0, 0.4, *[0.0] * 6)
    three = [TrackScore("b", number, 9, 0.9, 1.0, 0.8, 0.1, 0.1, 0.1, 0.2, 0.0, 0.4) for number in (1, 2, 3)]
    means = summarise_videos([one, *three])
    assert (means["j"], means["f"], means["j_and_f"]) == pytest.approx((0.75, 0.7, 0.725))
    assert (means["clicks_j"], means["baseline_f"], means["baseline_j_and_f"]) == pytest.approx((0.075, 0.3, 0.15))
    assert (means["videos"], means["objects"]) == (2, 4)
    with pytest.raises(ValueError, match="there are no objects"):
        summarise_videos([])


def test_the_error_names_what_is_wrong_with_a_folder_of_videos(sam, folder, tmp_path_factory):
    with pytest.raises(VideoError, match="no videos in"):
        read_videos(tmp_path_factory.mktemp("empty"))
    fourth = folder / "Annotations/square/00003.png"
    Image.new("L", (64, 40)).save(fourth)
    with pytest.raises(VideoError, match=r"00003\.png is 64×40: expected 64×48, the video's size"):
        list(evaluate_videos(sam, read_videos(folder)))
    fourth.write_bytes(b"no mask")
    with pytest.raises(ImageError, match=r"00003\.png is not an image"):
        list(evaluate_videos(sam, read_videos(folder)))
    fourth.unlink()
    with pytest.raises(VideoError, match=r"1 of 5 images have no annotation: expected .*00003\.png"):
        read_videos(folder)
    write_video(folder, "a-short-one", moving(2))
    with pytest.raises(VideoError, match="has 2 images: expected 3 or more"):
        read_videos(folder)
    blank = tmp_path_factory.mktemp("blank")
    write_video(blank, "blank", [np.full(SIZE_HW, 255, np.uint8)] * 3)
    with pytest.raises(VideoError, match="blank contains no object before its last two frames"):
        list(evaluate_videos(sam, read_videos(blank)))
