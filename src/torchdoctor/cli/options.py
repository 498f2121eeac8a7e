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
from torchdoctor.processes import rank_by_launcher
from torchdoctor.settings import SettingsGroup, extra_of, flag_of, kinds_of

Groups = Sequence[type[SettingsGroup]]
START, OF_COMMAND = "Start here", "This command"
TOGETHER = (  # commands that several processes share
    "train", "diagnose", "treat", "checkup", "compare", "robustness",
)  # fmt: skip
NOTHING_LEFT_OUT: Mapping[str, str] = {}
METAVARS: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


@dataclass(frozen=True)
class Flag:
    """A flag that several commands share and that is no setting: how a command runs, not what it computes.

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


CONFIG = Flag(
    "config",
    ("--config",),
    "A YAML file of settings, as `torchdoctor config` prints it; flags on the command line override it.",
    str,
)
AS_JSON = Flag("as_json", ("--json",), "Print the result as JSON on standard output instead of tables.")
RESUME = Flag("resume", ("--resume",), "Continue the interrupted run in the folder that --out names.")
DRY_RUN = Flag(
    "dry_run",
    ("--dry-run",),
    "Print what would run and an estimate of the time it takes; train and write nothing.",
    panel=START,
)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Return a keyword parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def argument(name: str, kind: Any, sentence: str, default: Any = ...) -> inspect.Parameter:
    """Return a positional argument of a command.

    Args:
        name: Its name.
        kind: Its type.
        sentence: Its help text.
        default: Its value where the user leaves it out; `...` where the user must write it.

    Returns:
        A parameter.
    """
    annotation = Annotated[kind, typer.Argument(help=escape(sentence), show_default=False)]
    return _parameter(name, annotation, inspect.Parameter.empty if default is ... else default)


def option(
    name: str, kind: Any, default: Any, sentence: str, *, flag: str | None = None, metavar: str = ""
) -> inspect.Parameter:
    """Return a flag that belongs to a single command.

    Args:
        name: Its name.
        kind: Its type.
        default: Its value where the user leaves it out.
        sentence: Its help text.
        flag: How it is written, where that does not follow from the name.
        metavar: What stands behind the flag in the help text, such as `INTEGER`; empty for switches.

    Returns:
        A parameter.
    """
    declared = typer.Option(
        flag or flag_of(name), help=escape(sentence), show_default=False, metavar=metavar,
        rich_help_panel=OF_COMMAND,
    )  # fmt: skip
    return _parameter(name, Annotated[kind, declared], default)


def help_of(field: FieldInfo, left_out: str | None = None) -> str:
    """Return the help text of a setting: its sentence, and its value where the user leaves it out.

    Args:
        field: A field of a settings group.
        left_out: What holds in a command where the flag is left out; None: the default of the setting.

    Returns:
        For instance `The optimiser. [sgd]`.
    """
    left_out = left_out or default_text(field)
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
    groups: Iterable[type[SettingsGroup]],
    only: Sequence[str] | None = None,
    left_out: Mapping[str, str] = NOTHING_LEFT_OUT,
) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a command for the settings in some groups.

    Args:
        groups: The groups that the command uses.
        only: The settings to offer; None: all of them.
        left_out: By setting: what holds in this command where its flag is left out, for the help text. A
            setting that is not named here has its own default.

    Yields:
        A parameter for each setting, and a hidden parameter for each of its earlier names; its value is None
        where the user leaves the flag out.
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
                place = START if extra.get("newcomer") else panel
                help_text = help_of(field, left_out.get(name))
                yield _setting_parameter(written, field, place, help_text, hidden=written != name)


def _setting_parameter(
    name: str, field: FieldInfo, panel: str, help_text: str, *, hidden: bool
) -> inspect.Parameter:
    """Return the parameter of a setting."""
    kinds = kinds_of(field)
    kind: Any = str | None
    metavar: str | None = metavar_of(field)
    if bool in kinds:
        kind, metavar = bool | None, ""
    elif any(get_origin(part) is tuple for part in kinds):
        kind = list[str] | None
    option = typer.Option(
        flag_of(name), help=escape(help_text), show_default=False, metavar=metavar,
        rich_help_panel=panel, hidden=hidden,
    )  # fmt: skip
    return _parameter(name, Annotated[kind, option], None)


def alone_from_here() -> None:
    """End every launched process but the main one, where a command gains nothing from several.

    Raises:
        typer.Exit: In the other processes.
    """
    if rank_by_launcher() > 0:
        raise typer.Exit


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

    def command(**values: Any) -> None:
        if name not in TOGETHER:
            alone_from_here()
        body(**values)

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
