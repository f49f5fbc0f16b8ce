"""One call of the command: its exit status, its mistakes in a line each, its interruption, its events.

Exit statuses: 0 done; 1 verification found problems; 2 could not run as asked (one line says why); 3 finished, with
videos that could not be read; 130 interrupted, by Ctrl-C or SIGTERM, and what was done is kept.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import IO, Any

import click

from pipeline.errors import UserError
from stages import events

INTERRUPTED = 130
_GO_ON = ("extract", "train-head", "finetune")  # the same call again does what is left
LOG_JSON = click.option(
    "--log-json",
    is_flag=True,
    expose_value=False,
    help="Say on standard error what happens as JSON Lines, an event each, instead of bars and lines.",
)


class Refusal(click.ClickException):
    """One line and exit status 2. Of several processes (torchrun) the first one says it."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        if _first():
            super().show(file)


class Calls(click.Group):
    """A group whose commands answer a user's mistake with one line and exit status 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--json` may be followed by a file or not; and mistakes in what follows are told as events too."""
        options = _options(args)
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, [*json_words(options), *args[len(options) :]])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal without our characters shows them escaped
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends a command as Ctrl-C does
        try:
            with events.told("--log-json" in _options(ctx.meta[__name__]) and _first()), _as_events(ctx):
                return self._answered(ctx)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _answered(self, ctx: click.Context) -> Any:
        """Run the command; what people can do something about ends it with a line and a status."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise Refusal(str(error)) from error
        except KeyboardInterrupt:
            if not events.on():
                how = " Run the same command again to go on where it stopped."
                click.echo("Interrupted." + how * _resumable(ctx), err=True)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output (head, less) has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - so that closing it at exit succeeds
            raise SystemExit(0) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Refusal(f"{where}{error.strerror or error}") from error
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            raise Refusal(
                "There is not enough memory for this. Ask for smaller batches (--batch-size, --max-steps) or a smaller "
                "head (--hidden, --layers, --mlp)."
            ) from error


def everywhere(group: click.Group) -> None:
    """Give every command of a group, and of the groups in it, the options that all commands have."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            everywhere(command)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            LOG_JSON(command)


@contextmanager
def _as_events(ctx: click.Context) -> Iterator[None]:
    """Tell how a command begins and ends; nothing unless that was asked for."""
    if not events.on():
        yield
        return
    words = ctx.meta[__name__]
    events.tell("start", command=words[0], arguments=words[1:], version=version("framebank"))
    status = 0
    try:
        yield
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
        raise
    except click.exceptions.Exit as done:
        status = done.exit_code
        raise
    except click.ClickException as error:
        status = error.exit_code
        events.tell("error", "error", message=error.format_message(), exit_status=status)
        raise SystemExit(status) from error
    except Exception as error:
        status = 1
        text = f"{type(error).__name__}: {error}"
        events.tell("error", "error", message=text, exit_status=status, traceback=traceback.format_exc())
        raise SystemExit(status) from error
    finally:
        events.end(status, resumable=_resumable(ctx))


def _options(words: list[str]) -> list[str]:
    """The words up to `--`, after which all are arguments."""
    return words[: words.index("--")] if "--" in words else words


def _resumable(ctx: click.Context) -> bool:
    return ctx.invoked_subcommand in _GO_ON


def _first() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def json_words(words: list[str]) -> list[str]:
    """`--json` with its file, as `--json x.json`, or with `-` for standard output: no other word is taken for one.

    So `--json` may stand anywhere, and no video that comes after it is written over.
    """
    out = []
    for place, word in enumerate(words):
        out.append(word)
        following = words[place + 1] if place + 1 < len(words) else ""
        if word == "--json" and not (following.lower().endswith(".json") or following.startswith("/dev/")):
            out.append("-")
    return out


def _lacks_memory(error: Exception) -> bool:
    """torch has a type for a full GPU, and for full main memory only words."""
    words = ("can't allocate memory", "Storage size calculation overflowed")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(each in str(error) for each in words)
    )
