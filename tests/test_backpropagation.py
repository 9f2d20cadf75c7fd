import gc
import json
import subprocess
import sys
import weakref
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from torch.autograd import forward_ad

from companion import backpropagation
from companion.backpropagation import (
    Variable,
    cross_entropy,
    draw_graph,
    gradient_check,
    record,
    sum_to_shape,
    topological_order,
    two_layer_gradients,
)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.fixture(scope="module")
def bare_run():
    """A long chain in an interpreter of its own, without the shape checker."""
    code = """
import json, sys, time
from companion.backpropagation import Variable
start = time.perf_counter()
x = Variable(1.0, requires_grad=True)
y = x
for _ in range(100_000):
    y = y + 1.0
y.backward(retain_graph=True)
del y
seconds = time.perf_counter() - start
drawn = "matplotlib" in sys.modules
print(json.dumps({"gradient": x.grad.item(), "seconds": seconds, "matplotlib": drawn}))
"""
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )


def parameter(data):
    return Variable(data, requires_grad=True)


def on_tape(function, *inputs, seed=1):
    """The value and the gradients of a function on this chapter's tape."""
    copies = [parameter(x.clone()) for x in inputs]
    output = function(*copies)
    output.backward(random(*output.shape, seed=seed, dtype=output.dtype))
    return output.data, [copy.grad for copy in copies]


def on_torch(function, *inputs, seed=1):
    """The same by torch.autograd."""
    copies = [x.clone().requires_grad_() for x in inputs]
    output = function(*copies)
    output.backward(random(*output.shape, seed=seed, dtype=output.dtype))
    return output.detach(), [copy.grad for copy in copies]


def assert_agrees_with_torch(function, *inputs, rtol=1e-12, atol=1e-12):
    value, gradients = on_tape(function, *inputs)
    judge, judges = on_torch(function, *inputs)
    torch.testing.assert_close(value, judge, rtol=rtol, atol=atol, equal_nan=True)
    for gradient, expected, x in zip(gradients, judges, inputs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=rtol, atol=atol, equal_nan=True)
        assert (gradient.dtype, gradient.shape) == (x.dtype, x.shape)


# Operations -----------------------------------------------------------------------------------

ENTRYWISE = {
    "add a number": lambda x: 2 + x + 1.5,
    "subtract a number": lambda x: 2 - x - 1.5,
    "multiply by a number": lambda x: 2 * x * 0.1,
    "divide by a number": lambda x: 2 / x / 0.1,
    "negate": lambda x: -x,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "reciprocal": lambda x: x**-1,
    "power zero": lambda x: x**0,
    "power one": lambda x: x**1,
    "a root": lambda x: (x * x) ** 0.3,
    "exp": lambda x: x.exp(),
    "log": lambda x: (x * x).log(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "relu": lambda x: x.relu(),
    "a composition": lambda x: ((x * x + 1).log() * x.tanh() - x / (x.exp() + 1)).sigmoid(),
}


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (2, 1, 5), (0, 3)])
@pytest.mark.parametrize("name", ENTRYWISE)
def test_entrywise_operations_agree_with_torch(name, shape):
    assert_agrees_with_torch(ENTRYWISE[name], random(*shape))


@pytest.mark.parametrize(
    "name", ["exp", "tanh", "sigmoid", "relu", "square", "power zero", "power one"]
)
def test_entrywise_operations_agree_with_torch_at_extreme_values(name):
    extremes = torch.tensor(
        [0.0, -0.0, 1e-300, -1e-300, 40.0, -40.0, 800.0, -800.0, 1e200, -1e200]
    ).double()
    assert_agrees_with_torch(ENTRYWISE[name], extremes)


ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.mark.parametrize("name", ARITHMETIC)
@given(
    shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_arithmetic_broadcasts_as_torch_does(name, shapes, seed):
    a, b = (random(*shape, seed=seed + n) for n, shape in enumerate(shapes.input_shapes))
    assert_agrees_with_torch(ARITHMETIC[name], a, b.sign() * (b.abs() + 0.1))


@pytest.mark.parametrize("name", ARITHMETIC)
def test_plain_tensors_are_constants_on_either_side(name):
    operation, constant, x = ARITHMETIC[name], random(3, 1), random(4, seed=2)
    assert_agrees_with_torch(lambda x: operation(constant, x), x)
    assert_agrees_with_torch(lambda x: operation(x, constant), x)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((1, 1), (1, 1)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)),
        ((2, 6, 4), (1, 4, 1)),
        ((5, 2, 3, 4), (4,)),
        ((0, 4), (4, 5)),
        ((3, 0), (0, 5)),
    ],
)
def test_matmul_agrees_with_torch(a, b):
    a, b = random(*a), random(*b, seed=2)
    assert_agrees_with_torch(lambda a, b: a @ b, a, b)
    assert_agrees_with_torch(lambda b: a @ b, b)
    assert_agrees_with_torch(lambda a: a @ b, a)


@pytest.mark.parametrize("scalar", [2.0, torch.tensor(2.0)])
def test_matmul_refuses_a_scalar_and_adds_the_words_of_torch(scalar):
    for multiply in [lambda x: x @ scalar, lambda x: scalar @ x]:
        words = r"__matmul__ of .* must fit each other \(both arguments to matmul need to be at"
        with pytest.raises(ValueError, match=words):
            multiply(parameter(torch.ones(3, 3)))


