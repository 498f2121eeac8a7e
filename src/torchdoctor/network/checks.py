"""Try a network out: what of a diagnosis and a treatment would not work on it, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.network.candidates import candidate_layers
from torchdoctor.network.copying import copy_of, flaw_of_copy
from torchdoctor.network.default_layers import default_layers
from torchdoctor.network.derivative_trial import Level, Messages, try_derivatives
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import hooked
from torchdoctor.network.outputs import as_logits, one_row_each, unwrap
from torchdoctor.network.prediction import dtype_of
from torchdoctor.network.probabilities import probabilities_in
from torchdoctor.network.repeat_trial import try_again
from torchdoctor.network.taps import map_shapes, run_tapped
from torchdoctor.types import InputError, first_line


@dataclass(frozen=True)
class Finding:
    """One result of trying a network out.

    Attributes:
        level: `error`: a diagnosis or a treatment would fail. `warning`: it would run, but its results mean
            less, for the reason given.
        check: The name of the trial: a key of `TRIALS`, or `kind` where the network cannot be used at all.
        message: One sentence: what is the matter, and what to do.
    """

    level: Level
    check: str
    message: str


def check_model(
    model: nn.Module,
    example: Num[Tensor, "batch channel height width"],
    layers: Sequence[str] | None = None,
) -> tuple[Finding, ...]:
    """Try on a few images what diagnosis and treatment do to a network.

    Nothing is raised: whatever fails becomes a finding.

    Args:
        model: The network; it is left as it was.
        example: Two or more normalised images, as the network takes them.
        layers: Names of the layers to be constrained; None: the default ones.

    Returns:
        The problems, in the order of the trials. Empty: everything works.

    Example:
        >>> import torch
        >>> from torchdoctor import check_model
        >>> images = torch.rand(2, 3, 8, 8)
        >>> without_convolutions = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        >>> finding = check_model(without_convolutions, images)[0]
        >>> finding.level, finding.check
        ('error', 'layers')
        >>> convolution = torch.nn.Conv2d(3, 4, 3)
        >>> tail = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)]
        >>> check_model(torch.nn.Sequential(convolution, torch.nn.ReLU(), *tail), images)
        ()
    """
    return try_out(model, example, layers, tuple(TRIALS))


def try_out(
    model: nn.Module,
    example: Num[Tensor, "batch channel height width"],
    layers: Sequence[str] | None,
    trials: Sequence[str],
) -> tuple[Finding, ...]:
    """Run some of the trials of `check_model`.

    Args:
        model: As in `check_model`.
        example: As in `check_model`.
        layers: As in `check_model`.
        trials: Names of trials, in the order to run them.

    Returns:
        As `check_model`.
    """
    try:
        plain = copy_of(unwrap(model)).eval()
        if example.is_floating_point():  # as every verb does
            example = example.to(dtype_of(plain))
        flaw = flaw_of_copy(unwrap(model), plain, example)
    except Exception as error:  # an odd module can fail in any way, and each is worth reporting
        return (Finding("error", "kind", _first_line(error)),)
    if flaw is not None:
        return (Finding("error", "kind", flaw),)
    findings: list[Finding] = []
    for name in trials:
        trial = TRIALS[name]
        try:
            findings += [Finding(level, name, text) for level, text in trial(plain, example, layers)]
        except Exception as error:
            findings.append(Finding("error", name, _first_line(error)))
        if name in NEEDED and any(finding.level == "error" for finding in findings):
            break
    return tuple(findings)


def gives_live_maps(
    model: nn.Module, example: Num[Tensor, "batch channel height width"], layers: Sequence[str]
) -> bool:
    """Whether one forward pass gives finite logits and, at every layer, a finite map that is not all 0.

    Enough for a network whose structure is known to pass `check_model`: only its weights can be at fault.

    Args:
        model: The network; it is left as it was.
        example: A few images as the network takes them.
        layers: The layers to look at.

    Returns:
        False where a value is not finite, or a layer's map is 0 everywhere.

    Raises:
        InputError: If a layer is not there, has no 4-dimensional map, or is not called exactly once.
    """
    alive: list[Tensor] = []

    def look(output: Tensor) -> Tensor:
        alive.append(torch.isfinite(output).all() & (output != 0).any())
        return output

    with frozen_eval(model), torch.no_grad():
        logits = run_tapped(model, example, dict.fromkeys(layers, look))
    return bool(torch.isfinite(logits).all()) and all(bool(each) for each in alive)


OVERWRITTEN = "modified by an inplace operation"  # PyTorch's words


def _first_line(error: Exception) -> str:
    """Return the first line of an error, with its kind where it is not ours."""
    first, kind = first_line(error), type(error).__name__
    if OVERWRITTEN in first:
        return (
            "a step in place (such as relu_ or +=) overwrites numbers that a derivative needs: PyTorch can "
            "neither differentiate nor train this network. Write x = x + y, without the _: "
            f"{first}"
        )
    return first if isinstance(error, InputError) or first.startswith(kind) else f"{kind}: {first}"


def _forward(model: nn.Module, example: Tensor, _layers: Sequence[str] | None) -> Messages:
    """Run in evaluation mode: logits, finite, one row per image."""
    given = example.clone()
    with torch.no_grad():
        logits = as_logits(model(given))
    if not bool(((given == example) | example.isnan()).all()):
        yield (
            "error",
            "forward changes the images that it is given, in place (such as x.mul_(2) or x -= mean): whoever "
            "hands them in would see other images. Write x = x * 2",
        )
    one_row_each(logits, len(example))
    if not bool(torch.isfinite(logits).all()):
        yield "error", "the logits are not finite: the weights or the preprocessing are broken"


def _output(model: nn.Module, example: Tensor, _layers: Sequence[str] | None) -> Messages:
    """Look for probabilities where logits are expected."""
    with torch.enable_grad():
        given = example.clone()
        logits = as_logits(model(given.requires_grad_(True) if given.is_floating_point() else given))
    if logits.shape[1] == 2 and bool((logits.sum(1) == 0).all()):  # made of one score
        logits = 2 * logits[:, 1:]
    kind = probabilities_in(logits)
    if kind:
        level: Level = "warning" if kind.startswith("Log") else "error"
        yield (
            level,
            (
                f"the model ends in {kind}: cross-entropy expects logits, and the derivatives of saturated "
                "probabilities vanish. Leave the last activation out"
            ),
        )


def _usable_layers(model: nn.Module, example: Tensor, layers: Sequence[str] | None) -> Messages:
    """Look for layers to constrain, and check those asked for."""
    chosen = tuple(layers) if layers else default_layers(model, example)
    shapes = map_shapes(model, example, chosen)
    called = _calls(model, example)
    twice = [name for name, number in called.items() if number > 1]
    if twice:
        yield "warning", f"called more than once and therefore no candidates: {', '.join(twice[:5])}"
    known = {candidate.name for candidate in candidate_layers(model, example)}
    beside = [name for name, number in called.items() if number == 1 and name not in known]
    if beside:
        yield "warning", f"do not feed the logits and are no candidates: {', '.join(beside[:5])}"
    flat = [name for name in chosen if shapes[name][1] * shapes[name][2] == 1]
    if flat:
        yield (
            "warning",
            f"a map of 1 x 1 has no background, space-wise constraints see nothing: {', '.join(flat)}",
        )


def _calls(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Count the calls of every convolution in one forward pass."""
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    counts = dict.fromkeys(convolutions, 0)

    def counting(name: str) -> Callable[..., None]:
        def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            # One of windows or heads in place of images is no layer of the image, and not missed.
            counts[name] += len(output) == 1

        return count

    with hooked((module, counting(name)) for name, module in convolutions.items()), torch.no_grad():
        model(example[:1])
    return counts


