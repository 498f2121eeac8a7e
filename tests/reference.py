"""Eq. 2-7 once more, as slowly and as plainly as they can be written: one image, one draw, one pass."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from torchdoctor.randomness import uniform_noise


def logits_with_noise(model, image, layer, sigma):
    """Run one image through the whole network with sigma added to the layer's map; return (logits, map)."""
    kept = []

    def add(_module, _inputs, output):
        kept.append((output + sigma) if sigma is not None else output.clone())
        if not kept[0].requires_grad:
            kept[0].requires_grad_(True)
        return kept[0].clone()

    handle = model.get_submodule(layer).register_forward_hook(add)
    try:
        return model(image[None])[0], kept[0]
    finally:
        handle.remove()


def sigma_of(image_id, draw, shape, delta, *, seed, layer, stream="diagnosis", step=0, dtype=torch.float64):
    """Return draw number `draw` of one image's noise, from the same keys as the library."""
    ids = torch.tensor([image_id])
    unit = uniform_noise(
        ids, range(draw, draw + 1), shape, seed=seed, layer=layer, stream=stream, step=step, dtype=dtype
    )
    return delta * unit[0]


def evidence_map(model, image, layer, category, sigma, kind, create_graph=False):
    """Return abs(dy/dm) or abs(m dy/dm) of one image and one category: [kernel, height, width] (Eq. 2)."""
    logits, noisy = logits_with_noise(model, image, layer, sigma)
    (gradient,) = torch.autograd.grad(logits[category], noisy, create_graph=create_graph)
    if kind == "gradient_x_activation":
        return (noisy * gradient).abs()[0]
    return gradient.abs()[0]


def correlation(model, images, ids, labels, layer, shape, *, delta, draws, seed, kind, categories):
    """Return a[c][k] of Eq. 4 (Eq. 3 for draws = 0): loops over images, draws and kernels."""
    table = torch.zeros(categories, shape[0], dtype=torch.float64)
    counts = [0] * categories
    for image, image_id, label in zip(images, ids, labels, strict=True):
        counts[label] += 1
        for draw in range(max(draws, 1)):
            sigma = None
            if draws:
                sigma = sigma_of(image_id, draw, shape, delta, seed=seed, layer=layer)
            found = evidence_map(model, image, layer, label, sigma, kind)
            for kernel in range(shape[0]):
                table[label, kernel] += found[kernel].sum().item() / max(draws, 1)
    for category in range(categories):
        if counts[category]:
            table[category] /= counts[category]
    return table


