import threading
import time

import pytest

from masklet.serve import scheduler as scheduling
from masklet.serve.scheduler import WAITING, Busy, Scheduler
from masklet.serve.settings import Limits


@pytest.fixture
def scheduler():
    made = Scheduler(Limits(clicks_waiting=6, clicks_waiting_per_user=3))
    yield made
    made.close()


def held(scheduler):
    """Keeps the device busy until the event that is returned is set."""
    begun, release = threading.Event(), threading.Event()
    scheduler.submit("holder", lambda: (begun.set(), release.wait()))
    begun.wait()
    return release


def test_clicks_go_before_tracking_and_users_take_turns(scheduler):
    release, order = held(scheduler), []

    def steps(name):
        for step in range(2):
            order.append(f"{name}{step}")
            yield

    jobs = [scheduler.start(user, steps(user), lambda error: None) for user in ("a", "b")]
    clicks = [scheduler.submit(user, lambda user=user: order.append(user.upper())) for user in ("a", "a", "b")]
    release.set()
    [click.result() for click in clicks]
    [job.ended.wait() for job in jobs]
    assert order == ["A", "B", "A", "a0", "b0", "a1", "b1"]


def test_tracking_goes_on_however_much_is_clicked(scheduler, monkeypatch):
    monkeypatch.setattr(scheduling, "CLICKS_IN_A_ROW", 2)
    release, order = held(scheduler), []
    job = scheduler.start("a", (order.append(step) for step in range(2)), lambda error: None)
    clicks = [scheduler.submit(user, lambda user=user: order.append(user)) for user in "ababa"]
    release.set()
    [click.result(60) for click in clicks]
    assert job.ended.wait(60)
    assert order == ["a", 0, "b", "a", 1, "b", "a"]


def test_jobs_that_wait_take_no_turns_of_the_one_that_works(scheduler, monkeypatch):
    monkeypatch.setattr(scheduling, "CLICKS_IN_A_ROW", 1)
    release, order, is_over = held(scheduler), [], threading.Event()

    def waits():
        while not is_over.is_set():
            yield WAITING

    waiting = [scheduler.start(f"waits {count}", waits(), lambda error: None) for count in range(5)]
    job = scheduler.start("a", (order.append(step) for step in range(2)), lambda error: None)
    clicks = [scheduler.submit(user, lambda user=user: order.append(user)) for user in "abc"]
    release.set()
    [click.result(60) for click in clicks]
    assert job.ended.wait(60)
    assert scheduler.submit("a", lambda: 7).result(60) == 7  # though all jobs wait
    is_over.set()
    assert all(one.ended.wait(60) for one in waiting)
    assert order == [0, "a", 1, "b", "c"]


def test_a_full_queue_refuses_clicks_until_there_is_room(scheduler):
    release = held(scheduler)
    clicks = [scheduler.submit("a", int) for _ in range(3)]
    with pytest.raises(Busy, match="too many of your requests are waiting"):
        scheduler.submit("a", int)
    clicks += [scheduler.submit("b", int) for _ in range(3)]
    with pytest.raises(Busy, match="the server is busy"):
        scheduler.submit("c", int)
    clicks[0].cancel()
    scheduler.submit("c", int)
    release.set()
    assert [click.result() for click in clicks[1:]] == [0] * 5


def test_a_cancelled_job_ends_after_its_step_and_closes_its_generator(scheduler):
    closed, seen, ended = threading.Event(), [], []

    def steps():
        try:
            while True:
                seen.append(len(seen))
                yield
                time.sleep(0.001)
        finally:
            closed.set()

    job = scheduler.start("a", steps(), ended.append)
    while len(seen) < 3:
        time.sleep(0.001)
    job.cancel()
    assert job.ended.wait()
    assert closed.is_set()
    assert ended == [None]


def test_an_error_ends_a_job_and_the_device_goes_on(scheduler):
    errors = []

    def steps():
        yield
        raise ValueError("broken")

    scheduler.start("a", steps(), errors.append).ended.wait()
    assert str(errors[0]) == "broken"
    assert scheduler.submit("a", lambda: 7).result() == 7
