"""A thread that makes calls one after another, beside whoever asks for them."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from queue import SimpleQueue

Call = Callable[[], object]


class Worker:
    """A context manager: after the block, no call is made any more, wherever a signal has ended it.

    threading does not give that. A signal within Thread.start leaves a thread that runs, or is about to, and cannot be
    joined; one within Event.wait may raise RuntimeError in place of KeyboardInterrupt. Here a signal comes before or
    after what is done in C: a lock, a queue, the start of the thread, which has no calls then and can be told to end.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._error: BaseException | None = None

    def call(self, function: Call) -> None:
        """Asks for a call; returns at once."""
        self._calls.put(function)

    def wait(self) -> None:
        """Returns when all calls so far have been made. Raises what the first that failed has raised."""
        self._let_finish()
        if self._error is not None:
            raise self._error

    def _let_finish(self) -> None:
        made = allocate_lock()
        made.acquire()
        self._calls.put(made.release)
        made.acquire()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 (wait raises it)
                self._error = self._error or error
            del call  # and with it what it holds, while this waits for the next

    def __enter__(self) -> Worker:
        try:
            start_new_thread(self._work, ())
        except BaseException:
            self._calls.put(None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._let_finish()
        finally:
            self._calls.put(None)
