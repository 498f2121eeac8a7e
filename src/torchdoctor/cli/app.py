"""The command line: a command parses, calls one function of the verbs, and prints what came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from torchdoctor import __version__
from torchdoctor.case.config import schema, settings_from, template
from torchdoctor.case.settings import USED_BY, Settings, Verb
from torchdoctor.cli import closer, data, models
from torchdoctor.cli.options import (
    AS_JSON,
    CONFIG,
    DRY_RUN,
    RESUME,
    Groups,
    add_command,
    parameters_of,
    tell,
)
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.types import InputError, Interrupted, ModelDoctorError, check_choice

HELP = (
    "Diagnose which kernels and which background pixels make an image classifier err, treat it beside a "
    "control arm, and prove whether that helped."
)
SENTENCES: Mapping[Verb, str] = {
    "train": "Train a classifier, from random or published weights.",
    "diagnose": "Find which kernels each category depends on, where its evidence lies, and what causes each "
    "error.",
    "treat": "Train a classifier further under constraints, beside a control arm without them.",
    "checkup": "Diagnose, treat, compare and report in one go.",
    "demo": "Train a small network on drawn images whose backgrounds give the category away, and check it "
    "up.",
}
RESUMABLE: tuple[Verb, ...] = ("train", "diagnose", "treat", "checkup")
DEMO = (
    "out", "data", "model", "seeds", "epochs", "limit", "batch_size", "workers", "device", "seed", "primary",
    "max_loss",
)  # fmt: skip
COMPARE = ("primary", "min_gain", "max_loss", "device", "workers", "batch_size")
REPORT = ("device", "workers")
PREDICT = ("weights", "model", "device", "batch_size", "image_size")


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
        only = DEMO if verb == "demo" else None
        flags = [DRY_RUN, CONFIG, AS_JSON] + ([RESUME] if verb in RESUMABLE else [])
        parameters = [*parameters_of(used_by[verb], only), *(flag.parameter for flag in flags)]
        add_command(app, verb, _body_of(verb, kind), parameters, sentence)
    every = list(dict.fromkeys(group for groups in used_by.values() for group in groups))
    run = closer.argument("run", str, "A finished run of treat.")
    add_command(
        app, "compare", compare, [run, *parameters_of(every, COMPARE), AS_JSON.parameter],
        "Compare base, control and the other arms of a treat run on the test splits, once.",
    )  # fmt: skip
    run = closer.argument("run", str, "A finished run of diagnose, treat or checkup.")
    page = closer.option("out", str | None, None, "The page's file. [RUN/report.html]")
    add_command(
        app, "report", report, [run, page, *parameters_of(every, REPORT), AS_JSON.parameter],
        "Write the HTML report of a finished run.",
    )  # fmt: skip
    images = closer.argument("images", list[str], "Images, or folders of them.")
    add_command(
        app, "predict", predict,
        [images, *parameters_of(every, PREDICT), CONFIG.parameter, AS_JSON.parameter],
        "Say what trained weights make of images.",
    )  # fmt: skip
    closer.add_commands(app, every)
    app.command()(models.models)
    app.command()(models.layers)
    app.command()(data.datasets)
    app.add_typer(data.data)
    app.command(name="config")(config)
    return app


def _body_of(verb: Verb, kind: type[Settings]) -> Any:
    """Return what a command that runs on settings does with its parsed flags."""

    def body(
        *, config: str | None, as_json: bool, dry_run: bool, resume: bool | None = None, **given: Any
    ) -> None:
        from torchdoctor import verbs
        from torchdoctor.cli import tables

        settings = settings_from(given, config, kind=kind)
        if dry_run:
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


def compare(*, run: str, as_json: bool, **given: Any) -> None:
    """Compare the arms of a finished run.

    Args:
        run: The run's folder.
        as_json: Whether the result is printed as JSON.
        **given: Settings that differ from those of the run.
    """
    from torchdoctor.verbs import run_compare

    with ProgressBar(as_json) as progress:
        outcome = run_compare(run, given, progress)
    finish(outcome, as_json)


def report(*, run: str, out: str | None, as_json: bool, **given: Any) -> None:
    """Write the report of a finished run.

    Args:
        run: The run's folder.
        out: The page's file.
        as_json: Whether the result is printed as JSON.
        **given: Settings that differ from those of the run.
    """
    from torchdoctor.verbs import run_report

    with ProgressBar(as_json) as progress:
        outcome = run_report(run, given, out, progress)
    finish(outcome, as_json)


def predict(*, images: list[str], config: str | None, as_json: bool, **given: Any) -> None:
    """Run weights on images.

    Args:
        images: Files and folders.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **given: Settings.
    """
    from torchdoctor import verbs
    from torchdoctor.cli import tables

    show(verbs.predict(settings_from(given, config), images), as_json, tables.print_predictions)


def config(
    verb: Annotated[str, typer.Argument(help="The command whose settings are printed.")] = "checkup",
    as_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a settings file instead.")
    ] = False,
) -> None:
    """Print a settings file with every setting at its default, explained; for --config."""
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
    """Run the command line; a known failure is one clear line on stderr and its exit code."""
    try:
        app()
    except InputError as error:
        tell(str(error))
        sys.exit(error.exit_code)
    except Interrupted as error:
        tell(f"{error}: go on with --resume")
        sys.exit(error.exit_code)
    except ModelDoctorError as error:
        tell(f"the run failed: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
