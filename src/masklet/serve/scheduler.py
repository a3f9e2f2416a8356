"""One thread runs the network: clicks before tracking, users in turn, with bounded queues."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from masklet.serve.settings import Limits

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
CLICKS_IN_A_ROW = 4
"""After this many, a waiting job gets a step, so that users who keep clicking do not stop the tracking of others."""
WAITING = object()
"""What a job yields when it had nothing to do: the next job gets its turn, before another click."""


class Busy(Exception):
    """A queue is full. The answer is 503, with ``Retry-After``."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Job:
    """Work of many steps, such as tracking a video frame by frame. Made by ``Scheduler.start``.

    Between two steps, clicks and other jobs have their turn.
    """

    def __init__(self, user: str, steps: Generator[Any, None, None], on_end: Callable[[BaseException | None], None]):
        self.user = user
        self.steps = steps
        self.cancelled = threading.Event()
        """Set by ``cancel``; the current step is the last one."""
        self.ended = threading.Event()
        self.is_waiting = False
        """Whether the last step had nothing to do."""
        self._on_end = on_end

    def cancel(self) -> None:
        """Ends the job after the current step."""
        self.cancelled.set()

    def step(self) -> bool:
        """Runs one step; whether there are more."""
        error: BaseException | None = None
        try:
            if not self.cancelled.is_set():
                self.is_waiting = next(self.steps) is WAITING
                return True
        except StopIteration:
            pass
        except Exception as caught:  # of whatever kind: the job ends with it, and the thread must live on
            error = caught
        self.end(error)
        return False

    def end(self, error: BaseException | None = None) -> None:
        """Closes the generator and reports the end."""
        try:
            self.steps.close()
            self._on_end(error)
        except Exception:
            logger.exception("a job could not be ended")
        finally:
            self.ended.set()


class Turns:
    """Queues of several users, who take turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Any]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def count(self, user: str) -> int:
        """What waits for one user."""
        return len(self._queues.get(user, ()))

    def add(self, user: str, item: Any) -> None:
        """Puts something at the end of a user's queue."""
        self._queues.setdefault(user, deque()).append(item)

    def take(self) -> Any:
        """The first of the next user, or None."""
        if not self._queues:
            return None
        user, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[user] = queue  # behind the others
        return item

    def remove(self, user: str, item: Any) -> None:
        """Takes something out of a queue, if it is still there."""
        if (queue := self._queues.get(user)) and item in queue:
            queue.remove(item)
            if not queue:
                del self._queues[user]

    def drain(self) -> list[Any]:
        """Everything, in order."""
        items = []
        while (item := self.take()) is not None:
            items.append(item)
        return items


class Click:
    """Work of one step that somebody waits for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def run(self) -> None:
        """Runs the work, unless nobody waits for it any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except Exception as error:  # raised again where it is waited for
            self.future.set_exception(error)


class Scheduler:
    """Runs work on the device, in a thread of its own. Its methods may be called from any thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._clicks, self._long, self._jobs = Turns(), Turns(), Turns()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="masklet-device", daemon=True)
        self._thread.start()

    def submit(self, user: str, work: Callable[[], Result], *, is_long: bool = False) -> Future[Result]:
        """Queues a click. Cancel the future to withdraw it.

        Args:
            user: Users take turns.
            work: What to do.
            is_long: Whether it takes seconds. It comes after clicks, and should call
                ``run_waiting_clicks`` now and then.

        Raises:
            Busy: Too many clicks wait, or the server is shutting down.
        """
        click = Click(work)
        with self._changed:
            self._check_open()
            queue = self._long if is_long else self._clicks
            if len(self._clicks) + len(self._long) >= self.limits.clicks_waiting:
                raise Busy("the server is busy: too many requests are waiting. Try again in a moment", 2)
            if queue.count(user) >= self.limits.clicks_waiting_per_user:
                raise Busy("too many of your requests are waiting. Try again in a moment")
            queue.add(user, click)
            self._changed.notify()
        click.future.add_done_callback(lambda future: self._withdraw(queue, user, click))
        return click.future

    async def run(self, user: str, work: Callable[[], Result], *, is_long: bool = False) -> Result:
        """Runs a click, and waits for it. If the waiting task is cancelled, the click is withdrawn.

        Args:
            user: As in ``submit``.
            work: As in ``submit``.
            is_long: As in ``submit``.

        Raises:
            Busy: As in ``submit``.
        """
        return await asyncio.wrap_future(self.submit(user, work, is_long=is_long))

    def start(
        self, user: str, steps: Generator[Any, None, None], on_end: Callable[[BaseException | None], None]
    ) -> Job:
        """Queues a job.

        Args:
            user: Users take turns.
            steps: Runs from one ``yield`` to the next in the device's thread. It is closed at the end. It yields
                ``WAITING`` after a step without work.
            on_end: Called in that thread with the error that ended the job; None when it is done or was cancelled.

        Raises:
            Busy: There are too many jobs, or the server is shutting down.
        """
        job = Job(user, steps, on_end)
        with self._changed:
            self._check_open()
            running = [self._running] if self._running else []
            mine = self._jobs.count(user) + sum(one.user == user for one in running)
            if len(self._jobs) + len(running) >= self.limits.tracking_jobs:
                raise Busy("too many videos are being tracked. Try again when others have finished", 10)
            if mine >= self.limits.tracking_jobs_per_user:
                raise Busy("too many of your videos are being tracked. Wait for one of them, or cancel it", 10)
            self._jobs.add(user, job)
            self._changed.notify()
        return job

    def run_waiting_clicks(self) -> None:
        """Runs the clicks that wait. Called from within long steps, in the device's thread."""
        assert threading.current_thread() is self._thread
        while (click := self._take_click()) is not None:
            click.run()

    def close(self) -> None:
        """Ends all jobs after the current step, refuses waiting work, and ends the thread."""
        with self._changed:
            self._is_open = False
            if self._running is not None:
                self._running.cancel()
            self._changed.notify()
        self._thread.join()
        for click in (*self._clicks.drain(), *self._long.drain()):
            click.future.set_exception(Busy("the server is shutting down", 10))
        for job in self._jobs.drain():
            job.cancel()
            job.end()

    def _check_open(self) -> None:
        if not self._is_open:
            raise Busy("the server is shutting down", 10)

    def _withdraw(self, queue: Turns, user: str, click: Click) -> None:
        if click.future.cancelled():
            with self._changed:
                queue.remove(user, click)

    def _take_click(self) -> Click | None:
        with self._changed:
            return self._clicks.take()

    def _work(self) -> None:
        in_a_row = waited = 0
        while True:
            with self._changed:
                while self._is_open and not (len(self._clicks) or len(self._long) or len(self._jobs)):
                    self._changed.wait()
                if not self._is_open:
                    return
                is_due = in_a_row >= CLICKS_IN_A_ROW and len(self._jobs)
                click = None if is_due else self._clicks.take() or self._long.take()
                in_a_row += click is not None
                job = self._running = None if click is not None else self._jobs.take()
            if click is not None:
                click.run()
            elif job is not None:
                goes_on = job.step()
                waited = waited + 1 if goes_on and job.is_waiting else 0
                if not waited or waited > len(self._jobs):  # a turn is used up when all jobs wait, too
                    in_a_row = waited = 0
                with self._changed:
                    self._running = None
                    if goes_on:
                        self._jobs.add(job.user, job)


__all__ = ["WAITING", "Busy", "CancelledError", "Job", "Scheduler"]