def test_types_that_do_not_fit_are_named():
    words = r"of \(3, 3\) of torch.float32 and \(3, 3\) of torch.float64: shapes and types must"
    with pytest.raises(ValueError, match=words):
        parameter(torch.ones(3, 3)) @ torch.ones(3, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_want_of_memory_is_not_blamed_on_shapes(name):
    immense = Variable(torch.ones(1).expand(2**50))  # one number, as long as nobody copies it
    with pytest.raises(RuntimeError, match="allocate") as raised:
        ARITHMETIC[name](immense, 1.0)
    assert not isinstance(raised.value, ValueError)


def test_matmul_takes_transposed_and_strided_data():
    assert_agrees_with_torch(lambda a, b: a.T @ b, random(4, 3), random(4, 10, seed=2)[:, ::2])


DIMS = [None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ()]


@pytest.mark.parametrize(("dim", "keepdim"), list(product(DIMS, [False, True])))
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "logsumexp"])
def test_reductions_agree_with_torch(name, dim, keepdim):
    def reduce(x):
        # torch calls it () there, or wants every dimension named
        if dim is None and name in ["amax", "logsumexp"]:
            return getattr(x, name)((0, 1, 2), keepdim)
        return getattr(x, name)(dim, keepdim=keepdim)

    if not (name == "logsumexp" and dim == ()):
        assert_agrees_with_torch(reduce, random(2, 3, 4))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "max"])
def test_reductions_of_everything_agree_with_torch(name):
    assert_agrees_with_torch(lambda x: getattr(x, name)(), random(2, 3))
    assert_agrees_with_torch(lambda x: getattr(x, name)(), random())


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_max_over_a_dimension_gives_values_and_indices_as_torch_does(dim, keepdim):
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 3.0, 0.0]]).double()
    assert_agrees_with_torch(lambda x: x.max(dim, keepdim)[0], x)
    assert torch.equal(Variable(x).max(dim, keepdim)[1], x.max(dim, keepdim)[1])


def test_ties_share_evenly_in_amax_and_go_to_one_in_max_over_a_dimension():
    x = torch.tensor([2.0, 5.0, 5.0, 5.0, 1.0]).double()
    for reduce in [
        lambda x: x.amax(),
        lambda x: x.amax(0),
        lambda x: x.max(),
        lambda x: x.max(0)[0],
    ]:
        assert_agrees_with_torch(reduce, x)
    shared, single = parameter(x), parameter(x)
    shared.amax(0).backward()
    single.max(0)[0].backward()
    assert shared.grad.count_nonzero() == 3
    assert single.grad.count_nonzero() == 1


def test_the_mean_of_nothing_is_not_a_number_but_its_gradient_is_empty():
    assert_agrees_with_torch(lambda x: x.mean(), random(0, 3))
    assert_agrees_with_torch(lambda x: x.mean(1), random(0, 3))


def test_logsumexp_survives_large_and_infinite_entries():
    inf = torch.inf
    x = torch.tensor(
        [[1e4, 1e4 - 1], [-1e4, -1e4], [-inf, 3.0], [-inf, -inf], [1e308, -1e308]]
    ).double()
    assert_agrees_with_torch(lambda x: x.logsumexp(1), x)
    assert Variable(torch.tensor([inf, 0.0])).logsumexp(0).item() == inf


