"""Functions that a network keeps: those of a copy are to mean the copy, and what does not is found."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn


class Rebinding:
    """Replaces functions whose closures hold parts of a network by ones that hold the parts of its copy.

    `copy.deepcopy` leaves functions as they are: a copy of a network with `self.head = lambda x: self.fc(x)`,
    or with a hook that writes into `self`, would go on using the network that it was copied from.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        """Take what `copy.deepcopy` remembers.

        Args:
            copies: The copy of each object by the object's `id`.
        """
        self._copies = copies
        self._made: dict[int, tuple[Any, Any]] = {}  # with the value itself, so that its id stays its own

    def everywhere(self) -> None:
        """Replace the functions that copied objects, dictionaries and lists hold."""
        for number, found in list(self._copies.items()):
            if number == id(self._copies):  # there deepcopy keeps the originals alive
                continue
            if isinstance(found, (dict, list)):
                self._in_place(found)
            if hasattr(found, "__dict__") and not isinstance(found, (type, FunctionType, ModuleType)):
                self._in_place(vars(found))

    def _in_place(self, holder: MutableMapping[Any, Any] | list[Any]) -> None:
        """Replace the functions in a dictionary or list."""
        items: Iterable[tuple[Any, Any]] = enumerate(holder) if isinstance(holder, list) else holder.items()
        for key, value in tuple(items):
            if isinstance(value, (FunctionType, partial, tuple)):
                other = self.of(value)
                if other is not value:
                    holder[key] = other

    def of(self, value: Any) -> Any:
        """Return what a value is for the copy.

        Args:
            value: Any value that the network, or a closure in it, holds.

        Returns:
            The copy of a copied object; a function or container that holds copies; else the value itself.
        """
        if id(value) in self._copies and self._copies[id(value)] is not None:
            return self._copies[id(value)]
        if id(value) in self._made:
            return self._made[id(value)][1]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, partial):
            inner = [self.of(each) for each in (value.func, *value.args)]
            named = {name: self.of(each) for name, each in value.keywords.items()}
            changed = _changed(inner, (value.func, *value.args)) or _changed(named, value.keywords)
            return partial(inner[0], *inner[1:], **named) if changed else value
        if type(value) in (tuple, list, dict):
            return self._container(value)
        return value

    def _container(self, value: Any) -> Any:
        """Return a tuple, list or dictionary with what its items are for the copy."""
        self._made[id(value)] = (value, value)  # a container may hold itself
        if isinstance(value, dict):
            other: Any = {key: self.of(each) for key, each in value.items()}
        else:
            other = [self.of(each) for each in value]
        if not _changed(other, value):
            return value
        other = tuple(other) if isinstance(value, tuple) else other
        self._made[id(value)] = (value, other)
        return other

    def _function(self, function: FunctionType) -> FunctionType:
        """Return a function with the closure and default values that it has for the copy."""
        cells = [cell for cell in function.__closure__ or () if _content(cell) is not cell]
        if not any(
            _holds(each, self._copies, set()) for each in [*map(_content, cells), *_defaults(function)]
        ):
            self._made[id(function)] = (function, function)
            return function
        closure = tuple(CellType() for _ in function.__closure__ or ())
        other = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, closure or None
        )
        self._made[id(function)] = (function, other)  # a closure may hold its own function
        other.__dict__.update(function.__dict__)
        other.__qualname__, other.__module__ = function.__qualname__, function.__module__
        other.__doc__, other.__annotations__ = function.__doc__, function.__annotations__
        other.__defaults__ = tuple(map(self.of, function.__defaults__)) if function.__defaults__ else None
        if function.__kwdefaults__:
            other.__kwdefaults__ = {name: self.of(v) for name, v in function.__kwdefaults__.items()}
        for before, after in zip(function.__closure__ or (), closure, strict=True):
            if (content := _content(before)) is not before:
                after.cell_contents = self.of(content)
        return other


def _changed(after: Any, before: Any) -> bool:
    """Return whether some item is another object."""
    if isinstance(before, Mapping):
        return any(after[key] is not value for key, value in before.items())
    return any(one is not other for one, other in zip(after, before, strict=True))


def _content(cell: CellType) -> Any:
    """Return what a cell of a closure holds; the cell itself where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _defaults(function: FunctionType) -> tuple[Any, ...]:
    """Return the default values of a function's parameters."""
    return (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def _held(found: object) -> Iterator[object]:
    """Yield what a function, container or reference holds."""
    if isinstance(found, FunctionType):
        yield from map(_content, found.__closure__ or ())
        yield from _defaults(found)
    elif isinstance(found, MethodType):
        yield found.__self__
    elif isinstance(found, partial):
        yield from (found.func, *found.args, *found.keywords.values())
    elif isinstance(found, weakref.ref):
        yield found()
    elif isinstance(found, Mapping):
        yield from found.values()
    elif isinstance(found, (list, tuple, set)):
        yield from found


def _holds(found: object, wanted: Mapping[int, object], seen: set[int]) -> bool:
    """Return whether something is, or holds at any depth, an object whose `id` is among the wanted."""
    if id(found) in wanted:
        return True
    if id(found) in seen:
        return False
    seen.add(id(found))
    return any(_holds(each, wanted, seen) for each in _held(found))


def holders(network: nn.Module, other: nn.Module) -> list[str]:
    """Name the attributes and hooks of a network that hold a part of another network.

    Args:
        network: The network whose attributes are looked at.
        other: The other network.

    Returns:
        A phrase for each, such as `attribute 'head' of Net`.
    """
    parts: list[nn.Module | Tensor] = [*other.modules(), *other.parameters(), *other.buffers()]
    wanted = {id(part): part for part in parts}
    found = []
    for name, module in network.named_modules():
        place = f"{type(module).__name__}{f' ({name})' if name else ''}"
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers") or not _holds(value, wanted, set()):
                continue
            hook = attribute.startswith("_") and attribute.endswith("_hooks")
            found.append(f"a hook of {place}" if hook else f"the attribute {attribute!r} of {place}")
    return found
