"""The commands that list the known data sets and check a data set."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchdoctor.cli.options import AS_JSON, Groups, add_command, option, parameters_of
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.data.settings import SOURCE
from torchdoctor.data.table import refuse_empty
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

NAMED = 5  # of a list of problems, how many are printed
LISTED = 30  # categories that still make a table to read
CHECK = ("data", "on_error", "download", "split_seed", *SOURCE)


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `datasets` and `data check`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    add_command(
        app, "datasets", datasets, [AS_JSON.parameter],
        "List the data sets that --data knows by name, as NAME@ROOT: ROOT is the folder with the files.",
    )  # fmt: skip
    data = typer.Typer(name="data", help="Look at data before it is used.", no_args_is_help=True)
    threads = "Threads that decode images; 0 means one for each processor core. [0]"
    add_command(
        data, "check", check,
        [
            *parameters_of(groups, CHECK, {"on_error": "fail, with exit code 2"}),
            option("workers", int, 0, threads, metavar="INTEGER"), AS_JSON.parameter,
        ],
        "Decode every image once and report: images per category and split, sizes, damaged files, and equal "
        "images in several splits.",
    )  # fmt: skip
    app.add_typer(data)


def datasets(*, as_json: bool) -> None:
    """List the data sets of the catalogue.

    Args:
        as_json: Whether the list is printed as JSON.
    """
    from torchdoctor.data.catalogue import DATASETS

    entries = [
        {"name": entry.name, "title": entry.title, "categories": entry.categories,
         "image_size": entry.image_size, "channels": entry.channels, "data": f"{entry.name}@ROOT",
         "layout": f"{entry.layout} or *.parquet"}
        for entry in DATASETS.values()
    ]  # fmt: skip
    show(entries, as_json, _print_datasets)


def check(*, workers: int, as_json: bool, **values: Any) -> None:
    """Decode every image of a data set and print what each split holds and what is wrong.

    Args:
        workers: Threads that decode; 0 is the number of processor cores.
        as_json: Whether the result is printed as JSON.
        **values: The settings `data`, `on_error`, `download`, `split_seed` and how a source is read; None
            means the default.

    Raises:
        InputError: The data cannot be read, a value does not fit, or images do not decode and `on_error` is
            `fail`.
    """
    from torchdoctor.case.config import settings_from
    from torchdoctor.data.checking import check_data
    from torchdoctor.data.load import load_tables
    from torchdoctor.data.settings import DataSettings

    settings = settings_from(values)
    if settings.data is None:
        raise InputError("--data is missing: give the data set to check, such as folder:PATH")
    if workers < 0:
        raise InputError(f"--workers {workers}: expected 0 or more")
    part = settings.part(DataSettings)
    tables = refuse_empty(load_tables(settings.data, seed=settings.split_seed, settings=part))
    with ProgressBar(as_json, unit="images") as progress:
        result = check_data(tables, workers, progress)
    show(result.to_json(), as_json, _print_check)
    if result.broken and settings.on_error == "fail":
        raise InputError(
            f"{count_of(result.broken, 'image')} of {settings.data!r} "
            f"{'does' if result.broken == 1 else 'do'} not decode: repair or remove what does not, or use "
            "--on-error skip"
        )


def _print_datasets(console: Console, entries: list[dict[str, Any]]) -> None:
    """Print the catalogue."""
    table = Table(title="Data sets", title_justify="left")
    for name in ("name", "what", "categories", "size", "channels", "ROOT holds"):
        table.add_column(name)
    for entry in entries:
        table.add_row(
            entry["name"], entry["title"], str(entry["categories"]), f"{entry['image_size']} px",
            str(entry["channels"]), entry["layout"],
        )  # fmt: skip
    console.print(table)
    console.print(
        "Use as --data NAME@ROOT. Also: torchvision:CLASS@ROOT, folder:PATH, parquet:PATH, table:FILE, "
        "datasets:NAME_OR_FOLDER, webdataset:SHARDS"
    )


def _print_check(console: Console, record: dict[str, Any]) -> None:
    """Print counts, then what is wrong."""
    table = Table(title=f"Data: {record['origin']}", title_justify="left")
    for name in ("split", "images", "masks", "per category", "commonest size", "sides", "broken"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in record["splits"].items():
        counts = split["per_category"].values()
        common = split["sizes"][0] if split["sizes"] else None
        table.add_row(
            name,
            f"{split['images']:,}",
            f"{split['masks']:,}",
            _range(min(counts), max(counts)),
            f"{common['width']} x {common['height']} ({common['images']:,})" if common else "-",
            _range(split["smallest_side"], split["largest_side"]),
            str(len(split["broken"])),
        )
    console.print(table)
    for note in record["notes"]:
        console.print(f"data: {note}", markup=False, highlight=False, soft_wrap=True)
    _print_categories(console, record["splits"])
    for name, split in record["splits"].items():
        _print_problems(console, name, split, record["repeated_within_split"][name])
    _print_duplicates(console, record)


def _print_problems(console: Console, name: str, split: dict[str, Any], repeated: int) -> None:
    """Print what is wrong with a split: damaged images, empty categories, images that are there twice."""
    for image in split["broken"][:NAMED]:
        console.print(f"broken in {name}: {image['reason']}", markup=False)
    if len(split["broken"]) > NAMED:
        console.print(f"... and {len(split['broken']) - NAMED} more in {name} (--json lists them)")
    empty = [category for category, number in split["per_category"].items() if not number]
    if empty:
        more = f" and {len(empty) - NAMED} more (--json lists them)" if len(empty) > NAMED else ""
        console.print(f"no image in {name}: {', '.join(empty[:NAMED])}{more}", markup=False)
    if repeated:
        console.print(f"repeated within {name}: {count_of(repeated, 'image')}")


def _print_categories(console: Console, splits: dict[str, Any]) -> None:
    """Print the images per category and split, the rarest categories where there are many."""
    totals = {
        category: sum(split["per_category"][category] for split in splits.values())
        for category in next(iter(splits.values()))["per_category"]
    }
    names = list(totals) if len(totals) <= LISTED else sorted(totals, key=totals.__getitem__)[:NAMED]
    title = "Images per category" + ("" if len(names) == len(totals) else f", the rarest of {len(totals)}")
    table = Table(title=title, title_justify="left")
    table.add_column("category")
    for split in splits:
        table.add_column(split, justify="right")
    for name in names:
        table.add_row(escape(name), *(f"{split['per_category'][name]:,}" for split in splits.values()))
    console.print(table)


def _print_duplicates(console: Console, record: dict[str, Any]) -> None:
    """Print groups of equal images that lie in several splits or categories."""
    number = record["duplicates_across_splits"]
    if not number:
        console.print("no image lies in two splits or in two categories")
        return
    console.print(
        f"{count_of(number, 'image lies', 'images lie')} in two splits or in two categories; "
        f"tests on {'it' if number == 1 else 'them'} prove less:"
    )
    for group in record["duplicates"][:NAMED]:
        places = (f"{place['split']}/{place['image']} ({place['category']})" for place in group[:4])
        console.print("  " + " = ".join(places), markup=False)


def _range(low: int | None, high: int | None) -> str:
    """Return the lowest and highest number as text; a single number where they are equal."""
    if low is None:
        return "-"
    return str(low) if low == high else f"{low} to {high}"