VIEWS = {
    "reshape": lambda x: x.reshape(4, 6),
    "reshape by a tuple": lambda x: x.reshape((3, -1)),
    "transpose": lambda x: x.transpose(0, 2),
    "transpose from the end": lambda x: x.transpose(-1, -2),
    "a matrix's T": lambda x: x.reshape(6, 4).T,
    "transpose, then reshape": lambda x: x.transpose(0, 1).reshape(2, 12),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_agree_with_torch(name):
    assert_agrees_with_torch(lambda x: VIEWS[name](x) * 2, random(2, 3, 4))


KEYS = {
    "an integer": 1,
    "a slice": slice(None, None, 2),
    "integers and slices": (slice(None), -1, slice(1, 3)),
    "an ellipsis": (..., 0),
    "a new dimension": (None, 1),
    "a list with repetitions": [1, 0, 1, 1],
    "a tensor with repetitions": torch.tensor([[1, 1], [0, 1]]),
    "rows and columns": (torch.tensor([0, 1, 0]), torch.tensor([2, 2, 2])),
    "a slice and a tensor": (slice(None), torch.tensor([0, 0, 2]), slice(1, None)),
    "a mask": random(2, 3, 4) > 0,
    "a mask of rows": torch.tensor([False, True]),
    "nothing": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("name", KEYS)
def test_indexing_agrees_with_torch(name):
    assert_agrees_with_torch(lambda x: x[KEYS[name]] * 2, random(2, 3, 4))


def test_repeated_indices_accumulate():
    x = parameter(torch.zeros(3))
    x[[0, 2, 2, 2]].sum().backward()
    assert x.grad.tolist() == [1, 0, 3]


def test_a_variable_can_be_unpacked():
    x = parameter(torch.arange(3.0))
    a, b, c = x
    (a + b * c).backward()
    assert x.grad.tolist() == [1, 2, 1]


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1, 5), (7, 3), (64, 10)])
def test_cross_entropy_agrees_with_torch(n, classes):
    target = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(3))
    z = random(n, classes)
    value, (gradient,) = on_tape(lambda z: cross_entropy(z, target), z)
    judge, (expected,) = on_torch(lambda z: torch.nn.functional.cross_entropy(z, target), z)
    torch.testing.assert_close(value, judge, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_cross_entropy_survives_extreme_logits():
    z = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0], [0.0, -torch.inf, 5.0]]).double()
    target = torch.tensor([0, 2, 2])
    value, (gradient,) = on_tape(lambda z: cross_entropy(z, target), z)
    judge, (expected,) = on_torch(lambda z: torch.nn.functional.cross_entropy(z, target), z)
    torch.testing.assert_close(value, judge, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_cross_entropy_is_logsumexp_less_the_right_logit():
    z, target = random(6, 4), torch.tensor([0, 1, 2, 3, 3, 3])

    def composed(z):
        return (z.logsumexp(1) - z[torch.arange(6), target]).mean()

    value, (gradient,) = on_tape(lambda z: cross_entropy(z, target), z)
    other, (expected,) = on_tape(composed, z)
    torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_evaluation_needs_no_parameters():
    z, target = random(6, 4), torch.tensor([0, 1, 2, 3, 3, 3])
    expected = torch.nn.functional.cross_entropy(z, target)
    torch.testing.assert_close(cross_entropy(Variable(z), target).data, expected)


# Types and devices ----------------------------------------------------------------------------


def network(x, y, W1, b1, W2, b2):
    """Every kind of operation in one scalar."""
    z = (x @ W1 + b1).tanh() @ W2 - b2
    entropy = cross_entropy if isinstance(z, Variable) else torch.nn.functional.cross_entropy
    return (
        entropy(z, y)
        + (W1 * W1).mean()
        + W2[[0, 0]].sigmoid().sum() / 10
        + z.logsumexp(1).amax()
        + b1.relu().exp().sum()
    )


def test_float32_is_as_exact_as_torch():
    y = torch.randint(10, (32,), generator=torch.Generator().manual_seed(3))
    exact = [
        random(*shape, seed=n)
        for n, shape in enumerate([(32, 50), (50, 40), (40,), (40, 10), (10,)])
    ]
    rough = [x.float() for x in exact]

    def errors(run):
        value, gradients = run(lambda x, *rest: network(x, y, *rest), *rough)
        true_value, true = on_torch(
            lambda x, *rest: network(x, y, *rest), *(x.double() for x in rough)
        )
        results, truths = [value, *gradients], [true_value, *true]
        return [
            ((r - t).norm() / t.norm()).item() for r, t in zip(results, truths, strict=True)
        ]

    for ours, theirs in zip(errors(on_tape), errors(on_torch), strict=True):
        assert ours < 3 * theirs + 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_and_gradients_keep_the_type(dtype):
    x = parameter(random(2, 3, dtype=dtype))
    y = ((2 * x + 0.5).tanh() ** 2).mean()
    y.backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)


def test_mixed_types_promote_as_in_torch_and_each_gradient_has_its_own():
    def product_of_both(a, b):
        return (a * b).sum()

    a, b = random(3, dtype=torch.float32), random(3, seed=2)
    value, gradients = on_tape(product_of_both, a, b)
    judge, judges = on_torch(product_of_both, a, b)
    assert value.dtype == judge.dtype == torch.float64
    for gradient, expected in zip(gradients, judges, strict=True):
        # assert_close compares types, too
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_everything_stays_on_the_device():
    shapes = [(50, 40), (40,), (40, 10), (10,)]
    weights = [parameter(torch.empty(shape, device="meta")) for shape in shapes]
    x = Variable(torch.empty(32, 50, device="meta"))
    z = (x @ weights[0] + weights[1]).relu() @ weights[2] + weights[3]
    loss = (z.logsumexp(1) - z[:, 0] + z.amax(1) - z.max(1)[0]).mean() ** 2
    loss.backward()
    assert loss.device.type == "meta"
    assert [w.grad.device.type for w in weights] == ["meta"] * 4


# By hand --------------------------------------------------------------------------------------


@pytest.fixture
def two_layers():
    y = torch.randint(5, (16,), generator=torch.Generator().manual_seed(3))
    return (
        random(16, 7),
        y,
        [random(*s, seed=n) for n, s in enumerate([(7, 9), (9,), (9, 5), (5,)], start=1)],
    )


def test_the_two_layer_gradients_by_hand_agree_with_torch_and_with_the_tape(two_layers):
    x, y, weights = two_layers
    loss, gradients = two_layer_gradients(x, y, *weights)
    for run, entropy in [
        (on_torch, torch.nn.functional.cross_entropy),
        (on_tape, cross_entropy),
    ]:
        copies = [
            w.clone().requires_grad_() if run is on_torch else parameter(w) for w in weights
        ]
        W1, b1, W2, b2 = copies
        judge = entropy((x @ W1 + b1).relu() @ W2 + b2, y)
        judge.backward()
        torch.testing.assert_close(loss, judge.data, rtol=1e-12, atol=1e-12)
        for gradient, copy in zip(gradients, copies, strict=True):
            torch.testing.assert_close(gradient, copy.grad, rtol=1e-12, atol=1e-12)


