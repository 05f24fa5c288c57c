"""The ``dpq`` command: one Typer app, one file per command, and the exit codes."""

from __future__ import annotations

import errno
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dpq_cli.commands import (
    adapters,
    calibrate,
    compare,
    compress,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    plan,
    report,
    sample,
    serve,
)
from dpq_cli.generate import EXTRA_ARGS
from dpq_cli.interrupt import interruptible
from dpq_core.errors import DPQError, Interrupted, UsageError
from dpq_core.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


class Group(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see docs/cli.md for the exit codes."""
        try:
            with interruptible():
                return super().invoke(ctx)
        except UsageError as error:
            raise typer.BadParameter(error.on_the_command_line()) from None
        except DPQError as error:
            self._fail(ctx, error.on_the_command_line())
        except KeyboardInterrupt as stop:
            raise _exit_with(f"interrupted{_advice(stop)}", INTERRUPTED) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # `dpq sample ... | head`
                raise
            self._fail(ctx, _os_error(error))
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise  # --help, --version and usage errors (exit code 2) are Typer's business
            advice = "this is a bug in dpq or the adapter; see it with `dpq --debug ...`"
            self._fail(ctx, f"{type(error).__name__}: {error} ({advice})")

    def _fail(self, ctx: Any, message: str) -> None:
        if ctx.params.get("debug"):
            typer.echo(traceback.format_exc(), err=True)
        raise _exit_with(f"error: {message}", 1)


def _exit_with(message: str, code: int) -> typer.Exit:
    typer.echo(f"dpq: {' '.join(message.split())}", err=True)
    return typer.Exit(code)


def _advice(stop: KeyboardInterrupt) -> str:
    advice = stop.on_the_command_line() if isinstance(stop, Interrupted) else str(stop)
    return f"; {advice}" if advice else ""


def _os_error(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        where = _where(error)
        return f"disk full{where}; free some space and try again (dpq compress: with --resume)"
    return f"{error.strerror or error}{_where(error)}"


def _where(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dpq {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Group,
    name="dpq",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Shrink trained generative models to 1-4 bits per weight by product quantization.",
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (before the command).")
    ] = False,
) -> None:
    """Shrink trained generative models to 1-4 bits per weight by product quantization."""


app.command("plan", context_settings=EXTRA_ARGS)(plan.command)
app.command("compress", context_settings=EXTRA_ARGS)(compress.command)
app.command("calibrate", context_settings=EXTRA_ARGS)(calibrate.command)
app.command("eval", context_settings=EXTRA_ARGS)(evaluate.command)
app.command("compare", context_settings=EXTRA_ARGS)(compare.command)
app.command("report", context_settings=EXTRA_ARGS)(report.command)
app.command("sample", context_settings=EXTRA_ARGS)(sample.command)
app.command("export", context_settings=EXTRA_ARGS)(export.command)
app.command("serve")(serve.command)
app.command("inspect")(inspect.command)
app.command("adapters")(adapters.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)
