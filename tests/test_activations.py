import copy
import json
import math
import runpy
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion import activations
from companion.activations import (
    GELU,
    HandDerived,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from companion.backpropagation import gradient_check
from companion.datasets import Examples, Splits, digits

CASES = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.3}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("softmax", {"dim": -1}),
    ("softmax", {"dim": 0}),
    ("log_softmax", {"dim": -1}),
    ("log_softmax", {"dim": 0}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def pair(request):
    """One of our functions, and PyTorch's."""
    name, options = request.param
    return tuple(partial(getattr(module, name), **options) for module in (activations, F))


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def derivatives(function, x, g, h):
    """The output, the gradient for ``g``, and that gradient's own gradients for ``h``."""
    x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
    y = function(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    second = torch.autograd.grad(first, (x, g), h)
    return y.detach(), first.detach(), *second


def slope(function, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (1, 1), (3, 5), (2, 3, 4), (0, 3), (3, 0), (0,)], ids=str
)
def test_value_gradient_and_second_derivative_are_those_of_torch(pair, shape):
    x, g, h = (normal(*shape, seed=seed) for seed in range(3))
    for ours, theirs in zip(
        *(derivatives(function, 3 * x, g, h) for function in pair), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(4, 6),
        lambda x: x[..., None, :],
    ],
)
def test_strided_input_gives_what_torch_gives(pair, view):
    x = view(normal(4, 6))
    g, h = (view(normal(4, 6, seed=seed)) for seed in (1, 2))
    for ours, theirs in zip(
        *(derivatives(function, x, g, h) for function in pair), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gradients_agree_with_central_differences(pair):
    x = normal(3, 4).requires_grad_()
    assert gradient_check(pair[0], x)
    assert torch.autograd.gradgradcheck(pair[0], x)


def test_the_input_and_the_gradient_are_left_alone(pair):
    x, g = normal(3, 4), normal(3, 4, seed=1)
    before = x.clone(), g.clone()
    derivatives(pair[0], x, g, g)
    assert torch.equal(x, before[0])
    assert torch.equal(g, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_and_gradient_keep_the_type_of_the_input(pair, dtype):
    x = normal(5, 8, dtype=dtype)
    y, first, *_ = derivatives(pair[0], x, torch.ones_like(x), torch.ones_like(x))
    exact, exact_first, *_ = derivatives(
        pair[1], x.double(), torch.ones(5, 8).double(), torch.ones(5, 8).double()
    )
    assert y.dtype == first.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.double(), exact_first, rtol=tolerance, atol=tolerance)


# PyTorch rounds its tanh almost perfectly, which takes it as long as ours; ours has two or
# three roundings. In GELU's approximation ours has a sigmoid: more precise on the left, less so
# where the sigmoid has nearly reached one.
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_single_precision_is_as_good_as_torchs(pair, scale):
    x, g = (
        scale * normal(256, 100, dtype=torch.float32),
        normal(256, 100, dtype=torch.float32, seed=1),
    )
    exact = derivatives(pair[1], x.double(), g.double(), g.double())
    ours, theirs = (derivatives(function, x, g, g) for function in pair)
    allowed = (
        2.5 if pair[0].func is tanh or pair[0].keywords == {"approximate": "tanh"} else 1.5
    )
    for place in range(2):  # value, gradient
        error, judge = (
            (result[place].double() - exact[place]).square().mean().sqrt().item()
            for result in (ours, theirs)
        )
        assert error <= allowed * judge


def test_the_kinks_have_torchs_slopes():
    x = torch.tensor([-1.0, -0.0, 0.0, 1.0], dtype=torch.float64)
    assert slope(relu, x).tolist() == [0, 0, 0, 1]
    assert slope(leaky_relu, x).tolist() == [0.01, 0.01, 0.01, 1]
    assert slope(partial(leaky_relu, negative_slope=0.0), x).tolist() == [0, 0, 0, 1]
    assert slope(partial(leaky_relu, negative_slope=1.0), x).tolist() == [1, 1, 1, 1]


def test_the_functions_at_zero():
    zero = torch.zeros(4, dtype=torch.float64)
    for function, value, derivative in [
        (sigmoid, 0.5, 0.25),
        (tanh, 0, 1),
        (gelu, 0, 0.5),
        (relu, 0, 0),
    ]:
        assert function(zero).tolist() == [value] * 4
        assert slope(function, zero).tolist() == [derivative] * 4
    assert softmax(zero, 0).tolist() == [0.25] * 4
    assert log_softmax(zero, 0).tolist() == [-math.log(4)] * 4


def test_symmetries():
    x = normal(1000) * 5
    assert torch.equal(tanh(-x), -tanh(x))
    torch.testing.assert_close(sigmoid(-x), 1 - sigmoid(x), rtol=0, atol=1e-15)
    torch.testing.assert_close(gelu(x) - gelu(-x), x, rtol=1e-14, atol=0)
    torch.testing.assert_close(tanh(x), 2 * sigmoid(2 * x) - 1, rtol=0, atol=1e-15)


def test_softmax_is_a_distribution_that_ignores_a_common_shift():
    x = normal(20, 6, 3)
    for dim in (0, 1, 2, -1, -2):
        y = softmax(x, dim)
        torch.testing.assert_close(y.sum(dim), torch.ones_like(y.sum(dim)), rtol=0, atol=1e-15)
        torch.testing.assert_close(softmax(x + 1000, dim), y, rtol=1e-12, atol=0)
        torch.testing.assert_close(log_softmax(x, dim).exp(), y, rtol=1e-14, atol=0)


def test_infinity_and_nan_come_out_as_they_should():
    x = torch.tensor([-INF, INF, NAN])
    for function, expected in [
        (relu, [0, INF, NAN]),
        (leaky_relu, [-INF, INF, NAN]),
        (sigmoid, [0, 1, NAN]),
    ]:
        torch.testing.assert_close(function(x), torch.tensor(expected), equal_nan=True)
    torch.testing.assert_close(tanh(x), torch.tensor([-1, 1, NAN]), equal_nan=True)
    for approximate in ("none", "tanh"):
        torch.testing.assert_close(
            gelu(x[1:], approximate), torch.tensor([INF, NAN]), equal_nan=True
        )
    masked = torch.tensor([[-INF, 0.0, 0.0], [0.0, NAN, 0.0]])
    torch.testing.assert_close(
        softmax(masked, 1), torch.tensor([[0, 0.5, 0.5], [NAN] * 3]), equal_nan=True
    )
    torch.testing.assert_close(
        log_softmax(masked, 1),
        torch.tensor([[-INF, -math.log(2), -math.log(2)], [NAN] * 3]),
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_inputs_give_finite_values_gradients_and_second_derivatives(pair, dtype):
    x = torch.tensor(
        [-1e4, -1000, -745, -104, -89, -88, -40, 0, 40, 88, 89, 104, 710, 1000, 1e4],
        dtype=dtype,
    )
    ones = torch.ones_like(x)
    for ours, theirs in zip(
        *(derivatives(function, x, ones, ones) for function in pair), strict=True
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_large_inputs_are_finite_in_half_precision_too(pair):
    x = torch.tensor([-900.0, -20, 0, 20, 900], dtype=torch.float16)
    assert pair[0](x).isfinite().all()
    assert slope(pair[0], x).isfinite().all()


def exact_sigmoid(x):
    e = x.exp()
    return e / (1 + e)


def exact_tanh(x):
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


def ulps(values, exact_function, x, digits=40):
    """How far each value is from the exact one, in units of the exact one's last place."""
    with localcontext(prec=digits):
        exact = [exact_function(Decimal(number)) for number in x.tolist()]
    return [
        abs(float((Decimal(ours) - true) / Decimal(math.ulp(float(true)))))
        for ours, true in zip(values.tolist(), exact, strict=True)
    ]


def test_sigmoid_is_precise_over_the_whole_range():
    x = torch.cat([torch.linspace(-745, 45, 400), torch.linspace(-3, 3, 100)]).double()
    allowed = 3 + x.abs()  # rounding x log₂ e in the exponent costs about |x| units
    assert (torch.tensor(ulps(sigmoid(x), exact_sigmoid, x)) < allowed).all()
    assert sigmoid(torch.tensor(-740.0, dtype=torch.float64)) == math.exp(-740) != 0


def test_tanh_is_precise_over_the_whole_range():
    size = torch.cat(
        [
            torch.logspace(-100, -1, 100, dtype=torch.float64),
            torch.linspace(0.1, 30, 300).double(),
        ]
    )
    x = torch.cat([size, -size])
    # 140, because exp(2e-100) − 1 loses the first hundred
    assert max(ulps(tanh(x), exact_tanh, x, digits=140)) < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_of_a_tiny_number_is_that_number(dtype):
    x = torch.tensor(
        [1e-20, -1e-20, torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal / 2, -0.0],
        dtype=dtype,
    )
    assert torch.equal(tanh(x), x)
    assert torch.equal(tanh(x).signbit(), x.signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_reaches_the_smallest_number_of_its_type(dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor(math.log(smallest), dtype=dtype)
    assert sigmoid(x).item() == smallest


def test_gelu_keeps_its_left_tail():
    # erfc of the exact argument: that of the nearest double, and the slope times what is left
    def exact(x):
        z = -Decimal(x) / Decimal(2).sqrt()
        correction = (
            2 / math.sqrt(math.pi) * math.exp(-(float(z) ** 2)) * float(z - Decimal(float(z)))
        )
        return x / 2 * (math.erfc(z) - correction)

    x = torch.linspace(-37, 8, 451, dtype=torch.float64)
    relative = (
        gelu(x) / torch.tensor([exact(number) for number in x.tolist()], dtype=torch.float64)
        - 1
    ).abs()
    # x² is the condition number
    assert (relative <= 2 * torch.finfo(torch.float64).eps * (1 + x.square())).all()
    assert -5e-196 < gelu(torch.tensor(-30.0, dtype=torch.float64)) < -1e-196
    # what the difference 1 + erf makes of it
    assert F.gelu(torch.tensor(-30.0, dtype=torch.float64)) == 0


def test_approximate_gelu_keeps_its_left_tail_too():
    x = torch.linspace(-20, 0, 201, dtype=torch.float64)[:-1]
    cdf = [
        exact_sigmoid(Decimal(math.sqrt(8 / math.pi) * (t + 0.044715 * t**3)))
        for t in x.tolist()
    ]
    expected = x * torch.tensor([float(p) for p in cdf], dtype=torch.float64)
    torch.testing.assert_close(gelu(x, "tanh"), expected, rtol=1e-12, atol=0)


def test_log_softmax_survives_a_gap_of_a_thousand():
    x = torch.tensor([[0.0, -1000.0], [1000.0, 0.0], [500.0, 500.0]])
    expected = torch.tensor([[0.0, -1000.0], [0.0, -1000.0], [-math.log(2)] * 2])
    torch.testing.assert_close(log_softmax(x, 1), expected, rtol=1e-7, atol=0)
    assert softmax(x, 1).tolist() == [[1, 0], [1, 0], [0.5, 0.5]]
    # a confident mistake still has a full gradient
    loss_gradient = slope(lambda x: -log_softmax(x, 1)[:, 1], x)
    assert loss_gradient.tolist() == [[1, -1], [1, -1], [0.5, -0.5]]


def test_what_is_lost_where_a_probability_rounds_to_one():
    # as in PyTorch: 1 − y is zero, and so is the logarithm of 1 + e⁻²⁰ in float32
    x = torch.tensor([-40.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(slope(sigmoid, x), slope(torch.sigmoid, x), rtol=1e-13, atol=0)
    assert slope(sigmoid, x)[1] == 0 < slope(sigmoid, x)[0] < 5e-18
    gap = torch.tensor([0.0, -20.0])
    assert log_softmax(gap, 0)[0] == torch.log_softmax(gap, 0)[0] == 0
    assert log_softmax(gap.double(), 0)[0].item() == pytest.approx(-math.log1p(math.exp(-20)))


def test_only_the_output_is_kept_for_the_way_back():
    kept = []
    x = normal(4, 6).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        for function in (relu, leaky_relu, sigmoid, tanh, partial(softmax, dim=1)):
            kept.clear()
            y = function(x)
            assert kept == [y.data_ptr()]


def test_a_readers_own_activation_can_be_hand_derived():
    def softplus(x):
        return HandDerived.apply(
            x, lambda x: x.exp().log1p(), lambda g, y: g * (1 - (-y).exp())
        )

    x = normal(5).requires_grad_()
    torch.testing.assert_close(softplus(x), F.softplus(x), rtol=1e-12, atol=0)
    assert gradient_check(softplus, x)
    assert torch.autograd.gradgradcheck(softplus, x)


MODULES = [
    (ReLU, nn.ReLU, {}),
    (LeakyReLU, nn.LeakyReLU, {}),
    (LeakyReLU, nn.LeakyReLU, {"negative_slope": 0.2}),
    (Sigmoid, nn.Sigmoid, {}),
    (Tanh, nn.Tanh, {}),
    (Softmax, nn.Softmax, {"dim": 1}),
    (LogSoftmax, nn.LogSoftmax, {"dim": 0}),
    (GELU, nn.GELU, {}),
    (GELU, nn.GELU, {"approximate": "tanh"}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), MODULES)
def test_modules_are_those_of_torch(ours, theirs, options):
    ours, theirs = ours(**options), theirs(**options)
    x = normal(3, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(copy.deepcopy(ours)(x), ours(x), rtol=0, atol=0)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == theirs.state_dict() == {}


@pytest.mark.parametrize(("ours", "theirs", "options"), MODULES)
def test_modules_take_their_options_by_place(ours, theirs, options):
    assert repr(ours(*options.values())) == repr(theirs(*options.values()))


@pytest.mark.usefixtures("plain_python")
def test_integers_are_refused(pair):
    with pytest.raises(
        TypeError,
        match=r"floating-point numbers, got torch\.int64: convert with input\.float\(\)",
    ):
        pair[0](torch.tensor([[1, 2], [3, 4]]))


@pytest.mark.parametrize("function", [softmax, log_softmax, Softmax(), LogSoftmax()])
def test_softmax_asks_for_the_dimension(function):
    with pytest.raises(
        TypeError, match=r"need dim, along which .* \(batch, classes\) that is dim=1"
    ):
        function(normal(2, 3))


@pytest.mark.parametrize("function", [softmax, log_softmax])
def test_softmax_refuses_a_dimension_that_is_not_there(function):
    for dim in (2, -3):
        with pytest.raises(
            ValueError, match=rf"\(2, 3\) have no dimension dim={dim}: take dim=-1"
        ):
            function(normal(2, 3), dim)
    assert function(torch.tensor(1.0), 0) == function(torch.ones(1), 0)


@pytest.mark.parametrize("negative_slope", [-0.1, 1.5])
def test_leaky_relu_refuses_a_slope_outside_zero_and_one(negative_slope):
    with pytest.raises(
        ValueError,
        match=rf"between 0 \(a ReLU\) and 1 \(a straight line\), got {negative_slope}",
    ):
        leaky_relu(normal(3), negative_slope)


def test_gelu_refuses_an_unknown_approximation():
    with pytest.raises(
        ValueError, match=r"'none' \(exact, by erfc\) or 'tanh' \(as in GPT-2\), got 'erf'"
    ):
        gelu(normal(3), "erf")


# --- what was trained beforehand --------------------------------------------------------------

DATA = Path(activations.__file__).parent / "data"


@pytest.fixture
def script():
    return runpy.run_path(str(DATA / "write_activation_trials.py"))


@pytest.fixture(scope="module")
def stored():
    return json.loads((DATA / "activation_trials.json").read_text(encoding="utf-8"))


def test_the_script_of_the_trials_writes_what_is_stored_but_for_the_settings(
    script, stored, tmp_path
):
    assert stored["settings"] == script["SETTINGS"]
    script["SETTINGS"].update(epochs=1, rates=[0.01, 0.03], first=[0.01], width=4)
    script["SETTINGS"]["patient"]["epochs"] = 2
    few = Splits(*(Examples(x[:32], y[:32]) for x, y in digits()))
    script["write"](tmp_path / "trials.json", few)
    fresh = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert fresh["trials"].keys() == stored["trials"].keys()
    pairs = [(fresh["trials"][depth], trials) for depth, trials in stored["trials"].items()]
    for new, old in [*pairs, (fresh["patient"], stored["patient"])]:
        assert new.keys() == old.keys()
        for result in (new, old):
            for trial in result.values():
                assert trial.keys() == {"rate", "validation", "test"}
                assert [len(runs) for runs in trial["validation"].values()] == [3] * len(
                    trial["validation"]
                )
                assert len(trial["test"]) == 6


@pytest.mark.parametrize(
    ("depth", "name", "seed"), [("2", "GELU", 1), ("2", "sigmoid", 2), ("10", "centred", 0)]
)
def test_the_stored_scores_are_the_scripts(script, stored, depth, name, seed):
    trial = stored["trials"][depth][name]
    bend = (script["BENDS"] | script["CAUSES"])[name]
    data = script["standardised"](digits())
    fresh = script["scores"](data, bend, int(depth), trial["rate"], seed)
    kept = trial["validation"][str(trial["rate"])][seed], trial["test"][seed]
    assert fresh == pytest.approx(kept, abs=0.03)  # another processor may round differently


@pytest.mark.parametrize(
    ("accuracy", "best"),
    [
        (lambda rate: 1 - abs(math.log(rate / 0.003)) / 100, 0.003),
        (lambda rate: 1 - abs(math.log(rate / 1.0)) / 100, 1.0),
        (lambda rate: 0.1, 10.0),  # all alike: the large ones are tried too
    ],
)
def test_a_rate_is_looked_for_until_the_best_is_inside(script, monkeypatch, accuracy, best):
    def scores(data, bend, depth, rate, seed, epochs):
        return accuracy(rate), rate + seed

    monkeypatch.setitem(script["sweep"].__globals__, "scores", scores)
    trial = script["sweep"](None, None, 2)
    tried = list(trial["validation"])
    assert trial["rate"] == best
    assert tried == sorted(tried)
    assert min(tried) < best < max(tried) or best == max(tried) == 10
    assert trial["test"] == [best + seed for seed in range(6)]


def test_a_training_that_leaves_all_bounds_counts_as_nothing_right(script):
    data = script["standardised"](digits())
    assert script["scores"](data, script["BENDS"]["none"], 10, 10.0, seed=0) == (0, 0)


def test_the_bends_of_the_trials(script):
    z = normal(5, 8)
    centred, gain = script["CAUSES"]["centred, gain 4"]
    torch.testing.assert_close(centred(z), torch.tanh(z / 2) / 2)
    rows_centred, _ = script["CAUSES"]["ReLU, rows centred"]
    torch.testing.assert_close(rows_centred(z).mean(1), torch.zeros(5).double())
    for name, f in [("GELU, scaled", torch.nn.functional.gelu), ("ReLU, scaled", torch.relu)]:
        scaled, _ = script["CAUSES"][name]
        length = z.square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(scaled(z), f(z / length))
        torch.testing.assert_close(scaled(3 * z), scaled(z))
    layers = script["network"]([400, 300, 2], centred, gain, seed=0).layers
    assert layers[0].weight.std().item() == pytest.approx(4 / 20, rel=0.02)
    assert not layers[0].bias.any()
    x = script["standardised"](digits()).train.x
    assert (x.mean().item(), x.std().item()) == pytest.approx((0, 1), abs=1e-5)
