"""Read from the steps that autograd recorded how a layer's output takes part in the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Steps of autograd that weights take part in.
WEIGHTED = ("Convolution", "Addmm", "MmBackward", "BmmBackward")
SUM = "AddBackward"
PRODUCT = ("MmBackward", "BmmBackward", "ScaledDotProduct")  # steps that may multiply maps by maps
LEAF = "AccumulateGrad"


class Depths:
    """Counts the layers with weights on the longest way from the image to a tensor."""

    def __init__(self) -> None:
        """Start without knowing any."""
        self._known: dict[Any, int] = {None: 0}

    def __call__(self, end: Any) -> int:
        """Return the number of layers with weights before a tensor, its own included.

        Args:
            end: The step of autograd that made the tensor; None: the first layer of all.

        Returns:
            A number of at least 1.
        """
        waiting = [end]
        while waiting:
            node = waiting[-1]
            if node in self._known:
                waiting.pop()
                continue
            inner = [each for each, _ in node.next_functions]
            open_ones = [each for each in inner if each not in self._known]
            if open_ones:
                waiting += open_ones
                continue
            waiting.pop()
            own = 1 if any(word in node.name() for word in (*WEIGHTED, LEAF)) else 0
            self._known[node] = own + max((self._known[each] for each in inner), default=0)
        return max(self._known[end], 1)


class Attention:
    """Tells queries, keys and values of attention from the maps that the network goes on with."""

    def __init__(self, logits: Tensor) -> None:
        """Note by which steps each step's result is used.

        Args:
            logits: What the steps lead to. The parameters must be fixed: only maps may have a graph.
        """
        self._end = logits.grad_fn
        self._users: dict[Any, list[Any]] = {}
        waiting: list[Any] = [self._end]
        seen = {None, self._end}
        while waiting:
            node = waiting.pop()
            for inner, _ in node.next_functions if node else ():
                self._users.setdefault(inner, []).append(node)
                if inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)

    def projects(self, output: Tensor) -> bool:
        """Whether an output is multiplied by other maps, as a projection in attention, with a way around it.

        Args:
            output: A layer's output, as it is passed on: a copy of its own.

        Returns:
            True where a product of two maps takes it before a layer with weights or a sum of maps does, and
            the logits depend on earlier layers by another way too.
        """
        return self._is_multiplied(output.grad_fn) and self._has_way_around(output.grad_fn)

    def _is_multiplied(self, start: Any) -> bool:
        """Whether a product of two maps takes a step's result before a layer with weights or a sum does."""
        waiting, seen = list(self._users.get(start, ())), set[Any]()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            name, maps = node.name(), [inner for inner, _ in node.next_functions if inner is not None]
            together = len(maps) > 1
            if together and any(word in name for word in PRODUCT):
                return True
            if not any(word in name for word in WEIGHTED) and not (together and SUM in name):
                waiting += self._users.get(node, ())
        return False

    def _has_way_around(self, start: Any) -> bool:
        """Whether the logits depend on the first layers by a way that does not pass a step."""
        waiting: list[Any] = [self._end]
        seen = {None, start}
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if LEAF in node.name():
                return True
            waiting += [inner for inner, _ in node.next_functions]
        return False
