"""Average the weights of a training's steps, all alike or with the latest weighing most."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged_model(model: nn.Module, decay: float | None) -> AveragedModel:
    """Return what keeps the average of a network's weights and of its batch-norm statistics.

    Args:
        model: The network.
        decay: What each step leaves of the average before it, 0..1; less in the first steps, where the
            average is young (of `n` steps at most (1 + n) / (10 + n)). None: all steps weigh the same.

    Returns:
        The average, which is empty so far.
    """

    def update(means: Tensors, values: Tensors, count: Tensor | int) -> None:
        if not means[0].is_floating_point():  # batch-norm's counters
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)
        elif decay is None:
            get_swa_multi_avg_fn()(means, values, int(count))
        else:
            steps = int(count)
            get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(means, values, steps)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
