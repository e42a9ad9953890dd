"""Commands that report a user's mistake as one sentence and an exit code, on any terminal."""

from __future__ import annotations

import codecs
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from nas.execution.ending import UNFINISHED, Ended, UnfinishedError
from space.errors import ToolkitError

OK, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

PLAIN = {"≠": "!=", "±": "+-", "×": "x", "·": "*", "→": "->", "…": "...", "−": "-", "≤": "<=", "≥": ">=", "²": "^2", "³": "^3"}
"""What stands for the characters that the commands print where a terminal has no such character."""


class Command(click.Command):
    """A command that reports a ToolkitError as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; on an error print one sentence and exit."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=_PLAIN)
        # Figures go to files. The variable may name a notebook's backend that is not here: importing matplotlib then fails.
        os.environ["MPLBACKEND"] = "Agg"
        try:
            return super().invoke(ctx)
        except UnfinishedError as error:
            click.echo(f"nas: {error}", err=True)
            sys.exit(UNFINISHED)
        except ToolkitError as error:
            if ctx.find_root().params.get("debug"):
                traceback.print_exc()
            click.echo(f"nas: {error}", err=True)
            sys.exit(MISTAKE)
        except Ended as error:
            click.echo(f"nas: {error}", err=True)
            sys.exit(error.code)
        except KeyboardInterrupt:
            click.echo("nas: interrupted; the same command goes on from the last rungs", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.exit(OK)
        except OSError as error:
            click.echo(f"nas: {error.filename or 'a file'} cannot be used: {error.strerror or error}", err=True)
            sys.exit(MISTAKE)


class Group(click.Group):
    """A group whose commands report errors as one sentence."""

    command_class = Command


run_argument = click.argument("run")


def run_folder(run: str) -> Path:
    """The run directory on this machine: the path itself, or for a URI its mirror, brought up to date."""
    from nas.runs.remote import is_uri

    if not is_uri(run):
        return Path(run)
    from nas.runs.mirror import fetch

    return fetch(run)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler of the output: what cannot be encoded becomes plain characters, or its number as `\\u2260`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode("ascii") for char in text), error.end


_PLAIN = "nas.plain"
codecs.register_error(_PLAIN, _plain)
