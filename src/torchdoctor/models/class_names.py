"""Find the names of the categories, in the order of the logits, that weights bring with them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

# Where training scripts and libraries keep names: by name the number, by number the name, or a list.
BY_NAME = ("class_to_idx", "label2id", "class_to_index")
BY_NUMBER = ("idx_to_class", "id2label", "index_to_class")
LISTS = ("classes", "class_names", "categories", "label_names", "labels")
BESIDE = ("config.json", "class_to_idx.json")  # files beside weights, as timm and others write them


def names_in(found: object) -> tuple[str, ...] | None:
    """Return the names of categories that a checkpoint or a configuration holds.

    Args:
        found: What was read from a file.

    Returns:
        The names in the order of the logits; None where there are none, or they leave gaps.
    """
    if not isinstance(found, Mapping):
        return None
    for key in BY_NAME:
        names = _in_order({number: name for name, number in _items(found.get(key))})
        if names:
            return names
    for key in BY_NUMBER:
        names = _in_order(dict(_items(found.get(key))))
        if names:
            return names
    for key in LISTS:
        value = found.get(key)
        if (
            isinstance(value, (list, tuple))
            and len(value) > 1
            and all(isinstance(each, str) for each in value)
        ):
            return tuple(value)
    return None


def _items(found: object) -> list[tuple[object, object]]:
    """Return the pairs of a mapping; none of anything else."""
    return list(found.items()) if isinstance(found, Mapping) else []


def _in_order(names: Mapping[object, object]) -> tuple[str, ...] | None:
    """Return names by number 0, 1, ...; None where a number is missing or is none."""
    try:
        by_number = {int(str(number)): str(name) for number, name in names.items()}
    except ValueError:
        return None
    if not by_number or sorted(by_number) != list(range(len(names))):
        return None
    return tuple(by_number[number] for number in range(len(names)))


def names_beside(weights: str | Path) -> tuple[str, ...] | None:
    """Return the names of categories that a configuration beside a file of weights holds.

    Args:
        weights: The file of weights.

    Returns:
        The names in the order of the logits; None where no such file is there, or it holds no names.
    """
    for name in BESIDE:
        try:
            found = json.loads((Path(weights).parent / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        inner = found.get("pretrained_cfg") if isinstance(found, dict) else None
        names = names_in({"class_to_idx": found} if name.startswith("class_to_idx") else found)
        names = names or names_in(inner)
        if names:
            return names
    return None


def same_names(found: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """Return names as others write them: in another case or Unicode form, with other spaces or hyphens.

    Args:
        found: The names in one order.
        wanted: The names in their own way of writing, in any order.

    Returns:
        The names of `wanted` in the order of `found`; None where they are not the same, one to one.
    """
    if sorted(found) == sorted(wanted):
        return tuple(found)
    by_plain = {_plain(name): name for name in wanted}
    plain = [_plain(name) for name in found]
    if len(by_plain) < len(wanted) or len(found) != len(wanted) or set(plain) != set(by_plain):
        return None
    return tuple(by_plain[name] for name in plain)


def _plain(name: str) -> str:
    """Return a name without what may differ between ways to write it."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
