"""Work that takes longer than a request may: done by a thread; what is kept of it here is watched, and cancelled."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from hsae.errors import UserError
from hsae.serve.told import told
from hsae.serve.turns import Busy

State = Literal["waiting", "running", "done", "failed", "cancelled"]
KEPT = 256
"""ended jobs whose results can still be asked for"""
RESULTS = 64 * 1024 * 1024
"""characters of their results, of all together"""
LEASE = 90.0
"""seconds after which a job that nobody asked about is not wanted; a browser lets a hidden page ask once a minute"""


class Cancelled(BaseException):
    """The job is no longer wanted. No `Exception`, so that nothing in between takes it for a failure."""


@dataclass
class Job:
    """A piece of work, and how far it is. Changed by its thread alone, but for the wish to end it.

    Attributes:
        number: what it is asked for by.
        about: what is done, in words.
        doing: what is being done just now, in words.
        done, total: units of it; a total of 0 says that nobody knows.
        partial: what is there of the result already.
        result: the JSON of it, when it is done.
        error: one line, when it failed.
        lease: for how many seconds it is wanted without anybody asking; `asked` is when that was last.
    """

    number: int
    about: str
    state: State = "waiting"
    doing: str = ""
    done: int = 0
    total: int = 0
    partial: Any = None
    result: str = "null"
    error: str = ""
    lease: float = LEASE
    asked: float = field(default_factory=time.monotonic, repr=False)
    unwanted: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.unwanted.is_set() or time.monotonic() - self.asked > self.lease

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in ("waiting", "running")

    def begin(self, doing: str, total: int = 0) -> None:
        """Say what is done next, of how many units."""
        self.check()
        self.doing, self.done, self.total = doing, 0, total

    def advance(self, units: int = 1) -> None:
        """Some more units are done."""
        self.done += units
        self.check()

    def cancel(self) -> None:
        """It is no longer wanted: one that waits ends now, one that runs as soon as it looks up."""
        self.unwanted.set()
        if self.state == "waiting":
            self.state = "cancelled"

    def check(self) -> None:
        """Go on if the job is still wanted.

        Raises:
            Cancelled: it is not.
        """
        if self.left:
            raise Cancelled

    def document(self) -> str:
        """What a page is told, as JSON. For it an unwanted job has ended, whatever the thread still does."""
        state = self.state if self.ended or not self.unwanted.is_set() else "cancelled"
        view = {"job": self.number, "about": self.about, "state": state, "doing": self.doing}
        view |= {"done": self.done, "total": self.total, "partial": self.partial}
        if state == "failed":
            view["error"] = self.error
        text = json.dumps(view)
        # Made once, however often it is asked for: it may be long.
        return text if state != "done" else f'{text[:-1]}, "result": {self.result}}}'


class Lane:
    """Jobs that are done one after the other, by one thread that starts with the first of them.

    Args:
        name: of the thread.
        waiting: the most jobs that may wait behind the one that runs.
    """

    _numbers = itertools.count(1)

    def __init__(self, name: str, waiting: int) -> None:
        self._name, self._most = name, waiting
        self._queue: queue.SimpleQueue[tuple[Job, Callable[[Job], Any]]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._keys: dict[int, Hashable] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those that are not ended, in order; then those that are, oldest first."""
        with self._lock:
            return tuple(sorted(self._jobs.values(), key=lambda job: (job.ended, job.number)))

    def find(self, number: int) -> Job | None:
        """A job by its number, which is wanted then; None where it is none of this lane's, or long ended."""
        with self._lock:
            job = self._jobs.get(number)
        if job is not None:
            job.asked = time.monotonic()
        return job

    def known(self, key: Hashable) -> Job | None:
        """The job of that key that waits or runs."""
        with self._lock:
            return self._known(key)

    def _known(self, key: Hashable) -> Job | None:
        for number, job in self._jobs.items():
            if key is not None and self._keys[number] == key and not (job.ended or job.left):
                job.asked = time.monotonic()
                return job
        return None

    def submit(self, about: str, work: Callable[[Job], Any], key: Hashable = None, lease: float = LEASE) -> Job:
        """Have something done.

        Args:
            about: what, in words.
            work: does it; gets the job to tell of its progress, and returns plain data.
            key: what the job is known by; one of the same key that waits or runs is given back instead.
            lease: see `Job`.

        Raises:
            Busy: too many jobs wait.
        """
        with self._lock:
            if (same := self._known(key)) is not None:
                return same
            self._tidy()
            if sum(not job.ended for job in self._jobs.values()) > self._most:
                raise Busy
            job = Job(next(self._numbers), about, lease=lease)
            self._jobs[job.number], self._keys[job.number] = job, key
            if self._thread is None:
                # A daemon: what it does may take minutes, and the end of the server waits for no one.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put((job, work))
        return job

    def _tidy(self) -> None:
        """End what waits for nobody, and forget the oldest results."""
        kept, held = 0, 0
        for number, job in reversed([*self._jobs.items()]):
            if job.state == "waiting" and job.left:
                job.cancel()
            if job.ended:
                kept, held = kept + 1, held + len(job.result)
                if kept > KEPT or held > RESULTS:
                    del self._jobs[number], self._keys[number]

    def close(self, seconds: float) -> bool:
        """Cancel everything and wait a moment; whether the thread has nothing to do any more."""
        for job in self.jobs:
            job.cancel()
        end = time.monotonic() + seconds
        while any(not job.ended for job in self.jobs):
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def _work(self) -> None:
        while True:
            job, work = self._queue.get()
            if job.ended:
                continue
            try:
                job.state = "running"
                job.check()
                job.result = json.dumps(work(job), allow_nan=False)
                job.state = "done"
            except Cancelled:
                job.state = "cancelled"
            except UserError as error:
                job.error, job.state = told(error), "failed"
            except BaseException as error:
                # Whatever it was, the next job must find a thread; the page gets a line, the terminal the rest.
                traceback.print_exc(file=sys.stderr)
                job.error, job.state = f"an error of hsae ({type(error).__name__}); its terminal says more", "failed"
            job.partial = None
