"""Hold a network in evaluation mode, with its parameters fixed, for as long as it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float, Num
from torch import Tensor, nn

from torchdoctor.network.kept_tensors import without_kept_tensors
from torchdoctor.network.outputs import as_logits, one_row_each
from torchdoctor.network.workarounds import right_derivatives


@dataclass(eq=False)
class FrozenModel:
    """A network in evaluation mode whose parameters ask for no gradient.

    Only `frozen_eval` makes such an object, and it ends with that block. A function that needs the
    network in this state takes a `FrozenModel` instead of an `nn.Module`, so that nobody can call it with a
    network in another state.
    """

    _network: nn.Module
    _open: bool = field(default=True, init=False)

    @property
    def model(self) -> nn.Module:
        """The network itself.

        Raises:
            RuntimeError: The block of `frozen_eval` has ended, and the network is no longer frozen.
        """
        if not self._open:
            raise RuntimeError(
                f"this {type(self._network).__name__} is no longer frozen: use a FrozenModel inside the "
                "`with frozen_eval(...)` block that made it"
            )
        return self._network

    def logits(self, images: Num[Tensor, "batch channel height width"]) -> Float[Tensor, "batch category"]:
        """Run the network once.

        Args:
            images: Normalised images, on the network's device and in its floating type.

        Returns:
            The logits.

        Raises:
            InputError: The network returned something that holds no logits, or not one row for each image.
        """
        logits = as_logits(self.model(images))
        one_row_each(logits, len(images))
        return logits


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[FrozenModel]:
    """Put a network into evaluation mode and fix its parameters; put both back after the block.

    Inside the block `right_derivatives` and `without_kept_tensors` hold.

    Args:
        model: The network. Each module's mode and each parameter's `requires_grad` are restored, even if the
            block raises.

    Yields:
        The network in this state, for the functions that ask for it.
    """
    training = {module: module.training for module in model.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    frozen = FrozenModel(model)
    try:
        model.eval()
        for parameter in requires_grad:
            parameter.requires_grad_(False)
        with without_kept_tensors(model), right_derivatives():
            yield frozen
    finally:
        frozen._open = False
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)
