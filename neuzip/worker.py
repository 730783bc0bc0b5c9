"""A thread that makes calls one after another, beside whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

Call = Callable[[], object]


class Worker:
    """A context manager: after the block, no call is made any more.

    That holds wherever a signal ends the block. `Thread.join` alone does not give it: a signal within `Thread.start`
    leaves a thread that runs, or is about to, and cannot be joined. So a worker is started before it has calls, and
    one that could not be is told to end.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._error: BaseException | None = None
        # Daemon: the interpreter does not wait for one that a signal left without calls.
        self._thread = Thread(target=self._work, name=name, daemon=True)

    def call(self, function: Call) -> None:
        """Asks for a call; returns at once."""
        self._calls.put(function)

    def wait(self) -> None:
        """Returns when all calls so far have been made. Raises what the first that failed has raised."""
        made = Event()
        self._calls.put(made.set)
        made.wait()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 (wait raises it)
                self._error = self._error or error
            del call  # and with it what it holds, while this waits for the next

    def __enter__(self) -> Worker:
        try:
            self._thread.start()
        except BaseException:
            self._calls.put(None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()
