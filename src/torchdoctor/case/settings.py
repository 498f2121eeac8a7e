"""Hold everything a verb can be told, with its defaults: defaults < file < command line."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from torchdoctor.treatment.constraints import weight_of
from torchdoctor.types import BudgetKind, Evidence, InputError, NormPolicy, Precision, Scale, Targets

Verb = Literal["train", "diagnose", "treat", "checkup", "demo", "robustness"]


@dataclass(frozen=True)
class Settings:
    """The settings of a run; None means that the verb, the model or the data decides.

    `seeds` is a count. `limit` is in training images per category, `masks_per_category` likewise,
    `expand_pixels` in input pixels, `delta` in units of the layer's map, `max_loss` in points.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    out: str | None = None
    seeds: int = 3
    seed: int = 0
    epochs: int | None = None
    limit: int | None = None
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"
    primary: str | None = None
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    classes: int | None = None
    classes_seed: int = 0
    validation_share: float = 0.1
    download: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float | None = None
    weight_decay: float = 5e-4
    norm: NormPolicy | None = None
    precision: Precision = "fp32"
    augment: Literal["none", "crop", "crop_flip"] = "crop_flip"
    layers: tuple[str, ...] | None = None
    evidence: Evidence | None = None
    scale: Scale = "share"
    draws: int | Literal["exact"] | None = None
    lazy: int = 1
    delta: float | None = None
    theta: float = 0.2
    images_per_category: int = 100
    confidence: float = 0.9
    diagnosis: str | None = None
    arms: tuple[str, ...] | None = None
    constraints: tuple[str, ...] | None = None
    weight: tuple[str, ...] = ("auto",)
    tau: float = 0.3
    targets: Targets = "prediction"
    masks_per_category: int | None = None
    annotated_per_batch: float = 0.125
    expand_pixels: int | None = None
    budget_kind: BudgetKind = "steps"
    min_gain: float = 0.0
    max_loss: float = 5.0
    auto: bool = False
    budget: str | None = None
    select: Literal["iid", "swapped", "mean"] | None = None
    tensorboard: bool = False

    @property
    def weights_by_constraint(self) -> float | str | dict[str, float | str]:
        """Read `weight`: auto, one number for all, or name=number for each."""
        named: dict[str, float | str] = {}
        if len(self.weight) > 1 and not all("=" in part for part in self.weight):
            raise InputError(
                f"--weight {', '.join(self.weight)!r}: expected one number for all constraints, or "
                "constraint=number for each"
            )
        for part in self.weight:
            name, equals, value = part.rpartition("=")
            read = weight_of(f"--weight {name}=" if equals else "--weight", value)
            if not equals:
                return read
            if name in named:
                raise InputError(f"--weight {part!r}: {name} has a weight already")
            named[name] = read
        return named

    @property
    def draws_per_step(self) -> int:
        """The noise draws of a treatment's step; InputError for `exact`, which is of a diagnosis."""
        if self.draws == "exact":
            raise InputError("--draws 'exact' is for diagnose: a treatment's steps need a number of draws")
        return 1 if self.draws is None else self.draws


LEAST = {
    "seeds": 1,
    "epochs": 0,
    "limit": 1,
    "batch_size": 2,
    "workers": 0,
    "image_size": 8,
    "classes": 2,
    "classes_seed": 0,
    "validation_share": 0,
    "draws": 0,
    "lazy": 1,
    "images_per_category": 1,
    "masks_per_category": 1,
    "expand_pixels": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "delta": 0,
    "theta": 0,
    "tau": 0,
    "min_gain": 0,
    "max_loss": 0,
}
MOST = {"validation_share": 1, "theta": 1, "confidence": 1, "annotated_per_batch": 1}


def settings_from(
    given: Mapping[str, object], file: str | Path | None = None, base: Settings | None = None
) -> Settings:
    """Merge defaults, a YAML file and what was given on the command line, and check every value."""
    merged = dict(read_config(file)) if file is not None else {}
    merged.update({name: value for name, value in given.items() if value is not None})
    kinds = get_type_hints(Settings)
    if isinstance(merged.get("weights"), str):
        merged["weights"] = _weights_file(str(merged["weights"]))
    checked: dict[str, Any] = {name: _checked(name, value, kinds[name]) for name, value in merged.items()}
    return replace(base or Settings(), **checked)


