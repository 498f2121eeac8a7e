"""The command that asks a person about labels and masks in a browser."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from torchdoctor.cli.options import AS_JSON, Groups, add_command, argument, option, parameters_of, tell
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.runs.review_files import said_of_kinds
from torchdoctor.types import InputError

REVIEW = ("device", "workers")
LEFT_OUT = dict.fromkeys(REVIEW, "as in the run")


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `review`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    add_command(
        app, "review", review,
        [
            argument("run", str, "The folder of a finished run of diagnose or checkup."),
            option("propose", bool, False, "Open no page: store proposals for masks in RUN/review/proposals, "
                   "from the places that the network looks at."),
            option("host", str | None, None, "The address of this machine at which the page is served. "
                   "Another than the default lets other machines reach it. [127.0.0.1]", metavar="TEXT"),
            option("port", int | None, None, "The port. [a free one]", metavar="INTEGER"),
            option("no_browser", bool, False, "Print the address and open no browser."),
            *parameters_of(groups, REVIEW, LEFT_OUT), AS_JSON.parameter,
        ],
        "Answer questions about a finished run in a page of this machine: is this label wrong, where is the "
        "object? The most useful come first; checkup --review RUN trains with the answers.",
    )  # fmt: skip


def review(
    *,
    run: str,
    propose: bool,
    host: str | None,
    port: int | None,
    no_browser: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Serve the page of a review, or store proposals for masks.

    Args:
        run: The run's folder.
        propose: Whether proposals are stored and no page is served.
        host: The address that is served.
        port: The port.
        no_browser: Whether no browser is opened.
        as_json: Whether the result is printed as JSON.
        **values: Settings that differ from those of the run.

    Raises:
        InputError: The run cannot be reviewed, or the address cannot be served.
    """
    from torchdoctor.verbs.review import LOOPBACK, Serving, run_propose, run_review

    if propose:
        if host is not None or port is not None:
            raise InputError("--propose opens no page: leave --host and --port out")
        with ProgressBar(as_json) as progress:
            record = run_propose(run, values, progress)
    else:
        if port is not None and not 0 <= port < 2**16:
            raise InputError(f"--port {port}: expected 0 to 65535")
        record = run_review(run, values, Serving(host or LOOPBACK, port or 0, not no_browser), tell)
    show(record, as_json, _print_review)


def _print_review(console: Console, record: dict[str, Any]) -> None:
    """Print what was answered."""
    labels, masks = record["labels"], dict(record["masks"])
    asked = masks.pop("asked")
    lines = [f"labels: {labels['answered']} of {labels['asked']} answered, {labels['wrong']} of them wrong"]
    lines += [f"  {sentence}" for sentence in record["sentences"]]
    kinds = said_of_kinds(masks)
    lines.append(f"masks: {kinds}; asked for {asked}")
    if record["proposals"]:
        lines.append(f"proposals that nobody has looked at: {record['proposals']} in {record['out']}/review")
    if labels["answered"] or masks:
        lines.append(f"train with the answers: {record['command']}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
