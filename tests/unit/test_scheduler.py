"""What runs next, where and with whom: a scheduler is driven through every order of events, without a clock."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.runners.scheduler import Lane, Running, Scheduler, Setting, Start, Task

NEVER = 2**62


def task(key: int, *, rows: int = 1, group: str = "a", priority: int = 0, alone: bool = False) -> Task:
    return Task(key=key, group=group, rows=rows, priority=priority, arrived_ns=0, deadline_ns=NEVER, alone=alone)


def scheduler(setting: Setting, *tasks: Task) -> Scheduler:
    made = Scheduler(setting)
    for each in tasks:
        made.add(each)
    return made


def started(found: Scheduler, *, now_ns: int = 0) -> list[list[object]]:
    return [[each.key for each in start.tasks] for start in found.start(now_ns)]


JOINING = Setting(mode="throughput", lanes=1, throughput_rows=4)


def test_requests_are_joined_by_rows_and_not_by_number() -> None:
    assert started(scheduler(JOINING, task(1, rows=3), task(2, rows=2), task(3, rows=1))) == [[1, 3]]


def test_only_requests_of_one_shape_are_joined() -> None:
    assert started(scheduler(JOINING, task(1), task(2, group="b"), task(3))) == [[1, 3]]


def test_a_setting_of_one_row_joins_none() -> None:
    assert started(scheduler(Setting(mode="throughput", lanes=2), task(1), task(2), task(3))) == [[1], [2]]


def test_a_request_of_more_rows_than_are_joined_runs_by_itself() -> None:
    assert started(scheduler(JOINING, task(1, rows=9), task(2))) == [[1]]


def test_higher_priorities_come_first_and_equal_ones_in_order() -> None:
    setting = Setting(mode="throughput", lanes=4)
    found = scheduler(setting, task(1), task(2, priority=1), task(3, priority=-1), task(4, priority=1))
    assert started(found) == [[2], [4], [1], [3]]


def test_one_request_takes_all_threads_and_several_the_streams() -> None:
    setting = Setting(lanes=2)
    (alone,) = scheduler(setting, task(1)).start(0)
    together = list(scheduler(setting, task(1), task(2)).start(0))
    assert alone.lane == Lane(mode="latency", number=0)
    assert [start.lane for start in together] == [Lane(mode="throughput", number=number) for number in (0, 1)]


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_a_pinned_mode_is_kept(mode: Running) -> None:
    for tasks in ([task(1)], [task(1), task(2)]):
        found = scheduler(Setting(mode=mode, lanes=2), *tasks)
        assert {start.lane.mode for start in found.start(0)} == {mode}


def test_a_suspect_waits_until_nothing_runs_and_nothing_joins_it() -> None:
    found = scheduler(JOINING, task(1))
    (first,) = found.start(0)
    found.add(task(2, alone=True))
    found.add(task(3))
    assert started(found) == []
    found.finish(first.lane)
    assert started(found) == [[2]]


def test_a_batch_waits_for_others_as_long_as_it_may() -> None:
    setting = replace(JOINING, max_queue_delay_ns=100)
    found = scheduler(setting, task(1))
    assert started(found, now_ns=99) == []
    assert found.wakes_at_ns() == 100
    assert started(found, now_ns=100) == [[1]]


def test_a_full_batch_does_not_wait() -> None:
    setting = replace(JOINING, max_queue_delay_ns=100)
    assert started(scheduler(setting, task(1, rows=2), task(2, rows=2))) == [[1, 2]]


def test_nobody_is_woken_for_a_batch_that_has_no_lane() -> None:
    found = scheduler(replace(JOINING, max_queue_delay_ns=100), task(1, rows=4))
    (running,) = found.start(0)
    found.add(task(2))
    assert found.wakes_at_ns() is None
    found.finish(running.lane)
    assert found.wakes_at_ns() == 100


class Driven(RuleBasedStateMachine):
    """The scheduler as its service drives it: late tasks are taken out whenever something may start."""

    @initialize(
        mode=st.sampled_from(["auto", "latency", "throughput"]),
        lanes=st.integers(1, 3),
        latency_rows=st.integers(1, 4),
        throughput_rows=st.integers(1, 8),
        delay=st.sampled_from([0, 5]),
    )
    def begin(self, mode: str, lanes: int, latency_rows: int, throughput_rows: int, delay: int) -> None:
        self.setting = Setting(
            mode=mode,  # type: ignore[arg-type]
            lanes=lanes,
            latency_rows=latency_rows,
            throughput_rows=throughput_rows,
            max_queue_delay_ns=delay,
        )
        self.scheduler = Scheduler(self.setting)
        self.now = 0
        self.waiting: list[Task] = []
        self.running: dict[Lane, tuple[Task, ...]] = {}
        self.gone: set[object] = set()
        self.keys = 0

    @rule(
        rows=st.integers(1, 9),
        group=st.sampled_from("ab"),
        priority=st.integers(-1, 1),
        patience=st.integers(0, 20),
        alone=st.booleans(),
    )
    def arrive(self, rows: int, group: str, priority: int, patience: int, alone: bool) -> None:  # noqa: FBT001
        self.keys += 1
        arriving = replace(
            task(self.keys, rows=rows, group=group, priority=priority, alone=alone),
            arrived_ns=self.now,
            deadline_ns=self.now + patience,
        )
        self.scheduler.add(arriving)
        self.waiting.append(arriving)
        self.waiting.sort(key=lambda each: -each.priority)

    @rule(step=st.integers(1, 10))
    def pass_time(self, step: int) -> None:
        self.now += step

    @rule()
    def start(self) -> None:
        for late in self.scheduler.expire(self.now):
            assert late.deadline_ns < self.now
            self._leave(late)
        for one in self.scheduler.start(self.now):
            self._check(one)
            self.running[one.lane] = one.tasks
            for each in one.tasks:
                self._leave(each)
        wakes_at = self.scheduler.wakes_at_ns()
        assert wakes_at is None or wakes_at > self.now
        assert self.running or not self.waiting or wakes_at is not None  # nothing is forgotten

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.running, key=lambda each: each.number)))
        self.scheduler.finish(lane)
        del self.running[lane]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.keys))
        dropped = self.scheduler.drop(key)
        assert dropped == next((each for each in self.waiting if each.key == key), None)
        if dropped is not None:
            self._leave(dropped)

    def _leave(self, one: Task) -> None:
        assert one.key not in self.gone
        self.gone.add(one.key)
        self.waiting.remove(one)

    def _check(self, one: Start) -> None:
        head, most = one.tasks[0], self._most_rows(one.lane)
        assert one.lane not in self.running
        assert head is self.waiting[0]
        assert all(each.deadline_ns >= self.now for each in one.tasks)
        assert {each.group for each in one.tasks} == {head.group}
        assert len(one.tasks) == 1 or sum(each.rows for each in one.tasks) <= most
        assert sorted(one.tasks, key=self.waiting.index) == list(one.tasks)
        if any(each.alone for each in one.tasks):
            assert len(one.tasks) == 1
            assert not self.running

    def _most_rows(self, lane: Lane) -> int:
        assert lane.number < (1 if lane.mode == "latency" else self.setting.lanes)
        return self.setting.latency_rows if lane.mode == "latency" else self.setting.throughput_rows

    @invariant()
    def one_mode_runs_at_a_time_and_every_row_is_counted(self) -> None:
        if not hasattr(self, "running"):
            return
        assert len({lane.mode for lane in self.running}) <= 1
        assert self.scheduler.waiting_rows == sum(each.rows for each in self.waiting)
        running = sum(len(tasks) for tasks in self.running.values())
        assert len(self.scheduler) == len(self.waiting) + running

    def teardown(self) -> None:
        """Whatever waits now gets its turn, or is too late."""
        with contextlib.suppress(AttributeError):
            while self.waiting or self.running:
                for lane in list(self.running):
                    self.scheduler.finish(lane)
                    del self.running[lane]
                self.now += 1
                self.start()


TestAnyOrderOfEvents = Driven.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