def test_the_two_layer_gradients_survive_extreme_logits(two_layers):
    x, y, weights = two_layers
    loss, gradients = two_layer_gradients(1e5 * x, y, *weights)
    assert all(torch.isfinite(result).all() for result in [loss, *gradients])


# The backward pass ----------------------------------------------------------------------------


def test_a_value_used_twice_collects_both_gradients():
    assert_agrees_with_torch(lambda x: x * x + x, random(3))
    assert_agrees_with_torch(lambda x: (x + x) * (x.tanh() - x), random(3))


def test_a_diamond_is_walked_once():
    calls = []

    def counted(x):
        return record("counted", 2 * x.data, (x, lambda g: calls.append(1) or 2 * g))

    x = parameter(1.0)
    y = counted(x)
    for _ in range(20):
        y = y + y
    y.backward()
    assert x.grad == 2**21
    assert len(calls) == 1


def test_branches_of_very_different_length_join_in_the_right_order():
    def uneven(x):
        long = x
        for _ in range(30):
            long = long.tanh()
        return long * x + (long * x.exp()).sigmoid()

    assert_agrees_with_torch(uneven, random(4))


def test_a_chain_of_100_000_operations_takes_seconds_and_no_recursion(bare_run):
    assert bare_run["gradient"] == 1
    # about 3 on an idle machine, and freeing an unused chain is part of it
    assert bare_run["seconds"] < 60


def test_gradients_add_up_over_calls_until_they_are_cleared():
    x = parameter(3.0)
    for times in [1, 2, 3]:
        (x * x).backward()
        assert x.grad == 6 * times
    x.grad = None
    (x * x).backward()
    assert x.grad == 6


def test_a_parameter_that_is_itself_the_output_gets_the_gradient_it_is_given():
    x = parameter(torch.ones(2))
    given_gradient = torch.tensor([1.0, 2.0])
    x.backward(given_gradient)
    x.backward(given_gradient)
    assert x.grad.tolist() == [2, 4]
    assert given_gradient.tolist() == [1, 2]


def test_each_gradient_has_its_own_memory():
    a, b = parameter(torch.ones(2, 3)), parameter(torch.ones(2, 3))
    (a + b.reshape(3, 2).reshape(2, 3)).sum().backward()
    a.grad.mul_(10)
    assert torch.equal(b.grad, torch.ones(2, 3))
    # a gradient that is an expanded view of one number could not be added to
    (a + b).sum().backward()
    assert torch.equal(b.grad, 2 * torch.ones(2, 3))


def test_a_pullback_may_return_a_view_of_fewer_numbers():
    x = parameter(torch.ones(3))
    for _ in range(2):
        record("twice the sum", 2 * x.data.sum(), (x, lambda g: (2 * g).expand(3))).backward()
    assert x.grad.tolist() == [4, 4, 4]


def test_the_gradient_is_the_same_to_the_last_bit_every_time():
    def run():
        x = parameter(random(50, dtype=torch.float32))
        branches = [(x * k).tanh() for k in range(1, 12)]
        total = branches[0]
        for branch in branches[1:]:
            total = total + branch
        total.sum().backward()
        return x.grad

    first = run()
    clutter = []
    for n in range(10):
        clutter.append([object() for _ in range(37 * n)])  # other addresses in memory
        assert torch.equal(run(), first)


def test_constants_get_no_gradient_and_cost_none():
    def refuse(g):
        raise AssertionError

    x, constant = parameter(torch.ones(3)), Variable(torch.ones(3))
    record(
        "first",
        x.data,
        (x, lambda g: g),
        (constant, refuse),
        (2.0, refuse),
        (torch.ones(3), refuse),
    ).sum().backward()
    assert constant.grad is None
    assert x.grad.tolist() == [1, 1, 1]


def test_nothing_is_stored_where_nothing_requires_a_gradient():
    W, x = parameter(random(3, 2)), random(4, 3)
    y = (x @ W.detach()).relu().sum()
    assert not y.requires_grad
    assert y.edges == ()
    assert (x @ W).requires_grad


def test_detach_stops_the_gradient():
    assert_agrees_with_torch(lambda x: x * x.detach(), random(3))


@pytest.mark.parametrize("backward", [False, True])
def test_reference_counting_frees_the_graph_without_the_garbage_collector(backward):
    W, b = parameter(random(3, 4)), parameter(random(4))
    gc.collect()
    gc.disable()
    try:
        h = random(5, 3) @ W
        z = ((h + b).tanh().relu().sigmoid().exp() / 3).reshape(4, 5).T[[0, 0]] - 1
        y = (
            z.amax(0).sum()
            + z.max(1)[0].mean()
            + cross_entropy(-z * z, torch.tensor([0, 1]))
            + (z**2).logsumexp((0, 1))
        )
        watched = [weakref.ref(v) for v in topological_order(y) if v.edges]
        assert len(watched) > 15
        del h, z
        if backward:
            y.backward()
        else:
            del y
        # after backward the output alone is left, and only because y is its name
        assert sum(reference() is not None for reference in watched) == (1 if backward else 0)
    finally:
        gc.enable()


