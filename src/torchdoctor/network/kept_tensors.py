"""Keep a network from using tensors that it made from other weights and kept among its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OWN = ("_modules", "_parameters", "_buffers")  # attributes of every module that hold its parts


@contextmanager
def without_kept_tensors(model: nn.Module) -> Iterator[None]:
    """Let a network forget what it kept before the block, and after the block what it kept inside.

    Some networks keep a tensor that is computed from a parameter, such as attention biases that are gathered
    once in evaluation mode. After a step of training such a tensor belongs to earlier weights, and its graph
    is gone. Networks that keep tensors on purpose drop them in `train(True)`, which is called first; and
    attributes that hold tensors are put back to what they were before the block.

    Args:
        model: The network; each module is in the mode it was in.

    Yields:
        Nothing.
    """
    forget_kept_tensors(model)
    before = [(module, _notes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, notes in before:
            _put_back(module, notes)


def forget_kept_tensors(model: nn.Module) -> None:
    """Let modules whose `train` does more than PyTorch's drop what they made from their weights.

    Args:
        model: The network; each module stays in its mode.
    """
    own = [module for module in model.modules() if type(module).train is not nn.Module.train]
    if not own:
        return
    modes = {module: module.training for module in model.modules()}
    for module in own:
        if not modes[module]:
            module.train(True)
            module.train(False)
    for module, mode in modes.items():
        module.__dict__["training"] = mode  # past __setattr__ of modules, which is slow


def _notes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, each with what it contains where it is a container."""
    return {
        name: (value, _content(value))
        for name, value in module.__dict__.items()
        if name not in OWN and not name.endswith("_hooks")
    }


def _content(value: object) -> Any:
    """Return a copy of a dictionary or list; None of anything else."""
    if type(value) is dict:
        return dict(value)
    return list(value) if type(value) is list else None


def _put_back(module: nn.Module, notes: dict[str, tuple[Any, Any]]) -> None:
    """Put back attributes that hold other tensors than before, and drop new ones that hold some."""
    for name, value in list(module.__dict__.items()):
        if name in OWN or name.endswith("_hooks") or not _holds_tensor(value):
            continue
        before, content = notes.get(name, (None, None))
        if name not in notes:
            del module.__dict__[name]
        elif value is not before:
            module.__dict__[name] = before
        if content is not None and _differs(before, content):
            before.clear()
            (before.update if isinstance(before, dict) else before.extend)(content)


def _differs(container: Any, content: Any) -> bool:
    """Whether a container holds other objects than it did."""
    if isinstance(container, dict):
        return container.keys() != content.keys() or any(
            container[key] is not content[key] for key in content
        )
    return len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True))


def _holds_tensor(value: object) -> bool:
    """Whether a value is a tensor, or a container with one."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return type(value) in (list, tuple) and any(_holds_tensor(item) for item in value)  # type: ignore[attr-defined]
