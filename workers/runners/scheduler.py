"""Which waiting requests run next, where, and which together. No threads and no clock: its caller has both."""

import bisect
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

from app.domain.serving import Mode

Running = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request that waits.

    Attributes:
        key: names it.
        group: only tasks of one group can be joined: same form, same shape of a row.
        deadline_ns: after which it is not run any more.
        alone: run it while nothing else runs, joined with nothing.
    """

    key: Hashable
    group: Hashable
    rows: int
    priority: int
    arrived_ns: int
    deadline_ns: int
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A place where one batch runs at a time; lanes of one mode run side by side, those of two never do."""

    mode: Running
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Run these tasks together in that lane."""

    lane: Lane
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    Attributes:
        mode: `auto` runs a task that is alone in the latency lane, and several in the throughput lanes.
        lanes: of the throughput mode.
        latency_rows, throughput_rows: up to which tasks are joined, by mode; 1 joins none.
        max_queue_delay_ns: how long the first task may wait for others to fill its batch.
    """

    mode: Mode = "auto"
    lanes: int = 1
    latency_rows: int = 1
    throughput_rows: int = 1
    max_queue_delay_ns: int = 0


class Scheduler:
    """Keeps waiting tasks in order of priority, then of arrival, and says what starts."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._waiting: list[tuple[int, int, Task]] = []
        self._running: dict[Lane, tuple[Task, ...]] = {}
        self._arrivals = 0
        self.waiting_rows = 0
        self.last_mode: Running = "latency"

    def __len__(self) -> int:
        """Return how many tasks wait or run."""
        return len(self._waiting) + sum(len(tasks) for tasks in self._running.values())

    def add(self, task: Task) -> None:
        """Let a task wait."""
        self._arrivals += 1
        bisect.insort(self._waiting, (-task.priority, self._arrivals, task))
        self.waiting_rows += task.rows

    def drop(self, key: Hashable) -> Task | None:
        """Take a task out that waits; None if it runs, or is unknown."""
        for place, (_, _, task) in enumerate(self._waiting):
            if task.key == key:
                self._take(place)
                return task
        return None

    def expire(self, now_ns: int) -> list[Task]:
        """Take out every waiting task whose deadline has passed."""
        late = [task for _, _, task in self._waiting if task.deadline_ns < now_ns]
        for task in late:
            self.drop(task.key)
        return late

    def finish(self, lane: Lane) -> None:
        """Note that a lane is free again."""
        del self._running[lane]

    def start(self, now_ns: int) -> Iterator[Start]:
        """Yield what starts now; every lane yielded is taken until `finish`."""
        while (started := self._next(now_ns)) is not None:
            self._running[started.lane] = started.tasks
            self.last_mode = started.lane.mode
            yield started

    def wakes_at_ns(self) -> int | None:
        """Return when a task that waits for others to join will start without them; None if it waits for a lane."""
        if not self._waiting or not self._setting.max_queue_delay_ns or self._runs_alone():
            return None
        head = self._waiting[0][2]
        if self._free_lane() is None or (head.alone and self._running):
            return None
        return head.arrived_ns + self._setting.max_queue_delay_ns

    def _next(self, now_ns: int) -> Start | None:
        if not self._waiting or self._runs_alone():
            return None
        head = self._waiting[0][2]
        if head.alone:
            return None if self._running else self._started(Lane(mode="latency", number=0), [0])
        lane = self._free_lane()
        if lane is None:
            return None
        most_rows = self._setting.latency_rows if lane.mode == "latency" else self._setting.throughput_rows
        places = self._joined(head, most_rows)
        if self._may_wait(head, places, most_rows, now_ns):
            return None
        return self._started(lane, places)

    def _runs_alone(self) -> bool:
        return any(task.alone for tasks in self._running.values() for task in tasks)

    def _free_lane(self) -> Lane | None:
        mode = self._mode()
        if mode == "latency":
            return None if self._running else Lane(mode="latency", number=0)
        lanes = (Lane(mode="throughput", number=number) for number in range(self._setting.lanes))
        return next((lane for lane in lanes if lane not in self._running), None)

    def _mode(self) -> Running:
        """Return the mode of what runs; when nothing does, what was pinned or fits the number that wait."""
        for lane in self._running:
            return lane.mode
        if self._setting.mode != "auto":
            return self._setting.mode
        return "throughput" if len(self._waiting) > 1 else "latency"

    def _joined(self, head: Task, most_rows: int) -> list[int]:
        """Return the places of the first task and of those that join it."""
        places, rows = [0], head.rows
        for place, (_, _, task) in enumerate(self._waiting[1:], start=1):
            if rows >= most_rows:
                break
            if task.group == head.group and not task.alone and rows + task.rows <= most_rows:
                places.append(place)
                rows += task.rows
        return places

    def _may_wait(self, head: Task, places: list[int], most_rows: int, now_ns: int) -> bool:
        if now_ns >= head.arrived_ns + self._setting.max_queue_delay_ns:
            return False
        return sum(self._waiting[place][2].rows for place in places) < most_rows

    def _started(self, lane: Lane, places: list[int]) -> Start:
        tasks = [self._take(place) for place in reversed(places)]
        return Start(lane=lane, tasks=tuple(reversed(tasks)))

    def _take(self, place: int) -> Task:
        task = self._waiting.pop(place)[2]
        self.waiting_rows -= task.rows
        return task
