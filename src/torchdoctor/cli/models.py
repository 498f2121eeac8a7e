"""The command line's lists of models and of the layers in one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from torchdoctor.cli.terminal import AsJson, show


def models(json_: AsJson = False) -> None:
    """List the classifiers that go by a bare name."""
    from torchdoctor.models.catalogue import MODELS

    found = [
        {"name": one.name, "title": one.title, "source": one.source, "image_size": one.made_for,
         "layers": list(one.layers)}
        for one in MODELS.values()
    ]  # fmt: skip
    show(found, json_, _print_models)


def layers(
    model: Annotated[str, typer.Argument(help="A name of `models`, torchvision:NAME, timm:NAME, ...")],
    image_size: Annotated[int, typer.Option("--image-size", help="Side of the images in pixels.")] = 224,
    channels: Annotated[int, typer.Option("--channels", help="3, or 1 for grey images.")] = 3,
    classes: Annotated[int, typer.Option("--categories", help="The number of logits.")] = 10,
    json_: AsJson = False,
) -> None:
    """List the layers of a model that can be diagnosed and constrained, and what to expect of each."""
    from torchdoctor.verbs.layers import survey

    show(survey(model, image_size=image_size, channels=channels, classes=classes), json_, _print_layers)


def _print_models(console: Console, found: list[dict[str, Any]]) -> None:
    """Print the catalogue."""
    table = Table(title="Models", title_justify="left")
    for name in ("name", "what", "from", "made for", "default layers"):
        table.add_column(name)
    for one in found:
        table.add_row(
            one["name"], one["title"], one["source"], f"{one['image_size']} px", ", ".join(one["layers"])
        )
    console.print(table)
    console.print(
        "Also: torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, package.module:factory"
    )


def _print_layers(console: Console, found: list[dict[str, Any]]) -> None:
    """Print the candidate layers."""
    table = Table(title="Layers, in the order of the forward pass", title_justify="left")
    for name, justify in (
        ("layer", "left"), ("map", "right"), ("compute after it", "right"), ("head affine in it", "left"),
        ("a constraint reaches earlier parameters", "left"), ("default", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in found:
        reached = [evidence for evidence, live in one["reaches_earlier"].items() if live]
        table.add_row(
            one["name"],
            " x ".join(map(str, one["shape"])),
            f"{100 * one['rho']:.0f} %",
            "yes" if one["affine"] else "no",
            " and ".join(reached) or "with no evidence",
            "default" if one["default"] else "",
        )
    console.print(table)
