"""Keep, of each image that goes through a network, a few maps averaged over their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.display.counts import count_of
from torchdoctor.images.batches import Batch, sent
from torchdoctor.network.default_layers import default_layers
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import Hook, find_layer, hooked
from torchdoctor.network.layers import chosen_layers
from torchdoctor.network.layouts import Layout, held_in, remembered
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.network.taps import find_layouts
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

STAGES = 2  # how many sizes of maps are kept where nobody names layers


@dataclass(frozen=True)
class Places:
    """Where a network is listened to.

    Attributes:
        layers: Names of layers whose outputs are kept.
        linear: The name of the linear layer that gives the logits, whose input is kept; None: nothing.
        layouts: How outputs that are no maps as they are hold them, by the layer's name.
    """

    layers: tuple[str, ...]
    linear: str | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)


@dataclass
class Pooled:
    """What was kept of the images that went through a network.

    Attributes:
        places: Where it was listened to.
        kept: By place, the averaged maps of each batch.
    """

    places: Places
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def take(self) -> dict[str, list[Tensor]]:
        """Return what was kept since the last call, and keep it no longer.

        Returns:
            By place, the averaged maps of each batch.
        """
        taken = dict(self.kept)
        self.kept.clear()
        return taken

    def add(self, taken: Mapping[str, list[Tensor]]) -> None:
        """Keep what `take` returned, in this process or in another.

        Args:
            taken: By place, the averaged maps of each batch.
        """
        for name, parts in taken.items():
            self.kept.setdefault(name, []).extend(parts)

    def features(self, images: int) -> Float[Tensor, "image feature"]:
        """Return what was kept of each image, side by side, in the order in which the images came.

        Args:
            images: How many images went through the network.

        Returns:
            The features on the CPU, in float32.

        Raises:
            InputError: A layer was not called exactly once in a forward pass.
        """
        for name, parts in self.kept.items():
            if sum(map(len, parts)) != images:
                raise InputError(
                    f"layer {name!r} gave {count_of(sum(map(len, parts)), 'row')} for "
                    f"{count_of(images, 'image')}; expected one for "
                    "each: choose a layer that is called once in a forward pass"
                )
        return torch.cat([torch.cat(parts) for parts in self.kept.values()], dim=1)


def places_of(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    wanted: Sequence[str] | None = None,
) -> Places:
    """Choose where a network is listened to.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        wanted: Names and patterns of layers (see `chosen_layers`); None: the last convolutions of the last
            two sizes of maps, if there are convolutions, and the input of the linear layer that gives the
            logits.

    Returns:
        The places.

    Raises:
        InputError: A wanted layer is not there; or none is named, and the network has neither a convolution
            that can be used nor a linear layer that gives the logits.
    """
    if wanted is not None:
        layers = chosen_layers(model, images, wanted)
        return Places(layers, None, _layouts(model, images, layers))
    linear = _last_linear(model, images)
    try:
        layers = default_layers(model, images, STAGES)
        return Places(layers, linear, _layouts(model, images, layers))
    except InputError as error:
        if linear is None:
            raise InputError(
                f"{error}. No linear layer gives its logits either: name layers whose outputs tell the "
                "categories apart"
            ) from error
    return Places((), linear)


def _layouts(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Layout]:
    """Return how outputs that are no maps as they are hold them."""
    find_layouts(model, images, layers)
    size = (images.shape[-2], images.shape[-1])
    found = {name: remembered(find_layer(model, name), size) for name in layers}
    return {name: layout for name, layout in found.items() if layout and (layout.shape or layout.part)}


def _last_linear(model: nn.Module, images: Tensor) -> str | None:
    """Return the name of the linear layer that gives the logits; None where there is none."""
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name
    }
    called: list[tuple[str, torch.Size]] = []

    def remember(module: nn.Module, _inputs: object, output: Tensor) -> None:
        called.append((names[module], output.shape))

    with (
        hooked((module, remember) for module in names),
        frozen_eval(model) as frozen,
        torch.inference_mode(),
    ):
        logits = frozen.logits(images[:1])
    return next((name for name, shape in reversed(called) if shape == logits.shape), None)


def logits_and_pooled(
    model: nn.Module,
    images: Iterable[Batch],
    places: Places,
    *,
    categories: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "image feature"]]:
    """Run images through a network, and keep what it says and the averaged maps.

    Args:
        model: The network; it is left as it was.
        images: Batches of normalised images.
        places: Where the network is listened to.
        categories: How many zeros stand for the logits of each image, where those of the network are of other
            categories; None: its own logits.
        progress: Called with the number of images done.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        Ids, labels, logits and features of the images, in the order of `images`.

    Raises:
        InputError: There is no image, an id comes twice, or a label has no logit.
    """
    device, dtype, done = device_of(model), dtype_of(model), 0
    with frozen_eval(model) as frozen, pooling(model, places) as pooled:

        def run(batch: Batch) -> tuple[Tensor, tuple[int, dict[str, list[Tensor]]]]:
            logits = frozen.logits(sent(batch.images, device, dtype))
            given = logits if categories is None else torch.zeros(len(batch.ids), categories)
            return given, (len(batch.ids), pooled.take())

        def keep(taken: tuple[int, dict[str, list[Tensor]]]) -> None:
            nonlocal done
            done += taken[0]
            pooled.add(taken[1])
            progress(done)

        ids, labels, logits = predict_logits(model, images, run, keep, processes)
    return ids, labels, logits, pooled.features(len(ids))


@contextmanager
def pooling(model: nn.Module, places: Places) -> Iterator[Pooled]:
    """Keep, inside the block, the averaged maps of every image that goes through a network.

    Args:
        model: The network.
        places: Where it is listened to.

    Yields:
        What was kept so far.

    Raises:
        InputError: A layer does not exist, or (during a forward pass) its output cannot be averaged.
    """
    pooled = Pooled(places)

    def keep(name: str, value: object, channels_last: bool) -> None:
        if not isinstance(value, Tensor) or not 2 <= value.ndim <= 4:
            raise InputError(
                f"layer {name!r} gives {tuple(value.shape) if isinstance(value, Tensor) else type(value)}; "
                "expected features [batch, channel], tokens [batch, token, channel] or a map [batch, "
                "channel, height, width]: choose another layer"
            )
        if value.ndim == 4 and not channels_last:
            value = value.mean((2, 3))
        elif value.ndim > 2:
            value = value.flatten(1, -2).mean(1)
        pooled.kept.setdefault(name, []).append(value.detach().float().cpu())

    def after(name: str) -> Hook:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            layout = places.layouts.get(name)
            value = held_in(output, layout.part if layout else 0)
            if layout and isinstance(value, Tensor):
                value = layout.read(value)
            keep(name, value, False)

        return hook

    def before(name: str) -> Hook:
        return lambda _module, inputs: keep(f"{name} (input)", inputs[0], True)

    linear = [] if places.linear is None else [places.linear]
    with (
        hooked((find_layer(model, name), after(name)) for name in places.layers),
        hooked([(find_layer(model, name), before(name)) for name in linear], "forward_pre"),
    ):
        yield pooled
