"""How a gateway ends, and what survives the end of one of its processes: whatever was accepted is answered rightly."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.api.harness import publish_model, running_api
from tests.api.wire import LENGTH, LONG, Answer, Row, Wire, content, head, request, row, twice
from tests.contract.test_gateway_process import Gateway, running_gateway
from tests.running import STOP_SECONDS, Redis, holds, wait_until

CLIENTS = 8
RUNNER, HOST, WORKER = ("workers.runners",), ("app.hosting",), ("multiprocessing.spawn",)


@contextmanager
def serving(folder: Path, redis: Redis, *, processes: int) -> Iterator[Gateway]:
    """Run a gateway that has answered once, with a model that doubles its rows."""
    with running_api(folder / "data", redis_url=redis.url) as api:
        publish_model(api, folder, name="twice", graph=twice())
    with running_gateway(folder, redis, processes=processes) as gateway:
        ask(gateway, row())
        yield gateway


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rsplit(":", 1)[1])


def ask(gateway: Gateway, x: Row) -> None:
    """Send one request over a connection of its own; its answer must be right."""
    connection = Wire(port_of(gateway))
    try:
        connection.send(request(x))
        assert np.array_equal(connection.answer().numbers(), 2 * x)
    finally:
        connection.close()


def below(gateway: Gateway, words: tuple[str, ...]) -> list[psutil.Process]:
    """Return the processes below the gateway whose command line has all these words in it."""
    return [each for each in psutil.Process(gateway.process.pid).children(recursive=True) if holds(each, words)]


def accepted(connection: Wire, x: Row) -> bool:
    """Send a request's head; return whether it was read, which `100 Continue` tells."""
    body, length = content(x)
    try:
        connection.send(head(len(body), f"{LENGTH}: {length}", "Expect: 100-continue"))
        return connection.answer().status == 100
    except (OSError, AssertionError):  # closed before it was read
        return False


@dataclass(slots=True, kw_only=True)
class Client:
    """Sends requests until it is not let in any more.

    Attributes:
        answered: requests whose head was read; every one of them was answered rightly.
    """

    port: int
    seed: int
    answered: int = 0
    last: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while (connection := _connected(self.port)) is not None:
            try:
                self._ask_on(connection)
            finally:
                connection.close()
            if self.last.is_set():
                return

    def _ask_on(self, connection: Wire) -> None:
        while accepted(connection, x := row(LONG if self.seed % 2 else 8, seed=self.seed * 1000 + self.answered)):
            connection.send(content(x)[0])
            answer = connection.answer()
            assert np.array_equal(answer.numbers(), 2 * x)
            self.answered += 1
            if "connection" in answer.headers:
                return


def _connected(port: int) -> Wire | None:
    try:
        return Wire(port)
    except OSError:
        return None


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def terminate(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)


