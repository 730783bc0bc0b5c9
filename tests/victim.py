"""A process that is killed: forks a child for each line of its input, which compresses or decompresses.

A line is JSON: what ("compress" or "decompress"), source, destination, options; and at, the number of the file
operation before which the child kills itself, or null; after, the seconds after which it is killed, or null. Answers
with a line when it has ended: its exit status, negative for a signal, and how many file operations it began.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from neuzip.checkpoint import compress_file, decompress_file
from neuzip.errors import DestinationBusy, NeuzipError

WORK = {"compress": compress_file, "decompress": decompress_file}
OPERATIONS = ("open", "os.", "fcntl.", "shutil.")
BUSY, REFUSED = 3, 4


def count_operations(at: int | None, out: int) -> None:
    """Reports every file operation; kills the process before one of them."""
    count = 0

    def hook(event: str, arguments: Any) -> None:
        nonlocal count
        if event.startswith(OPERATIONS):
            count += 1
            os.write(out, b".")
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        sys.audit("os.fsync")  # which the interpreter does not
        sync(descriptor)

    os.fsync = fsync


def work(request: dict[str, Any], out: int) -> None:
    count_operations(request["at"], out)
    try:
        WORK[request["what"]](request["source"], request["destination"], threads=1, **request["options"])
    except DestinationBusy:
        os._exit(BUSY)
    except NeuzipError:
        os._exit(REFUSED)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            work(json.loads(line), write)
        os.close(write)
        if (after := json.loads(line)["after"]) is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        count = 0
        while data := os.read(read, 4096):
            count += len(data)
        os.close(read)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), count, flush=True)


if __name__ == "__main__":
    main()
