"""The command that plans a diagnosis and a treatment of many images on several devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from torchdoctor.cli.options import AS_JSON, Groups, add_command, option, parameters_of
from torchdoctor.cli.terminal import duration, show
from torchdoctor.display.counts import count_of

SETTINGS = (
    "model", "image_size", "channels", "layers", "draws", "images_per_category", "batch_size", "epochs",
    "seeds", "optimizer", "precision", "device", "seed",
)  # fmt: skip
LEFT_OUT = {"model": "it must be given", "image_size": "224", "channels": "3"}


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `estimate`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    add_command(
        app, "estimate", estimate,
        [
            option("images", int, ..., "How many training images there are.", metavar="INTEGER"),
            option("categories", int, ..., "How many categories there are.", metavar="INTEGER"),
            option("devices", int, 1, "How many devices work together. [1]", metavar="INTEGER"),
            option("bandwidth", float | None, None, "What the network carries to and from each device, in "
                   "Gbit/s. [10]", metavar="NUMBER"),
            option("loading", float | None, None, "Images per second that are loaded for all devices "
                   "together. [measured: a JPEG of random colours is decoded]", metavar="NUMBER"),
            option("speed", float, 1.0, "How many times as fast as this machine's a device computes; for a "
                   "plan that is made on another machine. [1]", metavar="NUMBER"),
            *parameters_of(groups, SETTINGS, LEFT_OUT), AS_JSON.parameter,
        ],
        "Say what a diagnosis and a treatment of many images take: operations, memory, disk, traffic, "
        "and time on several devices, from a measurement of about half a minute. No images and no weights "
        "are needed.",
    )  # fmt: skip


def estimate(
    *,
    images: int,
    categories: int,
    devices: int,
    bandwidth: float | None,
    loading: float | None,
    speed: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Plan a diagnosis and a treatment.

    Args:
        images: The number of training images.
        categories: The number of categories.
        devices: The number of devices.
        bandwidth: Gbit/s to and from each device; None: the usual.
        loading: Images per second; None: measured.
        speed: How many times as fast as this machine's a device computes.
        as_json: Whether the result is printed as JSON.
        **values: Settings by name; None means that the flag was left out.
    """
    from torchdoctor.case.config import settings_from
    from torchdoctor.verbs.estimate import BANDWIDTH
    from torchdoctor.verbs.estimate import estimate as planned

    result = planned(
        settings_from(values), images=images, categories=categories, devices=devices,
        bandwidth=BANDWIDTH if bandwidth is None else bandwidth, loading=loading, speed=speed,
    )  # fmt: skip
    show(result, as_json, _print)


def _print(console: Console, result: Mapping[str, Any]) -> None:
    """Print the plan."""
    console.print(
        f"{result['model']}, {count_of(result['images'], 'image')} of "
        f"{count_of(result['categories'], 'category', 'categories')}, "
        f"{result['image_size']} px, {count_of(result['layers'], 'layer')} with "
        f"{count_of(result['kernels'], 'kernel')}, draws: "
        f"{result['draws']}, batches of {result['batch_size']}",
        highlight=False, markup=False,
    )  # fmt: skip
    _print_sizes(console, result)
    for job, lines in result["seconds"].items():
        _print_times(console, job, lines)
        limits = result["limits"][job]
        parts = [
            f"{name.replace('_', ' ')} from {limits[name]:,} devices on"
            for name in ("loading", "network", "one_process")
            if limits[name]
        ]
        console.print(
            f"longest part other than computing: {', '.join(parts) or 'none'}; shortest time "
            f"{duration(limits['shortest_seconds'])}, on {limits['most_devices']:,} devices",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print("\nAssumptions:", markup=False)
    for sentence in result["assumptions"]:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def _print_sizes(console: Console, result: Mapping[str, Any]) -> None:
    """Print operations, memory, disk and traffic."""
    table = Table(title="Size", title_justify="left", show_header=False)
    flops, sizes, step, traffic = (result[name] for name in ("flops", "bytes", "step_memory", "traffic"))
    treated = "" if step["treated"] is None else f", treated {size(step['treated'])}"
    rows = (
        ("operations", f"{flops['forward_of_an_image']:.3g} for a forward pass of an image, diagnosis "
                       f"{flops['diagnosis']:.3g}, treatment {flops['treatment']:.3g}"),
        ("kept by the diagnosis", f"survey {size(sizes['survey'])}, rows {size(sizes['rows'])}, statistics "
                                  f"{size(sizes['statistics'])}"),
        ("most in memory", f"{size(sizes['most_in_memory'])} in each process, and {size(sizes['index'])} for "
                           "the list of images"),
        ("most on disk", f"{size(sizes['on_disk'])}; the report has at most {size(sizes['report_at_most'])}"),
        ("memory of a training step", f"control {size(step['control'])}{treated} on each of "
                                      f"{count_of(result['devices'], 'device')}, with "
                                      f"{count_of(step['images'], 'image')} each"),
        ("sent by each device", f"{size(traffic['gradients_of_a_step'])} in each training step, "
                                f"{size(traffic['rows_and_survey_of_the_diagnosis'])} in the diagnosis"),
    )  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_times(console: Console, job: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the time of a job on several numbers of devices."""
    table = Table(title=job.capitalize(), title_justify="left")
    names = ("devices", "time", "times as fast", "computing", "loading", "network", "one process", "longest")
    for name in names:
        table.add_column(name, justify="left" if name == "longest" else "right")
    for line in lines:
        parts = [duration(line[name]) for name in ("computing", "loading", "network", "one_process")]
        table.add_row(
            f"{line['devices']:,}", duration(line["seconds"]), f"{line['times_as_fast']:.1f}", *parts,
            line["bound"],
        )  # fmt: skip
    console.print(table)


def size(number: int | float) -> str:
    """Write a number of bytes.

    Args:
        number: Bytes.

    Returns:
        The text, such as "5.1 GB" or "2.2 MB".
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number / 1e3:.1f} kB"
