"""The command line's list of data sets, and its check of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchdoctor.cli.terminal import AsJson, ProgressBar, show
from torchdoctor.types import InputError

NAMED = 5  # of a list of findings, how many are printed
LISTED = 30  # categories that still make a table to read

data = typer.Typer(name="data", help="Look at data before it is used.", no_args_is_help=True)


def datasets(json_: AsJson = False) -> None:
    """List the data sets that go by a bare name, as NAME@ROOT."""
    from torchdoctor.data.catalogue import DATASETS

    found = [
        {"name": one.name, "title": one.title, "categories": one.categories, "image_size": one.image_size,
         "channels": one.channels, "data": f"{one.name}@ROOT", "layout": f"{one.layout} or *.parquet"}
        for one in DATASETS.values()
    ]  # fmt: skip
    show(found, json_, _print_datasets)


@data.command("check")
def check(
    spec: Annotated[str, typer.Option("--data", help="What to look at; as in the other commands.")],
    on_error: Annotated[
        str, typer.Option("--on-error", help="fail (exit 2) or skip broken images.")
    ] = "fail",
    seed: Annotated[int, typer.Option("--seed", help="Divides what comes undivided.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Threads. [one per core]")] = 0,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision fetch it first.")] = False,
    json_: AsJson = False,
) -> None:
    """Decode every image once: counts, sizes, duplicates across splits, broken files."""
    from torchdoctor.data.checking import check_data
    from torchdoctor.data.load import load_tables
    from torchdoctor.data.settings import DataSettings

    if on_error not in ("fail", "skip"):
        raise InputError(f"--on-error {on_error!r}: expected fail or skip")
    if workers < 0:
        raise InputError(f"--workers {workers}: expected 0 or more")
    tables = load_tables(spec, seed=seed, settings=DataSettings(download=download))
    with ProgressBar(json_) as progress:
        found = check_data(tables, workers, progress)
    show(found.to_json(), json_, _print_check)
    if found.broken and on_error == "fail":
        raise InputError(
            f"{found.broken} images of {spec!r} do not decode: repair or remove them, or use --on-error skip"
        )


def _print_datasets(console: Console, found: list[dict[str, Any]]) -> None:
    """Print the catalogue."""
    table = Table(title="Data sets", title_justify="left")
    for name in ("name", "what", "categories", "size", "channels", "ROOT holds"):
        table.add_column(name)
    for one in found:
        table.add_row(
            one["name"], one["title"], str(one["categories"]), f"{one['image_size']} px",
            str(one["channels"]), one["layout"],
        )  # fmt: skip
    console.print(table)
    console.print(
        "Use as --data NAME@ROOT. Also: torchvision:CLASS@ROOT, folder:PATH, parquet:PATH, table:FILE"
    )


def _print_check(console: Console, found: dict[str, Any]) -> None:
    """Print counts, then what is wrong."""
    table = Table(title=f"Data: {found['origin']}", title_justify="left")
    for name in ("split", "images", "masks", "per category", "commonest size", "sides", "broken"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, one in found["splits"].items():
        counts = one["per_category"].values()
        common = one["sizes"][0] if one["sizes"] else None
        table.add_row(
            name,
            f"{one['images']:,}",
            f"{one['masks']:,}",
            _range(min(counts), max(counts)),
            f"{common['width']} x {common['height']} ({common['images']:,})" if common else "-",
            _range(one["smallest_side"], one["largest_side"]),
            str(len(one["broken"])),
        )
    console.print(table)
    _print_categories(console, found["splits"])
    for name, one in found["splits"].items():
        for each in one["broken"][:NAMED]:
            console.print(f"broken in {name}: {each['reason']}", markup=False)
        if len(one["broken"]) > NAMED:
            console.print(f"... and {len(one['broken']) - NAMED} more in {name} (--json lists them)")
        empty = [category for category, number in one["per_category"].items() if not number]
        if empty:
            console.print(f"no image in {name}: {', '.join(empty)}", markup=False)
        if found["repeated_within_split"][name]:
            console.print(f"repeated within {name}: {found['repeated_within_split'][name]} images")
    _print_duplicates(console, found)


def _print_categories(console: Console, splits: dict[str, Any]) -> None:
    """Print the images per category and split, the rarest categories where there are many."""
    totals = {
        category: sum(one["per_category"][category] for one in splits.values())
        for category in next(iter(splits.values()))["per_category"]
    }
    names = list(totals) if len(totals) <= LISTED else sorted(totals, key=lambda one: totals[one])[:NAMED]
    title = "Images per category" + ("" if len(names) == len(totals) else f", the rarest of {len(totals)}")
    table = Table(title=title, title_justify="left")
    table.add_column("category")
    for split in splits:
        table.add_column(split, justify="right")
    for name in names:
        table.add_row(escape(name), *(f"{one['per_category'][name]:,}" for one in splits.values()))
    console.print(table)


def _print_duplicates(console: Console, found: dict[str, Any]) -> None:
    """Print groups of equal images that lie in several splits or categories."""
    number = found["duplicates_across_splits"]
    if not number:
        console.print("no image lies in two splits or in two categories")
        return
    console.print(f"{number} images lie in two splits or in two categories; tests on them prove less:")
    for group in found["duplicates"][:NAMED]:
        places = (f"{one['split']}/{one['image']} ({one['category']})" for one in group[:4])
        console.print("  " + " = ".join(places), markup=False)


def _range(low: int | None, high: int | None) -> str:
    """Return one number, or the lowest and highest."""
    if low is None:
        return "-"
    return str(low) if low == high else f"{low} to {high}"
