"""Try torchdoctor on a zoo of networks: torchvision, timm, transformers, and nasty hand-made ones.

Each network goes, in a process of its own on one thread, through check_model, predict_logits, diagnose at
J = 0 and J = 10, treat, explain, find_causes and compare on a few random images. Its evidence is compared
with a plain autograd loop of this program: every value of every default layer at J = 0, and of the first one
at J = 10. The layer that differs most is named. Weights are new, but none is at the 0 or 1 that its maker
left it at, and batch-norms have statistics of such images: see `as_trained` and `with_statistics`.
Where they differ in float32, the comparison is made again in float64.
Outcomes: `works`; `refused` (an InputError that names what is the matter); `wrong` (a value differs from the
loop's, or check_model passes what a verb refuses); `crash` (any other error, or no time left).

    python -m benchmarks.zoo --quick --json          nine networks, under 4 minutes
    python -m benchmarks.zoo --out zoo.jsonl         all; what is in the file is not tried again
    python -m benchmarks.zoo --only 'timm:*' --out zoo.jsonl

Each line is {name, outcome, layer, layers, max_rel_error, seconds, message}; `seconds` are of processor time.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.study import json_lines
from benchmarks.zoo_networks import (
    QUICK,
    nasty_makers,
    network_of,
    sizes_to_try,
    timm_names,
    torchvision_names,
    transformers_makers,
    with_statistics,
)

AGREES = 1e-3  # largest difference from the loop, relative to the largest value, in float32
SECONDS = 240  # of processor time for one network
IMAGES, DRAWS = 3, 10
STATISTICS = 8  # images that the statistics of batch-norms come from
KEYS = ("name", "outcome", "layer", "layers", "max_rel_error", "seconds", "message")


def logits_in(output: Any) -> Tensor:
    """Return the logits of an output; one logit z stands for the two -z/2 and z/2."""
    if not isinstance(output, Tensor):
        parts = output if isinstance(output, tuple) else list(dict(output).values())
        output = parts[0]
    scores = output[:, None] if output.ndim == 1 else output
    return torch.cat([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores


def loop(
    network: nn.Module, layers: Sequence[str], image: Tensor, label: Tensor, noise: Tensor | None
) -> list[Tensor]:
    """Return abs(dy/dm) of layers' outputs for one image, by autograd alone.

    The image runs together with itself: PyTorch's derivative is wrong for some images alone.

    Args:
        network: The network, in evaluation mode.
        layers: Names of layers.
        image: The image.
        label: The category.
        noise: What is added to the output of the layer, a row for each draw, where there is one layer alone.

    Returns:
        By layer, the derivatives averaged over the rows.
    """
    kept: dict[str, Tensor] = {}
    rows = 2 if noise is None else len(noise)

    def keep(layer: str, output: Any) -> Any:
        parts = list(output) if isinstance(output, tuple) else [output]
        part = next(place for place, each in enumerate(parts) if each.ndim > 2 and len(each) == rows)
        value = parts[part] if noise is None else parts[part] + noise
        kept[layer] = value if value.requires_grad else value.detach().requires_grad_(True)
        parts[part] = kept[layer].clone()
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    handles = [
        network.get_submodule(layer).register_forward_hook(lambda _m, _i, out, layer=layer: keep(layer, out))
        for layer in layers
    ]
    scores = logits_in(network(image.expand(rows, *image.shape)))
    for handle in handles:
        handle.remove()
    slopes = torch.autograd.grad(scores[:, label].sum(), [kept[layer] for layer in layers])
    return [slope.abs().double().mean(0) for slope in slopes]


def noise_of(network: nn.Module, layer: Any, images: Tensor, number: int) -> Tensor:
    """Return the noise of all draws of one image, as a layer's output has it."""
    from torchdoctor.network.layouts import remembered
    from torchdoctor.network.taps import map_shapes
    from torchdoctor.randomness import uniform_noise

    shape = map_shapes(network, images, [layer.name])[layer.name]
    units = uniform_noise(
        torch.tensor([number]), range(DRAWS), shape, seed=0, layer=layer.name, dtype=images.dtype
    )
    layout = remembered(network.get_submodule(layer.name), (images.shape[-2], images.shape[-1]))
    noise = layer.delta * units[:, 0]
    return noise if layout is None else layout.write(noise)


