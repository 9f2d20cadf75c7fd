import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from companion.backpropagation import gradient_check
from companion.layers import (
    MLP,
    Linear,
    Sequential,
    binary_cross_entropy_with_logits,
    count_parameters,
    cross_entropy,
    kaiming_normal_,
    kaiming_uniform_,
    mse_loss,
    xavier_normal_,
    xavier_uniform_,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, *arguments, **options):
    torch.manual_seed(7)
    return make(*arguments, **options)


def value_and_gradient(function, x):
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, normal(*y.shape, seed=1, dtype=x.dtype))[0]


# Linear


@pytest.mark.parametrize(
    "shape", [(3,), (5, 3), (1, 3), (2, 4, 3), (2, 1, 5, 3), (0, 3), (2, 0, 3)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_weighted_sum_written_out(shape, bias):
    layer, x = Linear(3, 2, bias, dtype=torch.float64), normal(*shape)
    expected = torch.einsum("...i,oi->...o", x, layer.weight) + (layer.bias if bias else 0)
    assert_close(layer(x), expected, **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (3,)])
def test_linear_gives_the_values_and_gradients_of_torch(shape, bias):
    ours, theirs = (
        Linear(3, 2, bias, dtype=torch.float64),
        nn.Linear(3, 2, bias, dtype=torch.float64),
    )
    theirs.load_state_dict(ours.state_dict())
    x = normal(*shape)
    for a, b in zip(value_and_gradient(ours, x), value_and_gradient(theirs, x), strict=True):
        assert_close(a, b, **EXACT)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a.grad, b.grad, **EXACT)


def test_linear_gradients_agree_with_central_differences():
    layer = Linear(3, 2, dtype=torch.float64)

    def forward(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    leaves = [normal(4, 2, 3).requires_grad_(), *layer.parameters()]
    assert gradient_check(forward, *leaves)
    assert gradgradcheck(forward, leaves)


def test_linear_takes_a_transposed_input():
    layer, x = Linear(3, 2, dtype=torch.float64), normal(3, 4, 5)
    assert_close(layer(x.transpose(0, 2)), layer(x.transpose(0, 2).contiguous()), **EXACT)


def test_linear_in_float32_is_as_precise_as_torch():
    ours, theirs = seeded(Linear, 784, 256), seeded(nn.Linear, 784, 256)
    x = normal(128, 784, dtype=torch.float32)
    exact = copy.deepcopy(theirs).double()(x.double())
    assert (ours(x) - exact).abs().mean() <= 1.1 * (theirs(x) - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_starts_from_the_same_numbers_as_torch(dtype, bias):
    ours, theirs = (
        seeded(Linear, 7, 5, bias, dtype=dtype),
        seeded(nn.Linear, 7, 5, bias, dtype=dtype),
    )
    assert repr(ours) == repr(theirs)
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    seeded(ours.reset_parameters)
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_exchanges_state_dicts_with_torch(bias):
    x = normal(4, 7, dtype=torch.float32)
    ours, theirs = Linear(7, 5, bias), nn.Linear(7, 5, bias)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x), theirs(x))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    assert_close(ours(x), theirs(x))


def test_linear_lives_where_it_is_told_to():
    layer = Linear(3, 2, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    assert (
        Linear(3, 2, dtype=torch.bfloat16)(torch.ones(4, 3, dtype=torch.bfloat16)).dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 3), (784, 1)])
def test_linear_says_which_features_it_wanted(plain_python, shape):
    with pytest.raises(
        ValueError, match=rf"expected 784 features .*, got shape \({', '.join(map(str, shape))}"
    ):
        Linear(784, 2)(torch.ones(shape))


def test_linear_says_how_to_turn_images_into_vectors():
    with pytest.raises(ValueError, match=r"images\.flatten\(1\)"):
        Linear(784, 2)(torch.ones(5, 1, 28, 28))


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (-1, 2)])
def test_linear_refuses_a_size_below_one(sizes):
    with pytest.raises(
        ValueError, match=f"at least one input and one output, got {sizes[0]} and {sizes[1]}"
    ):
        Linear(*sizes)


# Sequential and MLP


