"""The commands that look closer: explain single predictions, and noise curves."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchdoctor.case.config import settings_from
from torchdoctor.cli.options import AS_JSON, CONFIG, Groups, add_command, parameters_of
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.diagnosis.robustness import RobustnessSettings
from torchdoctor.diagnosis.robustness_result import Units
from torchdoctor.settings import flag_of
from torchdoctor.types import InputError, check_choice

ATTACK = RobustnessSettings()
EXPLAIN = (
    "weights",
    "model",
    "data",
    "diagnosis",
    "layers",
    "out",
    "device",
    "image_size",
    "batch_size",
    "seed",
)
ROBUSTNESS = (
    "weights", "model", "data", "out", "device", "workers", "batch_size", "image_size", "channels", "limit",
    "classes", "classes_seed", "validation_share", "on_error", "seed",
)  # fmt: skip


def argument(name: str, kind: Any, sentence: str, default: Any = ...) -> inspect.Parameter:
    """Return a positional argument of a command.

    Args:
        name: Its name.
        kind: Its type.
        sentence: Its help text.
        default: Its value where it is not given; `...` where it must be given.

    Returns:
        A parameter.
    """
    annotation = Annotated[kind, typer.Argument(help=escape(sentence), show_default=False)]
    default = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def option(name: str, kind: Any, default: Any, sentence: str, flag: str | None = None) -> inspect.Parameter:
    """Return a flag of one command alone.

    Args:
        name: Its name.
        kind: Its type.
        default: Its value where it is not given.
        sentence: Its help text.
        flag: How it is written, where the name does not say it.

    Returns:
        A parameter.
    """
    annotation = Annotated[
        kind,
        typer.Option(
            flag or flag_of(name), help=escape(sentence), show_default=False, rich_help_panel="This command"
        ),
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `explain` and `robustness`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    add_command(
        app, "explain", explain,
        [
            argument("images", list[str], "Images, folders of them, or SPLIT:NUMBER of the data."),
            option("label", str | None, None, "The true category of all images. [the name of their folder]"),
            option("grad_cam", bool, False, "Draw Grad-CAM beside our map (needs the extra cam)."),
            *parameters_of(groups, EXPLAIN), CONFIG.parameter, AS_JSON.parameter,
        ],
        "Say what predictions rest on, and check it by silencing the kernels that stand out.",
    )  # fmt: skip
    add_command(
        app, "robustness", robustness,
        [
            argument("run", str | None, "A finished run to add to; else --weights and --data.", None),
            option("layer", str | None, None, f"A layer by name, or random. [{ATTACK.layer}]"),
            option("ranges", str | None, None, "Noise ranges, by commas. [0 to 0.3 by 0.05, then to 2]"),
            option("units", str | None, None, f"Of the ranges: absolute or deviation. [{ATTACK.units}]"),
            option("number", int | None, None, f"How many images are used. [{ATTACK.number}]", "--images"),
            option("repeats", int | None, None, f"How often, with new noise. [{ATTACK.repeats}]"),
            option(
                "epsilon", float | None, None,
                f"Step of the attack (FGSM), in pixel values of 0..255. [{255 * ATTACK.epsilon:g}]",
            ),
            *parameters_of(groups, ROBUSTNESS), CONFIG.parameter, AS_JSON.parameter,
        ],
        "Measure how normal and adversarial images fare under noise, range by range.",
    )  # fmt: skip


def explain(
    *, images: list[str], label: str | None, grad_cam: bool, config: str | None, as_json: bool, **given: Any
) -> None:
    """Explain predictions on images.

    Args:
        images: Files, folders, or SPLIT:NUMBER of the data.
        label: The true category of all images.
        grad_cam: Whether Grad-CAM is drawn too.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **given: Settings.
    """
    from torchdoctor.verbs import run_explain

    settings = settings_from(given, config)
    with ProgressBar(as_json) as progress:
        record = run_explain(settings, images, label=label, cam=grad_cam, progress=progress)
    show(record, as_json, _print_explanations)


def robustness(
    *,
    run: str | None,
    ranges: str | None,
    epsilon: float | None,
    config: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure noise curves.

    Args:
        run: A finished run to add to.
        ranges: Noise ranges, separated by commas.
        epsilon: The step of the attack, in pixel values of 0..255.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **given: Settings, and the other fields of `RobustnessSettings`.
    """
    from torchdoctor.verbs import run_robustness

    values = {name: given.pop(name) for name in ("layer", "units", "number", "repeats")}
    values["ranges"] = None if ranges is None else _numbers(ranges)
    values["epsilon"] = None if epsilon is None else epsilon / 255
    if values["units"] is not None:
        check_choice("--units", values["units"], Units)
    attack = RobustnessSettings(**{name: value for name, value in values.items() if value is not None})
    with ProgressBar(as_json) as progress:
        outcome = run_robustness(settings_from(given, config), run, attack, progress=progress)
    show(outcome.record, as_json, _print_curves)


def _numbers(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"--ranges {text!r}: expected numbers by commas, as in 0,0.1,0.2") from error


def _print_explanations(console: Console, found: dict[str, Any]) -> None:
    """Print every explanation: the sentences, then the kernels."""
    for one in found["explanations"]:
        console.print(f"\n{one['image']}", highlight=False, markup=False, soft_wrap=True)
        for sentence in one["sentences"]:
            console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)
        if one["kernels"]:
            table = Table()
            for name in ("kernel", "evidence", "usual", "deviations", "owned by"):
                table.add_column(name, justify="left" if name in ("kernel", "owned by") else "right")
            for kernel in one["kernels"]:
                table.add_row(
                    f"{kernel['layer']}\\[{kernel['kernel']}]",
                    f"{kernel['evidence']:.3g}",
                    *(
                        "-" if kernel[name] is None else f"{kernel[name]:.3g}"
                        for name in ("usual", "deviations")
                    ),
                    ", ".join(kernel["owners"][:3]) or "-",
                )
            console.print(table)
    console.print(f"\nout: {found['out']}", highlight=False, soft_wrap=True, markup=False)


def _print_curves(console: Console, found: dict[str, Any]) -> None:
    """Print the mean of each curve, range by range."""
    table = Table(
        title=f"Under noise, % of {found['images']} images (FGSM fooled {found['attack_success']:.0f} %)",
        title_justify="left",
    )
    for name in ("noise range", "normal right", "adversarial back", "adversarial false"):
        table.add_column(name, justify="right")
    for place, width in enumerate(found["ranges"]):
        means = [found[name][place].mean() for name in ("normal", "restored", "fooled")]
        table.add_row(f"{width:g}", *(f"{one:.0f}" for one in means))
    console.print(table)
    console.print(f"out: {found['out']}", highlight=False, soft_wrap=True, markup=False)