def differences(
    diagnosis: Any, layers: Sequence[Any], network: nn.Module, images: Tensor, labels: Tensor
) -> Iterator[tuple[float, str]]:
    """Compare layers of a diagnosis with the loop; yield by how much each category differs, and the layer.

    The difference is relative to the largest value of the category.
    """
    by_layer: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        noise = noise_of(network, layers[0], images, number) if diagnosis.draws else None
        by_position = loop(network, list(by_layer), image, label, noise)
        for layer, slopes in zip(layers, by_position, strict=True):
            kernels = layer.correlation.shape[1]
            axis = 0 if slopes.ndim == 3 and slopes.shape[0] == kernels else slopes.ndim - 1
            by_layer[layer.name].append(slopes.sum([each for each in range(slopes.ndim) if each != axis]))
    for layer in layers:
        by_kernel = torch.stack(by_layer[layer.name])
        for category, chosen in enumerate(diagnosis.sifting.high):
            wanted = by_kernel[list(chosen)].mean(0).numpy() if len(chosen) else None
            if wanted is not None and wanted.any():
                off = abs(layer.correlation[category] - wanted).max() / abs(wanted).max()
                yield float(off), layer.name


def largest_difference(network: nn.Module, batch: Any) -> tuple[Any, float, str | None]:
    """Diagnose without and with noise; return the second diagnosis, its largest difference, and where."""
    import torchdoctor as td

    images, labels = batch.images, batch.labels
    clean, diagnosis = (
        td.diagnose(network, [batch], draws=draws, confidence=0.0, evidence="gradient")
        for draws in (0, DRAWS)
    )
    off = list(differences(clean, clean.layers, network, images, labels))
    off += differences(diagnosis, diagnosis.layers[:1], network, images, labels)
    return diagnosis, *max(off, default=(float("inf"), None))


