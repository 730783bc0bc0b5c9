"""A headless Chromium, driven over a pipe by the DevTools protocol: what a page holds, fetches and complains about."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optional import missing

SECONDS = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# Descriptors of the child by the protocol: it reads commands from 3 and writes answers to 4.
READS, WRITES = 3, 4


@dataclass
class Tab:
    """An open page. requests: URLs asked for. complaints: errors and warnings of the console and the page."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def open(self, url: str) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.browser.listeners[self.session] = self.listen
        self.loaded = False
        self.call("Page.navigate", url=url)
        self.browser.wait(lambda: self.loaded)

    def listen(self, event: dict[str, Any]) -> None:
        method, found = event["method"], event["params"]
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])
        elif method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert")
        ):
            self.complaints.append(json.dumps(found))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which must be JSON."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """scheme: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


class Browser:
    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = reads, writes
        self.buffer = b""
        self.answers: dict[int, dict[str, Any]] = {}
        self.listeners: dict[str, Any] = {}
        self.number = 0
        os.set_blocking(reads, False)

    def tab(self) -> Tab:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self.answers)
        answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait(self, done: Any) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, "chromium does not answer"
            try:
                data = os.read(self.reads, 1 << 20)
                assert data, "chromium has ended"
            except BlockingIOError:
                time.sleep(0.005)
                continue
            *messages, self.buffer = (self.buffer + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "id" in message:
                    self.answers[message["id"]] = message
                elif message.get("sessionId") in self.listeners:
                    self.listeners[message["sessionId"]](message)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Skips or fails the test where there is no chromium (optional.missing)."""
    command = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if command is None:
        missing("chromium is not installed")
    commands, ours = os.pipe()
    theirs, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The shell puts the pipes where the protocol wants them.
        script = f'exec "$0" "$@" {READS}<&{commands} {WRITES}>&{answers}'
        process = subprocess.Popen(
            ["bash", "-c", script, command, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        try:
            yield Browser(theirs, ours)
        finally:
            process.terminate()
            process.wait(SECONDS)
            os.close(ours)
            os.close(theirs)


def open_page(browser: Browser, path: Path) -> Tab:
    tab = browser.tab()
    tab.open(path.as_uri())
    return tab
