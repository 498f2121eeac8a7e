"""The commands that explain single predictions and measure curves under noise."""

from __future__ import annotations

from typing import Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from torchdoctor.case.config import settings_from
from torchdoctor.cli.options import AS_JSON, CONFIG, Groups, add_command, argument, option, parameters_of
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.data.settings import SOURCE
from torchdoctor.diagnosis.robustness import RobustnessSettings
from torchdoctor.diagnosis.robustness_result import Units
from torchdoctor.types import InputError, check_choice

ATTACK = RobustnessSettings()
EXPLAIN = (
    "weights", "model", "data", "diagnosis", "layers", "out", "device", "image_size", "batch_size", "seed",
    *SOURCE,
)  # fmt: skip
# What holds where a flag is left out, in commands in which that is not the default of the setting.
EXPLAIN_LEFT_OUT = {
    "weights": "those of --diagnosis; without it they must be given",
    "data": "that of --diagnosis, else none: then the images are files",
    "diagnosis": "none: then what is usual for a category is not known",
    "image_size": "that of the weights, else 224",
    "layers": "those of --diagnosis, else the last convolution and two earlier ones",
}
ROBUSTNESS_LEFT_OUT = {"weights": "they must be given, unless RUN is"}
ROBUSTNESS = (
    "weights", "model", "data", "out", "device", "workers", "batch_size", "image_size", "channels", "limit",
    "classes", "classes_seed", "validation_share", "on_error", "seed", *SOURCE,
)  # fmt: skip


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `explain` and `robustness`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    add_command(
        app, "explain", explain,
        [
            argument("images", list[str],
                     "Image files, folders of them, or SPLIT:NUMBER for an image of --data, such as test:7."),
            option("label", str | None, None, "The true category, the same for all images given. "
                   "[the name of the folder of each image]", metavar="TEXT"),
            option("grad_cam", bool, False, "Draw a Grad-CAM map beside the map of evidence, to compare them "
                   "(needs the extra: pip install torchdoctor[cam])."),
            *parameters_of(groups, EXPLAIN, EXPLAIN_LEFT_OUT), CONFIG.parameter, AS_JSON.parameter,
        ],
        "Explain the prediction of each image: which kernels speak for it unusually strongly, where in the "
        "image, and whether the prediction changes when their maps are replaced by their average. Draws all "
        "of it as a picture of each image.",
    )  # fmt: skip
    add_command(
        app, "robustness", robustness,
        [
            argument("run", str | None, "The folder of a finished run: its network and data are used, and "
                     "the curves are added to it. Without it give --weights and --data.", None),
            option("layer", str | None, None, "The layer whose map gets the noise: its name, or random for "
                   f"another layer in each repeat. [{ATTACK.layer}]", metavar="TEXT"),
            option("ranges", str | None, None, "Sizes of the noise, separated by commas; noise is drawn "
                   "uniformly from minus the size to plus the size. [0 to 0.3 by 0.05, then to 2]",
                   metavar="NUMBER,..."),
            option("units", str | None, None, "The unit of --ranges: absolute (as the map's values are) or "
                   f"deviation (standard deviations of the map). [{ATTACK.units}]",
                   metavar="|".join(get_args(Units))),
            option("number", int | None, None, "How many validation images are used; each is classified "
                   f"correctly and is misled by the attack. [{ATTACK.number}]", flag="--images",
                   metavar="INTEGER"),
            option("repeats", int | None, None, "How many times each size of noise is drawn anew. "
                   f"[{ATTACK.repeats}]", metavar="INTEGER"),
            option("epsilon", float | None, None, "How far the attack (FGSM) changes each pixel, of 255. "
                   f"[{255 * ATTACK.epsilon:g}]", metavar="NUMBER"),
            *parameters_of(groups, ROBUSTNESS, ROBUSTNESS_LEFT_OUT), CONFIG.parameter, AS_JSON.parameter,
        ],
        "Attack validation images so that they are misclassified, add noise of growing size to a layer, and "
        "measure which share of normal and attacked images is then classified correctly.",
    )  # fmt: skip


def explain(
    *, images: list[str], label: str | None, grad_cam: bool, config: str | None, as_json: bool, **values: Any
) -> None:
    """Explain predictions on images.

    Args:
        images: Files, folders, or SPLIT:NUMBER of the data.
        label: The true category of all images.
        grad_cam: Whether Grad-CAM is drawn too.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **values: Settings by name; None means that the flag was left out.
    """
    from torchdoctor.verbs import run_explain

    settings = settings_from(values, config)
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
    **values: Any,
) -> None:
    """Measure noise curves.

    Args:
        run: A finished run to add to.
        ranges: Noise ranges, separated by commas.
        epsilon: The step of the attack, in pixel values of 0..255.
        config: A YAML file of settings.
        as_json: Whether the result is printed as JSON.
        **values: Settings and the other fields of `RobustnessSettings` by name; None means that the flag was
            left out.
    """
    from torchdoctor.verbs import run_robustness

    asked = {name: values.pop(name) for name in ("layer", "units", "number", "repeats")}
    asked["ranges"] = None if ranges is None else _numbers(ranges)
    asked["epsilon"] = None if epsilon is None else epsilon / 255
    if asked["units"] is not None:
        check_choice("--units", asked["units"], Units)
    attack = RobustnessSettings(**{name: value for name, value in asked.items() if value is not None})
    with ProgressBar(as_json) as progress:
        outcome = run_robustness(settings_from(values, config), run, attack, progress=progress)
    show(outcome.record, as_json, _print_curves)


def _numbers(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"--ranges {text!r}: expected numbers by commas, as in 0,0.1,0.2") from error


def _print_explanations(console: Console, record: dict[str, Any]) -> None:
    """Print every explanation: the sentences, then the kernels."""
    for explanation in record["explanations"]:
        console.print(f"\n{explanation['image']}", highlight=False, markup=False, soft_wrap=True)
        for sentence in explanation["sentences"]:
            console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)
        if explanation["kernels"]:
            table = Table()
            for name in ("kernel", "evidence", "usual", "deviations", "owned by"):
                table.add_column(name, justify="left" if name in ("kernel", "owned by") else "right")
            for kernel in explanation["kernels"]:
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
    console.print(f"\nout: {record['out']}", highlight=False, soft_wrap=True, markup=False)


def _print_curves(console: Console, record: dict[str, Any]) -> None:
    """Print the mean of each curve at each size of noise."""
    table = Table(
        title=f"Under noise, % of {record['images']} images (FGSM fooled {record['attack_success']:.0f} %)",
        title_justify="left",
    )
    for name in ("noise range", "normal right", "adversarial back", "adversarial false"):
        table.add_column(name, justify="right")
    for place, width in enumerate(record["ranges"]):
        means = [record[name][place].mean() for name in ("normal", "restored", "fooled")]
        table.add_row(f"{width:g}", *(f"{mean:.0f}" for mean in means))
    console.print(table)
    console.print(f"out: {record['out']}", highlight=False, soft_wrap=True, markup=False)