def test_sequential_chains_as_torch_does_and_exchanges_state_dicts():
    ours = Sequential(Linear(3, 4), nn.Tanh(), Linear(4, 2))
    theirs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert list(ours.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = normal(5, 3, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict())
    assert_close(ours(x), theirs(x))
    theirs[0].reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x), theirs(x))


def test_sequential_calls_a_repeated_module_again():
    double = Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    assert Sequential(double, double, double)(torch.ones(1, 1)).item() == 8


def test_sequential_of_nothing_changes_nothing():
    x = normal(2, 3)
    assert Sequential()(x) is x


def test_sequential_is_indexed_sliced_counted_and_walked():
    parts = [Linear(3, 4), nn.Tanh(), Linear(4, 2)]
    model = Sequential(*parts)
    assert len(model) == 3
    assert list(model) == parts
    assert model[0] is parts[0]
    assert model[-1] is parts[2]
    tail = model[1:]
    assert isinstance(tail, Sequential)
    assert list(tail) == parts[1:]
    assert list(tail.state_dict()) == list(torch.nn.Sequential(*parts)[1:].state_dict())


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (
            ([nn.Tanh()],),
            r"module at place 0, got \[Tanh\(\)\]: unpack a list with Sequential\(\*modules\)",
        ),
        (
            (nn.Tanh(), torch.relu),
            r"module at place 1, got .*relu.*nn\.ReLU\(\) for torch\.relu",
        ),
    ],
)
def test_sequential_refuses_what_is_not_a_module(plain_python, modules, words):
    with pytest.raises(TypeError, match=words):
        Sequential(*modules)


def test_mlp_is_the_same_network_as_torch_modules_in_a_row():
    ours = seeded(MLP, [3, 8, 5, 2]).double()
    theirs = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)
        )
    )
    theirs.double()
    x = normal(6, 3)
    for a, b in zip(value_and_gradient(ours, x), value_and_gradient(theirs, x), strict=True):
        assert_close(a, b, **EXACT)
    assert list(ours.state_dict())[:2] == ["layers.0.weight", "layers.0.bias"]


def test_mlp_with_two_hidden_units_computes_exclusive_or():
    network = MLP([2, 2, 1])
    first, second = network.layers
    with torch.no_grad():
        first.weight.copy_(torch.ones(2, 2))
        first.bias.copy_(torch.tensor([0.0, -1.0]))
        second.weight.copy_(torch.tensor([[1.0, -2.0]]))
        second.bias.zero_()
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert network(corners)[:, 0].tolist() == [0, 1, 1, 0]


def test_mlp_without_a_hidden_layer_is_linear_and_one_activation_follows_each_hidden_layer():
    x, calls = normal(6, 3, dtype=torch.float32), []
    network = MLP((3, 2), activation=calls.append)
    assert_close(network(x), network.layers[0](x))
    assert not calls

    def activation(h):
        calls.append(h.shape)
        return h

    MLP([3, 8, 5, 2], activation)(x)
    assert calls == [(6, 8), (6, 5)]


def test_mlp_learns_the_parameters_of_its_activation():
    network = MLP([3, 8, 2], nn.PReLU())
    assert "activation.weight" in network.state_dict()


@pytest.mark.parametrize("sizes", [[], [784]])
def test_mlp_wants_an_input_and_an_output(sizes):
    with pytest.raises(ValueError, match=r"at least two sizes, input and output, .* got \["):
        MLP(sizes)


def test_mlp_says_how_to_make_an_activation_of_a_class():
    with pytest.raises(TypeError, match=r"got a class: write ReLU\(\)"):
        MLP([2, 2], activation=nn.ReLU)


# Losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5,), (1,), (4, 3), (2, 3, 4), (), (0, 3)])
def test_mse_loss_gives_the_values_and_gradients_of_torch(shape, reduction):
    target = normal(*shape, seed=2)
    ours = value_and_gradient(
        lambda x: mse_loss(x, target, reduction=reduction), normal(*shape)
    )
    theirs = value_and_gradient(
        lambda x: F.mse_loss(x, target, reduction=reduction), normal(*shape)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


def test_mse_loss_gradients_agree_with_central_differences():
    leaves = normal(4, 3).requires_grad_(), normal(4, 3, seed=2).requires_grad_()
    assert gradient_check(mse_loss, *leaves)
    assert gradgradcheck(mse_loss, leaves)


def test_mse_loss_refuses_to_stretch_a_column_over_a_vector(plain_python):
    with pytest.raises(
        ValueError,
        match=r"of one shape, got \(4, 1\) and \(4,\): drop a dimension .* squeeze\(1\)",
    ):
        mse_loss(normal(4, 1), normal(4))


def test_losses_name_the_reductions_that_there_are():
    with pytest.raises(
        ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'median'"
    ):
        mse_loss(normal(4), normal(4), reduction="median")
    with pytest.raises(
        ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'median'"
    ):
        cross_entropy(normal(4, 3), integers(3, 4), reduction="median")


LOGITS = [(5,), (1,), (4, 3), (1, 1), (4, 1), (2, 5, 3), (2, 5, 3, 4)]


def target_for(shape, seed=0):
    return integers(
        shape[min(1, len(shape) - 1)], *shape[:1][: len(shape) - 1], *shape[2:], seed=seed
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 0])
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_gives_the_values_and_gradients_of_torch(
    shape, ignore_index, reduction, label_smoothing
):
    target = target_for(shape)
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    ours = value_and_gradient(lambda x: cross_entropy(x, target, **options), 3 * normal(*shape))
    theirs = value_and_gradient(
        lambda x: F.cross_entropy(x, target, **options), 3 * normal(*shape)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_derivatives_agree_with_central_differences(
    shape, reduction, label_smoothing
):
    target = target_for(shape)
    if target.numel() > 1:
        target.view(-1)[-1] = -100

    def loss(x):
        return cross_entropy(x, target, reduction=reduction, label_smoothing=label_smoothing)

    x = normal(*shape).requires_grad_()
    assert gradient_check(loss, x)
    assert gradgradcheck(loss, x)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_has_the_second_derivatives_of_torch(shape, label_smoothing):
    target = target_for(shape)

    def gradient_and_product_with_hessian(loss):
        x = normal(*shape).requires_grad_()
        (gradient,) = torch.autograd.grad(
            loss(x, target, label_smoothing=label_smoothing), x, create_graph=True
        )
        return gradient.detach(), torch.autograd.grad(gradient, x, normal(*shape, seed=1))[0]

    ours, theirs = map(gradient_and_product_with_hessian, (cross_entropy, F.cross_entropy))
    assert_close(ours, theirs, **EXACT)


def test_cross_entropy_is_minus_the_log_probability_of_the_true_class():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    for k, p in enumerate(probabilities):
        assert_close(cross_entropy(probabilities.log() + 3, torch.tensor(k)), -p.log(), **EXACT)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes():
    assert_close(
        cross_entropy(torch.zeros(2, 10).double(), integers(10, 2)),
        torch.tensor(10.0).double().log(),
        **EXACT,
    )


def test_cross_entropy_bends_like_the_covariance_of_a_draw_from_softmax():
    z = normal(5)
    p = z.softmax(0)
    hessian = torch.autograd.functional.hessian(lambda x: cross_entropy(x, torch.tensor(2)), z)
    assert_close(hessian, p.diag() - p.outer(p), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_survives_huge_logits(dtype):
    z = torch.tensor([[1000.0, -1000.0, 0.0]] * 3, dtype=dtype)
    loss, gradient = value_and_gradient(
        lambda x: cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none"), z
    )
    assert loss.tolist() == [0, 2000, 1000]
    scale = normal(3, seed=1, dtype=dtype)[:, None]
    assert_close(
        gradient,
        scale * torch.tensor([[0.0, 0, 0], [1, -1, 0], [1, 0, -1]], dtype=dtype),
        rtol=0,
        atol=0,
    )


def test_cross_entropy_leaves_out_a_class_that_is_masked_with_minus_infinity():
    z = torch.tensor([[0.5, -torch.inf, 2.0]], dtype=torch.float64)
    ours = value_and_gradient(lambda x: cross_entropy(x, torch.tensor([2])), z)
    theirs = value_and_gradient(lambda x: F.cross_entropy(x, torch.tensor([2])), z)
    assert_close(ours, theirs, **EXACT)
    assert cross_entropy(z, torch.tensor([1])) == torch.inf


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_low_precision_is_as_precise_as_torch(scale, shift, dtype):
    z, target = (scale * normal(4096, 100) + shift).to(dtype), integers(100, 4096)
    losses = [
        lambda x, f=f: f(x, target, reduction="none") for f in (cross_entropy, F.cross_entropy)
    ]
    exact = value_and_gradient(losses[1], z.double())
    exact = (
        exact[0],
        exact[1] / normal(4096, 1, seed=1) * normal(4096, 1, seed=1, dtype=dtype).double(),
    )
    for ours, theirs, truth in zip(
        *(value_and_gradient(f, z) for f in losses), exact, strict=True
    ):
        assert ours.dtype == dtype
        assert (ours - truth).abs().mean() <= 1.25 * (theirs - truth).abs().mean()


def test_cross_entropy_takes_logits_in_any_memory_order():
    z, target = normal(6, 4, 5).transpose(0, 2), integers(4, 5, 6)
    ours = value_and_gradient(lambda x: cross_entropy(x, target), z)
    theirs = value_and_gradient(lambda x: F.cross_entropy(x, target), z.contiguous())
    assert_close(ours, theirs, **EXACT)


def test_cross_entropy_leaves_its_arguments_as_they_are():
    z, target = normal(4, 3), torch.tensor([0, -100, 2, 1])
    before = z.clone(), target.clone()
    cross_entropy(z.requires_grad_(), target, label_smoothing=0.1).backward()
    assert_close((z.detach(), target), before, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_with_nothing_to_count_does_what_torch_does(reduction):
    for z, target in [
        (normal(4, 3), torch.full((4,), -100)),
        (normal(0, 3), torch.zeros(0, dtype=torch.int64)),
    ]:
        ours = value_and_gradient(
            lambda x, y=target: cross_entropy(x, y, reduction=reduction), z
        )
        theirs = value_and_gradient(
            lambda x, y=target: F.cross_entropy(x, y, reduction=reduction), z
        )
        assert_close(ours, theirs, **EXACT, equal_nan=True)
    assert cross_entropy(normal(4, 3), torch.full((4,), -100)).isnan()


@pytest.mark.parametrize("wrong", [-1, 3, 300])
def test_cross_entropy_names_a_target_that_is_no_class(wrong):
    with pytest.raises(
        ValueError,
        match=f"expected classes from 0 to 2, or ignore_index=-100, got {wrong}: number the",
    ):
        cross_entropy(normal(4, 3), torch.tensor([0, -100, wrong, 1]))


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((4, 3), (3,)),
        ((4, 3), (4, 1)),
        ((4, 3, 5), (4, 3)),
        ((3,), (1,)),
        ((), ()),
        ((4,), (4,)),
    ],
)
def test_cross_entropy_says_which_shapes_fit(logits, target):
    with pytest.raises(
        ValueError, match=r"targets of that shape without the classes, got \(.*\) and \("
    ):
        cross_entropy(normal(*logits), integers(1, *target))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_cross_entropy_says_how_to_convert_targets(plain_python, dtype):
    with pytest.raises(
        TypeError,
        match=rf"torch\.int64 as targets, got {dtype}: convert indices with target\.long",
    ):
        cross_entropy(normal(4, 3), torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_cross_entropy_refuses_smoothing_beyond_its_range(smoothing):
    with pytest.raises(
        ValueError, match=f"label_smoothing must lie between 0 and 1, got {smoothing}"
    ):
        cross_entropy(normal(4, 3), integers(3, 4), label_smoothing=smoothing)


def positive(*shape, seed=2, dtype=torch.float64):
    return normal(*shape, seed=seed, dtype=dtype).abs() + 0.1


def class_weights(shape, dtype=torch.float64):
    return positive(shape[min(1, len(shape) - 1)], seed=3, dtype=dtype)


def value_and_gradients(function, *leaves):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    upstream = normal(*y.shape, seed=1, dtype=y.dtype)
    return y.detach(), *torch.autograd.grad(y, leaves, upstream)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 0])
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_weighs_classes_as_torch_does(
    shape, ignore_index, reduction, label_smoothing
):
    target, weight, z = target_for(shape), class_weights(shape), 3 * normal(*shape)
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    ours, theirs = (
        value_and_gradient(lambda x, f=f: f(x, target, weight, **options), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_with_probabilities_is_that_of_torch_in_all_its_gradients(
    shape, weighted, reduction, label_smoothing
):
    leaves = [3 * normal(*shape), positive(*shape)]  # they need not add up to one
    leaves += [class_weights(shape)] if weighted else []
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours, theirs = (
        value_and_gradients(lambda *args, f=f: f(*args, **options), *leaves)
        for f in (cross_entropy, F.cross_entropy)
    )
    assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", LOGITS[:-2])
def test_cross_entropy_with_probabilities_agrees_with_central_differences(
    shape, reduction, label_smoothing
):
    def loss(z, q, w):
        return cross_entropy(z, q, w, reduction=reduction, label_smoothing=label_smoothing)

    leaves = [
        leaf.requires_grad_()
        for leaf in (normal(*shape), positive(*shape), class_weights(shape))
    ]
    assert gradient_check(loss, *leaves)
    assert gradgradcheck(loss, leaves)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_has_a_second_derivative(label_smoothing):
    target, weight = torch.tensor([1, -100, 4, 0]), class_weights((4, 5))

    def loss(z):
        return cross_entropy(z, target, weight, label_smoothing=label_smoothing)

    z = normal(4, 5).requires_grad_()
    assert gradient_check(loss, z)
    assert gradgradcheck(loss, z)


def test_cross_entropy_takes_certain_probabilities_for_classes():
    z, target = normal(6, 5), integers(5, 6)
    q = F.one_hot(target, 5).double()
    for options in [{}, {"label_smoothing": 0.1}, {"reduction": "none"}]:
        ours = value_and_gradient(lambda x, o=options: cross_entropy(x, q, **o), z)
        judge = value_and_gradient(lambda x, o=options: cross_entropy(x, target, **o), z)
        assert_close(ours, judge, **EXACT)


def test_cross_entropy_less_the_entropy_is_the_kullback_leibler_divergence():
    z, q = normal(6, 5), normal(6, 5, seed=1).softmax(1)
    entropy = cross_entropy(q.log(), q)
    divergence = F.kl_div(z.log_softmax(1), q, reduction="batchmean")
    assert_close(cross_entropy(z, q) - entropy, divergence, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_with_probabilities_survives_huge_logits(dtype):
    z = torch.tensor([[1000.0, -1000.0, 0.0]], dtype=dtype)
    q = torch.tensor([[0.25, 0.25, 0.5]], dtype=dtype)
    loss, d_logits, d_q = value_and_gradients(
        lambda z, q: cross_entropy(z, q, reduction="sum"), z, q
    )
    scale = normal(seed=1, dtype=dtype)
    exact = {"rtol": 1e-6, "atol": 0}
    assert loss == 1000
    assert_close(d_logits, scale * torch.tensor([[0.75, -0.25, -0.5]], dtype=dtype), **exact)
    assert_close(d_q, scale * torch.tensor([[0, 2000, 1000]], dtype=dtype), **exact)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [[1.0, 2.0, 3.0], [1.0, 0.0, 3.0]])
@pytest.mark.parametrize(
    "target", [torch.tensor([2]), torch.tensor([[0.5, 0.0, 0.5]]).double()]
)
def test_weighted_cross_entropy_takes_minus_infinity_as_torch_does(
    target, weight, label_smoothing
):
    z = torch.tensor([[0.5, -torch.inf, 2.0]], dtype=torch.float64)
    weight = torch.tensor(weight, dtype=torch.float64)
    ours, theirs = (
        value_and_gradient(
            lambda x, f=f: f(x, target, weight, label_smoothing=label_smoothing), z
        )
        for f in (cross_entropy, F.cross_entropy)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("kind", ["probabilities", "weights", "both"])
def test_general_cross_entropy_in_float32_is_as_precise_as_torch(kind, shift, scale):
    z = (scale * normal(1024, 100) + shift).float()
    target = integers(100, 1024) if kind == "weights" else normal(1024, 100).softmax(1).float()
    weight = None if kind == "probabilities" else class_weights((1024, 100), torch.float32)

    def values(f, z, dtype):
        y = target.to(dtype) if target.is_floating_point() else target
        w = None if weight is None else weight.to(dtype)
        return value_and_gradient(
            lambda x: f(x, y, w, reduction="sum", label_smoothing=0.1), z.to(dtype)
        )

    exact = values(F.cross_entropy, z, torch.float64)
    for ours, theirs, truth in zip(
        values(cross_entropy, z, torch.float32),
        values(F.cross_entropy, z, torch.float32),
        exact,
        strict=True,
    ):
        assert ours.dtype == torch.float32
        error = (ours - truth).abs().mean()
        assert error <= 1.25 * (theirs - truth).abs().mean() + 1e-7 * truth.abs().mean()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_with_probabilities_and_no_example_does_what_torch_does(reduction):
    ours, theirs = (
        value_and_gradients(
            lambda z, q, f=f: f(z, q, reduction=reduction), normal(0, 3), normal(0, 3)
        )
        for f in (cross_entropy, F.cross_entropy)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


def test_cross_entropy_with_probabilities_leaves_its_arguments_as_they_are():
    z, q, w = normal(4, 3), positive(4, 3), class_weights((4, 3))
    before = z.clone(), q.clone(), w.clone()
    cross_entropy(z.requires_grad_(), q.requires_grad_(), w, label_smoothing=0.1).backward()
    assert_close((z.detach(), q.detach(), w), before, rtol=0, atol=0)


def test_cross_entropy_wants_a_dimension_for_the_classes_of_probabilities():
    with pytest.raises(TypeError, match=r"in the shape of the logits, here \(\)"):
        cross_entropy(normal(), normal())


def test_cross_entropy_ignores_no_class_of_probabilities():
    with pytest.raises(
        ValueError, match=r"ignore_index=1 is a class, but .* they are all zero"
    ):
        cross_entropy(normal(4, 3), positive(4, 3), ignore_index=1)


@pytest.mark.parametrize("shape", [(4,), (2,), (), (3, 1)])
def test_cross_entropy_wants_a_weight_for_each_class(plain_python, shape):
    for target in (integers(3, 4), positive(4, 3)):
        with pytest.raises(
            ValueError, match=r"one weight for each of the 3 classes|weight must have the dimen"
        ):
            cross_entropy(normal(4, 3), target, positive(*shape))


def test_cross_entropy_says_how_to_convert_weights():
    with pytest.raises(TypeError, match=r"got torch\.float32: convert with weight\.to\(logits"):
        cross_entropy(normal(4, 3), integers(3, 4), torch.ones(3))


def test_cross_entropy_wants_probabilities_in_the_shape_of_the_logits():
    for shape in [(4, 2), (3, 4), (4, 3, 1), (4,)]:
        with pytest.raises(TypeError, match=r"in the shape of the logits, here \(4, 3\)"):
            cross_entropy(normal(4, 3), positive(*shape))


# Questions of yes and no: shapes of the logits, of the weight and of the weight of yes

YES_OR_NO = [
    ((), None, None),
    ((1,), None, (1,)),
    ((5,), (), None),
    ((4, 3), (3,), None),
    ((4, 3), (4, 1), (3,)),
    ((2, 5, 3), (2, 1, 3), (5, 1)),
    ((0, 3), None, (3,)),
]


def yes_or_no(shape, weight, pos_weight):
    """Logits, probabilities of yes, and the weights that there are."""
    leaves = {"input": 3 * normal(*shape), "target": normal(*shape, seed=2).sigmoid()}
    if weight is not None:
        leaves["weight"] = positive(*weight, seed=3)
    if pos_weight is not None:
        leaves["pos_weight"] = positive(*pos_weight, seed=4)
    return leaves


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shapes", YES_OR_NO)
def test_binary_cross_entropy_gives_the_values_and_gradients_of_torch(shapes, reduction):
    leaves = yes_or_no(*shapes)
    leaves["reduction"] = reduction
    logits, target = leaves.pop("input"), leaves.pop("target")
    ours, theirs = (
        value_and_gradients(lambda z, y, f=f: f(z, y, **leaves), logits, target)
        for f in (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)
    )
    assert_close(ours, theirs, **EXACT, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shapes", YES_OR_NO[:-1])
def test_binary_cross_entropy_derivatives_agree_with_central_differences(shapes, reduction):
    leaves = yes_or_no(*shapes)

    def loss(*values):
        arguments = dict(zip(leaves, values, strict=True))
        return binary_cross_entropy_with_logits(**arguments, reduction=reduction)

    values = [leaf.requires_grad_() for leaf in leaves.values()]
    assert gradient_check(loss, *values)
    assert gradgradcheck(loss, values)


def test_binary_cross_entropy_is_the_cross_entropy_of_two_classes():
    z, y = 3 * normal(50), integers(2, 50)
    ours = value_and_gradient(lambda z: binary_cross_entropy_with_logits(z, y.double()), z)
    judge = value_and_gradient(
        lambda z: cross_entropy(torch.stack([torch.zeros_like(z), z], 1), y), z
    )
    assert_close(ours, judge, **EXACT)


def derivatives(z, y):
    """The loss and its first two derivatives, one number for each logit."""
    z = z.requires_grad_()
    loss = binary_cross_entropy_with_logits(z, y, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), z, create_graph=True)
    return [x.tolist() for x in (loss, slope, *torch.autograd.grad(slope.sum(), z))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_cross_entropy_survives_huge_logits_and_bends_at_zero(dtype):
    z = torch.tensor([1000.0, 1000, -1000, -1000, 0, 0], dtype=dtype)
    y = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=dtype)
    log_2 = torch.tensor(2.0, dtype=dtype).log().item()
    assert derivatives(z, y) == [
        [0, 1000, 1000, 0, log_2, log_2],
        [0, 1, -1, 0, -0.5, 0.5],
        [0, 0, 0, 0, 0.25, 0.25],
    ]


def test_binary_cross_entropy_in_float32_keeps_the_digits_of_a_small_loss():
    z, y = torch.tensor([20.0, -20, 80, -80]), torch.tensor([1.0, 0, 1, 0])
    tiny = torch.exp(-z.double().abs()).tolist()  # loss, slope and curvature, but for the sign
    loss, slope, curvature = derivatives(z, y)
    for found in (loss, [abs(x) for x in slope], curvature):
        assert found == pytest.approx(tiny, rel=1e-6, abs=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_binary_cross_entropy_in_float32_is_as_precise_as_torch(scale):
    z, y = (scale * normal(10_000)).float(), integers(2, 10_000).float()

    def derived(f, dtype):
        x = z.to(dtype).requires_grad_()
        loss = f(x, y.to(dtype), reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    for ours, theirs, truth in zip(
        derived(binary_cross_entropy_with_logits, torch.float32),
        derived(F.binary_cross_entropy_with_logits, torch.float32),
        derived(F.binary_cross_entropy_with_logits, torch.float64),
        strict=True,
    ):
        assert (ours - truth).abs().mean() <= 1.1 * (theirs - truth).abs().mean()


def test_binary_cross_entropy_takes_any_memory_order_and_passes_nan_on():
    z, y = normal(4, 3).T, integers(2, 3, 4).double()
    ours = value_and_gradient(lambda z: binary_cross_entropy_with_logits(z, y), z)
    theirs = value_and_gradient(
        lambda z: F.binary_cross_entropy_with_logits(z, y), z.contiguous()
    )
    assert_close(ours, theirs, **EXACT)
    assert binary_cross_entropy_with_logits(torch.tensor([torch.nan, 0]), torch.ones(2)).isnan()


def test_binary_cross_entropy_says_which_shapes_and_types_it_wants(plain_python):
    loss, z, y = binary_cross_entropy_with_logits, normal(4, 3), normal(4, 3, seed=2).sigmoid()
    with pytest.raises(ValueError, match=r"of one shape, got \(4, 1\) and \(4,\): drop"):
        loss(normal(4, 1), y[:, 0])
    with pytest.raises(TypeError, match=r"got torch\.int64: convert with target\.float\(\)"):
        loss(z, integers(2, 4, 3))
    for name in ("weight", "pos_weight"):
        for shape in [(4,), (2, 4, 3), (5, 1)]:
            words = rf"expected a {name} that broadcasts .*, \(4, 3\), got \({shape[0]},"
            with pytest.raises(ValueError, match=words):
                loss(z, y, **{name: positive(*shape)})
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none'"):
        loss(z, y, reduction="median")


# Initial weights

SHAPES = [(5, 3), (1, 1), (6, 4, 3), (6, 4, 5, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(
    "nonlinearity", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
)
def test_kaiming_draws_the_same_numbers_as_torch(shape, mode, nonlinearity, dtype):
    for ours, theirs in [
        (kaiming_normal_, nn.init.kaiming_normal_),
        (kaiming_uniform_, nn.init.kaiming_uniform_),
    ]:
        weight = torch.empty(shape, dtype=dtype)
        assert seeded(ours, weight, 0.2, mode, nonlinearity) is weight
        assert_close(
            weight, seeded(theirs, weight.clone(), 0.2, mode, nonlinearity), rtol=0, atol=0
        )
        assert_close(seeded(ours, weight), seeded(theirs, weight.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gain", [1.0, 5 / 3])
def test_xavier_draws_the_same_numbers_as_torch(shape, gain, dtype):
    for ours, theirs in [
        (xavier_normal_, nn.init.xavier_normal_),
        (xavier_uniform_, nn.init.xavier_uniform_),
    ]:
        weight = torch.empty(shape, dtype=dtype)
        assert seeded(ours, weight, gain) is weight
        assert_close(weight, seeded(theirs, weight.clone(), gain), rtol=0, atol=0)


@pytest.mark.parametrize(
    "initialise", [kaiming_normal_, kaiming_uniform_, xavier_normal_, xavier_uniform_]
)
def test_initialisers_draw_from_the_generator_given_and_leave_no_trace_for_autograd(initialise):
    weight = nn.Parameter(torch.empty(5, 3))
    theirs = getattr(nn.init, initialise.__name__)
    initialise(weight, generator=torch.Generator().manual_seed(3))
    assert weight.is_leaf
    assert weight.requires_grad
    assert_close(
        weight.detach(),
        theirs(torch.empty(5, 3), generator=torch.Generator().manual_seed(3)),
        rtol=0,
        atol=0,
    )


def test_kaiming_keeps_the_size_of_a_signal_through_twenty_layers_of_relu():
    g = torch.Generator().manual_seed(0)
    h = normal(64, 512, seed=1)
    for _ in range(20):
        h = (
            h
            @ kaiming_normal_(
                torch.empty(512, 512).double(), nonlinearity="relu", generator=g
            ).T
        ).relu()
    # a mean square of 1 came in; without the gain one in a million is left
    assert 0.2 < h.square().mean() < 5


@pytest.mark.parametrize(
    "initialise", [kaiming_normal_, kaiming_uniform_, xavier_normal_, xavier_uniform_]
)
@pytest.mark.parametrize("shape", [(), (5,), (5, 0), (0, 5)])
def test_initialisers_want_a_weight_with_inputs_and_outputs(plain_python, initialise, shape):
    words = r"at least one input and output, got shape \(|dimensions \(fan_out, fan_in, "
    with pytest.raises(ValueError, match=words):
        initialise(torch.empty(shape))


def test_kaiming_names_the_modes_and_the_nonlinearities_that_there_are():
    with pytest.raises(ValueError, match="mode must be 'fan_in' or 'fan_out', got 'fan_mid'"):
        kaiming_normal_(torch.empty(2, 2), mode="fan_mid")
    with pytest.raises(ValueError, match=r"must be one of linear, .*, leaky_relu, got 'swish'"):
        kaiming_uniform_(torch.empty(2, 2), nonlinearity="swish")


# Counting


def test_parameters_are_counted_once_and_frozen_ones_on_request():
    network = MLP([784, 256, 10])
    assert count_parameters(network) == 784 * 256 + 256 + 256 * 10 + 10
    network.layers[0].weight.requires_grad_(False)
    assert count_parameters(network, trainable_only=True) == 256 + 256 * 10 + 10
    shared = Linear(3, 3)
    assert count_parameters(Sequential(shared, nn.Tanh(), shared)) == 12
