"""Networks with fused attention, hard sigmoids, checkpointing, kept tensors give what plain ones give."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import re
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torchvision.models import densenet

from pictures import write_split
from torchdoctor import Batch, InputError, Recipe, check_model, compare, default_layers, diagnose, treat
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import prepare
from torchdoctor.evidence.per_image import clean_evidence
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.state import load_state
from torchdoctor.network.workarounds import right_derivatives, second_derivatives
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.penalties import penalise


def block(inside, outside):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU())


class Net(nn.Module):
    """Three blocks; what stands between the second and the third is another in each kind."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.a, self.b, self.c = block(3, 6), block(6, 8), block(8, 8)
        self.fc = nn.Linear(8, num_classes)

    def between(self, maps):
        return maps

    def last(self, maps):
        return self.c(maps)

    def forward(self, images):
        return self.fc(self.last(self.between(self.b(self.a(images)))).mean((2, 3)))


class HardSigmoid(Net):
    def between(self, maps):
        return maps * functional.hardsigmoid(maps.mean((2, 3), keepdim=True))


class HardSigmoidModule(Net):
    def __init__(self):
        super().__init__()
        self.gate = nn.Hardsigmoid()

    def between(self, maps):
        return maps * self.gate(maps.mean((2, 3), keepdim=True))


class HardSigmoidWritten(Net):
    def between(self, maps):
        return maps * ((maps.mean((2, 3), keepdim=True) + 3) / 6).clamp(0, 1)


def tokens_of(maps):
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens, like):
    return tokens.transpose(1, 2).reshape(like.shape)


class Fused(Net):
    def between(self, maps):
        tokens = tokens_of(maps)
        return maps + maps_of(functional.scaled_dot_product_attention(tokens, tokens, tokens), maps)


class FusedWritten(Net):
    def between(self, maps):
        tokens = tokens_of(maps)
        weight = (tokens @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[-1])).softmax(-1)
        return maps + maps_of(weight @ tokens, maps)


class Attention(Net):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def between(self, maps):
        tokens = tokens_of(maps)
        return maps + maps_of(self.attention(tokens, tokens, tokens, need_weights=False)[0], maps)


class AttentionWithWeights(Attention):
    def between(self, maps):
        tokens = tokens_of(maps)
        return maps + maps_of(self.attention(tokens, tokens, tokens, need_weights=True)[0], maps)


class Checkpointed(Net):
    def last(self, maps):
        return checkpoint(self.c, maps, use_reentrant=False)


class CheckpointedAgain(Net):
    def last(self, maps):
        return checkpoint(self.c, maps, use_reentrant=True)


class CheckpointedWhole(Net):
    def forward(self, images):
        return checkpoint(super().forward, images, use_reentrant=False)


class Encoder(Net):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def between(self, maps):
        return maps_of(self.encoder(tokens_of(maps)), maps)


class EncoderWritten(Encoder):
    def between(self, maps):
        tokens, inner = tokens_of(maps), self.encoder
        tokens = inner.norm1(tokens + inner.self_attn(tokens, tokens, tokens, need_weights=True)[0])
        return maps_of(inner.norm2(tokens + inner.linear2(inner.linear1(tokens).relu())), maps)


class HardSwish(Net):
    def between(self, maps):
        return functional.hardswish(maps)


class HardSwishWritten(Net):
    def between(self, maps):
        return maps * ((maps + 3) / 6).clamp(0, 1)


class Dense(Net):
    """A dense block of torchvision; it computes again in the backward pass where it saves memory."""

    saves_memory = False

    def __init__(self):
        super().__init__()
        self.dense = densenet._DenseBlock(2, 8, 2, 4, 0.0, self.saves_memory)
        self.narrow = nn.Conv2d(16, 8, 1)

    def between(self, maps):
        return self.narrow(self.dense(maps))


class DenseSavingMemory(Dense):
    saves_memory = True


