import copy
import json
import math
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion import convolution
from companion.backpropagation import gradient_check
from companion.convolution import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Flatten,
    LeNet,
    MaxPool2d,
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    max_pool2d,
    output_size,
    receptive_field,
)
from companion.data import write_convolution_controls as controls
from companion.datasets import Examples, Splits, fashion_mnist
from companion.layers import count_parameters

INF, NAN = math.inf, math.nan


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def value_and_gradients(function, *inputs):
    """The output, and the gradient of each input for a random gradient of the output."""
    inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(
        y, [x for x in inputs if x is not None], normal(*y.shape, seed=9).to(y)
    )


def assert_same(ours, theirs, *inputs, tolerance=1e-10):
    results = [value_and_gradients(function, *inputs) for function in (ours, theirs)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def pairs(low, high):
    number = st.integers(low, high)
    return number | st.tuples(number, number)


@st.composite
def convolutions(draw):
    """Images, weights, bias, and options that fit."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation, stride = draw(pairs(1, 3)), draw(pairs(1, 3))
    padding = draw(pairs(0, 3) | st.sampled_from(["same", "valid"]))
    if padding == "same":
        stride = 1
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    sides = [
        step * (k - 1) + draw(st.integers(1, 8)) for k, step in zip(kernel, d, strict=True)
    ]
    x = normal(draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)), *sides)
    weight = normal(groups * draw(st.integers(1, 3)), x.shape[1] // groups, *kernel, seed=1)
    bias = normal(len(weight), seed=2) if draw(st.booleans()) else None
    return (x, weight, bias), {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=200, deadline=None)
@given(convolutions())
def test_conv2d_is_that_of_torch_in_value_and_all_gradients(case):
    inputs, options = case
    assert_same(partial(conv2d, **options), partial(F.conv2d, **options), *inputs)


VIEWS = {
    "a crop": lambda x: x[:, :, 1:-1, :-2],
    "every other pixel": lambda x: x[:, :, ::2, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch last": lambda x: x.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2),
    "one image many times": lambda x: x[:1].expand(4, -1, -1, -1),
    "a batch of one": lambda x: x[:1],
    "without a batch": lambda x: x[0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (partial(conv2d, padding=1, stride=2), partial(F.conv2d, padding=1, stride=2)),
        (
            partial(max_pool2d, kernel_size=3, padding=1),
            partial(F.max_pool2d, kernel_size=3, padding=1),
        ),
        (
            partial(avg_pool2d, kernel_size=3, padding=1),
            partial(F.avg_pool2d, kernel_size=3, padding=1),
        ),
        (
            partial(adaptive_avg_pool2d, output_size=2),
            partial(F.adaptive_avg_pool2d, output_size=2),
        ),
    ],
    ids=["conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"],
)
def test_any_view_of_the_images_will_do(ours, theirs, view):
    inputs = (
        (normal(4, 3, 9, 9),)
        if ours.func is not conv2d
        else (normal(4, 3, 9, 9), normal(5, 3, 3, 3, seed=1))
    )

    def of_view(function):
        return lambda x, *rest: function(view(x), *rest)

    assert_same(of_view(ours), of_view(theirs), *inputs)


@pytest.mark.parametrize(
    "view", [lambda w: w.transpose(2, 3), lambda w: w[::2], lambda w: w.flip(3)]
)
def test_any_view_of_the_weights_and_gradients_will_do(view):
    x, weight = normal(2, 3, 8, 8), normal(4, 3, 3, 3, seed=1)
    results = []
    for function in (conv2d, F.conv2d):
        w = weight.clone().requires_grad_()
        y = function(x, view(w))
        upstream = normal(*y.shape[::-1], seed=3).permute(3, 2, 1, 0)
        results.append(torch.autograd.grad(y, w, upstream)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_conv2d_is_the_sum_that_defines_it():
    x, weight, bias = normal(2, 4, 7, 6), normal(6, 2, 3, 2, seed=1), normal(6, seed=2)
    y = conv2d(x, weight, bias, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    expected = torch.zeros_like(y)
    for n, o, h, w in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        total = bias[o].item()
        for c in range(2):
            for i in range(3):
                for j in range(2):
                    u, v = 2 * h + i - 1, w + 2 * j - 2
                    if 0 <= u < 7 and 0 <= v < 6:
                        total += (weight[o, c, i, j] * x[n, o // 3 * 2 + c, u, v]).item()
        expected[n, o, h, w] = total
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (1, 2), "dilation": (2, 1)},
        {"groups": 2},
        {"groups": 4, "stride": 2, "padding": (1, 2), "dilation": (2, 1)},
    ],
    ids=str,
)
def test_gradients_of_conv2d_agree_with_central_differences_twice(options):
    x = normal(2, 4, 5, 6).requires_grad_()
    weight = normal(4, 4 // options.get("groups", 1), 3, 2, seed=1).requires_grad_()
    bias = normal(4, seed=2).requires_grad_()
    assert gradient_check(partial(conv2d, **options), x, weight, bias)
    assert torch.autograd.gradgradcheck(partial(conv2d, **options), (x, weight, bias))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_each_gradient_can_be_had_alone(wanted, groups):
    inputs = [normal(2, 3, 6, 6), normal(6, 3 // groups, 3, 3, seed=1), normal(6, seed=2)]
    results = []
    for function in (partial(conv2d, groups=groups), partial(F.conv2d, groups=groups)):
        leaves = [x.clone().requires_grad_(place in wanted) for place, x in enumerate(inputs)]
        function(*leaves).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for place, (ours, theirs) in enumerate(zip(*results, strict=True)):
        assert (ours is not None) == (theirs is not None) == (place in wanted)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# A sum over fewer numbers at a time has a smaller error than one long sum, so either may be
# ahead by a little.
@pytest.mark.parametrize(
    ("shape", "channels", "size", "padding", "groups"),
    [
        ((64, 1, 28, 28), 6, 5, 2, 1),
        ((64, 6, 14, 14), 16, 5, 0, 1),
        ((8, 64, 14, 14), 64, 3, 1, 1),
        ((8, 64, 14, 14), 64, 3, 1, 64),
    ],
)
def test_single_precision_is_as_good_as_torchs(shape, channels, size, padding, groups):
    inputs = (
        normal(*shape),
        normal(channels, shape[1] // groups, size, size, seed=1),
        normal(channels, seed=2),
    )
    inputs = [x.float() for x in inputs]
    options = {"padding": padding, "groups": groups}
    exact = value_and_gradients(partial(F.conv2d, **options), *(x.double() for x in inputs))
    ours, theirs = (
        value_and_gradients(partial(f, **options), *inputs) for f in (conv2d, F.conv2d)
    )
    for true, a, b in zip(exact, ours, theirs, strict=True):
        assert a.dtype == torch.float32
        error, judge = ((t.double() - true).square().mean().sqrt() for t in (a, b))
        assert error <= 1.5 * judge


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_have_the_type_of_the_input(dtype):
    x, weight = normal(2, 3, 8, 8, dtype=dtype), normal(4, 3, 3, 3, dtype=dtype, seed=1)
    for ours, theirs, inputs in [
        (conv2d, F.conv2d, (x, weight)),
        (partial(max_pool2d, kernel_size=2), partial(F.max_pool2d, kernel_size=2), (x,)),
        (partial(avg_pool2d, kernel_size=2), partial(F.avg_pool2d, kernel_size=2), (x,)),
    ]:
        results = value_and_gradients(ours, *inputs)
        exact = value_and_gradients(theirs, *(t.double() for t in inputs))
        for a, b in zip(results, exact, strict=True):
            assert a.dtype == dtype
            assert (a.double() - b).norm() <= 4 * torch.finfo(dtype).eps * b.norm()


def test_nothing_is_computed_on_the_meta_device():
    layer = Conv2d(3, 8, 3, padding=1, device="meta", dtype=torch.float64)
    y = layer(torch.empty(2, 3, 9, 9, device="meta", dtype=torch.float64))
    assert y.shape == (2, 8, 9, 9)
    assert (y.device.type, y.dtype) == ("meta", torch.float64)


def test_the_inputs_are_left_alone():
    inputs = normal(2, 3, 6, 6), normal(3, 3, 1, 1, seed=1), normal(3, seed=2)
    before = [x.clone() for x in inputs]
    value_and_gradients(conv2d, *inputs)
    value_and_gradients(lambda x: max_pool2d(x, 1), inputs[0])
    for x, kept in zip(inputs, before, strict=True):
        assert torch.equal(x, kept)
    y = max_pool2d(inputs[0], 1)
    assert y.data_ptr() != inputs[0].data_ptr()  # nor is the output a view of the input


def test_a_shift_of_the_image_shifts_the_output():
    x, weight = normal(1, 2, 20, 20), normal(3, 2, 5, 5, seed=1)
    shifted = torch.roll(x, (3, 4), dims=(2, 3))
    y, y_shifted = conv2d(x, weight), conv2d(shifted, weight)
    torch.testing.assert_close(
        y_shifted[:, :, 3:, 4:], y[:, :, :-3, :-4], rtol=1e-12, atol=1e-12
    )


# --- arithmetic -------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    *(st.integers(*ends) for ends in [(1, 30), (1, 6), (1, 5), (0, 4), (1, 4)]), st.booleans()
)
def test_output_size_counts_the_places_of_the_kernel(
    size, kernel_size, stride, padding, dilation, ceil_mode
):
    reach = dilation * (kernel_size - 1) + 1
    first, last = -padding, size + padding - 1
    if size + 2 * padding < reach:
        with pytest.raises(
            ValueError,
            match=f"reaches over {reach} pixels, but the image has {size}, with padding",
        ):
            output_size(size, kernel_size, stride, padding, dilation, ceil_mode)
        return
    starts = range(first, last + 1, stride)
    # windows that start before the image ends, as long as the one before has left pixels over
    if ceil_mode:
        places = sum(start < size and start - stride + reach - 1 < last for start in starts)
    else:
        places = sum(start + reach - 1 <= last for start in starts)
    assert output_size(size, kernel_size, stride, padding, dilation, ceil_mode) == places


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)), max_size=4))
def test_receptive_field_is_where_the_gradient_is(layers):
    side, apart = receptive_field(layers)
    x = torch.ones(1, 1, 1, side + apart, dtype=torch.float64, requires_grad=True)
    y = x
    for k, s, d in layers:
        y = conv2d(
            y, torch.ones(1, 1, 1, k, dtype=torch.float64), stride=(1, s), dilation=(1, d)
        )
    assert y.shape[3] == 2
    seen = [
        torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0]
        .flatten()
        .nonzero()
        .flatten()
        for i in (0, 1)
    ]
    assert seen[0][-1] - seen[0][0] + 1 == side
    assert seen[1][0] - seen[0][0] == apart


def test_receptive_field_of_lenet():
    assert receptive_field([]) == (1, 1)
    assert receptive_field([(5, 1), (2, 2), (5, 1), (2, 2)]) == (16, 4)


# --- pooling ----------------------------------------------------------------------------------


@st.composite
def poolings(draw, dilated):
    kernel = draw(pairs(1, 4))
    k = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = draw(pairs(1, 2)) if dilated else 1
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    padding = tuple(draw(st.integers(0, n // 2)) for n in k)
    reach = [step * (n - 1) + 1 for n, step in zip(k, d, strict=True)]
    sides = [n + draw(st.integers(0, 7)) for n in reach]
    options = {
        "kernel_size": kernel,
        "stride": draw(st.none() | pairs(1, 4)),
        "padding": padding,
    }
    options["ceil_mode"] = draw(st.booleans())
    if dilated:
        options["dilation"] = dilation
    else:
        options["count_include_pad"] = draw(st.booleans())
        options["divisor_override"] = draw(st.none() | st.integers(1, 9))
    return (draw(st.integers(0, 2)), draw(st.integers(1, 2)), *sides), options


@settings(max_examples=200, deadline=None)
@given(poolings(dilated=True), st.booleans())
def test_max_pool2d_is_that_of_torch_ties_included(case, ties):
    shape, options = case
    x = normal(*shape)
    assert_same(
        partial(max_pool2d, **options),
        partial(F.max_pool2d, **options),
        x.round() if ties else x,
    )


@settings(max_examples=200, deadline=None)
@given(poolings(dilated=False))
def test_avg_pool2d_is_that_of_torch(case):
    shape, options = case
    assert_same(
        partial(avg_pool2d, **options), partial(F.avg_pool2d, **options), normal(*shape)
    )


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), pairs(1, 12) | st.tuples(st.none(), st.integers(1, 5))
)
def test_adaptive_avg_pool2d_is_that_of_torch(height, width, output_size):
    ours, theirs = (
        partial(f, output_size=output_size)
        for f in (adaptive_avg_pool2d, F.adaptive_avg_pool2d)
    )
    assert_same(ours, theirs, normal(2, 3, height, width))


def test_the_first_of_equal_numbers_gets_the_gradient():
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(max_pool2d(x, 2).sum(), x)
    assert gradient.tolist() == [[[1, 0], [0, 0]]]


@pytest.mark.parametrize("place", range(4))
def test_what_is_not_finite_passes_through_pooling_only_where_it_is(place):
    for odd in (NAN, INF, -INF):
        x = torch.zeros(1, 4, 4, dtype=torch.float64)
        x[0, place // 2, place % 2] = odd
        for ours, theirs in [(max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)]:
            torch.testing.assert_close(ours(x, 2), theirs(x, 2), rtol=0, atol=0, equal_nan=True)
            assert ours(x, 2).flatten()[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "function",
    [
        partial(max_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True),
        partial(avg_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True),
        partial(adaptive_avg_pool2d, output_size=(2, 3)),
    ],
    ids=["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"],
)
def test_gradients_of_pooling_agree_with_central_differences_twice(function):
    x = normal(2, 2, 6, 5).requires_grad_()
    assert gradient_check(function, x)
    assert torch.autograd.gradgradcheck(function, x)


# --- modules ----------------------------------------------------------------------------------

LAYERS = [
    ((3, 8, 3), {}),
    ((3, 8, (3, 2)), {"stride": 2, "padding": (1, 0), "dilation": (2, 1)}),
    ((4, 8, 3), {"padding": "same", "groups": 2, "bias": False}),
    ((4, 8, 1, 2, 0, 1, 4, False), {}),
]


@pytest.mark.parametrize(("sizes", "options"), LAYERS)
def test_conv2d_layer_is_that_of_torch(sizes, options):
    layers = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(7)
        layers.append(kind(*sizes, **options, dtype=torch.float64))
    ours, theirs = layers
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs)
    for name, value in theirs.state_dict().items():
        # the same seed gives the same numbers
        assert torch.equal(ours.state_dict()[name], value)
    x = normal(2, sizes[0], 9, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


MODULES = [
    (MaxPool2d, nn.MaxPool2d, (2,), {}),
    (MaxPool2d, nn.MaxPool2d, (3, 2, 1, 2), {"ceil_mode": True}),
    (AvgPool2d, nn.AvgPool2d, ((2, 3),), {}),
    (AvgPool2d, nn.AvgPool2d, (3, 2, 1, True, False, 5), {}),
    (AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, ((2, None),), {}),
    (Flatten, nn.Flatten, (), {}),
    (Flatten, nn.Flatten, (2, 3), {}),
]


@pytest.mark.parametrize(("ours", "theirs", "places", "options"), MODULES)
def test_modules_are_those_of_torch(ours, theirs, places, options):
    ours, theirs = ours(*places, **options), theirs(*places, **options)
    x = normal(2, 3, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(ours)(x), ours(x), rtol=0, atol=0)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == theirs.state_dict() == {}


def lenet_of_torch():
    return nn.Sequential(
        *(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ),
    )


def test_lenet_is_that_of_torch_through_ten_steps():
    torch.manual_seed(0)
    ours, theirs = LeNet().double(), lenet_of_torch().double()
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    )
    x, y = normal(8, 1, 28, 28), torch.arange(8)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_lenet_has_the_sizes_of_its_table():
    model = LeNet(classes=10)
    assert [count_parameters(part) for part in (*model.features, *model.head[1].layers)] == [
        *(156, 0, 0, 2416, 0, 0),
        *(48120, 10164, 850),
    ]
    assert model.features(normal(3, 1, 28, 28).float()).shape == (3, 16, 5, 5)
    assert LeNet(classes=3)(normal(2, 1, 28, 28).float()).shape == (2, 3)


# --- what was trained beforehand --------------------------------------------------------------

DATA = Path(convolution.__file__).parent / "data"


@pytest.fixture
def script():
    return runpy.run_path(str(DATA / "write_convolution_trials.py"))


def test_the_script_of_the_trials_writes_what_is_stored_but_for_the_settings(script, tmp_path):
    stored = json.loads((DATA / "convolution_trials.json").read_text(encoding="utf-8"))
    assert stored["settings"] == script["SETTINGS"]
    script["SETTINGS"].update(epochs=1, framed_epochs=1, rates=[0.002, 0.005, 0.01])
    few = Splits(*(Examples(x[:16], y[:16]) for x, y in fashion_mnist()))
    script["write"](tmp_path / "trials.json", few)
    fresh = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert fresh.keys() == stored.keys()
    assert fresh["trials"].keys() == stored["trials"].keys()
    assert fresh["controls"].keys() == stored["controls"].keys()
    assert fresh["framed"].keys() == stored["framed"].keys()
    for result in (fresh, stored):
        for trial in result["trials"].values():
            assert trial.keys() == {"rate", "validation", "test", "only LeNet, only it"}
            assert str(trial["rate"]) in trial["validation"]
            assert len(trial["test"]) == len(trial["only LeNet, only it"]) == 3
        assert [len(shares) for shares in result["controls"].values()] == [3, 3, 3]
        for runs in result["framed"].values():
            assert [run.keys() for run in runs] == 3 * [{"test", "changed"}]
            assert [len(run["changed"]) for run in runs] == [4, 4, 4]


def test_the_stored_pairs_are_the_stored_shares():
    stored = json.loads((DATA / "convolution_trials.json").read_text(encoding="utf-8"))
    lenet = stored["trials"]["LeNet"]["test"]
    for trial in stored["trials"].values():
        for a, b, pair in zip(lenet, trial["test"], trial["only LeNet, only it"], strict=True):
            assert pair[0] - pair[1] == round(2000 * (a - b))


@pytest.mark.parametrize("peak", [0.0003, 0.2])
def test_a_rate_is_looked_for_until_the_best_is_inside(script, monkeypatch, peak):
    tried = []
    for name, instead in {
        "train": lambda make, data, rate, *rest: tried.append(rate),
        "evaluate": lambda *_: (0, 1 - abs(math.log(tried[-1] / peak)) / 10),
        "answers": lambda *_: torch.zeros(2),
    }.items():
        monkeypatch.setitem(script["sweep"].__globals__, name, instead)
    data = Splits(*(Examples(torch.zeros(2, 1), torch.zeros(2)) for _ in range(3)))
    best = script["sweep"](None, lambda seed: data)["rate"]
    assert min(tried) < best < max(tried)
    assert abs(math.log(best / peak)) <= math.log(2.5) / 2


def test_the_script_of_the_controls_writes_what_is_stored(tmp_path, monkeypatch):
    stored = json.loads((DATA / "convolution_controls.json").read_text(encoding="utf-8"))
    few = Splits(*(Examples(x[:16], y[:16]) for x, y in fashion_mnist()))
    brief = {"epochs": 1, "framed_epochs": 1, "rates": [0.002, 0.005, 0.01]}
    for name, value in brief.items():
        monkeypatch.setitem(controls.SETTINGS, name, value)
    controls.write(tmp_path / "controls.json", few, 0.005)
    fresh = json.loads((tmp_path / "controls.json").read_text(encoding="utf-8"))
    assert fresh.keys() == stored.keys()
    for trial, runs in (fresh.values(), stored.values()):
        assert trial.keys() == {"rate", "validation", "test", "only LeNet, only it"}
        assert str(trial["rate"]) in trial["validation"]
        assert len(trial["test"]) == 3
        assert [run.keys() for run in runs] == 3 * [{"test", "changed"}]
        assert [len(run["changed"]) for run in runs] == [4, 4, 4]
    # the LeNet beside it was that of the trials
    trials = json.loads((DATA / "convolution_trials.json").read_text(encoding="utf-8"))[
        "trials"
    ]
    unshared = stored["LeNet, not shared"]
    each = zip(
        trials["LeNet"]["test"], unshared["test"], unshared["only LeNet, only it"], strict=True
    )
    for a, b, pair in each:
        assert pair[0] - pair[1] == round(2000 * (a - b))


def test_a_layer_that_shares_nothing_is_a_convolution_if_its_kernels_are_alike():
    local = controls.LocallyConnected2d(2, 3, 3, side=6, padding=1).double()
    kernels, b = normal(3, 2, 3, 3), normal(3)
    local.weight.data[:], local.bias.data[:] = kernels, b[:, None, None]
    x = normal(4, 2, 6, 6)
    everywhere = F.conv2d(x, kernels, b, padding=1)
    torch.testing.assert_close(local(x), everywhere, rtol=1e-12, atol=1e-12)
    local.weight.data[2, 5] += 1  # one place has other kernels
    changed = ((local(x) - everywhere).abs() > 1e-9).any(0).any(0)
    assert changed.nonzero().tolist() == [[2, 5]]
    weights = [controls.unshared().features[layer].weight for layer in (0, 3)]
    assert [w.numel() for w in weights] == [28**2 * 150, 10**2 * 2400]  # LeNet's products


def test_maps_without_strides_are_those_with_strides_and_more(script):
    torch.manual_seed(0)
    strided, dense = (
        script["framed"]("global average", strides).double() for strides in (True, False)
    )
    dense.load_state_dict(strided.state_dict())
    x = F.pad(normal(2, 1, 28, 28), (8, 8, 8, 8))
    maps, everywhere = strided[0](x), dense[0](x)
    torch.testing.assert_close(everywhere[:, :, ::4, ::4], maps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(strided(x), strided(x.roll(4, 3)), rtol=1e-12, atol=1e-12)
    assert (strided(x) - strided(x.roll(1, 3))).abs().max() > 1e-5
    for shift in (1, 2, 3, 4):
        torch.testing.assert_close(dense(x), dense(x.roll(shift, 3)), rtol=1e-12, atol=1e-12)


# --- errors -----------------------------------------------------------------------------------

x3 = normal(2, 3, 8, 8)
ERRORS = [
    (
        lambda: conv2d(x3, normal(4, 2, 3, 3)),
        r"kernels are for 2 input channels, the images have 3: .* \(4, 2, 3, 3\)",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), groups=2),
        r"groups must divide .* got 2 groups for 3 and 4 channels",
    ),
    (
        lambda: conv2d(x3, normal(4, 1, 3, 3), groups=3),
        r"groups must divide .* got 3 groups for 3 and 4 channels",
    ),
    (lambda: conv2d(x3, normal(4, 3, 3, 3), groups=0), r"groups must divide .* got 0 groups"),
    (
        lambda: conv2d(x3, normal(4, 3, 11, 3), padding=1),
        r"reaches over 11 pixels, but the image has 8, with padding 10",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 5), dilation=2),
        r"reaches over 9 pixels, .* pad more, take a smaller kernel",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), padding="same", stride=2),
        r"needs stride 1, got \(2, 2\)",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), padding="full"),
        r"padding must be .* 'same' or 'valid', got 'full'",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), stride=0),
        r"at least 1 and padding at least 0, got 3, 0, 1 and 0",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), padding=-1),
        r"padding at least 0, got 3, 1, 1 and -1",
    ),
    (
        lambda: conv2d(x3, normal(4, 3, 3, 3), dilation=(1, 2, 3)),
        r"dilation must be one number or two, \(down, across\)",
    ),
    (
        lambda: conv2d(normal(2, 1, 3, 8, 8), normal(4, 3, 3, 3)),
        r"expected images of shape .* got \(2, 1, 3, 8, 8\)",
    ),
    (
        lambda: max_pool2d(normal(1, 1, 3, 8, 8), 2),
        r"expected images of shape .* images\.unsqueeze\(1\)",
    ),
    (
        lambda: max_pool2d(x3, 3, padding=2),
        r"at most half the window, got padding \(2, 2\) for a window of \(3, 3\)",
    ),
    (lambda: max_pool2d(x3, 9), r"reaches over 9 pixels, but the image has 8"),
    (lambda: avg_pool2d(x3, 2, padding=2), r"at most half the window"),
    (
        lambda: avg_pool2d(x3, 2, divisor_override=0),
        r"divisor_override must be at least 1, got 0",
    ),
    (
        lambda: adaptive_avg_pool2d(x3, 0),
        r"output_size must be one or two numbers, at least 1 or None, got 0",
    ),
    (lambda: adaptive_avg_pool2d(x3, (1, 2, 3)), r"output_size must be one or two numbers"),
    (
        lambda: receptive_field([(5, 1), (2, 0)]),
        r"expected \(kernel_size, stride\) or .* got \(2, 0\)",
    ),
    (lambda: receptive_field([(5,)]), r"expected \(kernel_size, stride\) or .* got \(5,\)"),
    (lambda: Conv2d(0, 4, 3), r"channels and kernel_size must be at least 1, got 0, 4 and 3"),
    (
        lambda: Conv2d(3, 4, 3, groups=2),
        r"groups must divide .* got 2 groups for 3 and 4 channels",
    ),
    (
        lambda: LeNet()(normal(2, 1, 32, 32).float()),
        r"LeNet takes images of shape \(batch, 1, 28, 28\), got \(2, 1, 32",
    ),
]


@pytest.mark.parametrize(("call", "words"), ERRORS)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_everything_public_is_listed():
    public = {
        name
        for name, thing in vars(convolution).items()
        if getattr(thing, "__module__", "") == convolution.__name__ and name[0] != "_"
    }
    assert set(convolution.__all__) == public


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (2, 3)])
@pytest.mark.parametrize("padding", [0, 1])
def test_max_pooling_sends_the_gradient_to_nan_as_pytorch_does(kernel_size, padding):
    padding = padding if kernel_size != 1 else 0
    x = normal(2, 3, 6, 6)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3] = NAN
    ours, theirs = (
        value_and_gradients(lambda x, f=f: f(x, kernel_size, padding=padding), x)
        for f in (max_pool2d, F.max_pool2d)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert ours[0].isnan().any()


@pytest.mark.parametrize(
    ("ours", "theirs"), [(max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)]
)
def test_pooling_takes_one_number_in_brackets_and_an_empty_stride(ours, theirs):
    x = normal(1, 2, 7, 8)
    for options in [{"stride": ()}, {"stride": (1,), "padding": (1,)}, {"stride": None}]:
        torch.testing.assert_close(ours(x, (2,), **options), theirs(x, (2,), **options))
    with pytest.raises(ValueError, match="stride and dilation must be at least 1"):
        ours(x, 2, 0)


def test_convolution_takes_one_number_in_brackets():
    x, weight = normal(1, 2, 7, 8), normal(3, 2, 3, 3, seed=1)
    options = {"stride": (2,), "padding": (1,), "dilation": (2,)}
    torch.testing.assert_close(conv2d(x, weight, **options), F.conv2d(x, weight, **options))
    layers = [c(2, 3, 3, **options, dtype=torch.float64) for c in (Conv2d, nn.Conv2d)]
    layers[0].load_state_dict(layers[1].state_dict())
    torch.testing.assert_close(layers[0](x), layers[1](x))


def test_no_stride_is_no_stride_for_a_convolution():
    with pytest.raises(ValueError, match="stride must be one number or two"):
        conv2d(normal(1, 1, 4, 4), normal(1, 1, 2, 2), stride=())
