"""The documentation: built strictly, every link followed, nothing fetched from elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest
from chromium import start_browser

ROOT = Path(__file__).parent.parent
PAGES = ("", "guide/", "guide/seeing/", "cli/", "api/", "api/models/", "format/", "benchmarks/", "peers/")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("NEUZIP_REQUIRE_CROSS") != "1":
        pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, check=False, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Links(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loads.append(found["href"])
        elif tag in ("script", "img", "iframe") and "src" in found:
            self.loads.append(found["src"])


def read(site: Path) -> dict[str, Links]:
    """The pages by URL, from the site's root."""
    pages = {}
    for path in site.rglob("*.html"):
        url = "/" + path.relative_to(site).as_posix().removesuffix("index.html")
        parser = Links()
        parser.feed(path.read_text(encoding="utf-8"))
        pages[url] = parser
    return pages


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = read(site)
    broken = []
    for url, page in pages.items():
        if url == "/404.html":
            continue
        for link in page.links + page.loads:
            target = urlparse(urljoin(url, link))
            if target.scheme in ("http", "https"):
                continue
            if target.path in pages:
                if target.fragment and unquote(target.fragment) not in pages[target.path].anchors:
                    broken.append((url, link))
            elif not (site / target.path.lstrip("/")).is_file():
                broken.append((url, link))
    assert not broken
    assert len(pages) > 15


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for url, page in read(site).items():
        assert [load for load in page.loads if urlparse(load).netloc] == [], url


def test_pages_are_taken_from_the_repository(site: Path) -> None:
    def text(page: str) -> str:
        return (site / page / "index.html").read_text(encoding="utf-8")

    assert "must refuse" in text("format")
    assert text("format").count("<h2") >= 10
    assert "MiniLM" in text("benchmarks") and "results/ratio_speed.png" in text("benchmarks")
    assert (site / "results" / "ratio_speed.png").stat().st_size > 10_000
    assert "Usage: neuzip diff [OPTIONS] A B" in text("cli")
    assert "already compressed data go through zstandard" in text("limits")
    for page in ("limits", "format", "benchmarks", "cli", "changelog", "contributing"):
        assert "<!-- " not in text(page).partition("<article")[2].partition("</article>")[0], page
    api = text("api")
    assert "<code>force</code>: replace dst" in api
    assert "format/#7-container" in api


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_pages_in_a_browser(site: Path) -> None:
    with served(site) as base, start_browser() as browser:
        for page in PAGES:
            tab = browser.tab()
            tab.resize(390, 800, phone=True)
            tab.open(base + page)
            foreign = [url for url in tab.requests if not url.startswith((base, "data:"))]
            assert (foreign, tab.complaints) == ([], []), page
            assert tab.evaluate("document.querySelector('h1').innerText.length") > 0
            assert tab.evaluate("document.documentElement.scrollWidth") == 390, page
