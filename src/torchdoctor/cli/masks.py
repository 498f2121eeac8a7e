"""The commands that import, export and check object masks."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchdoctor.cli.options import AS_JSON, Groups, add_command, argument, option, parameters_of
from torchdoctor.cli.terminal import ProgressBar, show
from torchdoctor.data.mask_formats.registry import AUTO, FORMATS
from torchdoctor.data.settings import SOURCE
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

NAMED = 5  # of a list of images or problems, how many are printed
LISTED = 30  # categories that still make a table to read
DATA = ("data", "on_error", "download", "split_seed", *SOURCE)
WITHOUT_MASKS = tuple(name for name in DATA if name != "masks")
IMPORT_LEFT_OUT = {
    "data": "none: the names of the images in the annotations count",
    "on_error": "fail: nothing is written",
}
CHECK_LEFT_OUT = {"on_error": "fail, with exit code 2", "data": "none: then SOURCE must be given"}
NAMES = "|".join(FORMATS)


def add_commands(app: typer.Typer, groups: Groups) -> None:
    """Add `masks import`, `masks export` and `masks check`.

    Args:
        app: The command line.
        groups: All groups of settings.
    """
    masks = typer.Typer(
        name="masks", help="Object masks in the formats of annotation programs.", no_args_is_help=True
    )
    recognised = option(
        "format", str, AUTO, f"The format of SOURCE. [{AUTO}: recognised where that is certain]",
        metavar=f"{AUTO}|{NAMES}",
    )  # fmt: skip
    ids = option(
        "ids", bool, False, "The values of mask files are numbers of objects or classes: all but 0 are the "
        "object, and 255 beside others is ignored.",
    )  # fmt: skip
    label = option(
        "label", list[str] | None, None, "Draw only the shapes of this label; the flag may be repeated. "
        "[the shapes of all labels]", metavar="NAME",
    )  # fmt: skip
    overwrite = option("overwrite", bool, False, "Replace files that are there already.")
    folder = option("out", str | None, None, "The folder to write into; it must be given.", metavar="FOLDER")
    add_command(
        masks, "import", import_,
        [
            argument("source", str, "A file or folder of annotations."),
            recognised, folder, ids, label, overwrite,
            *parameters_of(groups, WITHOUT_MASKS, IMPORT_LEFT_OUT), AS_JSON.parameter,
        ],
        "Write a PNG mask for each annotated image: white on all its shapes, black elsewhere. --masks reads "
        "the folder.",
    )  # fmt: skip
    add_command(
        masks, "export", export,
        [
            option("format", str | None, None, "The format to write; it must be given.", metavar=NAMES),
            folder, overwrite, *parameters_of(groups, DATA), AS_JSON.parameter,
        ],
        "Write the masks of a data set in the format of an annotation program.",
    )  # fmt: skip
    add_command(
        masks, "check", check,
        [
            argument("source", str | None, "A file or folder of annotations, to be checked without being "
                     "imported. [none: the masks of --data]", None),
            recognised, ids, *parameters_of(groups, DATA, CHECK_LEFT_OUT), AS_JSON.parameter,
        ],
        "Compare every mask with its image: which images have none, which masks are empty, of the wrong size "
        "or of another category, and how large objects are in each category.",
    )  # fmt: skip
    app.add_typer(masks)


def import_(
    *,
    source: str,
    format: str,
    out: str | None,
    ids: bool,
    label: list[str] | None,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Turn annotations into masks.

    Args:
        source: The file or folder of the annotations.
        format: The name of the format, or `auto`.
        out: The folder of the masks.
        ids: Whether the values of mask files are numbers.
        label: The labels whose shapes are drawn; None: those of all.
        overwrite: Whether masks that are there already are replaced.
        as_json: Whether the result is printed as JSON.
        **values: The settings of the data set; None means the default.

    Raises:
        InputError: The annotations cannot be used, or files exist already.
    """
    from torchdoctor.case.config import settings_from
    from torchdoctor.verbs.masks import import_masks

    settings = settings_from(values)
    if out is None:
        raise InputError("--out is missing: give the folder that the masks are written into")
    with ProgressBar(as_json, unit="images") as progress:
        result = import_masks(
            source, out, format=format, settings=settings, on_error=settings.on_error, ids=ids,
            labels=label or (), overwrite=overwrite, progress=progress,
        )  # fmt: skip
    show(result.to_json(), as_json, _print_import)