def test_each_intermediate_is_freed_as_soon_as_it_has_been_used():
    alive = []
    x = parameter(torch.ones(3))
    y = x
    watched = []

    def looking(v):
        return record(
            "look",
            v.data * 1,
            (v, lambda g: alive.append(sum(w() is not None for w in watched)) or g),
        )

    for _ in range(5):
        y = looking(y)
        watched.append(weakref.ref(y))
    y = y.sum()
    y.backward()
    assert alive == [5, 4, 3, 2, 1]


def test_intermediate_gradients_are_kept_only_if_the_graph_is_retained():
    x = parameter(2.0)
    h = x * x
    y = h * 3
    y.backward(retain_graph=True)
    assert (x.grad, h.grad, y.grad) == (12, 3, 1)
    y.backward()
    assert x.grad == 24
    assert h.grad is None
    assert y.grad is None


def test_a_retained_graph_can_be_walked_again_and_only_leaves_add_up():
    x = parameter(2.0)
    h = x * x
    y = h * 3
    for times in [1, 2, 3]:
        y.backward(retain_graph=True)
        assert (x.grad, h.grad) == (12 * times, 3)


def test_a_second_backward_says_what_to_do():
    x = parameter(2.0)
    y = (x * x).exp()
    y.backward()
    with pytest.raises(
        RuntimeError,
        match=r"backward through the graph a second time.*'exp'.*retain_graph=True",
    ):
        y.backward()


def test_a_graph_freed_in_part_is_refused_before_any_gradient_changes():
    x = parameter(2.0)
    h = x * x
    first, second = h + 1, h * x
    first.backward()
    with pytest.raises(RuntimeError, match=r"an earlier pass has freed '\*'"):
        second.backward()
    assert x.grad == 4


def test_an_output_of_several_entries_needs_a_gradient():
    with pytest.raises(
        RuntimeError,
        match=r"implicitly created only for scalar outputs, got shape \(2, 3\): reduce it",
    ):
        (parameter(torch.ones(2, 3)) * 2).backward()


def test_a_single_entry_counts_as_a_scalar():
    x = parameter(torch.ones(1, 1))
    (x * 2).backward()
    assert x.grad.tolist() == [[2]]


def test_the_given_gradient_must_have_the_shape_of_the_output():
    with pytest.raises(ValueError, match=r"must have the output's shape \(2, 3\), got \(3,\)"):
        (parameter(torch.ones(2, 3)) * 2).backward(torch.ones(3))


def test_backward_without_a_parameter_says_how_to_make_one():
    with pytest.raises(RuntimeError, match=r"does not require grad.*requires_grad=True"):
        (Variable(2.0) * 3).backward()


# The parts ------------------------------------------------------------------------------------


@given(
    shapes=mutually_broadcastable_shapes(
        num_shapes=1, max_dims=4, max_side=3, base_shape=(2, 3)
    )
)
@settings(max_examples=60, deadline=None)
def test_summing_to_a_shape_is_the_adjoint_of_broadcasting_from_it(shapes):
    (shape,), full = shapes.input_shapes, shapes.result_shape
    x, g = random(*shape), random(*full, seed=2)
    reduced = sum_to_shape(g, torch.Size(shape))
    assert reduced.shape == shape
    torch.testing.assert_close(
        (x.broadcast_to(full) * g).sum(), (x * reduced).sum(), rtol=1e-12, atol=1e-12
    )


def test_the_topological_order_puts_inputs_before_results_and_each_once():
    x, W = parameter(random(2, 2)), parameter(random(2, 2))
    y = ((x @ W).tanh() @ W + x).sum()
    order = topological_order(y)
    assert len(order) == len(set(order)) == 7
    for position, v in enumerate(order):
        assert all(order.index(x) < position for x, _ in v.edges)
    assert order[-1] is y


def test_a_reader_can_add_an_operation():
    def sin(x):
        return record("sin", x.data.sin(), (x, lambda g: g * x.data.cos()))

    assert gradient_check(sin, Variable(random(3)))


# Variables ------------------------------------------------------------------------------------


def test_the_example_of_the_docstring():
    x = Variable(3.0, requires_grad=True)
    y = x * x + 2 * x
    y.backward()
    assert repr(x.grad) == "tensor(8.)"


def test_a_variable_shows_what_it_holds():
    assert repr(parameter(2.0)) == "Variable(2.0, requires_grad=True)"
    assert repr(Variable(torch.ones(2))) == "Variable(tensor([1., 1.]))"


def test_a_variable_has_the_shape_type_device_and_item_of_its_data():
    x = Variable(torch.full((1, 1), 0.5, dtype=torch.float64))
    assert (x.shape, x.dtype, x.device, x.item()) == (
        (1, 1),
        torch.float64,
        torch.device("cpu"),
        0.5,
    )


def test_updating_data_in_place_keeps_the_parameter():
    p = parameter(torch.ones(2))
    p.data -= 0.5 * torch.ones(2)
    assert p.data.tolist() == [0.5, 0.5]
    assert p.requires_grad


def test_only_floating_point_has_gradients():
    with pytest.raises(
        TypeError, match=r"only floating point has gradients, got torch.int64: .*x\.float\(\)"
    ):
        parameter(torch.arange(3))


