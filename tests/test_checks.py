import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, Int64, Shaped, UInt8
from torch import Tensor, nn

from companion.checks import Unbounded, accepts, check_alike, checked


@checked
def function(
    x: Float[Tensor, "batch *rest classes"],
    y: Int[Tensor, " batch"] | None = None,
    *anything: int | str,
    count: int = 1,
    rate: float = 0.1,
    limit: Unbounded = 1.0,
    word: str = "mean",
    yes: bool = True,
    sizes: int | Sequence[int] = 1,
    pair: tuple[float, float] = (0.9, 0.999),
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    act: Callable[[Tensor], Tensor] = torch.relu,
    module: nn.Module | None = None,
    whatever: Any = None,
    ax: "Axes | None" = None,
    unknown=None,
    **more: int,
):
    """What it does."""
    return x, y, anything, more


X, Y = torch.rand(4, 2, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (
            {"x": [[1.0]]},
            TypeError,
            r"x must be a tensor, got \[\[1.0\]\]: .*torch.as_tensor\(x\)",
        ),
        (
            {"x": np.ones((4, 3))},
            TypeError,
            r"a NumPy array of shape \(4, 3\): .*torch.as_tensor",
        ),
        ({"x": [0.123456789] * 99}, TypeError, "x must be a tensor, got a list: "),
        ({"x": None}, TypeError, "x must be a tensor, got None$"),
        (
            {"x": Y},
            TypeError,
            r"floating-point numbers, got torch.int64: convert with x.float\(\)",
        ),
        ({"x": X[0, 0]}, ValueError, r"\(batch, \*rest, classes\), got shape \(3,\): add one"),
        (
            {"y": Y.float()},
            TypeError,
            r"whole numbers, got torch.float32: convert with y.long\(\)",
        ),
        ({"y": Y[None]}, ValueError, r"\(batch,\), got shape \(1, 4\): drop one"),
        ({"y": Y[:3]}, ValueError, r"\(batch,\), with batch 4 as in x, got shape \(3,\)"),
        (
            {"y": Y.tolist()},
            TypeError,
            r"y must be a tensor or None, got \[0, 0, 0, 0\]: make it",
        ),
        ({"count": 1.0}, TypeError, "count must be a whole number, got 1.0"),
        ({"count": "3"}, TypeError, "count must be a whole number, got '3'"),
        ({"count": torch.tensor(3)}, TypeError, r"becomes that number by count.item\(\)"),
        ({"rate": float("nan")}, ValueError, "rate must be a finite number, got nan"),
        ({"rate": "0.1"}, TypeError, "rate must be a finite number, got '0.1'"),
        ({"rate": None}, TypeError, "rate must be a finite number, got None"),
        ({"rate": float("-inf")}, ValueError, "rate must be a finite number, got -inf"),
        ({"limit": float("nan")}, ValueError, "limit must be a number, got nan"),
        ({"word": 3}, TypeError, "word must be a string, got 3"),
        ({"yes": "no"}, TypeError, "yes must be True or False, got 'no'"),
        (
            {"sizes": "same"},
            TypeError,
            "a whole number or a sequence, each entry a whole number",
        ),
        ({"sizes": (1, 2.0)}, TypeError, r"each entry a whole number, got \(1, 2.0\)"),
        (
            {"pair": (0.9,)},
            TypeError,
            r"pair must be \(a finite number, a finite number\), got \(0.9,\)",
        ),
        ({"pair": 0.9}, TypeError, "pair must be .a finite number, a finite number., got 0.9"),
        ({"device": "gpu"}, TypeError, "a device, such as 'cpu', or None, got 'gpu'"),
        ({"dtype": "float64"}, TypeError, "such as torch.float32, or None, got 'float64'"),
        ({"act": "relu"}, TypeError, "act must be a function, got 'relu'"),
        ({"module": nn.Linear}, TypeError, "module must be a Module or None, got <class"),
        ({"ax": 3}, TypeError, "ax must be Axes | None, got 3"),
    ],
)
def test_a_mistake_ends_in_what_was_given_what_was_wanted_and_what_to_do(given, kind, words):
    with pytest.raises(kind, match=words):
        function(**{"x": X, "y": Y, **given})


def test_what_a_star_collects_is_checked_one_by_one():
    with pytest.raises(
        TypeError, match=r"anything must be a whole number or a string, got 2.5"
    ):
        function(X, Y, 1, "two", 2.5)