def export(*, format: str | None, out: str | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Write the masks of a data set in another format.

    Args:
        format: The name of the format.
        out: The folder.
        overwrite: Whether files that are there already are replaced.
        as_json: Whether the result is printed as JSON.
        **values: The settings of the data set; None means the default.

    Raises:
        InputError: A setting is missing or does not fit, a mask cannot be read, or the folder holds files.
    """
    from torchdoctor.case.config import settings_from
    from torchdoctor.verbs.masks import export_masks

    settings = settings_from(values)
    if out is None or format is None:
        missing = "--out" if out is None else f"--format ({NAMES.replace('|', ', ')})"
        raise InputError(f"{missing} is missing")
    with ProgressBar(as_json, unit="images") as progress:
        result = export_masks(
            settings, out, format=format, on_error=settings.on_error, overwrite=overwrite, progress=progress
        )
    show(result.to_json(), as_json, _print_export)


def check(*, source: str | None, format: str, ids: bool, as_json: bool, **values: Any) -> None:
    """Check masks and print what does not fit.

    Args:
        source: A file or folder of annotations.
        format: The name of its format, or `auto`.
        ids: Whether the values of mask files are numbers.
        as_json: Whether the result is printed as JSON.
        **values: The settings of the data set; None means the default.

    Raises:
        InputError: The masks cannot be read, or some do not fit and `on_error` is `fail`.
    """
    from torchdoctor.case.config import settings_from
    from torchdoctor.verbs.masks import check_masks

    settings = settings_from(values)
    with ProgressBar(as_json, unit="images") as progress:
        result = check_masks(settings, source, format=format, ids=ids, progress=progress)
    show(result.to_json(), as_json, _print_check)
    if result.problems and settings.on_error == "fail":
        raise InputError(
            f"{count_of(len(result.problems), 'mask')} of {result.origin} "
            f"{'does' if len(result.problems) == 1 else 'do'} not fit: repair or remove what does "
            "not, or use --on-error skip"
        )


def _line(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _list(console: Console, one: str, many: str, items: list[str]) -> None:
    """Print how many items there are and the first of them."""
    if items:
        _line(console, f"{count_of(len(items), one, many)}:")
        for item in items[:NAMED]:
            _line(console, f"  {item}")
        if len(items) > NAMED:
            _line(console, f"  ... and {len(items) - NAMED} more (--json lists them)")


def _print_import(console: Console, record: dict[str, Any]) -> None:
    """Print what was written and what was not."""
    shares = [mask["share"] for mask in record["masks"]]
    written = count_of(record["written"], "mask")
    _line(console, f"{record['source']} ({record['format']}): {written} in {record['out']}")
    if record["overwritten"]:
        _line(
            console,
            f"{count_of(record['overwritten'], 'of them replaced another', 'of them replaced others')}",
        )
    _line(console, f"objects cover {_percent(sum(shares) / len(shares))} of an image on average")
    _list(
        console,
        "annotation could not be used",
        "annotations could not be used",
        [entry["text"] for entry in record["problems"]],
    )
    _list(
        console, "annotated image is not in the data set", "annotated images are not in the data set",
        record["unmatched"],
    )  # fmt: skip
    _list(console, "image has no shapes", "images have no shapes", record["without_shapes"])
    for note in record["notes"]:
        _line(console, f"note: {note}")


def _print_export(console: Console, record: dict[str, Any]) -> None:
    """Print what was written and what was not."""
    files = record["files"]
    masks = f"{count_of(record['images'], 'mask')} as {record['format']}"
    _line(console, f"{masks}: {count_of(len(files), 'file')} in {record['out']}")
    if record["without_mask"]:
        one, many = "image has no mask and is not in it", "images have no mask and are not in it"
        _line(console, count_of(record["without_mask"], one, many))
    _list(
        console,
        "mask could not be read",
        "masks could not be read",
        [entry["text"] for entry in record["problems"]],
    )
    for note in record["notes"]:
        _line(console, f"note: {note}")


def _percent(share: float | None) -> str:
    """Return a share as text."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _print_check(console: Console, record: dict[str, Any]) -> None:
    """Print the coverage of each category, then what does not fit."""
    rows = sorted(record["categories"].items(), key=lambda item: item[1]["share_with_mask"] or 0)
    table = Table(title=escape(f"Masks: {record['origin']}"), title_justify="left")
    table.add_column("category")
    for name in ("images", "masks", "with mask", "mean object share"):
        table.add_column(name, justify="right")
    for name, entry in (*rows[:LISTED], ("all", record)):
        table.add_row(
            escape(name), f"{entry['images']:,}", f"{entry['masks']:,}", _percent(entry["share_with_mask"]),
            _percent(entry["mean_object_share"]),
        )  # fmt: skip
    console.print(table)
    if len(rows) > LISTED:
        _line(console, f"the {LISTED} categories with the fewest masks, of {len(rows)} (--json lists all)")
    if record["missing"]:
        _line(console, count_of(record["missing"], "image has no mask", "images have no mask"))
    _list(
        console, "mask covers its whole image, and leaves no background",
        "masks cover their whole image, and leave no background", record["full"],
    )  # fmt: skip
    _list(console, "mask belongs to no image", "masks belong to no image", record["unmatched"])
    for kind, number in record["problem_counts"].items():
        texts = [entry["text"] for entry in record["problems"] if entry["kind"] == kind]
        _list(console, f"of kind {kind!r}", f"of kind {kind!r}", texts[:number])
    for note in record["notes"]:
        _line(console, f"note: {note}")