def test_data_on_the_tape_of_torch_are_refused():
    theirs = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"PyTorch's own tape .*x\.detach\(\)"):
        Variable(theirs)
    with pytest.raises(ValueError, match=r"PyTorch's own tape .*x\.detach\(\)"):
        parameter(torch.ones(3)) + theirs


@pytest.mark.parametrize("operand", [None, "2", [1.0, 2.0], np.ones(2)])
def test_operands_of_other_types_are_refused(operand):
    for operation in ARITHMETIC.values():
        with pytest.raises(
            TypeError, match=rf"got {type(operand).__name__}: use torch.as_tensor"
        ):
            operation(parameter(torch.ones(2)), operand)
        with pytest.raises(
            TypeError, match=rf"got {type(operand).__name__}: use torch.as_tensor"
        ):
            operation(operand, parameter(torch.ones(2)))


def test_a_numpy_number_is_a_number():
    assert_agrees_with_torch(lambda x: np.float64(2.0) * x * np.float64(0.5), random(3))


def test_the_exponent_must_be_a_number():
    with pytest.raises(
        TypeError,
        match=r"exponent must be a number, got Tensor: write \(n \* x.log\(\)\).exp\(\)",
    ):
        parameter(torch.ones(2)) ** torch.ones(2)


def test_only_a_matrix_has_a_transpose_without_dimensions():
    with pytest.raises(
        ValueError, match=r"\.T is for matrices, got shape \(2, 3, 4\): use x.transpose"
    ):
        parameter(torch.ones(2, 3, 4)).T  # noqa: B018


def test_cross_entropy_says_what_it_wants():
    z, y = parameter(torch.zeros(4, 3)), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one target for each .* got \(4, 3\) and \(3,\)"):
        cross_entropy(z, y[:3])
    with pytest.raises(
        ValueError, match=r"logits of shape \(batch, classes\) .* got \(12,\) and \(4,\)"
    ):
        cross_entropy(z.reshape(12), y)
    with pytest.raises(ValueError, match=r"at least one example, got \(0, 3\) and \(0,\)"):
        cross_entropy(z[:0], y[:0])
    with pytest.raises(ValueError, match="targets must be classes from 0 to 2, got 0 to 3"):
        cross_entropy(z, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="targets must be classes from 0 to 2, got -1 to 0"):
        cross_entropy(z, y - torch.tensor([1, 0, 0, 0]))
    with pytest.raises(TypeError, match=r"int64, got torch.int32: use target.long\(\)"):
        cross_entropy(z, y.int())


# Checking gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Variable, torch.Tensor.clone])
def test_the_check_passes_right_gradients_of_either_kind(kind):
    inputs = [
        kind(x)
        for x in (
            random(5, 3),
            random(3, 4, seed=2),
            random(4, seed=3),
            1e4 * random(2, seed=4),
        )
    ]
    assert gradient_check(
        lambda x, W, b, c: (x @ W + b).tanh() * c.sum() + b.exp().sum() / 3, *inputs
    )
    assert gradient_check(lambda x, W, b, c: x.sum() * 2, *inputs)  # the others do not matter
    assert gradient_check(lambda x, W, b, c: x, *inputs)  # the output is the input itself
    assert gradient_check(lambda x: x * x, kind(random()))
    assert gradient_check(lambda x: x[::2, :1].transpose(0, 1), inputs[0])


def test_the_check_shows_the_worst_entry():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            wrong = 2 * x
            wrong[0, 1] += 0.125
            wrong[1, 2] += 0.5
            return g * wrong

    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    words = (
        r"2 of 7 entries disagree, the worst in input 1 at index \(1, 2\):\s+backpropagation "
        r"+12\.5\s+"
        r"central differences +(12\.0000|11\.9999|12\s)[\s\S]*difference +0\.5, allowed "
        r"1\.2\d*e-05[\s\S]*kink"
    )
    with pytest.raises(AssertionError, match=words):
        gradient_check(
            lambda a, x: Wrong.apply(x).sum() + a, torch.zeros((), dtype=torch.float64), x
        )


def test_the_check_finds_a_wrong_pullback():
    def wrong_tanh(x):
        y = x.data.tanh()
        return record("tanh", y, (x, lambda g: g * (1 - y)))

    with pytest.raises(
        AssertionError, match=r"5 of 5 entries disagree, the worst in input 0 at index \(\d,\)"
    ):
        gradient_check(wrong_tanh, Variable(random(5)))


def nan_in_one(x, y):
    return record(
        "sum", x.data.sum() + y.data, (x, lambda g: g.expand(2)), (y, lambda g: g * torch.nan)
    )


def test_the_check_finds_a_missing_gradient_and_one_that_is_not_a_number():
    with pytest.raises(
        AssertionError, match=r"1 of 1 entries disagree, the worst in input 0 at index \(\)"
    ):
        gradient_check(lambda x: x.detach() * 2 + 0 * x, torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(
        AssertionError,
        match=r"1 of 3 entries disagree, the worst in input 1 at index \(\):\s.* nan",
    ):
        gradient_check(nan_in_one, Variable(random(2)), Variable(random()))


def test_the_check_obeys_its_tolerances_and_step():
    x = torch.tensor(1.0, dtype=torch.float64)
    # (1.1³ - 0.9³) / 0.2 is 3.01
    with pytest.raises(AssertionError, match=r"difference +0\.01"):
        gradient_check(lambda x: x**3, x, step=0.1)
    assert gradient_check(lambda x: x**3, x, step=0.1, atol=0.011)
    assert gradient_check(lambda x: x**3, x, step=0.1, rtol=0.004)
    with pytest.raises(AssertionError, match="difference"):
        gradient_check(lambda x: x**3, x, rtol=0.0, atol=1e-15)


def test_the_default_step_leaves_ten_digits():
    assert gradient_check(
        lambda x: x.exp(),
        torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64),
        rtol=2e-10,
        atol=0.0,
    )
    large = torch.tensor([1e3, 1e6, 1e9], dtype=torch.float64)
    # an entry's step grows with it
    assert gradient_check(lambda x: x**3, large, rtol=2e-10, atol=0.0)