PAIRS = [
    (Encoder, EncoderWritten),
    (HardSwish, HardSwishWritten),
    (DenseSavingMemory, Dense),
    (HardSigmoid, HardSigmoidWritten),
    (HardSigmoidModule, HardSigmoidWritten),
    (Fused, FusedWritten),
    (Attention, AttentionWithWeights),
    (Checkpointed, Net),
    (CheckpointedAgain, Net),
    (CheckpointedWhole, Net),
]


def made(kind):
    torch.manual_seed(0)
    network = kind().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def some_images(number=6):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(number, 3, 24, 24, generator=generator, dtype=torch.float64)
    return Batch(pixels, torch.arange(number) % 3, torch.arange(number))


def penalty_gradients(network, batch, draws):
    settings = {"layers": ["b.0", "c.0"], "confidence": 0.0}
    diagnosis = diagnose(network, [batch], draws=draws, **settings)
    constraints = constraints_named(["channel"], layers=("b.0", "c.0"))
    values = penalise(network, batch, constraints, diagnosis, noise=Noise(draws, seed=1))["channel"]
    values.sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return diagnosis, values.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("draws", [0, 2])
@pytest.mark.parametrize(("kind", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_diagnosis_and_penalty_equal_those_of_the_network_written_out(kind, plain, draws):
    batch = some_images()
    network, same = made(kind), made(plain)
    same.load_state_dict(network.state_dict())
    found, wanted = penalty_gradients(network, batch, draws), penalty_gradients(same, batch, draws)
    for one, other in zip(found[0].layers, wanted[0].layers, strict=True):
        np.testing.assert_allclose(one.correlation, other.correlation, rtol=1e-9)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-7, atol=1e-10)
    assert found[2].abs().max() > 0


@pytest.mark.parametrize("kind", [pair[0] for pair in PAIRS], ids=lambda kind: kind.__name__)
def test_these_networks_pass_the_check_and_can_be_treated(kind):
    network = made(kind).float()
    batch = some_images(8)
    batch = Batch(batch.images.float(), batch.labels, batch.ids)
    assert check_model(network, batch.images[:2]) == ()
    diagnosis = diagnose(network, [batch], layers=["c.0"], confidence=0.0)
    treated = treat(network, [batch], diagnosis, recipe=Recipe(epochs=1), seeds=1)
    assert treated.names() == ("control", "treated")


def test_outside_of_the_blocks_pytorch_is_as_before():
    before = (functional.batch_norm, functional.hardsigmoid)
    with pytest.raises(ValueError, match="inside"), second_derivatives(), right_derivatives():
        assert functional.hardsigmoid is not before[1]
        raise ValueError("inside")
    assert (functional.batch_norm, functional.hardsigmoid) == before


class LikeChannelsLast(Net):
    """Its maps come from tokens, as in LeViT: they lie in memory as in channels-last."""

    def between(self, maps):
        return tokens_of(maps).contiguous().transpose(1, 2).unflatten(2, maps.shape[2:])


class LikeChannelsLastNorm(LikeChannelsLast):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def between(self, maps):
        return self.norm(super().between(maps))


@pytest.mark.parametrize("kind", [LikeChannelsLast, LikeChannelsLastNorm], ids=lambda kind: kind.__name__)
def test_the_evidence_of_one_image_is_that_of_the_image_in_a_batch(kind):
    network, batch = made(kind), some_images(4)

    def gradients(images):
        images = images.clone().requires_grad_(True)
        with frozen_eval(network) as frozen:
            return torch.autograd.grad(frozen.logits(images)[:, 0].sum(), images)[0]

    together = gradients(batch.images)
    for row in range(4):
        torch.testing.assert_close(gradients(batch.images[row : row + 1])[0], together[row])
    with frozen_eval(network) as frozen:
        whole = clean_evidence(frozen, batch.images, batch.labels, ["b.0"], "gradient")[0]["b.0"]
        single = clean_evidence(frozen, batch.images[1:2], batch.labels[1:2], ["b.0"], "gradient")[0]["b.0"]
    torch.testing.assert_close(single[0], whole[1])


class Kept(Net):
    def last(self, maps):
        self.features = {"deep": [self.c(maps)]}
        return self.features["deep"][0]


def with_hook():
    network = Net()
    network.maps = {}
    network.c.register_forward_hook(lambda _m, _i, output: network.maps.__setitem__("c", output))
    return network


def with_norm(normalise):
    network = Net()
    network.fc = normalise(network.fc)
    return network


@pytest.mark.parametrize(
    "make",
    [
        Kept,
        with_hook,
        lambda: with_norm(nn.utils.spectral_norm),
        lambda: with_norm(nn.utils.weight_norm),
        lambda: with_norm(nn.utils.parametrizations.weight_norm),
    ],
    ids=["kept", "hook", "spectral", "weight", "parametrized"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_with_computed_tensors_can_be_copied_and_treated(make):
    torch.manual_seed(0)
    network, batch = make(), some_images(8)
    batch = Batch(batch.images.float(), batch.labels, batch.ids)
    network(batch.images)  # leaves computed tensors behind
    other = copy_of(network)
    network.eval(), other.eval()
    torch.testing.assert_close(other(batch.images), network(batch.images))
    other.a[0].weight.data.zero_()
    assert network.a[0].weight.abs().sum() > 0
    network.train()(batch.images)
    diagnosis = diagnose(network, [batch], layers=["c.0"], confidence=0.0)
    treat(network, [batch], diagnosis, recipe=Recipe(epochs=1), seeds=1)
    assert [finding for finding in check_model(network, batch.images[:2]) if finding.level == "error"] == []


def with_functions():
    """Keep the head in a lambda, in a function that calls itself, a partial and a tuple."""
    network = Net()
    network.head = lambda maps: network.fc(maps)

    def again(maps, times=1, head=network.fc):
        return again(maps, times - 1) if times else head(maps)

    network.inner = {"all": [network.head, (again, functools.partial(again, times=2)), network.fc.forward]}
    return network


class ByFunctions(Net):
    def forward(self, images):
        maps = self.last(self.b(self.a(images))).mean((2, 3))
        lam, (again, part), method = self.inner["all"]
        return self.head(maps) + lam(maps) + again(maps) + part(maps) + method(maps)


class ByHook(Net):
    def __init__(self):
        super().__init__()
        self.store = {}
        self.c.register_forward_hook(self.keeping())

    def keeping(self):
        def keep(_module, _inputs, output):
            self.store["c"] = output

        return keep

    def forward(self, images):
        super().forward(images)
        return self.fc(self.store["c"].mean((2, 3)))


def by_functions():
    network = with_functions()
    network.__class__ = ByFunctions
    return network


@pytest.mark.parametrize("make", [by_functions, ByHook])
def test_functions_of_a_copy_use_the_parts_of_the_copy(make):
    torch.manual_seed(0)
    network, images = make().eval(), torch.rand(2, 3, 24, 24)
    before = network(images)
    other = copy_of(copy_of(network))
    torch.testing.assert_close(other(images), before)
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    torch.testing.assert_close(other(images), before)
    other.fc.weight.data.zero_(), other.fc.bias.data.zero_()
    assert not other(images).any()


ELSEWHERE: list[nn.Module] = []


class Global(Net):
    def __init__(self):
        super().__init__()
        ELSEWHERE[:] = [self.fc]

    def forward(self, images):
        return ELSEWHERE[0](self.last(self.b(self.a(images))).mean((2, 3)))


class Referring(Net):
    def __init__(self):
        super().__init__()
        self.owner = weakref.ref(self)

    def forward(self, images):
        return self.owner().fc(self.last(self.b(self.a(images))).mean((2, 3)))


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.b.guard = threading.Lock()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Global, "goes on using weights of the original, through a global variable"),
        (Referring, "goes on using weights of the original: the attribute 'owner' of Referring"),
        (Locked, r"cannot be copied.*the attribute 'guard' of Sequential \(b\) \(lock\)"),
    ],
)
def test_networks_that_cannot_be_copied_are_refused_with_what_is_in_the_way(kind, said):
    network = kind()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    finding = check_model(network, torch.rand(2, 3, 24, 24))[0]
    assert (finding.level, finding.check) == ("error", "kind") and re.search(said, finding.message)
    torch.testing.assert_close(network.state_dict(), before)


