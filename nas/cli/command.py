"""Commands that report a user's mistake as one sentence and an exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from space.errors import ToolkitError

OK, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


class Command(click.Command):
    """A command that reports a ToolkitError as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; on an error print one sentence and exit."""
        try:
            return super().invoke(ctx)
        except ToolkitError as error:
            if ctx.find_root().params.get("debug"):
                traceback.print_exc()
            click.echo(f"nas: {error}", err=True)
            sys.exit(MISTAKE)
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