def grown_background(mask, size, pixels):
    """Grow the object by `pixels` in every direction, average its area per map cell, return 1 - that."""
    height, width = mask.shape
    grown = torch.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            window = mask[max(0, y - pixels) : y + pixels + 1, max(0, x - pixels) : x + pixels + 1]
            grown[y, x] = window.max()
    result = torch.zeros(size, dtype=mask.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            top, bottom = i * height // size[0], math.ceil((i + 1) * height / size[0])
            left, right = j * width // size[1], math.ceil((j + 1) * width / size[1])
            result[i, j] = 1 - grown[top:bottom, left:right].mean()
    return result


def penalty(
    model,
    image,
    image_id,
    label,
    layer,
    shape,
    *,
    which,
    correlated,
    diagnosed=(True, True, True, True),
    mask=None,
    pixels=0,
    delta=0.0,
    draws=0,
    reduce="mean",
    seed=0,
    step=0,
    kind="gradient",
    scale="none",
    targets="prediction",
):
    """Return Eq. 5 (`channel`) or Eq. 6 (`space`) of one image at one layer."""
    with torch.no_grad():
        clean = model(image[None])[0]
    order = clean.argsort(descending=True).tolist()
    if targets == "prediction":
        first, second = order[0], order[1]
    else:
        first = label
        second = next(category for category in order if category != label)
    value, total = 0.0, 0.0
    for draw in range(max(draws, 1)):
        sigma = None
        if draws:
            sigma = sigma_of(
                image_id, draw, shape, delta, seed=seed, layer=layer, stream="treatment", step=step
            )
        mine = evidence_map(model, image, layer, first, sigma, kind, create_graph=True)
        if which == "space":
            if mask is not None:
                value = value + (grown_background(mask, shape[1:], pixels) * mine).sum()
            total = total + mine.sum()
            continue
        other = evidence_map(model, image, layer, second, sigma, kind, create_graph=True)
        for kernel in range(shape[0]):
            if diagnosed[first] and not correlated[first][kernel]:
                value = value + mine[kernel].sum()
            value = value + other[kernel].sum()
        total = total + mine.sum() + other.sum()
    if reduce == "mean" or scale == "share":
        value, total = value / max(draws, 1), total / max(draws, 1)
    if scale == "share":
        value = value / total if float(total) > 0 else 0.0 * total
    return value


def literal_penalties(model, batch, layer, names, *, correlated, delta, draws, pixels, seed, step):
    """Return {name: mean penalty} of one layer, scaled by share, as the equations read: J forward passes.

    A batch at a time, nothing shared: a clean pass chooses n and s, then each draw runs the whole network
    again and differentiates y_n and y_s. `pixels` grow the object; `names` are channel and space.
    """
    with torch.no_grad():
        best = model(batch.images).topk(2, dim=1).indices
    outside = torch.zeros(())
    sums = {}
    for draw in range(max(draws, 1)):
        kept = []

        def add(_module, _inputs, output, draw=draw, kept=kept):
            sigma = torch.zeros_like(output)
            if draws:
                shape = tuple(output.shape[1:])
                sigma = delta * uniform_noise(
                    batch.ids, range(draw, draw + 1), shape, seed=seed, layer=layer, stream="treatment",
                    step=step, dtype=output.dtype,
                )[0]  # fmt: skip
            kept.append((output + sigma).requires_grad_(True))
            return kept[0].clone()

        handle = model.get_submodule(layer).register_forward_hook(add)
        logits = model(batch.images)
        handle.remove()
        noisy = kept[0]
        scores = [logits.gather(1, best[:, [place]]).sum() for place in (0, 1)]
        mine, other = (
            (noisy * torch.autograd.grad(score, noisy, create_graph=True, retain_graph=True)[0]).abs()
            for score in scores
        )
        grown = functional.max_pool2d(batch.masks, 2 * pixels + 1, stride=1, padding=pixels)
        outside = 1 - functional.adaptive_avg_pool2d(grown, noisy.shape[-2:])
        wrong = (~correlated[best[:, 0]]).to(noisy)
        parts = {
            "channel": (mine.sum((2, 3)) * wrong).sum(1) + other.sum((1, 2, 3)),
            "channel total": mine.sum((1, 2, 3)) + other.sum((1, 2, 3)),
            "space": (mine * outside).sum((1, 2, 3)) * batch.annotated.to(noisy),
            "space total": mine.sum((1, 2, 3)),
        }
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: (sums[name] / sums[f"{name} total"]).mean() for name in names}


def total_loss(model, images, labels, weighted_penalties):
    """Return Eq. 7: the original loss plus weight times the batch's mean penalty, term by term."""
    loss = functional.cross_entropy(model(images), labels)
    for weight, values in weighted_penalties:
        loss = loss + weight * sum(values) / len(values)
    return loss


class TinyNet(nn.Module):
    """Three convolutions with batch-norm, in float64: `activation` is nn.ReLU or nn.SiLU."""

    def __init__(self, activation=nn.ReLU, categories=4, channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 5, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 7, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, categories)
        self.activation = activation()

    def forward(self, images):
        maps = self.activation(self.bn1(self.conv1(images)))
        maps = self.activation(self.bn2(self.conv2(maps)))
        maps = self.activation(self.bn3(self.conv3(maps)))
        return self.fc(maps.mean((2, 3)))


def tiny_net(activation=nn.ReLU, categories=4, channels=1, seed=0):
    """Return a TinyNet with random weights and batch-norm statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = TinyNet(activation, categories, channels).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
    model.eval()
    with torch.no_grad():
        model.fc.weight.mul_(40)
        model.fc.bias.sub_(model(torch.rand(64, channels, 8, 8, dtype=torch.float64)).mean(0))
    return model
