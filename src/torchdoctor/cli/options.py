"""Flags of the command line, made from the settings: name, kind, help text and panel come from each field."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from torchdoctor.case.settings import GROUPS
from torchdoctor.settings import SettingsGroup, extra_of, flag_of, kinds_of

Groups = Sequence[type[SettingsGroup]]
START = "Start here"
METAVARS: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


@dataclass(frozen=True)
class Flag:
    """A flag that is no setting: it says how the command runs, not what.

    Attributes:
        name: The name of the parameter.
        flags: How it is written, such as `--json`.
        sentence: The help text.
        kind: `bool` or `str`.
        panel: The panel of the help text.
    """

    name: str
    flags: tuple[str, ...]
    sentence: str
    kind: type = bool
    panel: str = "Run"

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter of a command."""
        option = typer.Option(
            *self.flags,
            help=escape(self.sentence),
            show_default=False,
            rich_help_panel=self.panel,
            metavar="" if self.kind is bool else "TEXT",
        )
        default = False if self.kind is bool else None
        kind: Any = bool if self.kind is bool else str | None
        return _parameter(self.name, Annotated[kind, option], default)


CONFIG = Flag("config", ("--config",), "A YAML file of settings; flags go before it.", str)
AS_JSON = Flag("as_json", ("--json",), "Print the result as JSON on stdout.")
RESUME = Flag("resume", ("--resume",), "Go on with the unfinished run in --out.")
DRY_RUN = Flag(
    "dry_run", ("--dry-run",), "Say what would run and how long it takes; write nothing.", panel=START
)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Return a keyword parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def help_of(field: FieldInfo) -> str:
    """Return the help text of a setting: its sentence, and what holds where it is not given.

    Args:
        field: A field of a settings group.

    Returns:
        For instance `The optimiser. [sgd]`.
    """
    left_out = default_text(field)
    return f"{field.description}" + (f" [{left_out}]" if left_out else "")


def default_text(field: FieldInfo) -> str:
    """Say what holds where a setting is not given.

    Args:
        field: A field of a settings group.

    Returns:
        What the field says of it, else its default; empty for a flag that is off.
    """
    left_out = extra_of(field).get("left_out")
    if left_out is not None:
        return str(left_out)
    default = field.default
    if default is None or default is False:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def metavar_of(field: FieldInfo) -> str:
    """Return what stands behind a flag in the help text.

    Args:
        field: A field of a settings group.

    Returns:
        For instance `INTEGER|all`, `sgd|adamw` or `TEXT,...`.
    """
    parts: list[str] = []
    for kind in kinds_of(field):
        if get_origin(kind) is Literal:
            parts += [str(word) for word in get_args(kind)]
        elif get_origin(kind) is tuple:
            parts.append("TEXT,...")
        elif kind in METAVARS:
            parts.append(METAVARS[kind])
    return "|".join(parts)


def parameters_of(
    groups: Iterable[type[SettingsGroup]], only: Sequence[str] | None = None
) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a command for the settings in some groups.

    Args:
        groups: The groups that the command uses.
        only: The settings to offer; None: all of them.

    Yields:
        A parameter for each setting, and a hidden one for each of its earlier names; None means not given.
    """
    titles = {group: title for title, members in GROUPS.items() for group in members}
    order, seen = list(titles), set[str]()
    for group in sorted(groups, key=lambda group: order.index(group) if group in titles else len(order)):
        panel = titles.get(group, "Further")
        for name, field in group.model_fields.items():
            if name in seen or (only is not None and name not in only):
                continue  # some settings belong to two groups
            seen.add(name)
            extra = extra_of(field)
            for written in (name, *extra.get("former", ())):
                yield _setting_parameter(
                    written, field, START if extra.get("newcomer") else panel, hidden=written != name
                )


def _setting_parameter(name: str, field: FieldInfo, panel: str, *, hidden: bool) -> inspect.Parameter:
    """Return the parameter of a setting."""
    kinds = kinds_of(field)
    kind: Any = str | None
    metavar: str | None = metavar_of(field)
    if bool in kinds:
        kind, metavar = bool | None, ""
    elif any(get_origin(part) is tuple for part in kinds):
        kind = list[str] | None
    option = typer.Option(
        flag_of(name), help=escape(help_of(field)), show_default=False, metavar=metavar,
        rich_help_panel=panel, hidden=hidden,
    )  # fmt: skip
    return _parameter(name, Annotated[kind, option], None)


def add_command(
    app: typer.Typer,
    name: str,
    body: Callable[..., None],
    parameters: Iterable[inspect.Parameter],
    sentence: str,
) -> None:
    """Add a command whose flags are made from settings.

    Args:
        app: The command line.
        name: The command's name.
        body: What runs; it gets every parameter by keyword.
        parameters: The parameters; those of the first panel are shown first.
        sentence: What the command does.
    """
    ordered = {parameter.name: parameter for parameter in parameters}

    def command(**given: Any) -> None:
        body(**given)

    command.__doc__ = sentence
    command.__name__ = name
    command.__signature__ = inspect.Signature(list(ordered.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {key: parameter.annotation for key, parameter in ordered.items()}
    app.command(name)(command)


def tell(text: str) -> None:
    """Print a line for a person on stderr.

    Args:
        text: The line.
    """
    print(f"torchdoctor: {text}", file=sys.stderr)
