"""Work around derivatives that PyTorch computes wrongly, or does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor
from torch.backends import mha
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch.utils.checkpoint looks up when a checkpointed function runs, by PyTorch's version.
_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
_batch_norm = functional.batch_norm


@contextmanager
def right_derivatives() -> Iterator[None]:
    """Make first derivatives right, inside the block, where PyTorch's own are not.

    - The derivative of batch-norm in evaluation mode is wrong where memory lies as in channels-last, and a
      single image or a map with a side of 1 does not tell so: both the map and what comes back are put in
      order.
    - Checkpointing of activations runs modules a second time during the backward pass, where hooks see them
      again, and its older kind cannot be differentiated by maps at all: checkpointed functions run plainly.
    - The fast path of `nn.MultiheadAttention` has no derivatives: the module runs as it does in training.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(_replaced(functional, "batch_norm", _batch_norm_in_order))
        stack.enter_context(_replaced(checkpointing, "CheckpointFunction", _Plainly))
        for name in _GENERATORS:
            if hasattr(checkpointing, name):
                stack.enter_context(_replaced(checkpointing, name, _nothing_before_and_after))
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        yield


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Make what runs inside the block twice differentiable, where PyTorch has another way to compute it.

    Attention runs by PyTorch's plain kernel (the fused ones have no second derivative), and hard sigmoids
    through ReLU6. What `right_derivatives` does holds too.

    Yields:
        Nothing.
    """
    with (
        right_derivatives(),
        _replaced(functional, "hardsigmoid", _hard_sigmoid),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, stand_in: object) -> Iterator[None]:
    """Let a name of a PyTorch module mean something else inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _batch_norm_in_order(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `torch.nn.functional.batch_norm` gives; its parameters have that function's names."""
    unequivocal = len(input) > 1 and all(side > 1 for side in input.shape[2:])
    if training or running_mean is None or not torch.is_grad_enabled() or unequivocal:
        return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # PyTorch's derivative is right where the map and what comes back both lie in memory in their order:
    # `flatten` puts what comes back in order.
    maps = _batch_norm(input.contiguous(), running_mean, running_var, weight, bias, False, momentum, eps)
    return maps.flatten().view(input.shape)


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return what `torch.nn.functional.hardsigmoid` gives, up to rounding, in a new tensor."""
    del inplace
    return functional.relu6(input + 3) / 6


class _Plainly:
    """Stands in for the autograd function of re-entrant checkpointing."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve_random_state: bool, *args: Any) -> Any:
        """Run the checkpointed function without checkpointing."""
        return function(*args)


def _nothing_before_and_after(*_args: object, **_kwargs: object) -> Iterator[None]:
    """Stand in for what non-re-entrant checkpointing does before and after the function."""
    yield