def test_the_check_leaves_its_inputs_alone():
    x, v = random(3), parameter(random(3))
    before = x.clone()
    gradient_check(lambda x, y: (x * y).sum(), *(torch.Tensor.clone(x), x))
    gradient_check(lambda v: (v * v).sum(), v)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad
    assert v.grad is None
    assert torch.equal(v.data, before)


def test_the_check_wants_float64():
    with pytest.raises(
        TypeError, match=r"float64's digits, input 1 is torch.float32: use .double\(\)"
    ):
        gradient_check(lambda x, y: x * y, random(3), random(3).float())
    with pytest.raises(TypeError, match=r"input 0 is torch.int64"):
        gradient_check(lambda x: x, torch.arange(3))


def test_the_check_notices_chance():
    with pytest.raises(
        ValueError, match="two outputs for the same inputs: draw its random numbers beforehand"
    ):
        gradient_check(lambda x: x * torch.rand(()), random(3))


# Pictures -------------------------------------------------------------------------------------


def boxes_of(ax):
    return [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]


def arrows_of(ax):
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def line_of(arrow):
    """The points of an arrow's line, without the four of its head."""
    return arrow.get_path().vertices[:-4]


def unrolled(steps):
    """A recurrent network: two parameters used in every step."""
    W, U, h = (
        parameter(random(3, 3)),
        parameter(random(2, 3, seed=2)),
        torch.zeros(1, 3).double(),
    )
    for t in range(steps):
        h = (random(1, 2, seed=t) @ U + h @ W).tanh()
    return (h * h).sum() / 2


def test_the_picture_shows_each_value_and_gradient_once(figure):
    x, W, b = (
        random(4, 3),
        parameter(random(3, 2)),
        parameter(torch.tensor([0.5, -0.25]).double()),
    )
    h = x @ W
    loss = ((h + b) ** 2).mean() * 3
    loss.backward(retain_graph=True)
    ax = draw_graph(loss, {"x": x, "W": W, "b": b, "h": h})
    texts = [text.get_text() for text in ax.texts]
    for expected in [
        "x",
        "W",
        "b",
        "h = @",
        "+",
        "** 2",
        "mean",
        "*",
        "3",
        "(4, 3)",
        "(3, 2)",
        "0.5, −0.25",
    ]:
        assert texts.count(expected) == 1
    assert f"{loss.item():.3g}" in texts
    assert f"grad norm {W.grad.norm():.2g}" in texts
    assert "grad " + ", ".join(f"{g:.3g}" for g in b.grad.tolist()).replace("-", "−") in texts
    assert len(boxes_of(ax)) == 9  # x, W, @, b, +, ** 2, mean, 3, *
    assert len(arrows_of(ax)) == 8


def test_the_picture_without_a_backward_pass_shows_values_alone(figure):
    ax = draw_graph(parameter(2.0) * Variable(3.0))
    assert sorted(text.get_text() for text in ax.texts) == [
        "*",
        "2",
        "3",
        "6",
        "constant",
        "parameter",
    ]


def test_a_single_value_is_a_picture_too(figure):
    ax = draw_graph(parameter(2.0), ax=figure.add_subplot())
    assert ax.figure is figure
    assert [text.get_text() for text in ax.texts] == ["parameter", "2"]


def test_a_value_used_twice_by_one_operation_has_two_arrows(figure):
    x = parameter(2.0)
    first, second = (line_of(arrow)[-1, 0] for arrow in arrows_of(draw_graph(x * x)))
    assert abs(first - second) > 0.1


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_no_box_covers_another_and_every_arrow_points_down(figure, steps):
    ax = draw_graph(unrolled(steps))
    corners = [(box.get_x(), box.get_y()) for box in boxes_of(ax)]
    for n, (x, y) in enumerate(corners):
        assert all(
            abs(x - other_x) > 0.95 or abs(y - other_y) > 0.75
            for other_x, other_y in corners[:n]
        )
        assert ax.get_xlim()[0] <= x <= ax.get_xlim()[1] - 0.95
        assert ax.get_ylim()[0] <= y <= ax.get_ylim()[1] - 0.7
    for arrow in arrows_of(ax):
        assert (np.diff(line_of(arrow)[:, 1]) <= 0).all()


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_no_arrow_passes_behind_a_box(figure, steps):
    ax = draw_graph(unrolled(steps))
    for arrow in arrows_of(ax):
        for x, y in Path(line_of(arrow)).interpolated(20).vertices:
            for box in boxes_of(ax):
                inside = 0.02 < x - box.get_x() < 0.94 and 0.02 < y - box.get_y() < 0.68
                assert not inside


