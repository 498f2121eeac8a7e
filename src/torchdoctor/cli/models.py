"""The commands that list the models of the catalogue and the layers of a model."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from torchdoctor.cli.options import AS_JSON, add_command, argument, option
from torchdoctor.cli.terminal import show
from torchdoctor.models.settings import ModelSettings


def add_commands(app: typer.Typer) -> None:
    """Add `models` and `layers`.

    Args:
        app: The command line.
    """
    add_command(
        app, "models", models, [AS_JSON.parameter],
        "List the classifiers that --model knows by a short name, with their default layers.",
    )  # fmt: skip
    add_command(
        app, "layers", layers,
        [
            argument("model", str, str(ModelSettings.model_fields["model"].description)),
            option("image_size", int, 224, "Side of the images in pixels; the size of the maps follows from "
                   "it. [224]", metavar="INTEGER"),
            option("channels", int, 3, "Colour channels of the images: 3, or 1 for grey ones. [3]",
                   metavar="1|3"),
            option("categories", int, 10, "How many categories the model tells apart. [10]",
                   metavar="INTEGER"),
            AS_JSON.parameter,
        ],
        "List the layers of a model that can be diagnosed and constrained: the size of their maps, how much "
        "of the network's computation comes after them, and whether a constraint there changes earlier "
        "parameters. No data and no weights are needed.",
    )  # fmt: skip


def models(*, as_json: bool) -> None:
    """List the classifiers of the catalogue.

    Args:
        as_json: Whether the list is printed as JSON.
    """
    from torchdoctor.models.catalogue import MODELS

    entries = [
        {"name": entry.name, "title": entry.title, "source": entry.source, "image_size": entry.made_for,
         "layers": list(entry.layers)}
        for entry in MODELS.values()
    ]  # fmt: skip
    show(entries, as_json, _print_models)


def layers(*, model: str, image_size: int, channels: int, categories: int, as_json: bool) -> None:
    """List the layers of a model that can be diagnosed and constrained.

    Args:
        model: What `--model` takes.
        image_size: The side of the images in pixels.
        channels: The number of channels of the images.
        categories: The number of categories.
        as_json: Whether the list is printed as JSON.
    """
    from torchdoctor.verbs.layers import survey

    surveyed = survey(model, image_size=image_size, channels=channels, classes=categories)
    show(surveyed, as_json, _print_layers)


def _print_models(console: Console, entries: list[dict[str, Any]]) -> None:
    """Print the catalogue."""
    table = Table(title="Models", title_justify="left")
    for name in ("name", "what", "from", "made for", "default layers"):
        table.add_column(name)
    for entry in entries:
        size = f"{entry['image_size']} px"
        table.add_row(entry["name"], entry["title"], entry["source"], size, ", ".join(entry["layers"]))
    console.print(table)
    console.print(
        "Also: torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, transformers:NAME, "
        "package.module:factory"
    )


def _print_layers(console: Console, surveyed: list[dict[str, Any]]) -> None:
    """Print the candidate layers."""
    table = Table(title="Layers, in the order of the forward pass", title_justify="left")
    for name, justify in (
        ("layer", "left"), ("map", "right"), ("compute after it", "right"), ("head affine in it", "left"),
        ("a constraint reaches earlier parameters", "left"), ("diagnosed by default, because", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for layer in surveyed:
        reached = [evidence for evidence, live in layer["reaches_earlier"].items() if live]
        table.add_row(
            layer["name"],
            " x ".join(map(str, layer["shape"])),
            f"{100 * layer['rho']:.0f} %",
            "yes" if layer["affine"] else "no",
            " and ".join(reached) or "with no evidence",
            layer["reason"],
        )
    console.print(table)
