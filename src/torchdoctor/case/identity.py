"""Record the settings and inputs of a run at its start, so that it is not resumed with others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from torchdoctor.case.config import former_names, settings_record
from torchdoctor.case.preparation import Case
from torchdoctor.case.settings import Settings
from torchdoctor.case.surroundings import environment
from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.files.reading import sha256_of
from torchdoctor.files.writing import write_json, write_yaml
from torchdoctor.runs.folder import ENVIRONMENT

CONFIG = "config.yaml"


def start_run(folder: Path, verb: str, case: Case) -> None:
    """Write the settings, the inputs and the environment of a run.

    Args:
        folder: The run's folder.
        verb: The command that runs.
        case: The prepared case.
    """
    for name, record in identity_of(verb, case).items():
        (write_yaml if name.endswith(".yaml") else write_json)(folder / name, record)
    write_json(folder / ENVIRONMENT, environment())


def identity_of(verb: str, case: Case) -> dict[str, dict[str, object]]:
    """Return what must be equal for a run to be resumed.

    Args:
        verb: The command that runs.
        case: The prepared case.

    Returns:
        By file name what the file holds: the settings, how images are prepared, and fingerprints of weights,
        diagnosis and data. `RunFolder.resume` compares them.
    """
    return {
        CONFIG: settings_record(verb, case.plan),
        "data.json": case.facts,
        "inputs.json": {
            "weights": {"model_sha256": state_sha256(case.model)},
            "diagnosis": _files_of(case.plan.diagnosis),
            "data": case.data.fingerprints,
            **({"labels": case.answers.source} if case.answers is not None else {}),
        },
    }


def comparable(folder: Path, identity: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the settings of a run as the version that began the run would have recorded them.

    An earlier version may have recorded a setting under another name, or not at all where it was left to the
    model or the data; and it recorded settings that the command does not use.

    Args:
        folder: The folder of a run that is to be resumed.
        identity: What `identity_of` returns.

    Returns:
        The same, with a `config.yaml` that equals the recorded file where the settings are the same.
    """
    recorded: object = None
    with suppress(OSError, ValueError, yaml.YAMLError):
        recorded = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(recorded, dict):
        return dict(identity)
    # A single value may have been recorded where several can be given now.
    now = {
        name: recorded[name] if isinstance(value, list) and value == [recorded.get(name)] else value
        for name, value in identity[CONFIG].items()
    }
    if set(recorded) == set(now):
        return {**identity, CONFIG: now}
    today = {str(name): former_names().get(str(name), str(name)) for name in recorded}
    settings = {name: now.get(today[name], value) for name, value in recorded.items()}
    defaults = dict(Settings())
    for name, value in now.items():
        if name not in today.values() and name not in DECIDED and value != defaults.get(name):
            settings[name] = value
    return {**identity, CONFIG: settings}


DECIDED = frozenset(
    {"image_size", "channels", "mean", "std", "resize", "crop_share"}
    | {"expand_pixels", "select", "arms", "constraints", "weights"}
)
"""Settings that earlier versions recorded only where they were asked for."""


def _files_of(run: str | None) -> dict[str, str] | None:
    """Return the sha256 of the files of the diagnosis in another run."""
    if run is None:
        return None
    files = sorted(file for file in (Path(run) / "diagnosis").glob("diagnosis.*") if file.is_file())
    return {file.name: sha256_of(file) for file in files}