def test_what_the_signature_allows_goes_through():
    class Axes:
        pass

    class Polar(Axes):
        pass

    for given in [
        {"y": None, "count": np.int64(3), "rate": 1, "yes": np.True_, "unknown": object()},
        {"limit": float("inf"), "sizes": [1, 2], "pair": [0.5, 1], "whatever": "anything"},
        {"sizes": np.array([1, 2]), "device": "cuda", "dtype": torch.float16, "ax": Polar()},
        {"device": torch.device("meta"), "ax": None, "module": nn.ReLU(), "act": nn.ReLU()},
        {"yes": 1, "sizes": torch.Size([3]), "y": Y.to(torch.uint8)},
    ]:
        assert function(**{"x": X, "y": Y, **given})[0] is X
    assert function(X, Y, 1, "two", three="3") == (X, Y, (1, "two"), {"three": "3"})
    assert function(X[:, 0], y=Y)[0].shape == (4, 3)
    assert (function.__name__, function.__doc__) == ("function", "What it does.")


def test_fixed_sizes_kinds_and_places_in_the_annotation_count():
    @checked
    def f(a: UInt8[Tensor, "3 n"], b: Int64[Tensor, "..."], c: Shaped[Tensor, "*any n"]):
        return True

    a, b, c = torch.zeros(3, 5, dtype=torch.uint8), Y, torch.zeros(2, 2, 5, dtype=torch.bool)
    assert f(a, b, c)
    with pytest.raises(
        ValueError,
        match=r"a must have .* \(3, n\), with 3 3 as in the signature, got",
    ):
        f(a[:2], b, c)
    with pytest.raises(
        TypeError, match=r"bytes, torch.uint8, got torch.int64: .*to\(torch.uint8"
    ):
        f(a.long(), b, c)
    with pytest.raises(
        TypeError, match=r"torch.int64, got torch.int32: convert with b.long\(\)"
    ):
        f(a, b.int(), c)
    with pytest.raises(ValueError, match=r"with n 5 as in a, got shape \(2, 2, 4\)"):
        f(a, b, c[..., 1:])


def test_checks_stand_in_the_way_of_no_transform_and_look_at_no_entry():
    @checked
    def double(x: Float[Tensor, "batch features"], by: float = 2.0):
        return by * x

    x = torch.rand(3, 4, 5)
    assert torch.equal(torch.vmap(double)(x), 2 * x)
    assert double(x[0].to("meta")).is_meta
    compiled = torch.compile(double, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(x[0], by=3.0), 3 * x[0])
    assert torch.equal(torch.func.grad(lambda x: double(x).sum())(x[0]), 2 * torch.ones(4, 5))


def test_a_mixed_dtype_says_which_layer_has_which_and_how_to_convert():
    layer = nn.Linear(3, 4)
    words = (
        r"^Linear\(in_features=3.* holds torch.float32, and its input is torch.float64: "
        r"convert the input, x.float\(\), or what holds the other, as by model.double\(\)$"
    )
    with pytest.raises(TypeError, match=words):
        check_alike(layer, torch.rand(2, 3, dtype=torch.float64), None, layer.bias)
    with pytest.raises(TypeError, match=r"x.to\(torch.bfloat16\), or .* model.half\(\)"):
        check_alike("f", torch.rand(2, 3).half(), torch.rand(3).bfloat16())
    with torch.autocast("cpu"):
        check_alike(layer, torch.rand(2, 3, dtype=torch.bfloat16), layer.weight)
    words = r"conv is on cpu, and its input on meta: .*x.to\('cpu'\).*'meta'"
    with pytest.raises(ValueError, match=words):
        check_alike("conv", torch.rand(3, device="meta"), layer.weight)


def test_accepts_takes_what_asks_for_nothing_and_hands_the_rest_on():
    @accepts(inplace=False, weight=None)
    def halved(x, by=2):
        return x / by

    assert halved(6) == halved(6, inplace=False) == halved(6, inplace=False, weight=None) == 3
    assert halved(6, by=3, weight=None) == halved(6, 3) == 2
    assert halved.__name__ == "halved"
    assert [*inspect.signature(halved).parameters] == ["x", "by"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
        halved(6, dtype=None)


@pytest.mark.parametrize("given", [{"inplace": True}, {"weight": torch.ones(3)}])
def test_accepts_refuses_what_is_left_out(given):
    @accepts(inplace=False, weight=None)
    def halved(x):
        return x / 2

    ((name, _),) = given.items()
    with pytest.raises(
        ValueError, match=f"{name} can only be .* here, got .*: what it asks for"
    ):
        halved(6, **given)