def try_network(name: str, size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Try one network and return what came of it."""
    import torchdoctor as td
    from torchdoctor.network.prediction import predict_logits

    torch.manual_seed(0)
    network = network_of(name, settings).eval()
    dtype = next(network.parameters()).dtype
    tolerance = AGREES if dtype in (torch.float32, torch.float64) else 0.1
    images, passed = torch.randn(IMAGES, 3, size, size, dtype=dtype), False
    if not name.startswith("nasty:"):
        with_statistics(network, torch.randn(STATISTICS, 3, size, size, dtype=dtype))
    masks = torch.zeros(IMAGES, 1, size, size)
    masks[:, :, : size // 2] = 1
    ids, every = torch.arange(IMAGES), torch.ones(IMAGES, dtype=torch.bool)
    line: dict[str, Any] = {"layer": None, "layers": [], "max_rel_error": None, "message": ""}
    try:
        found = td.check_model(network, images[:2])
        passed = not any(each.level == "error" for each in found)
        line["message"] = "; ".join(each.message for each in found)[:300]
        if not passed:
            return {**line, "outcome": "refused"}
        with torch.no_grad():
            logits = logits_in(network(images))
        labels = logits.argmax(1)  # every image counts as right, so that all are measured
        batch = td.Batch(images, labels, ids, masks, every)
        if not torch.allclose(predict_logits(network, [batch])[2], logits.float(), rtol=tolerance, atol=1e-4):
            return {**line, "outcome": "wrong", "message": "predict_logits differs from the network"}
        diagnosis, error, line["layer"] = largest_difference(network, batch)
        line["layers"] = [layer.name for layer in diagnosis.layers]
        if error > tolerance and dtype == torch.float32:  # rounding, or a fault? In float64 a fault is left
            rounded, exact = error, copy.deepcopy(network).double()
            doubled = td.Batch(images.double(), labels, ids, masks.double(), every)
            error = largest_difference(exact, doubled)[1]
            line["message"] = f"differs by {rounded:.0e} in float32, by {error:.0e} in float64"
        line["max_rel_error"] = error
        treated = td.treat(
            network, [batch], diagnosis, constraints=["channel", "space"], recipe=td.Recipe(epochs=1), seeds=1
        )
        td.compare(network, treated, {"test": [batch]}, layers=line["layers"])
        td.explain(network, images[0], diagnosis, mask=masks[0])
        mistaken = td.Batch(images, (labels + (ids == 0)) % logits.shape[1], ids, masks, every)
        td.find_causes(network, [mistaken], diagnosis)
    except td.InputError as error:
        return {**line, "outcome": "wrong" if passed else "refused", "message": str(error)[:300]}
    except Exception as error:
        return {**line, "outcome": "crash", "message": f"{type(error).__name__}: {error}"[:300]}
    return {**line, "outcome": "works" if line["max_rel_error"] <= tolerance else "wrong"}


def try_at_a_size(name: str, size: int | None, settings: Mapping[str, Any], answer: Connection) -> None:
    """Try one network at the size given, or at the first that it takes, and send what came of it."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    warnings.simplefilter("ignore")
    for each in sizes_to_try(name) if size is None else ():
        try:
            with torch.no_grad():
                network = network_of(name, settings)
                images = torch.zeros(2, 3, each, each, dtype=next(network.parameters()).dtype)
                network.train()(images)  # a head beside the logits may need more space
                network.eval()(images)
        except Exception:  # the next size may do
            continue
        size = each
        break
    answer.send(try_network(name, size or 64, settings))


def in_own_process(label: str, name: str, size: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Try one network in a process of its own, which has this one's imports."""
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe(duplex=False)
    child = forked.Process(target=try_at_a_size, args=(name, size, settings, there))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child.start()
    there.close()
    line: dict[str, Any] = {"outcome": "crash", "layer": None, "layers": [], "max_rel_error": None}
    try:
        line = here.recv()
        child.join()
    except EOFError:
        child.join()
        ended = f"the process ended with {child.exitcode}"
        late = child.exitcode == -signal.SIGXCPU
        line["message"] = f"not done after {SECONDS} seconds of processor time" if late else ended
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"name": label, **line, "seconds": round(seconds, 1)}


def networks_to_try(quick: bool, only: str) -> Iterator[tuple[str, str, int | None, Mapping[str, Any]]]:
    """Yield the label, the name, the size of the images and the settings of each network."""
    if quick:
        yield from ((label, *parts) for label, parts in QUICK.items() if fnmatchcase(label, only))
        return
    sources = {
        "torchvision": torchvision_names,
        "timm": timm_names,
        "transformers": transformers_makers,
        "nasty": nasty_makers,
    }
    for source, names in sources.items():
        if source == only.partition(":")[0] or not only.startswith(tuple(sources)):
            yield from ((name, name, None, {}) for name in names() if fnmatchcase(name, only))


def main() -> None:
    """Read the command line and try the networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="nine networks only")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each network")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to add to; it is gone on with")
    parser.add_argument("--only", default="*", help="a pattern of names")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # small steps: a second thread costs more than it brings
    torch.set_num_threads(1)
    import timm  # noqa: F401  once here, not in every process
    import torchvision  # noqa: F401

    import torchdoctor  # noqa: F401

    done = {line["name"]: line for line in json_lines.read_finished(arguments.out)}
    outcomes: Counter[str] = Counter()
    for label, name, size, settings in networks_to_try(arguments.quick, arguments.only):
        line = done.get(label) or in_own_process(label, name, size, settings)
        if label not in done:
            json_lines.append(line, arguments.out)
        outcomes[line["outcome"]] += 1
        if arguments.json:
            print(json.dumps({key: line.get(key) for key in KEYS}))
        else:
            print(f"{line['name']:40} {line['outcome']:8} {line.get('layer')}  {line.get('message', '')}")
        sys.stdout.flush()
    if not arguments.json:
        print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main()
