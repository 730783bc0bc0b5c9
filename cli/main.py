"""The program: its commands, and how a failure ends it.

Exit codes: 0 done, 1 the data or the system refused (one line on stderr), 2 wrong usage, 130 interrupted,
143 terminated. diff answers as diff(1): 0 the same, 1 different, 2 refused.
Command modules import the library and the presentation libraries inside their functions, so that `--help`,
`--version` and completion start at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from neuzip.cli.text import printable
from neuzip.errors import NeuzipError

COMMANDS = ("compress", "decompress", "verify", "inspect", "diff", "bench", "doctor", "completion")
INTERRUPTED = 128 + signal.SIGINT
TROUBLE = 2  # of diff(1): 1 already says that something differs


class Failure(click.ClickException):
    """An error of the data or the system, shown as one line."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"neuzip: {printable(self.message)}", err=True)


class DiffFailure(Failure):
    """The same of diff, which keeps 1 for what it found."""

    exit_code = TROUBLE


def failure(ctx: click.Context, message: str) -> Failure:
    return (DiffFailure if ctx.invoked_subcommand == "diff" else Failure)(message)


def describe(error: OSError) -> str:
    """`model.safetensors: No space left on device`: the file first, no errno."""
    parts = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*parts, error.strerror or str(error)])


def with_notes(message: str, error: BaseException) -> str:
    """The message, and what the library noted on the error: that the work can be resumed."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


class Program(click.Group):
    """A group of the commands in COMMANDS, each imported when it is asked for: starting is most of the time that a
    small checkpoint takes. They end with a line and an exit code instead of a traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"neuzip.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except NeuzipError as error:  # before OSError: StorageError is both, and its message is complete
            raise failure(ctx, with_notes(str(error), error)) from error
        except BrokenPipeError:
            raise  # click closes stdout quietly: the reader of a pipe has gone
        except OSError as error:
            raise failure(ctx, describe(error)) from error
        except MemoryError as error:
            raise failure(ctx, "not enough memory") from error
        except (KeyboardInterrupt, click.Abort) as error:
            click.echo(f"neuzip: {with_notes('interrupted', error)}", err=True)
            ctx.exit(INTERRUPTED)
        except SystemExit as error:  # of terminate
            click.echo(f"neuzip: {with_notes('terminated', error)}", err=True)
            raise


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`neuzip COMMAND --help` shows a command's options and examples.",
)
@click.version_option(package_name="neuzip-codec", prog_name="neuzip", message="%(prog)s %(version)s")
def program() -> None:
    """Compress model weights losslessly.

    A compressed checkpoint is a valid safetensors file, and decompressing it gives the original file,
    byte for byte.
    """


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds the stack as Ctrl-C does, so that partial files are removed."""
    raise SystemExit(128 + number)


def main() -> None:
    """Runs the program on the process's arguments, streams and signals."""
    signal.signal(signal.SIGTERM, terminate)
    # NumPy's linear algebra, of which nothing here makes use, starts threads that spin for as long as a small
    # checkpoint takes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A name may hold characters that the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    program(prog_name="neuzip")


if __name__ == "__main__":
    main()