def test_parameters_constants_and_results_differ_without_colour(figure):
    y = parameter(2.0) * Variable(3.0) + 1
    styles = {
        (box.get_linestyle(), box.get_linewidth(), box.get_facecolor())
        for box in boxes_of(draw_graph(y))
    }
    assert len(styles) == 4  # parameter, constant, result, output
    assert all(len(set(color[:3])) == 1 for _, _, color in styles)


def test_a_freed_graph_cannot_be_drawn():
    y = parameter(2.0) * 3
    y.backward()
    with pytest.raises(
        RuntimeError, match=r"or to draw it: an earlier pass has freed '\*'.*retain_graph=True"
    ):
        draw_graph(y)


def test_matplotlib_is_loaded_only_to_draw(bare_run):
    assert not bare_run["matplotlib"]


# Second derivatives ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by PyTorch itself
def test_the_tape_on_dual_tensors_multiplies_by_the_hessian():
    x, y = random(8, 4), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    weights = [random(*s, seed=n) for n, s in enumerate([(4, 5), (5,), (5, 3), (3,)])]
    directions = [random(*w.shape, seed=9 + n) for n, w in enumerate(weights)]

    def gradients(*weights):
        leaves = [parameter(w) for w in weights]
        network(x, y, *leaves).backward()
        return [leaf.grad for leaf in leaves]

    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, weights, directions)
        products = [forward_ad.unpack_dual(g).tangent for g in gradients(*duals)]
    _, judges = torch.autograd.functional.hvp(
        lambda *w: network(x, y, *w), tuple(weights), tuple(directions)
    )
    for product_, judge in zip(products, judges, strict=True):
        torch.testing.assert_close(product_, judge, rtol=1e-10, atol=1e-10)


# Training -------------------------------------------------------------------------------------


def test_fifty_steps_of_training_agree_with_torch_sgd(two_layers):
    x, y, weights = two_layers
    ours, theirs = (
        [parameter(w.clone()) for w in weights],
        [w.clone().requires_grad_() for w in weights],
    )
    optimizer = torch.optim.SGD(theirs, lr=0.1)
    for _ in range(50):
        W1, b1, W2, b2 = ours
        loss = cross_entropy((x @ W1 + b1).relu() @ W2 + b2, y)
        loss.backward()
        for p in ours:
            p.data -= 0.1 * p.grad
            p.grad = None

        V1, c1, V2, c2 = theirs
        judge = torch.nn.functional.cross_entropy((x @ V1 + c1).relu() @ V2 + c2, y)
        optimizer.zero_grad()
        judge.backward()
        optimizer.step()
        torch.testing.assert_close(loss.data, judge.detach(), rtol=1e-10, atol=1e-10)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.data, q.detach(), rtol=1e-10, atol=1e-10)


def test_everything_public_is_listed():
    public = {
        name
        for name, thing in vars(backpropagation).items()
        if getattr(thing, "__module__", "") == backpropagation.__name__ and name[0] != "_"
    }
    assert set(backpropagation.__all__) == public


def test_pullbacks_that_return_shifted_views_do_not_share_memory():
    a, b = (
        Variable(torch.ones(3), requires_grad=True),
        Variable(torch.ones(3), requires_grad=True),
    )
    for _ in range(2):
        joined = torch.cat([torch.zeros(1), a.data + b.data])
        record("pad", joined, (a, lambda g: g[1:]), (b, lambda g: g[1:])).sum().backward()
    assert a.grad.tolist() == b.grad.tolist() == [2.0, 2.0, 2.0]
    x = Variable(torch.ones(3), requires_grad=True)
    record(
        "both ends", x.data.repeat(2)[:4], (x, lambda g: g[1:]), (x, lambda g: g[:-1])
    ).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_gradient_that_is_no_tensor_is_refused(plain_python):
    with pytest.raises(TypeError, match=r"gradient must be a tensor or None, got 1.0"):
        Variable(torch.ones(3), requires_grad=True).backward(1.0)


def test_gradient_check_weighs_the_entries_of_an_output_differently():
    # softmax adds up to one: under equal weights any gradient at all of its sum would be zero
    def softmax(x, wrong=0.0):
        y = x.data.softmax(0)
        return record("softmax", y, (x, lambda g: (1 + wrong) * y * (g - (g * y).sum())))

    x = Variable(random(4))
    assert gradient_check(softmax, x)
    with pytest.raises(AssertionError, match="4 of 4 entries disagree"):
        gradient_check(lambda x: softmax(x, wrong=0.5), x)


def test_no_arrows_cross_where_they_need_not(figure):
    a, b, c, d = (parameter(float(n + 1)) for n in range(4))
    u, v, w = a.exp(), b.exp(), c.exp()
    for output in ((a * b + 1) * (c * d + 2) + (a * b).exp(), w * u + v * u):
        ends = [line_of(arrow)[[0, -1]] for arrow in arrows_of(draw_graph(output))]
        for n, ((x0, y0), (x1, y1)) in enumerate(ends):
            for (other_x0, other_y0), (other_x1, other_y1) in ends[:n]:
                if (y0, y1) == pytest.approx((other_y0, other_y1)):
                    assert (x0 - other_x0) * (x1 - other_x1) >= 0