class Collecting(Net):
    def last(self, maps):
        self.kept = [*getattr(self, "kept", []), self.c(maps)]
        return self.kept[-1]


def test_maps_that_a_network_kept_during_noise_draws_are_left_out_of_copies():
    torch.manual_seed(0)
    network, batch = Collecting().eval(), some_images(8)
    batch = Batch(batch.images.float(), batch.labels, batch.ids)
    torch.func.vmap(lambda noise: network(batch.images + noise))(torch.randn(2, *batch.images.shape))
    kept = list(network.kept)
    assert any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in kept)
    diagnosis = diagnose(network, [batch], layers=["c.0"], confidence=0.0, draws=1)
    treat(network, [batch], diagnosis, recipe=Recipe(epochs=1), seeds=1)
    assert len(network.kept) == len(kept)
    assert all(one is other for one, other in zip(network.kept, kept, strict=True))


def test_a_plain_copy_is_the_copy_of_the_standard_library():
    network = made(Net)
    torch.testing.assert_close(copy_of(network).state_dict(), copy.deepcopy(network).state_dict())


class Twice(Net):
    def forward(self, images):
        return super().forward(images) + super().forward(images.flip(-1))


def test_a_network_that_cannot_be_diagnosed_can_be_trained(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="none is called exactly once"):
        default_layers(Twice(), torch.rand(1, 3, 24, 24))
    with pytest.raises(InputError, match="has no two-dimensional convolution"):
        default_layers(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), torch.rand(1, 3, 8, 8))
    write_split(tmp_path / "photos" / "train", {"red": 6, "blue": 6})
    source = "from test_network_kinds import Twice\ndef make(num_classes): return Twice(num_classes)"
    (tmp_path / "own_twice.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    about = {"model": "own_twice:make", "data": f"folder:{tmp_path / 'photos'}", "image_size": 24}
    case = prepare(settings_from(about), "train", needs_weights=False)
    assert case.layers == () and "it cannot be diagnosed as it is" in case.notes[0]
    with pytest.raises(InputError, match="none is called exactly once"):
        prepare(settings_from({**about, "weights": "random"}), "diagnose", needs_weights=False)


@pytest.mark.parametrize("side", [(1, 5), (5, 1), (1, 1), (3, 4)])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_batch_norm_is_differentiated_rightly_however_memory_lies(order, images, side):
    shape = (images, 4, *side)
    stored = torch.randn([shape[axis] for axis in order], dtype=torch.float64)
    maps = stored.permute([order.index(axis) for axis in range(4)]).requires_grad_(True)
    weights = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(4, dtype=torch.float64).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.weight)
    with right_derivatives():
        (found,) = torch.autograd.grad(norm(maps), maps, weights)
    wanted = weights * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    torch.testing.assert_close(found, wanted)