def _trainable(model: nn.Module, _example: Tensor, _layers: Sequence[str] | None) -> Messages:
    """Count the trainable parameters."""
    parameters = list(model.parameters())
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        yield (
            "warning",
            "weights in float16 can be diagnosed, but in training losses and penalties overflow: give "
            "model.float(), and compute in half precision by --precision fp16 or bf16",
        )
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if frozen == len(parameters):
        yield "error", "no parameter is trainable (all are frozen): nothing could change"
    elif frozen:
        yield (
            "warning",
            f"{frozen} of {len(parameters)} parameters {'is' if frozen == 1 else 'are'} frozen and "
            f"{'stays as it is' if frozen == 1 else 'stay as they are'}",
        )


def _training(model: nn.Module, example: Tensor, _layers: Sequence[str] | None) -> Messages:
    """Take one step in training mode, on a copy."""
    own = copy_of(model).train()
    logits = as_logits(own(example))
    if logits.requires_grad:
        torch.nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    else:
        yield (
            "error",
            "training would change nothing: no derivative leads from the logits to a parameter (is forward "
            "run under torch.no_grad or torch.inference_mode, or are the logits detached?). Leave that out",
        )
    with frozen_eval(model) as frozen:
        before = frozen.logits(example).shape
    if logits.shape != before:
        yield "error", f"training mode gives {tuple(logits.shape)}, evaluation mode {tuple(before)}"


TRIALS: dict[str, Callable[[nn.Module, Tensor, Sequence[str] | None], Messages]] = {
    "forward": _forward,
    "output": _output,
    "repeatable": try_again,
    "layers": _usable_layers,
    "trainable": _trainable,
    "derivatives": try_derivatives,
    "training": _training,
}
TO_TRAIN = ("forward", "output", "repeatable", "trainable", "training")  # what plain training needs
NEEDED = ("forward", "layers", "trainable")  # a failure here makes the trials after it meaningless
