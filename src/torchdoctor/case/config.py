"""Settings as files: read from YAML, recorded as `config.yaml`, described by a JSON schema."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchdoctor.case.settings import GROUPS, USED_BY, SearchSettings, Settings, Verb
from torchdoctor.settings import SettingsGroup, extra_of, flag_of
from torchdoctor.types import InputError


def settings_from(
    values: Mapping[str, object],
    file: str | Path | None = None,
    base: Settings | None = None,
    kind: type[Settings] = Settings,
) -> Settings:
    """Merge defaults, a YAML file and values: a value replaces that of the file, which replaces the default.

    Args:
        values: Values by setting; None means not given.
        file: A YAML file of settings.
        base: The settings to start from instead of the defaults.
        kind: The class of the settings.

    Returns:
        The checked settings.

    Raises:
        InputError: The file cannot be read, a name is unknown, or a value does not fit.
    """
    merged = dict(read_config(file, kind)) if file is not None else {}
    merged |= _by_todays_names({name: value for name, value in values.items() if value is not None}, kind)
    found = kind(**{**(dict(base) if base is not None else {}), **merged})
    weights, opinions = found.weights, found.second_opinion
    return found.but(
        weights=weights and _weights_file(weights, "--weights"),
        second_opinion=opinions and tuple(_weights_file(each, "--second-opinion") for each in opinions),
    )


def _by_todays_names(values: Mapping[str, object], kind: type[SettingsGroup]) -> dict[str, object]:
    """Rename settings that have an earlier name; InputError where a setting is given by two names."""
    former = former_names(kind)
    for name in values:
        if former.get(name) in values:
            raise InputError(
                f"{flag_of(name)} is the earlier name of {flag_of(former[name])}: give only one of them"
            )
    return {former.get(name, name): value for name, value in values.items()}


def _weights_file(weights: str, flag: str) -> str:
    """Return the file of weights in a folder, where a folder is given; else what was given."""
    if not Path(weights).is_dir():
        return weights
    file = Path(weights) / "model.safetensors"
    if not file.is_file():
        raise InputError(f"{flag} {weights!r} is a folder without a model.safetensors: give the file")
    return str(file)


def read_config(file: str | Path, kind: type[SettingsGroup] = Settings) -> dict[str, object]:
    """Read a YAML file of settings.

    Args:
        file: The file: setting names with values, with `-` or `_`; earlier names are understood.
        kind: The class whose fields are known.

    Returns:
        The values by setting, not checked yet; what is null is left out.

    Raises:
        InputError: The file cannot be read, is not YAML, or holds an unknown name.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {str(file)!r} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).replace("\n", " ")
        raise InputError(f"--config {str(file)!r} is not YAML ({first})") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {str(file)!r} holds {type(content).__name__}; expected names with values")
    former = former_names(kind)
    values: dict[str, object] = {}
    for written, value in content.items():
        name = str(written).replace("-", "_")
        name = former.get(name, name)
        if name == "verb":
            continue
        if name not in kind.model_fields:
            near = difflib.get_close_matches(name, list(kind.model_fields), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--config {str(file)!r}: {written!r} is no setting{hint}")
        if value is not None:
            values[name] = value
    return values


def former_names(kind: type[SettingsGroup] = Settings) -> dict[str, str]:
    """Return the settings by the names that they had in earlier versions.

    Args:
        kind: The class of the settings.

    Returns:
        Today's name by earlier name.
    """
    return {
        earlier: name
        for name, field in kind.model_fields.items()
        for earlier in extra_of(field).get("former", ())
    }


def verb_of(folder: Path) -> str:
    """Return the command that made a run.

    Args:
        folder: The run's folder.

    Returns:
        The command's name, such as `checkup`.
    """
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return str(content.get("verb", "checkup"))


def settings_record(
    verb: str, settings: Settings, groups: Sequence[type[SettingsGroup]] | None = None
) -> dict[str, object]:
    """Return what `config.yaml` holds: the command and the value of every setting that it uses.

    Args:
        verb: The command.
        settings: The settings; of a run, its `Plan`.
        groups: The groups to record instead of those that the command uses.

    Returns:
        Plain values by name; what is None is left out.
    """
    used = groups if groups is not None else USED_BY.get(verb, tuple(_every_group()))  # type: ignore[call-overload]
    values = settings.model_dump(mode="json")
    names = [name for group in used for name in group.model_fields]
    if not settings.auto and settings.arms != "auto":  # how to choose is refused where the arms are named
        names = [name for name in names if name == "auto" or name not in SearchSettings.model_fields]
    if settings.arms == "auto":  # a choice decides on constraints too
        names = [name for name in names if name != "constraints"]
    return {"verb": verb, **{name: values[name] for name in names if values[name] is not None}}


def _every_group() -> Iterator[type[SettingsGroup]]:
    """Yield all groups."""
    for groups in GROUPS.values():
        yield from groups


def schema(groups: Mapping[str, Sequence[type[SettingsGroup]]] = GROUPS) -> dict[str, Any]:
    """Return the JSON schema of a settings file.

    Args:
        groups: Groups of settings by title.

    Returns:
        A schema (draft 2020-12) whose properties carry their group, default and description.
    """
    properties: dict[str, Any] = {
        "verb": {"type": "string", "enum": list(USED_BY), "description": "The command that the file is for."}
    }
    for title, members in groups.items():
        for group in members:
            for name, entry in group.model_json_schema()["properties"].items():
                properties[name] = {"group": title, **entry}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of torchdoctor",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def template(
    verb: Verb,
    groups: Mapping[str, Sequence[type[SettingsGroup]]] = GROUPS,
    used_by: Mapping[Verb, Sequence[type[SettingsGroup]]] = USED_BY,
) -> str:
    """Return a settings file with every setting of a command at its default, explained.

    Args:
        verb: The command.
        groups: Groups of settings by title.
        used_by: The groups that each command uses.

    Returns:
        YAML in which every setting is a comment, to be uncommented where another value is wanted.
    """
    lines = [f"# Settings of `torchdoctor {verb}`. Remove the # before what you change.", f"verb: {verb}"]
    written = set[str]()
    for title, members in groups.items():
        used = [group for group in members if group in used_by[verb]]
        if used:
            lines += ["", f"# --- {title}"]
        for group in used:
            for name, field in group.model_fields.items():
                if name in written:
                    continue  # some settings belong to two groups
                written.add(name)
                left_out = extra_of(field).get("left_out")
                note = f" Where not given: {left_out}." if left_out else ""
                lines += textwrap.wrap(
                    f"{field.description}{note}", 100, initial_indent="# ", subsequent_indent="# "
                )
                lines.append(f"#{name}: {_as_yaml(field.default)}".rstrip())
    return "\n".join(lines) + "\n"


def _as_yaml(value: object) -> str:
    """Write a default as a line of YAML; nothing for None."""
    if value is None:
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