class KeepsBias(Net):
    """Keeps a tensor made from a parameter in evaluation mode, as LeViT's attention does."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def between(self, maps):
        if self.training:
            return maps + torch.sigmoid(self.bias)
        if "bias" not in self.kept:
            self.kept["bias"] = torch.sigmoid(self.bias)
        return maps + self.kept["bias"]


class KeepsBiasAnyhow(KeepsBias):
    """Never forgets by itself what it kept."""

    train = nn.Module.train


class KeepsNothing(KeepsBias):
    def between(self, maps):
        return maps + torch.sigmoid(self.bias)


@pytest.mark.parametrize("kind", [KeepsBias, KeepsBiasAnyhow], ids=lambda kind: kind.__name__)
def test_tensors_made_from_other_weights_are_not_used(kind):
    network, plain = made(kind), made(KeepsNothing)
    plain.load_state_dict(network.state_dict())
    batch = some_images(8)
    results = []
    for each in (network, plain):
        diagnosis = diagnose(each, [batch], layers=["a.0", "b.0"], confidence=0.0)
        results.append(treat(each, [batch], diagnosis, recipe=Recipe(epochs=3), seeds=1))
    for name in ("control", "treated"):
        one, other = (result.arm(name, 0).state for result in results)
        for key, value in one.items():
            torch.testing.assert_close(value, other[key])


def test_what_a_network_kept_is_as_before_after_a_look():
    network, images = made(KeepsBiasAnyhow), some_images(2).images
    with frozen_eval(network) as frozen:
        before = frozen.logits(images)
    assert network.kept == {}
    with torch.no_grad():
        network.bias += 1
    with frozen_eval(network) as frozen:
        assert not torch.allclose(frozen.logits(images), before)


def test_new_weights_make_a_network_forget_what_it_kept():
    network, other, images = made(KeepsBias), made(KeepsBias), some_images(2).images
    with torch.no_grad():
        other.bias += 1
        network(images)
    load_state(network, other.state_dict())
    assert torch.equal(network(images), other(images))
    assert not network.training


def test_second_derivatives_that_are_not_finite_are_found():
    class Steep(Net):
        def last(self, maps):
            deep = self.c[0](maps)
            small = deep - deep.detach()
            return deep + torch.sign(small + 1e-3) * (small.square() + 0.0).pow(0.75)

    found = check_model(made(Steep).float(), some_images(2).images.float(), layers=["c.0"])
    assert [(each.level, each.check) for each in found] == [("error", "derivatives")]
    assert "not finite" in found[0].message


class TakesBytes(Net):
    def forward(self, images):
        return super().forward((images.float() - 127) / 50)


def pruned():
    network = Net()
    prune.l1_unstructured(network.b[0], "weight", 0.5)
    return network


FALSE_ALARMS = {
    "bfloat16": (lambda: Net().bfloat16(), torch.float32),
    "double": (lambda: Net().double(), torch.float32),
    "bytes": (TakesBytes, torch.uint8),
    "pruned": (pruned, torch.float32),
    "weight norm": (lambda: with_norm(nn.utils.parametrizations.weight_norm), torch.float32),
}


@pytest.mark.parametrize("kind", FALSE_ALARMS)
def test_no_alarm_for_types_that_are_converted_and_weights_that_are_computed(kind):
    make, dtype = FALSE_ALARMS[kind]
    torch.manual_seed(0)
    images = (50 * torch.randn(4, 3, 24, 24) + 127).clamp(0, 255).to(dtype)
    network = make().eval()
    assert check_model(network, images) == ()
    batch = Batch(images.float(), torch.arange(4) % 3, torch.arange(4))
    diagnosis = diagnose(network, [batch], confidence=0.0, draws=1)
    assert treat(network, [batch], diagnosis, recipe=Recipe(epochs=1), seeds=1).names()


def test_weights_in_float16_are_warned_of():
    torch.manual_seed(0)
    found = check_model(Net().half().eval(), torch.randn(2, 3, 24, 24))
    assert [(each.level, each.check) for each in found] == [("warning", "trainable")]


def test_one_logit_is_two_categories():
    torch.manual_seed(0)
    network, batch = Net(1).eval(), some_images(8)
    batch = Batch(batch.images.float(), batch.ids % 2, batch.ids)
    assert check_model(network, batch.images[:2]) == ()
    with frozen_eval(network) as frozen, torch.no_grad():
        logits = frozen.logits(batch.images)
        score = network(batch.images)[:, 0]
    torch.testing.assert_close(logits.softmax(1)[:, 1], score.sigmoid())
    losses = functional.binary_cross_entropy_with_logits(score, batch.labels.float(), reduction="none")
    torch.testing.assert_close(functional.cross_entropy(logits, batch.labels, reduction="none"), losses)
    diagnosis = diagnose(network, [batch], confidence=0.0, draws=1)
    assert len(diagnosis.classes) == 2
    treated = treat(network, [batch], diagnosis, recipe=Recipe(epochs=1), seeds=1)
    assert compare(network, treated, {"test": [batch]}).splits


def test_one_sigmoid_is_still_seen():
    network = Net(1)
    network.fc = nn.Sequential(network.fc, nn.Sigmoid())
    found = check_model(network, torch.randn(2, 3, 24, 24))
    assert found and "Sigmoid" in found[0].message
