"""report.html in a real browser: it loads, asks for nothing, complains of nothing, and hostile names stay text."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.domain.reports import Report
from app.web.page import MEDIA_TYPE, content_security_policy, render
from tests.needs import installed
from tests.reports import full_report

SECONDS = 120
HOSTILE = "</title></style><script>document.title='owned'</script><img src=/stolen onerror=\"document.title='owned'\">"
OUTSIDE = (
    "<link rel=stylesheet href=/style.css><style>@import '/imported.css'; body{background:url(/pixel.png)}</style>"
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser made of a page.

    Attributes:
        document: the page as it stood after it was loaded.
        requests: paths that it asked for.
        console: what it complained of.
    """

    document: str
    requests: list[str]
    console: list[str]


@contextmanager
def served(page: str) -> Iterator[tuple[str, list[str]]]:
    """Serve one page as the gateway does, and remember everything that is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", MEDIA_TYPE)
            self.send_header("Content-Security-Policy", content_security_policy())
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/report.html", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chromium() -> str:
    return installed("chromium", package="chromium")


def browse(chromium: str, page: str, folder: Path) -> Seen:
    options = [
        "--headless",
        "--no-sandbox",  # its own sandbox does not run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}",
        "--dump-dom",
    ]
    with served(page) as (url, asked):
        done = subprocess.run(
            [chromium, *options, url], capture_output=True, text=True, timeout=SECONDS, check=True, cwd=folder
        )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(document=done.stdout, requests=asked, console=console)


class Elements(HTMLParser):
    """The tags and the text of a document."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += "".join(f" {value}" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(name: str) -> Report:
    report = full_report()
    assert report.accuracy is not None
    return replace(
        report,
        model=name,
        notes=(name,),
        histograms=tuple(replace(histogram, layer=name) for histogram in report.histograms),
        sensitivity=tuple(replace(layer, name=name) for layer in report.sensitivity),
        gallery=tuple(replace(flip, label=name, png=name) for flip in report.gallery),
        accuracy=replace(report.accuracy, classes=tuple(replace(one, name=name) for one in report.accuracy.classes)),
    )


def test_the_page_loads_without_a_word_and_asks_for_nothing(chromium: str, tmp_path: Path) -> None:
    seen = browse(chromium, render(full_report(layers=300)), tmp_path)
    assert (seen.requests, seen.console) == (["/report.html"], [])
    assert "270 more, together" in seen.document


@pytest.mark.parametrize("name", [HOSTILE, OUTSIDE], ids=["scripts", "styles"])
def test_hostile_names_stay_text(chromium: str, tmp_path: Path, name: str) -> None:
    seen = browse(chromium, render(hostile(name)), tmp_path)
    found = Elements(seen.document)
    assert seen.requests == ["/report.html"]
    assert (found.tags.count("script"), found.tags.count("style"), found.tags.count("link")) == (0, 1, 1)
    assert "<title>owned" not in seen.document
    assert found.text.count(name) > 20


def test_the_browser_would_refuse_what_a_page_should_not_hold(chromium: str, tmp_path: Path) -> None:
    """The policy is the second wall: it stands even where escaping had a hole."""
    page = render(full_report()).replace("</body>", f"{HOSTILE}{OUTSIDE}</body>")
    seen = browse(chromium, page, tmp_path)
    assert seen.requests == ["/report.html"]
    assert "<title>owned" not in seen.document
    assert seen.console
