"""The command line: a command parses its flags, calls a function of the verbs, and prints the result."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from torchdoctor import __version__
from torchdoctor.case.config import schema, settings_from, template
from torchdoctor.case.outcome import DONE, GATE_NOT_MET, INCONCLUSIVE
from torchdoctor.case.settings import USED_BY, Settings, Verb
from torchdoctor.cli import closer, data, estimate, masks, models, review
from torchdoctor.cli.options import (
    AS_JSON,
    CONFIG,
    DRY_RUN,
    RESUME,
    Groups,
    add_command,
    alone_from_here,
    argument,
    option,
    parameters_of,
    tell,
)
from torchdoctor.cli.terminal import ProgressBar, make_streams_safe, show, silence
from torchdoctor.processes import connected, rank_by_launcher
from torchdoctor.types import InputError, Interrupted, ModelDoctorError, check_choice

HELP = (
    "Diagnose which kernels and which background pixels make an image classifier err, treat it beside a "
    "control arm, and prove whether that helped."
)
SENTENCES: Mapping[Verb, str] = {
    "train": "Train a classifier from random or published weights.",
    "diagnose": "Find the kernels that each category depends on, how much of its evidence lies on the "
    "background, and the cause of each error.",
    "treat": "Train a classifier further under constraints, beside a control arm without them.",
    "checkup": "Run diagnose, treat, compare and report, one after the other.",
    "demo": "Train a small network on images drawn by code, in which the background gives the category away; "
    "then run checkup on it.",
}
_VERBS = ", ".join(SENTENCES)
RESUMABLE: tuple[Verb, ...] = ("train", "diagnose", "treat", "checkup")
DEMO = (
    "out", "data", "model", "seeds", "epochs", "limit", "batch_size", "workers", "device", "seed", "primary",
    "max_loss",
)  # fmt: skip
COMPARE = ("primary", "min_gain", "max_loss", "device", "workers", "batch_size")
REPORT = ("device", "workers")
PATIENCE = 5.0  # seconds in which a launcher ends the other processes when the main one has failed
PREDICT = ("weights", "model", "device", "batch_size", "image_size")
# What holds where a flag is left out, in commands in which that is not the default of the setting.
DEMO_LEFT_OUT = {
    "data": "scenes",
    "model": "small_resnet",
    "epochs": "6 for each arm; the first training takes 14",
}
RUN_LEFT_OUT = dict.fromkeys(("primary", "device", "workers", "batch_size"), "as in the run")
PREDICT_LEFT_OUT = {"weights": "they must be given", "image_size": "that of the weights, else 224"}


def build_app(used_by: Mapping[Verb, Groups] = USED_BY, kind: type[Settings] = Settings) -> typer.Typer:
    """Build the command line from the groups of settings that each command uses.

    Args:
        used_by: The groups of each command that runs on settings.
        kind: The class that holds all of them.

    Returns:
        The command line, ready to be called.
    """
    app = typer.Typer(
        name="torchdoctor",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for verb, sentence in SENTENCES.items():
        only, left_out = (DEMO, DEMO_LEFT_OUT) if verb == "demo" else (None, {})
        flags = [DRY_RUN, CONFIG, AS_JSON] + ([RESUME] if verb in RESUMABLE else [])
        parameters = [*parameters_of(used_by[verb], only, left_out), *(flag.parameter for flag in flags)]
        add_command(app, verb, _body_of(verb, kind), parameters, sentence)
    every = list(dict.fromkeys(group for groups in used_by.values() for group in groups))
    _add_reading_commands(app, every)
    closer.add_commands(app, every)
    review.add_commands(app, every)
    models.add_commands(app)
    estimate.add_commands(app, every)
    data.add_commands(app, every)
    masks.add_commands(app, every)
    verb_argument = argument(
        "verb", str, f"The command whose settings are printed: {_VERBS}. [checkup]", "checkup"
    )
    as_schema = option("as_schema", bool, False, "Print a JSON schema of all settings instead, for editors "
                       "that check a settings file.", flag="--schema")  # fmt: skip
    add_command(
        app, "config", config, [verb_argument, as_schema],
        "Print a settings file with every setting of a command at its default, explained; save it, change "
        "it, and give it to the command with --config.",
    )  # fmt: skip
    return app


def _add_reading_commands(app: typer.Typer, every: Groups) -> None:
    """Add `compare`, `report` and `predict`, which use a finished run or finished weights."""
    run = argument("run", str, "The folder of a finished run of treat.")
    add_command(
        app, "compare", compare, [run, *parameters_of(every, COMPARE, RUN_LEFT_OUT), AS_JSON.parameter],
        "Test the arms of a finished treat run (base, control, treated) on the test splits and give the "
        "verdict. A run can be compared once, because the test images must not be used to choose.",
    )  # fmt: skip
    run = argument("run", str, "The folder of a finished run of diagnose, treat or checkup.")
    page = option(
        "out",
        str | None,
        None,
        "The HTML file to write; it must not exist yet. [RUN/report.html]",
        metavar="FILE",
    )
    add_command(
        app, "report", report, [run, page, *parameters_of(every, REPORT, RUN_LEFT_OUT), AS_JSON.parameter],
        "Write the HTML report of a finished run.",
    )  # fmt: skip
    images = argument("images", list[str], "Image files, or folders that are searched for images.")
    add_command(
        app, "predict", predict,
        [images, *parameters_of(every, PREDICT, PREDICT_LEFT_OUT), CONFIG.parameter, AS_JSON.parameter],
        "Print the category that trained weights assign to each image, with its probability and the "
        "second most probable category.",
    )  # fmt: skip


def _body_of(verb: Verb, kind: type[Settings]) -> Any:
    """Return what a command that runs on settings does with its parsed flags."""

    def body(
        *, config: str | None, as_json: bool, dry_run: bool, resume: bool | None = None, **values: Any
    ) -> None:
        from torchdoctor import verbs
        from torchdoctor.cli import tables

        settings = settings_from(values, config, kind=kind)
        if dry_run:
            alone_from_here()
            show(verbs.plan(settings, verb), as_json, tables.print_plan)
            return
        run = getattr(verbs, f"run_{verb}")
        more = {} if resume is None else {"resume": resume, "say": tell}
        with ProgressBar(as_json) as progress:
            outcome = run(settings, progress, **more)
        finish(outcome, as_json)

    return body


def finish(outcome: Any, as_json: bool) -> None:
    """Print an outcome and end with its exit code.

    Args:
        outcome: What a command ended with.
        as_json: Whether its record is printed as JSON.

    Raises:
        typer.Exit: Always, with the exit code of the outcome.
    """
    from torchdoctor.cli import tables

    show(outcome if not as_json else outcome.record, as_json, tables.print_outcome)
    raise typer.Exit(outcome.exit_code)


def compare(*, run: str, as_json: bool, **values: Any) -> None:
    """Compare the arms of a finished run.

    Args:
        run: The run's folder.
        as_json: Whether the result is printed as JSON.
        **values: Settings that differ from those of the run.
    """
    from torchdoctor.verbs import run_compare

    with ProgressBar(as_json) as progress:
        outcome = run_compare(run, values, progress)
    finish(outcome, as_json)


def report(*, run: str, out: str | None, as_json: bool, **values: Any) -> None:
    """Write the report of a finished run.

    Args:
        run: The run's folder.
        out: The page's file.
        as_json: Whether the result is printed as JSON.
        **values: Settings that differ from those of the run.
    """
    from torchdoctor.verbs import run_report

    with ProgressBar(as_json) as progress:
        outcome = run_report(run, values, out, progress)
    finish(outcome, as_json)


def predict(*, images: list[str], config: str | None, as_json: bool, **values: Any) -> None:
    """Run weights on images.

    Args:
        images: Files and folders.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **values: Settings by name; None means that the flag was left out.
    """
    from torchdoctor import verbs
    from torchdoctor.cli import tables

    show(verbs.predict(settings_from(values, config), images), as_json, tables.print_predictions)


def config(*, verb: str, as_schema: bool) -> None:
    """Print a settings file with every setting of a command at its default, explained.

    Args:
        verb: The command.
        as_schema: Whether the JSON schema of all settings is printed instead.

    Raises:
        InputError: There is no such command.
    """
    if as_schema:
        sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
        return
    check_choice("command", verb, Verb)
    sys.stdout.write(template(verb))  # type: ignore[arg-type]


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"torchdoctor {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool | None, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = None,
) -> None:
    del version


app = build_app()


def main() -> None:
    """Run the command line; a known failure ends with a clear line on stderr and its exit code.

    Of several launched processes only the main one speaks, and ends with the exit code of the result. Another
    says why it failed, unless its launcher ends it first because the main process failed too.
    """
    make_streams_safe((sys.stdout, sys.stderr))
    os.environ["MPLBACKEND"] = (
        "agg"  # a notebook names a backend that may not be installed here; none is needed
    )
    # Large tensors get memory in pages of 2 MB, where Linux has them, about five times as fast.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    rank = rank_by_launcher()
    with nullcontext() if rank == 0 else silence():
        code, problem = _ended()
    if problem and rank > 0 and code != Interrupted.exit_code:
        time.sleep(PATIENCE)
        tell(f"process {rank}: {problem}")
    elif problem and rank == 0:
        tell(problem)
    sys.exit(code)


def _ended() -> tuple[int | str | None, str]:
    """Run the command line; return its exit code, and what went wrong."""
    try:
        code, processes = _exit_code(), connected()
        if code in (None, DONE, GATE_NOT_MET, INCONCLUSIVE) and not processes.alone:
            sys.stdout.flush()
            processes.leave()  # the main process has printed all before a launcher sees the first one end
            code = code if processes.main else DONE
        return code, ""
    except InputError as error:
        return error.exit_code, str(error)
    except Interrupted as error:
        return error.exit_code, f"{error}: go on with --resume"
    except ModelDoctorError as error:
        return error.exit_code, f"the run failed: {error}"
    except KeyboardInterrupt:
        return 130, "interrupted"


def _exit_code() -> int | str | None:
    """Run the command line; return the code with which it ends."""
    try:
        app()
    except SystemExit as end:
        return end.code
    return None


if __name__ == "__main__":
    main()