def _weights_file(given: str) -> str:
    """Return the weights in a model folder, where a folder was given."""
    if not Path(given).is_dir():
        return given
    held = Path(given) / "model.safetensors"
    if not held.is_file():
        raise InputError(f"--weights {given!r} is a folder without a model.safetensors: give the file")
    return str(held)


def read_config(file: str | Path) -> dict[str, object]:
    """Read a YAML file of settings; InputError names unknown keys and near ones."""
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {str(file)!r} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).replace("\n", " ")
        raise InputError(f"--config {str(file)!r} is not YAML ({first})") from error
    if not isinstance(found, dict):
        raise InputError(f"--config {str(file)!r} holds {type(found).__name__}; expected names with values")
    known = [one.name for one in fields(Settings)]
    merged: dict[str, object] = {}
    for raw, value in found.items():
        name = str(raw).replace("-", "_")
        if name == "verb":
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--config {str(file)!r}: {raw!r} is no setting{hint}")
        if value is not None:
            merged[name] = value
    return merged


def verb_of(folder: Path) -> str:
    """Return the verb that made a run."""
    found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return str(found.get("verb", "checkup"))


def _checked(name: str, value: object, kind: Any) -> object:
    """Return the value in the setting's type; InputError says what was expected."""
    flag = "--" + name.replace("_", "-")
    allowed = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if any(get_origin(one) is Literal and value in get_args(one) for one in allowed):
        return value
    wanted = next(one for one in allowed if one is not type(None))
    if wanted is bool:
        if not isinstance(value, bool):
            raise InputError(f"{flag} {value!r}: expected true or false")
        return value
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise InputError(f"{flag} {value!r}: expected one of {', '.join(map(str, get_args(wanted)))}")
        return value
    if get_origin(wanted) is tuple:
        parts = [value] if isinstance(value, str | int | float) else value
        if not isinstance(parts, list | tuple):
            raise InputError(f"{flag} {value!r}: expected a list of names")
        names = tuple(part.strip() for one in parts for part in str(one).split(",") if part.strip())
        if not names:
            text = ", ".join(map(str, parts))
            raise InputError(
                f"{flag} {text!r}: expected at least one name; leave the flag out for the default"
            )
        return names
    if wanted in (int, float):
        return _number(flag, name, value, wanted)
    return str(value)


def _number(flag: str, name: str, value: object, wanted: type) -> int | float:
    """Return a number within its range; YAML reads 1e-3 as text, so text may hold one."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value) if wanted is float else int(value)
    fits = isinstance(value, int) or (wanted is float and isinstance(value, float))
    if isinstance(value, bool) or not fits:
        raise InputError(f"{flag} {value!r}: expected {'a whole' if wanted is int else 'a'} number")
    number = wanted(value)
    low, high = LEAST.get(name), MOST.get(name, float("inf"))
    if not (low is None or number >= low) or not number <= high or number == float("inf"):
        raise InputError(f"{flag} {value!r}: expected a number from {low} to {high}")
    return number


def settings_record(verb: str, settings: Settings) -> dict[str, object]:
    """Return what `config.yaml` holds: the verb and every setting that is set."""
    record = {name: value for name, value in asdict(settings).items() if value is not None}
    return {"verb": verb, **record}


def filled(settings: Settings, verb: Verb) -> Settings:
    """Fill in what the verb decides: further training is shorter and gentler than training from scratch."""
    scratch = verb == "train"
    if verb in ("treat", "checkup", "demo") and settings.epochs == 0:
        raise InputError("--epochs 0: nothing would be treated; expected 1 or more")
    if verb == "checkup" and not settings.auto:
        for flag, value in (("--budget", settings.budget), ("--select", settings.select)):
            if value is not None:
                raise InputError(f"{flag} {value!r} is of a search: give --auto as well")
    defaults: dict[str, Any] = {
        "epochs": 20 if scratch else 10,
        "learning_rate": 0.1 if scratch else 0.01,
        "norm": "train",
        "evidence": "gradient" if verb in ("diagnose", "robustness") else "gradient_x_activation",
    }
    missing = {name: value for name, value in defaults.items() if getattr(settings, name) is None}
    return replace(settings, **missing)
