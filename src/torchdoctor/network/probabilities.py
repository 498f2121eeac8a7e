"""See whether a network's output holds probabilities where logits are expected, whatever comes after them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

# Steps of autograd that give probabilities, by the word that a message has for them.
STEPS = {
    "SigmoidBackward0": "Sigmoid",
    "HardsigmoidBackward0": "Hardsigmoid",
    "SoftmaxBackward0": "Softmax",
    "LogSoftmaxBackward0": "LogSoftmax",
    "LogSigmoidBackward0": "LogSigmoid",
}
# Steps that leave probabilities what they are: other shapes and types, scales, shifts, means, small summands.
PASSING = {
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1",
    "UnsqueezeBackward0", "TransposeBackward0", "TBackward0", "PermuteBackward0", "SelectBackward0",
    "SliceBackward0", "UnbindBackward0", "CatBackward0", "StackBackward0", "ExpandBackward0",
    "CloneBackward0", "ToCopyBackward0", "AliasBackward0", "ClampBackward0", "ClampBackward1",
    "ClampMinBackward0", "ClampMaxBackward0", "AddBackward0", "SubBackward0", "RsubBackward1",
    "MulBackward0", "DivBackward0", "NegBackward0", "MeanBackward0", "MeanBackward1", "SumBackward0",
    "SumBackward1", "NanToNumBackward0",
}  # fmt: skip
LOGARITHMS = {"LogBackward0", "Log2Backward0", "Log10Backward0", "Log1PBackward0"}
CONSTANT = "torch::autograd::AccumulateGrad"  # a parameter: a learned scale or shift
BY_VALUE = "Softmax or another step that gives probabilities (rows that are not negative and sum to 1)"


def probabilities_in(logits: Float[Tensor, "batch category"]) -> str:
    """Return the step by which an output holds probabilities.

    Args:
        logits: The output, with the graph that computed it.

    Returns:
        What the network ends in, such as `Softmax` or, for logarithms of probabilities, `LogSoftmax`; empty
        where nothing speaks for probabilities.
    """
    kinds, logarithm = _last_steps(logits.grad_fn)
    named = {STEPS[kind] for kind in kinds if kind in STEPS}
    if named and all(kind in STEPS for kind in kinds):
        kind = min(named)
        # A sigmoid that is scaled or shifted beyond 0..1 may be meant as a soft bound of logits.
        if "igmoid" not in kind or kind.startswith("Log") or logarithm or _within_bounds(logits):
            return f"Log of {kind}" if logarithm else kind
    return BY_VALUE if _are_probabilities(logits) else ""


def _last_steps(end: Any) -> tuple[set[str], bool]:
    """Return the last steps that are not in `PASSING`, and whether logarithms come after them."""
    waiting, seen, kinds, logarithm = [end], set[Any](), set[str](), False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.name() == CONSTANT:
            continue
        seen.add(node)
        if node.name() in PASSING or node.name() in LOGARITHMS:
            logarithm = logarithm or node.name() in LOGARITHMS
            waiting += [inner for inner, _ in node.next_functions]
        else:
            kinds.add(node.name())
    return kinds, logarithm


def _within_bounds(logits: Tensor) -> bool:
    """Return whether all values lie in 0..1."""
    values = logits.detach()
    return bool(((values >= 0) & (values <= 1)).all())


def _are_probabilities(logits: Tensor) -> bool:
    """Return whether every row looks like probabilities: none negative, the sum 1 up to rounding."""
    values = logits.detach().float()
    return values.shape[1] > 1 and bool((values >= 0).all() and ((values.sum(1) - 1).abs() < 1e-3).all())
