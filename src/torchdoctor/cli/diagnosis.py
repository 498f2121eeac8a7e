"""The command line's verbs that look closer: explain single predictions, and noise curves."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchdoctor.cli.options import (
    BatchSize,
    Config,
    Data,
    Device,
    ImageSize,
    Layers,
    Model,
    Out,
    Seed,
    Text,
    Weights,
    Workers,
    flag,
)
from torchdoctor.cli.terminal import AsJson, ProgressBar, show


def explain(
    images: Annotated[list[str], typer.Argument(help="Images, folders of them, or SPLIT:ID of the data.")],
    diagnosis: Annotated[
        Text, flag("--diagnosis", "A run whose diagnosis says what is usual. [nothing is known of that]")
    ] = None,
    weights: Weights = None, model: Model = None, data: Data = None,
    label: Annotated[Text, flag("--label", "The true category. [the name of the image's folder]")] = None,
    grad_cam: Annotated[bool, typer.Option("--grad-cam", help="Draw Grad-CAM beside ours.")] = False,
    layers: Layers = None, out: Out = None, config: Config = None, device: Device = None,
    image_size: ImageSize = None, batch_size: BatchSize = None, seed: Seed = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Say what predictions rest on, and check it by silencing the kernels that stand out."""
    from torchdoctor.case.settings import settings_from
    from torchdoctor.verbs.explain import run_explain

    given = dict(locals())
    chosen = ("diagnosis", "weights", "model", "data", "layers", "out", "device", "image_size", "batch_size",
              "seed")  # fmt: skip
    settings = settings_from({name: given[name] for name in chosen}, config)
    with ProgressBar(json_) as progress:
        found = run_explain(settings, images, label=label, cam=grad_cam, progress=progress)
    show(found, json_, _print_explanations)


def robustness(
    run: Annotated[Text, typer.Argument(help="A finished run to add to; else --weights and --data.")] = None,
    weights: Weights = None, model: Model = None, data: Data = None, out: Out = None, config: Config = None,
    layer: Annotated[str, typer.Option("--layer", help="A layer by name, or random.")] = "random",
    ranges: Annotated[
        Text, flag("--ranges", "Noise ranges, by commas. [0 to 0.3 in steps of 0.05, then to 2]")
    ] = None,
    units: Annotated[str, typer.Option("--units", help="absolute, or deviation (of the map).")] = "absolute",
    number: Annotated[int, typer.Option("--images", help="Images that can be attacked.")] = 100,
    repeats: Annotated[int, typer.Option("--repeats", help="Repeats, each with its own noise.")] = 10,
    epsilon: Annotated[float, typer.Option("--epsilon", help="FGSM step, in pixels of 0..255.")] = 8.0,
    device: Device = None, workers: Workers = None, batch_size: BatchSize = None,
    image_size: ImageSize = None, seed: Seed = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Measure how normal and adversarial images fare under noise, range by range."""
    from torchdoctor.case.settings import settings_from
    from torchdoctor.diagnosis.robustness import Units
    from torchdoctor.types import check_choice
    from torchdoctor.verbs.robustness import run_robustness

    given = dict(locals())
    chosen = ("weights", "model", "data", "out", "device", "workers", "batch_size", "image_size", "seed")
    check_choice("--units", units, Units)
    settings = settings_from({name: given[name] for name in chosen}, config)
    more = {} if ranges is None else {"ranges": _numbers(ranges)}
    with ProgressBar(json_) as progress:
        outcome = run_robustness(
            settings, run, layer=layer, units=units, number=number, repeats=repeats,  # type: ignore[arg-type]
            epsilon=epsilon / 255, progress=progress, **more,
        )  # fmt: skip
    show(outcome.record, json_, _print_curves)


def _numbers(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas."""
    from torchdoctor.types import InputError

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
