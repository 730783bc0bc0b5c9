"""Measuring in a process of its own: memory and threads must not be what an earlier question left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Answer = TypeVar("Answer")


def alone(ask: Callable[P, Answer], *arguments: P.args, **options: P.kwargs) -> Answer:
    """What a function returns, called in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(ask, *arguments, **options).result()
