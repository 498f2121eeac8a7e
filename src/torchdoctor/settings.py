"""The base of all settings: groups of named values that check themselves and describe themselves.

A group is a frozen pydantic model. Each field holds its type, its bounds, its default and a plain sentence.
Flags of the command line, help texts, `--config` files, `config.yaml` and the JSON schema are made of them.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from torchdoctor.types import InputError

Group = TypeVar("Group", bound="SettingsGroup")

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def setting(
    default: Any,
    sentence: str,
    *,
    left_out: str | None = None,
    newcomer: bool = False,
    former: Sequence[str] = (),
) -> Any:
    """Declare a field of a settings group.

    Args:
        default: The value where the user chooses none.
        sentence: What the setting does, in a plain sentence; the help text of its flag.
        left_out: What happens without it, where the default does not say it, such as "10".
        newcomer: Whether the flag stands in the first panel of a verb's help.
        former: Earlier names of the setting, which are still accepted.

    Returns:
        A pydantic field.
    """
    extra: dict[str, Any] = {"newcomer": True} if newcomer else {}
    if left_out is not None:
        extra["left_out"] = left_out
    if former:
        extra["former"] = list(former)
    return Field(default, description=sentence, json_schema_extra=extra)


def extra_of(field: FieldInfo) -> Mapping[str, Any]:
    """Return what `setting` was told beyond type, default and sentence.

    Args:
        field: A field of a settings group.

    Returns:
        The keys `left_out`, `newcomer` and `former`, each only where it was set.
    """
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def flag_of(name: str) -> str:
    """Return the flag of a setting.

    Args:
        name: The name of a field, such as `batch_size`.

    Returns:
        The flag, such as `--batch-size`.
    """
    return "--" + name.replace("_", "-")


class SettingsGroup(BaseModel):
    """A frozen group of settings; a value that does not fit raises InputError naming the flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        """Check and keep the values.

        Args:
            **values: Values by field name; what is left out takes its default. Text is read as on the
                command line: numbers from their digits, lists from names separated by commas.

        Raises:
            InputError: A name is unknown, or a value does not fit its field.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_sentence(type(self), error)) from None

    def but(self: Group, **changes: Any) -> Group:
        """Return the same settings with some changed.

        Args:
            **changes: New values by field name.

        Returns:
            A new, checked group.

        Raises:
            InputError: A name is unknown, or a value does not fit its field.
        """
        return type(self)(**{**dict(self), **changes})

    def given(self: Group, **values: Any) -> Group:
        """Return the same settings with those values that are not None.

        Args:
            **values: Values by field name; None keeps what is here.

        Returns:
            A new, checked group.

        Raises:
            InputError: A name is unknown, or a value does not fit its field.
        """
        return self.but(**{name: value for name, value in values.items() if value is not None})

    def part(self, group: type[Group]) -> Group:
        """Return the values that belong to a group, of the groups that these settings are made of.

        Args:
            group: The class of the group.

        Returns:
            A group with the values that its fields have here.
        """
        return group(**{name: getattr(self, name) for name in group.model_fields})

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: Any) -> Any:
        """Read text as the field's kind, and refuse what pydantic would silently turn into another kind."""
        kinds = kinds_of(cls.model_fields[str(info.field_name)])
        if any(get_origin(kind) is tuple for kind in kinds):
            return _names(value, kinds)
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if isinstance(value, str) and value not in words:
            for word in words:
                if str(word) == value:
                    return word
            for number in (int, float):
                if number in kinds:
                    with suppress(ValueError):
                        return number(value)
        if bool not in kinds and isinstance(value, bool):
            raise ValueError("a truth value")
        if bool in kinds and not isinstance(value, bool):
            raise ValueError("no truth value")
        if int in kinds and float not in kinds and isinstance(value, float):
            raise ValueError("not whole")
        if str in kinds and not isinstance(value, str) and value is not None:
            return str(value)
        return value


def kinds_of(field: FieldInfo) -> tuple[Any, ...]:
    """Return the kinds of value that a field takes, without their bounds.

    Args:
        field: A field of a settings group.

    Returns:
        Types such as `int`, `float`, `bool`, `str`, `tuple[str, ...]`, `Literal[...]` and `NoneType`.
    """
    return tuple(_bare(part) for part in _parts(field.annotation))


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _parts(member))
    return (annotation,)


def _bare(annotation: Any) -> Any:
    """Return a type without its bounds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _names(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Read a list of names, or text in which commas separate them; a path that is there is not divided."""
    if value is None and types.NoneType in kinds:
        return None
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    parts = [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("no list")
    names = tuple(
        name.strip()
        for part in parts
        for name in ([str(part)] if Path(str(part)).exists() else str(part).split(","))
        if name.strip()
    )
    if not names and not (parts == () and not words):  # a decided list may be empty, a chosen one may not
        raise ValueError("empty")
    return names[0] if len(names) == 1 and names[0] in words else names


def expected(field: FieldInfo) -> str:
    """Say in words what a field takes.

    Args:
        field: A field of a settings group.

    Returns:
        Words such as `a whole number of at least 1, or all`.
    """
    said, words = [], []
    bounds = [item for item in field.metadata if hasattr(item, "ge") or hasattr(item, "le")]
    for part in _parts(field.annotation):
        kind = _bare(part)
        if get_origin(kind) is Literal:
            words += [str(word) for word in get_args(kind)]
        elif get_origin(kind) is tuple:
            said.append("a list of names")
        elif kind is bool:
            said.append("true or false")
        elif kind in (int, float):
            own = [item for extra in get_args(part)[1:] for item in getattr(extra, "metadata", [extra])]
            said.append(("a whole number" if kind is int else "a number") + _range(own + bounds))
        elif kind is str:
            said.append("text")
    if words:
        choice = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
        said.append(choice)
    return ", or ".join(said)


def _range(bounds: Sequence[Any]) -> str:
    """Say the bounds of a number in words."""
    low = next((item.ge for item in bounds if getattr(item, "ge", None) is not None), None)
    high = next((item.le for item in bounds if getattr(item, "le", None) is not None), None)
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else ""


def _sentence(group: type[SettingsGroup], error: ValidationError) -> str:
    """Say which value does not fit: the flag, the value, what is expected."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if name not in group.model_fields:
        return f"{name!r} is no setting of {group.__name__}; there are: {', '.join(group.model_fields)}"
    value = first["input"]
    for item in error.errors():  # of a union, the error of its first part holds the value as it came
        if item["loc"][0] == name:
            value = item["input"]
            break
    field = group.model_fields[name]
    if any(get_origin(kind) is tuple for kind in kinds_of(field)):
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        hint = "at least one name; leave the flag out for the default" if value or text == "" else "a list"
        if any(float in get_args(kind) for kind in kinds_of(field)):
            hint = "numbers separated by commas"
        return f"{flag_of(name)} {text!r}: expected {hint}"
    return f"{flag_of(name)} {value!r}: expected {expected(field)}"
