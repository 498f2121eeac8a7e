"""Networks as users have them: outputs, wrappers, frozen and shared parts, and the battery of trials."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torchdoctor import Batch, InputError, check_model, compare, diagnose, explain, treat
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.evidence.per_image import clean_evidence
from torchdoctor.network.double_backward import fast_double_backward
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import find_layer, hooked
from torchdoctor.network.outputs import as_logits, auxiliary_logits, unwrap
from torchdoctor.treatment.recipe import Recipe


class Tiny(nn.Module):
    """Two convolutions and a linear head; `wrap` shapes what it returns."""

    def __init__(self, wrap=lambda logits: logits, inplace: bool = False) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 6, 3, padding=1)
        self.relu, self.fc, self.wrap = nn.ReLU(inplace=inplace), nn.Linear(6, 2), wrap

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.fc(self.relu(self.two(self.relu(self.one(images)))).mean((2, 3))))


@dataclass
class Answer:
    logits: Tensor
    features: Tensor | None = None


Named = namedtuple("Named", ["logits", "aux_logits"])


def tiny(**options: object) -> Tiny:
    """Return the same small network every time."""
    torch.manual_seed(0)
    return Tiny(**options)


def batches() -> list[Batch]:
    """Return two batches of images whose brightness is their category."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(8) % 2
    images = torch.randn(8, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    ids = torch.arange(8)
    return [Batch(images[:4], labels[:4], ids[:4]), Batch(images[4:], labels[4:], ids[4:])]


def diagnosed(model: nn.Module, layers: tuple[str, ...] = ("one", "two")):
    """Diagnose on the made-up images."""
    return diagnose(
        model, batches(), layers=layers, draws=2, settings=DiagnosisSettings(delta=0.1), confidence=0.0
    )


SHAPES = {
    "tuple": lambda logits: (logits, logits.sum()),
    "list": lambda logits: [logits],
    "dict": lambda logits: {"features": logits[:, :1], "logits": logits},
    "dict of one": lambda logits: {"anything": logits},
    "dataclass": lambda logits: Answer(logits),
    "named tuple": lambda logits: Named(logits, logits * 2),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_of_output_gives_the_same_diagnosis(kind):
    plain, wrapped = diagnosed(tiny()), diagnosed(tiny(wrap=SHAPES[kind]))
    for layer in plain.layers:
        np.testing.assert_array_equal(wrapped.layer(layer.name).correlation, layer.correlation)


ONE_SCORE = {
    "[N, 1]": lambda logits: logits[:, :1],
    "[N]": lambda logits: logits[:, 0],
    "squeezed": lambda logits: logits[:, :1].squeeze(),
    "tuple": lambda logits: (logits[:, 0], None),
    "tuple of [N, 1]": lambda logits: (logits[:, :1], None),
    "dict": lambda logits: {"loss": logits.sum(), "logits": logits[:, 0]},
    "dict of one": lambda logits: {"anything": logits[:, 0]},
}


@pytest.mark.parametrize("kind", ONE_SCORE)
def test_one_logit_of_each_image_tells_two_categories_apart(kind):
    both = lambda logits: torch.cat([-logits[:, :1] / 2, logits[:, :1] / 2], 1)  # noqa: E731
    plain, single = tiny(wrap=both), tiny(wrap=ONE_SCORE[kind])
    for images in (batches()[0].images, batches()[0].images[:1]):
        torch.testing.assert_close(as_logits(single(images)), plain(images))
    assert check_model(single, batches()[0].images[:2]) == ()
    wanted, found = diagnosed(plain), diagnosed(single)
    for layer in wanted.layers:
        np.testing.assert_array_equal(found.layer(layer.name).correlation, layer.correlation)
        assert layer.correlation.any()
    treated = treat(single, batches(), found, recipe=Recipe(epochs=1), seeds=1)
    compared = compare(single, treated, {"test": batches()}, layers=[layer.name for layer in found.layers])
    assert compared.splits
    assert explain(single, batches()[0].images[0], found).summed_map.shape == (8, 8)


def test_auxiliary_heads_are_told_from_the_logits():
    assert len(auxiliary_logits(Named(torch.zeros(2, 3), torch.ones(2, 3)))) == 1
    assert auxiliary_logits((torch.zeros(2, 3), torch.ones(2, 3))) == ()
    assert as_logits({"aux": torch.ones(2, 3), "main": torch.zeros(2, 3)}).sum() == 0


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(4, dtype=torch.int64), "int64, which are no logits: return the scores"),
        (torch.zeros(4, 2, 1, 1), r"\(4, 2, 1, 1\)"),
        ({"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)}, "a: shape"),
        ({}, "nothing in it"),
        (None, "NoneType"),
        ("logits", "str"),
    ],
)
def test_other_outputs_are_refused_with_what_was_found(output, said):
    with pytest.raises(InputError, match=said):
        as_logits(output)


def test_in_place_activations_equal_their_twins():
    plain, inside = diagnosed(tiny()), diagnosed(tiny(inplace=True))
    for layer in plain.layers:
        np.testing.assert_array_equal(inside.layer(layer.name).correlation, layer.correlation)


@pytest.mark.parametrize("wrapper", ["data parallel", "compiled", "compiled in place", "both"])
def test_wrappers_are_unwrapped(wrapper):
    model = tiny()
    wrapped: nn.Module = model
    if wrapper in ("data parallel", "both"):
        wrapped = nn.DataParallel(wrapped)
    if wrapper in ("compiled", "both"):
        wrapped = torch.compile(wrapped)
    if wrapper == "compiled in place":
        model.compile()
        wrapped = model
    plain, found = diagnosed(tiny()), diagnosed(wrapped)
    assert found.model_sha256 == plain.model_sha256
    np.testing.assert_array_equal(found.layers[0].correlation, plain.layers[0].correlation)
    recipe = Recipe(epochs=1, learning_rate=0.01)
    treatment = treat(wrapped, batches(), found, constraints=["channel"], seeds=1, recipe=recipe)
    assert set(treatment.arms[0].state) == set(tiny().state_dict())


def test_distributed_wrappers_are_unwrapped(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = tiny()
        assert unwrap(nn.parallel.DistributedDataParallel(model)) is model
        sharded = fully_shard(tiny(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match=r"sharded over processes \(FSDP: FSDPModule\)"):
            unwrap(sharded)
    finally:
        torch.distributed.destroy_process_group()


def test_partitioned_parameters_are_refused():
    model = tiny()
    next(model.parameters()).ds_id = 0  # as DeepSpeed marks a parameter of which a process holds a part
    with pytest.raises(InputError, match="DeepSpeed ZeRO-3"):
        unwrap(model)


class Int8Linear(nn.Linear):
    """Stands for a layer of a quantised package: known by where it comes from."""

    __module__ = "torch.ao.nn.quantized.modules.linear"


def test_what_has_no_derivatives_is_refused():
    example = torch.zeros(1, 3, 8, 8)
    for model, said in (
        (torch.jit.trace(tiny(), example), "scripted or traced"),
        (nn.Sequential(torch.jit.trace(tiny(), example)), "scripted or traced"),
        (nn.Sequential(Int8Linear(2, 2)), "quantised"),
        (nn.Sequential(nn.DataParallel(tiny())), "wrapped inside"),
        (tiny().to("meta"), "meta device"),
    ):
        with pytest.raises(InputError, match=said):
            diagnose(model, batches())
    with torch.inference_mode():
        made = tiny()
    with pytest.raises(InputError, match="inference_mode"):
        unwrap(made)


class Shared(nn.Module):
    """Calls one convolution twice, and has one that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.beside, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).relu()
        maps = self.twice(self.twice(maps).relu()).relu()
        self.beside(maps)
        return self.fc(maps.mean((2, 3)))


def test_layers_called_twice_or_beside_the_logits_are_named():
    torch.manual_seed(0)
    model = Shared()
    with pytest.raises(InputError, match="'twice' is called 2 times"):
        diagnosed(model, ("twice",))
    with pytest.raises(InputError, match="'beside' does not feed the logits"):
        diagnosed(model, ("beside",))
    found = {one.message for one in check_model(model, torch.randn(2, 3, 8, 8))}
    assert any("more than once" in text and "twice" in text for text in found)
    assert any("do not feed" in text and "beside" in text for text in found)
    assert all(layer.name == "stem" for layer in diagnose(model, batches(), draws=0, confidence=0.0).layers)


def test_frozen_parts_stay_and_fully_frozen_is_refused():
    model = tiny()
    for parameter in model.one.parameters():
        parameter.requires_grad_(False)
    diagnosis = diagnosed(model)
    recipe = Recipe(epochs=1, learning_rate=0.1)
    treatment = treat(model, batches(), diagnosis, constraints=["channel"], seeds=1, recipe=recipe)
    assert torch.equal(treatment.arm("treated", 0).state["one.weight"], model.one.weight)
    assert not torch.equal(treatment.arm("treated", 0).state["two.weight"], model.two.weight)
    assert [one.level for one in check_model(model, torch.randn(2, 3, 8, 8))] == ["warning"]
    model.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        treat(model, batches(), diagnosed(model), constraints=["channel"], seeds=1)


class Dropping(Tiny):
    """Forgets to switch dropout off."""

    def forward(self, images: Tensor) -> object:
        return super().forward(nn.functional.dropout(images, 0.5, training=True))


class Together(Tiny):
    """Normalises over the batch even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))


class SmallTogether(Tiny):
    """Takes the mean over the batch away, and has images change their logits little."""

    def forward(self, images: Tensor) -> object:
        maps = self.two(self.relu(self.one(images)))
        return 10 + self.fc((maps - 0.5 * maps.mean(0, keepdim=True)).mean((2, 3)))


class Overwritten(Tiny):
    """Changes in place what a derivative needs."""

    def forward(self, images: Tensor) -> object:
        maps = self.two(self.one(images).sigmoid())
        return self.fc(maps.sigmoid().mul_(2).mean((2, 3)))


class Rounded(torch.autograd.Function):
    """A custom operation without a second derivative."""

    @staticmethod
    def forward(context, maps):
        return maps * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient * 2


class Custom(Tiny):
    """Uses an operation that can be differentiated only once."""

    def forward(self, images: Tensor) -> object:
        maps = Rounded.apply(self.relu(self.two(self.relu(self.one(images)))))
        return self.fc((maps * maps).mean((2, 3)))


class Wrong(Tiny):
    """Fails in its forward pass."""

    def forward(self, images: Tensor) -> object:
        raise KeyError("no such thing")


class Changing(Tiny):
    """Gives other shapes in training."""

    def forward(self, images: Tensor) -> object:
        logits = super().forward(images)
        return torch.cat([logits, logits], 1) if self.training else logits


class Merged(Tiny):
    """Averages over the images of the batch."""

    def forward(self, images: Tensor) -> object:
        return super().forward(images).mean(0, keepdim=True)


def broken() -> nn.Module:
    """Return a network with a weight that is not a number."""
    model = tiny()
    with torch.no_grad():
        model.two.weight[0, 0, 0, 0] = torch.nan
    return model


def one_pixel() -> nn.Module:
    """Return a network whose last map is a single pixel."""
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


ZOO = {
    "sigmoid": (lambda: tiny(wrap=torch.sigmoid), "output", "error", "Sigmoid"),
    "softmax": (lambda: tiny(wrap=lambda x: x.softmax(1)), "output", "error", "Softmax"),
    "log-softmax": (lambda: tiny(wrap=lambda x: x.log_softmax(1)), "output", "warning", "LogSoftmax"),
    "dropout": (Dropping, "repeatable", "error", "different logits"),
    "batch statistics": (Together, "repeatable", "error", "others of its batch"),
    "small batch effect": (SmallTogether, "repeatable", "error", "others of its batch"),
    "overwritten": (Overwritten, "layers", "error", "a step in place"),
    "no convolution": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        "layers",
        "error",
        "no two-dim",
    ),
    "once differentiable": (Custom, "derivatives", "error", "once_differentiable"),
    "fails": (Wrong, "forward", "error", "KeyError"),
    "changing": (Changing, "training", "error", "evaluation mode"),
    "merged": (Merged, "forward", "error", "one row per image"),
    "not a number": (broken, "forward", "error", "not finite"),
    "one pixel": (one_pixel, "layers", "warning", "1 x 1"),
    "labels": (lambda: tiny(wrap=lambda x: x.argmax(1)), "forward", "error", "return the scores"),
    "one number": (lambda: tiny(wrap=lambda x: x.sum()), "forward", "error", "2 images gave 1 row of logits"),
    "squeezed": (lambda: tiny(wrap=torch.squeeze), "repeatable", "error", "1 image gave 2 rows.*squeeze(1)"),
    "frozen": (lambda: tiny().requires_grad_(False), "trainable", "error", "frozen"),
    "traced": (lambda: torch.jit.trace(tiny(), torch.zeros(2, 3, 8, 8)), "kind", "error", "traced"),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_battery_says_what_would_not_work(name):
    make, check, level, said = ZOO[name]
    torch.manual_seed(0)
    found = check_model(make(), torch.randn(2, 3, 8, 8))
    assert any(
        one.check == check and one.level == level and all(part in one.message for part in said.split(".*"))
        for one in found
    ), found


def test_the_battery_leaves_a_good_network_as_it_was():
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    assert check_model(model, torch.randn(2, 3, 8, 8)) == ()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


def test_the_verbs_refuse_what_the_battery_refuses(tmp_path, monkeypatch, capsys):
    from torchdoctor.cli.app import main

    (tmp_path / "mine_with_softmax.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*body, nn.Linear(4, num_classes), nn.Softmax(1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", "--model", "mine_with_softmax:net", "--data", "scenes", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["torchdoctor", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "ends in Softmax" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_what_is_cheap_to_derive_twice_gives_the_same_scores_and_derivatives(act, inplace):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias, 3.0)
    bare = nn.BatchNorm2d(4, affine=False)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, act(inplace=inplace), bare, act(inplace=inplace), nn.AdaptiveAvgPool2d(1)
    )
    model = model.double().eval()
    images = 4 * torch.randn(5, 3, 6, 6, dtype=torch.float64)

    def found():
        pixels = images.clone().requires_grad_(True)
        scores = model(pixels)
        (first,) = torch.autograd.grad((scores**2).sum(), [pixels], create_graph=True)
        parameters = list(model.parameters())
        second = torch.autograd.grad((first**3).sum(), parameters, allow_unused=True)
        return [scores, first, *(one for one in second if one is not None)]

    plain = found()
    with fast_double_backward(model):
        cheap = found()
    assert len(plain) == len(cheap) and all("forward" not in module.__dict__ for module in model.modules())
    for one, other in zip(plain, cheap, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_only_what_is_known_is_changed_to_be_derived_twice():
    import timm

    joined = timm.layers.BatchNormAct2d(4).eval()
    training, subclass = nn.BatchNorm2d(4).train(), type("Mine", (nn.ReLU,), {})()
    pool = nn.AdaptiveAvgPool2d((2, 1))
    model = nn.ModuleList(
        [joined, training, subclass, pool, nn.BatchNorm2d(4, track_running_stats=False).eval()]
    )
    with fast_double_backward(model):
        assert all("forward" not in module.__dict__ for module in model)


def test_a_frozen_network_is_one_only_inside_its_block():
    model = tiny().train()
    model.one.weight.requires_grad_(False)
    images = torch.randn(2, 3, 8, 8)
    with frozen_eval(model) as frozen:
        assert frozen.model is model and not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(frozen.logits(images), model(images))
        with frozen_eval(model) as again:
            assert again.logits(images).shape == (2, 2)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["one.weight"]
    for leftover in (frozen, again):
        with pytest.raises(RuntimeError, match="no longer frozen: use a FrozenModel inside the"):
            leftover.logits(images)
    with pytest.raises(RuntimeError, match="no longer frozen"):
        clean_evidence(frozen, images, None, ["one"], "gradient")


def test_a_network_is_put_back_where_the_block_raises():
    model = tiny().train()
    with pytest.raises(ZeroDivisionError), frozen_eval(model):
        raise ZeroDivisionError
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_are_removed_however_the_block_ends(kind):
    model = tiny()
    calls = []

    def hooks(names):
        for name in names:
            yield find_layer(model, name), lambda *given, name=name: calls.append((name, len(given)))

    def left():
        return [one for one in model.modules() if one._forward_hooks or one._forward_pre_hooks]

    with hooked(hooks(["one", "two"]), kind):
        model(torch.randn(2, 3, 8, 8))
    assert calls == [(name, 3 if kind == "forward" else 2) for name in ("one", "two")] and left() == []
    with pytest.raises(ZeroDivisionError), hooked(hooks(["one", "two"]), kind):
        raise ZeroDivisionError
    assert left() == []
    with (
        pytest.raises(InputError, match="layer 'nowhere' is not in"),
        hooked(hooks(["one", "nowhere"]), kind),
    ):
        raise AssertionError
    assert left() == []
