"""``dpq sample``: let a model make something a person can look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import SampleArguments

if TYPE_CHECKING:
    from dpq_cli.meter import Meter
    from dpq_core.jobs.verbs import SampleReport

HELP = f"""Let a model make texts (on stdout) or files (in --output).

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


class _Printer:
    """Prints texts on stdout while they are generated, with a blank line between them."""

    def __init__(self, meter: Meter) -> None:
        """A printer that has printed nothing; it hides the meter once it prints."""
        self._meter = meter
        self._current: tuple[int, str] | None = None

    def __call__(self, number: int, model: str, piece: str) -> None:
        """Print the next piece of a text, after the model's name where there are several."""
        if self._current != (number, model):
            self._meter.hide()
            typer.echo("" if self._current is None else "\n\n", nl=False)
            typer.echo(f"[{model}]" if model else "", nl=bool(model))
            self._current = (number, model)
        typer.echo(piece, nl=False)

    def finish(self, report: SampleReport) -> None:
        """End the last line; print the texts whole where the adapter did not stream them."""
        if self._current is not None:
            typer.echo()
        else:
            typer.echo("\n\n".join(report.texts), nl=bool(report.texts))


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, SampleArguments, said)
    with generate.metered() as meter:
        printer = _Printer(meter)
        stream = None if as_json else printer
        report = dpq.sample(**keywords, progress=meter, stream=stream)
    if not as_json:
        printer.finish(report)
    render.report(report, as_json)


command = generate.command(SampleArguments, HELP, _run)