def interrupt(gateway: Gateway) -> None:
    """Do what Ctrl-C in a terminal does."""
    os.killpg(gateway.process.pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stop", [terminate, interrupt])
def test_a_gateway_that_is_stopped_answers_what_it_has_accepted(
    redis: Redis, tmp_path: Path, processes: int, stop: Callable[[Gateway], None]
) -> None:
    with (
        serving(tmp_path, redis, processes=processes) as gateway,
        ThreadPoolExecutor(CLIENTS) as pool,
        ExitStack() as opened,
    ):
        port = port_of(gateway)
        clients = [Client(port=port, seed=seed) for seed in range(CLIENTS)]
        running = [pool.submit(client.run) for client in clients]
        wait_until(lambda: min(client.answered for client in clients) > 5, what="every client is answered")
        late = [(opened.enter_context(closing(Wire(port))), row(LONG, seed=seed)) for seed in range(4)]
        assert all(accepted(connection, x) for connection, x in late)
        everything = psutil.Process(gateway.process.pid).children(recursive=True)
        assert below(gateway, RUNNER)
        stop(gateway)
        wait_until(lambda: refuses(port), what="new connections are refused")
        for connection, x in late:
            connection.send(content(x)[0])
            assert np.array_equal(connection.answer().numbers(), 2 * x)
            assert connection.ended()
        for each in running:
            each.result()
        gateway.process.wait(STOP_SECONDS)
        assert psutil.wait_procs(everything, timeout=5)[1] == []
        assert "Traceback" not in gateway.log.read_text()


@pytest.mark.slow
def test_a_gateway_process_that_is_killed_takes_nothing_along_but_its_connections(redis: Redis, tmp_path: Path) -> None:
    with serving(tmp_path, redis, processes=2) as gateway, ThreadPoolExecutor(CLIENTS) as pool:
        (runner,) = below(gateway, RUNNER)
        workers = below(gateway, WORKER)
        with load(gateway, pool) as clients:
            workers[0].kill()
            wait_until(lambda: set(below(gateway, WORKER)) - set(workers), what="another process is started")
            seen = [client.answered for client in clients]
            wait_until(lambda: all(c.answered > n + 5 for c, n in zip(clients, seen, strict=True)), what="all go on")
        assert below(gateway, RUNNER) == [runner]
        assert len(below(gateway, WORKER)) == 2


@contextmanager
def load(gateway: Gateway, pool: ThreadPoolExecutor) -> Iterator[list[Client]]:
    """Send requests until the block ends; a lost connection is a new connection's business."""
    clients = [Client(port=port_of(gateway), seed=seed) for seed in range(CLIENTS)]
    running = [pool.submit(_insist, client) for client in clients]
    try:
        wait_until(lambda: min(client.answered for client in clients) > 5, what="every client is answered")
        yield clients
    finally:
        for client in clients:
            client.last.set()
        for each in running:
            each.result()


def _insist(client: Client) -> None:
    while not client.last.is_set():
        connection, x = Wire(client.port), row(LONG, seed=client.seed + client.answered)
        try:
            connection.send(request(x))
            answer = connection.answer()
        except (OSError, AssertionError):  # its process was killed
            continue
        finally:
            connection.close()
        assert np.array_equal(answer.numbers(), 2 * x)
        client.answered += 1


@pytest.mark.slow
def test_requests_wait_while_a_killed_host_of_runners_is_started_again(redis: Redis, tmp_path: Path) -> None:
    with serving(tmp_path, redis, processes=2) as gateway, ThreadPoolExecutor(CLIENTS) as pool:
        (host,), (runner,) = below(gateway, HOST), below(gateway, RUNNER)
        answers: list[Answer] = []
        stopping = threading.Event()
        running = [pool.submit(_collect, port_of(gateway), seed, answers, stopping) for seed in range(CLIENTS)]
        try:
            wait_until(lambda: len(answers) > 50, what="requests are answered")
            host.kill()
            wait_until(lambda: set(below(gateway, HOST)) - {host}, what="another host is started")
            wait_until(lambda: set(below(gateway, RUNNER)) - {runner}, what="another runner is started")
            seen = len(answers)
            wait_until(lambda: len(answers) > seen + 50, what="requests are answered again")
        finally:
            stopping.set()
        for each in running:
            each.result()
        assert psutil.wait_procs([runner], timeout=5)[1] == []
        assert {answer.status for answer in answers} <= {200, 503}
        assert all(answer.error for answer in answers if answer.status != 200)
        ask(gateway, row(LONG))


def _collect(port: int, seed: int, answers: list[Answer], stopping: threading.Event) -> None:
    """Send requests one by one over one connection; every answer is right, or a clear refusal."""
    connection, number = Wire(port), 0
    while not stopping.is_set():
        x, number = row(8, seed=seed * 10**6 + number), number + 1
        connection.send(request(x))
        answer = connection.answer()
        answers.append(answer)
        assert answer.status != 200 or np.array_equal(answer.numbers(), 2 * x)
    connection.close()


@pytest.mark.slow
def test_nothing_outlives_a_gateway_that_is_killed(redis: Redis, tmp_path: Path) -> None:
    with serving(tmp_path, redis, processes=2) as gateway:
        everything = psutil.Process(gateway.process.pid).children(recursive=True)
        gateway.process.kill()
        gateway.process.wait()
        assert psutil.wait_procs(everything, timeout=20)[1] == []
        assert refuses(port_of(gateway))
