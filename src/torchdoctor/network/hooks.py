"""Find layers by name, and call functions at them through hooks that are always removed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import nn

from torchdoctor.types import InputError

HookKind = Literal["forward", "forward_pre"]
Hook = Callable[..., Any]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module with a dotted name.

    Args:
        model: The network.
        name: The name as in `model.named_modules()`, such as `layer3.0.conv2`.

    Returns:
        The module.

    Raises:
        InputError: There is no such module; the message suggests similar names.
    """
    try:
        if name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    modules = [known for known, _ in model.named_modules()]
    similar = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"layers are named like {modules[-3:]}"
    raise InputError(f"layer {name!r} is not in this {type(model).__name__}; {hint}")


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]], kind: HookKind = "forward") -> Iterator[None]:
    """Register hooks on modules for the length of a block, and remove them however the block ends.

    Every hook of this package is registered here.

    Args:
        hooks: Pairs of a module and the function to register on it. It is called as PyTorch calls hooks:
            `(module, inputs, output)` for `forward`, `(module, inputs)` for `forward_pre`.
        kind: `forward` runs after the module's forward pass, `forward_pre` before it.

    Yields:
        Nothing.
    """
    with ExitStack() as handles:
        for module, hook in hooks:
            register = module.register_forward_hook if kind == "forward" else module.register_forward_pre_hook
            handles.callback(register(hook).remove)
        yield
