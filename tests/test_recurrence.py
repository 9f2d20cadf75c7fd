import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from companion.backpropagation import gradient_check
from companion.recurrence import (
    RNN,
    Recurrent,
    RNNCell,
)

# What every recurrent layer has to do; the tests of the next chapter's layers call these
# functions too.


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def twins(ours, theirs, *arguments, dtype=torch.float64, **options):
    """Our module and PyTorch's, with the same weights."""
    ours, theirs = (
        ours(*arguments, dtype=dtype, **options),
        theirs(*arguments, dtype=dtype, **options),
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors(thing):
    """All tensors of an output, a state, or both."""
    if thing is None:
        return []
    if isinstance(thing, PackedSequence):
        return [thing.data]
    return (
        [thing]
        if isinstance(thing, torch.Tensor)
        else [tensor for part in thing for tensor in tensors(part)]
    )


def run(module, make_input, leaves, hx):
    """Outputs and states, and the gradients of a weighted sum of them all: of inputs, states,
    and parameters.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    states = None if hx is None else [state.detach().requires_grad_() for state in hx]
    given_states = None if states is None else states[0] if len(states) == 1 else tuple(states)
    results = tensors(module(make_input(*leaves), given_states))
    loss = sum(
        (result * normal(*result.shape, seed=n).to(result)).sum()
        for n, result in enumerate(results)
    )
    return [
        *results,
        *torch.autograd.grad(loss, [*leaves, *(states or []), *module.parameters()]),
    ]


def assert_agree(ours, theirs, make_input, leaves, hx=None, rtol=1e-10, atol=1e-10):
    for a, b in zip(
        run(ours, make_input, leaves, hx), run(theirs, make_input, leaves, hx), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def itself(x):
    return x


def packed(*sequences):
    return pack_sequence(sequences, enforce_sorted=False)


@st.composite
def settings_of_a_layer(draw):
    """Sizes, options, how the input is arranged, and whether it comes with states."""
    sizes = {name: draw(st.integers(1, 4)) for name in ("inputs", "hidden", "batch")} | {
        "time": draw(st.integers(1, 6))
    }
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    options["num_layers"] = draw(st.integers(1, 3))
    arrangement = draw(
        st.sampled_from(["batch", "one sequence", "packed", "packed, longest first"])
    )
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return sizes, options, arrangement, lengths, draw(st.booleans())


def check_against_torch(ours, theirs, case, **more):
    sizes, options, arrangement, lengths, with_states = case
    inputs, hidden, batch, time = sizes.values()
    make_input = itself
    if arrangement == "batch":
        leaves = [
            normal(batch, time, inputs)
            if options["batch_first"]
            else normal(time, batch, inputs)
        ]
        middle = (batch,)
    elif arrangement == "one sequence":
        leaves, middle = [normal(time, inputs)], ()
    else:
        lengths = sorted(lengths, reverse=True) if "longest" in arrangement else lengths
        leaves, middle = (
            [normal(length, inputs, seed=n) for n, length in enumerate(lengths)],
            (len(lengths),),
        )
        make_input = (
            packed if arrangement == "packed" else lambda *sequences: pack_sequence(sequences)
        )
    ours, theirs = twins(ours, theirs, inputs, hidden, **options, **more)
    rows = options["num_layers"] * (1 + options["bidirectional"])
    hx = (
        [normal(rows, *middle, hidden, seed=7 + n) for n in range(ours.states)]
        if with_states
        else None
    )
    assert_agree(ours, theirs, make_input, leaves, hx)
    (a, _), (b, _) = ours(make_input(*leaves)), theirs(make_input(*leaves))
    assert type(a) is type(b)
    if isinstance(a, PackedSequence):
        for ours_says, theirs_says in zip(a[1:], b[1:], strict=True):
            assert (ours_says is None and theirs_says is None) or torch.equal(
                ours_says, theirs_says
            )


# PyTorch adds up weight_hh's gradient step after step, 40 sums of 16 products, and computes
# weight_ih's as one product, a sum of 640, as we do both. The shorter sums round less; by how
# much, the matrix product of the CPU decides. Relative errors of the two in PyTorch: 3.5e-7 and
# 2.1e-7 with MKL on AVX-512, 2.9e-7 and 2.2e-7 with SSE 4.2, 2.2e-7 and 2.2e-7 with AVX2; ours
# of either is everywhere that of one product. So both are held against PyTorch's larger one.
def check_single_precision(ours, theirs, allowed=1.5):
    """Each result's relative error against float64, beside that of PyTorch's."""
    ours, theirs = twins(ours, theirs, 32, 48, dtype=torch.float32)
    x = normal(40, 16, 32, dtype=torch.float32)
    results = [run(layer, itself, [x], None) for layer in (ours, theirs)]
    exact = run(theirs.double(), itself, [x.double()], None)
    errors, judges = (
        [((a - true).norm() / true.norm()).item() for a, true in zip(some, exact, strict=True)]
        for some in results
    )
    weight_ih, weight_hh = -4, -3  # the two biases are the last
    judges[weight_hh] = max(judges[weight_ih], judges[weight_hh])
    for error, judge in zip(errors, judges, strict=True):
        assert error <= allowed * judge


def check_central_differences(layer, *hx, make_input=itself, time=4):
    """In inputs, states and weights, through the outputs and the last states."""
    names = [name for name, _ in layer.named_parameters()]
    x = normal(time, 2, layer.input_size)

    def everything(x, *rest):
        states, weights = rest[: len(hx)], rest[len(hx) :]
        given_states = states[0] if len(states) == 1 else tuple(states)
        output = functional_call(
            layer, dict(zip(names, weights, strict=True)), (make_input(x), given_states)
        )
        return torch.cat([tensor.flatten() for tensor in tensors(output)])

    assert gradient_check(everything, x, *hx, *(p.detach() for p in layer.parameters()))


def check_interchangeable(ours, theirs, *arguments, **options):
    torch.manual_seed(0)
    a = ours(*arguments, **options)
    torch.manual_seed(0)
    b = theirs(*arguments, **options)
    assert list(a.state_dict()) == list(b.state_dict())
    assert [name for name, _ in a.named_parameters()] == [
        name for name, _ in b.named_parameters()
    ]
    for name, weight in b.state_dict().items():
        assert torch.equal(a.state_dict()[name], weight)
    assert repr(a) == repr(b)
    for one, other in [(a, theirs(*arguments, **options)), (b, ours(*arguments, **options))]:
        other.load_state_dict(one.state_dict())
        assert all(
            torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True)
        )
    before = [p.clone() for p in a.parameters()]
    a.reset_parameters()
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), before, strict=True))


def check_loop_over_cells(layer, cell):
    """A layer is its cell, one step after the other."""
    cell.load_state_dict(
        {name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()}
    )
    x = normal(5, 3, layer.input_size)
    output, last = layer(x)
    state = None
    for x_t, output_t in zip(x, output, strict=True):
        state = cell(x_t, state)
        torch.testing.assert_close(tensors(state)[0], output_t, rtol=1e-12, atol=1e-14)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        torch.testing.assert_close(a, b[0], rtol=1e-12, atol=1e-14)


def check_arrangements(layer):
    """Strided inputs, states and gradients, mixed lengths, and what must be left alone."""
    x = normal(3, 2 * layer.input_size, 5)
    view = x[:, ::2].permute(2, 0, 1)  # (5, 3, input_size)
    rows = layer.num_layers * (1 + layer.bidirectional)
    hx = [
        normal(layer.hidden_size, 3, rows, seed=n).permute(2, 1, 0) for n in range(layer.states)
    ]
    kept = [tensor.clone() for tensor in (x, *hx, *layer.parameters())]
    strided = run(layer, itself, [view], hx)
    for a, b in zip(
        strided,
        run(layer, itself, [view.clone(memory_format=torch.contiguous_format)], hx),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    output, _ = layer(view.clone().requires_grad_())
    output.sum().backward()  # the gradient of a sum is one number, expanded
    assert all(
        torch.equal(a, b) for a, b in zip((x, *hx, *layer.parameters()), kept, strict=True)
    )

    sequences = [normal(length, layer.input_size, seed=length) for length in (2, 6, 1, 6, 3)]
    together, last = layer(packed(*sequences))
    outputs, lengths = nn.utils.rnn.pad_packed_sequence(together)
    assert lengths.tolist() == [2, 6, 1, 6, 3]
    for n, sequence in enumerate(sequences):  # each as if it were alone
        alone, alone_last = layer(sequence)
        torch.testing.assert_close(outputs[: len(sequence), n], alone, rtol=1e-12, atol=1e-14)
        for a, b in zip(tensors(last), tensors(alone_last), strict=True):
            torch.testing.assert_close(a[:, n], b, rtol=1e-12, atol=1e-14)


def check_states_of_packed_sequences(ours, theirs):
    """They stand in the order of the sequences, although the sequences are sorted by length."""
    ours, theirs = twins(ours, theirs, 2, 3)
    hx = [normal(1, 3, 3, seed=1 + n) for n in range(ours.states)]
    # sorted by a permutation unlike its inverse
    leaves = [normal(length, 2, seed=length) for length in (1, 4, 2)]
    assert_agree(ours, theirs, packed, leaves, hx)


def check_dropout(ours, theirs):
    a, b = twins(ours, theirs, 3, 4, num_layers=3, dropout=0.5)
    x = normal(5, 2, 3)
    for module in (a, b):
        module.train()
    torch.manual_seed(1)
    dropped, _ = a(x)
    torch.manual_seed(1)
    # the same numbers are dropped
    torch.testing.assert_close(dropped, b(x)[0], rtol=1e-12, atol=1e-14)
    a.eval(), b.eval()
    torch.testing.assert_close(a(x)[0], b(x)[0], rtol=1e-12, atol=1e-14)
    assert not torch.equal(a(x)[0], dropped)

    everything_dropped, top = (
        ours(3, 4, num_layers=2, dropout=1.0).double(),
        ours(4, 4).double(),
    )
    top.load_state_dict(
        {
            name[:-1] + "0": p
            for name, p in everything_dropped.state_dict().items()
            if name[-1] == "1"
        }
    )
    torch.testing.assert_close(
        everything_dropped(x)[0], top(torch.zeros(5, 2, 4).double())[0], rtol=1e-12, atol=1e-14
    )


def check_types_and_devices(layer_class):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer = layer_class(3, 4, num_layers=2, bidirectional=True, dtype=dtype)
        for thing in (
            normal(5, 2, 3, dtype=dtype),
            packed(normal(5, 3, dtype=dtype), normal(2, 3, dtype=dtype)),
        ):
            results = tensors(layer(thing))
            assert {result.dtype for result in results} == {dtype}
            sum(result.sum() for result in results).backward()
            assert {p.grad.dtype for p in layer.parameters()} == {dtype}
    layer = layer_class(3, 4, bidirectional=True, device="meta")
    output, last = layer(torch.empty(5, 2, 3, device="meta"))
    assert output.device.type == tensors(last)[0].device.type == "meta"
    assert output.shape == (5, 2, 8)


RNNS = [{}, {"nonlinearity": "relu"}]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Recurrent layers


@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=settings_of_a_layer(), nonlinearity=st.sampled_from(["tanh", "relu"]))
def test_values_states_and_all_gradients_are_those_of_torch(case, nonlinearity):
    check_against_torch(RNN, nn.RNN, case, nonlinearity=nonlinearity)


@pytest.mark.parametrize("options", RNNS)
def test_a_long_sequence_gives_what_torch_gives(options):
    ours, theirs = twins(RNN, nn.RNN, 7, 9, **options)
    assert_agree(ours, theirs, itself, [normal(100, 5, 7)], [normal(1, 5, 9, seed=1)])


@pytest.mark.parametrize("options", [*RNNS, {"num_layers": 2, "bidirectional": True}])
def test_gradients_agree_with_central_differences(options):
    layer = RNN(2, 3, **options).double()
    check_central_differences(layer, normal(4 if "num_layers" in options else 1, 2, 3, seed=1))


def test_gradients_through_unequal_lengths_agree_with_central_differences():
    layer = RNN(2, 2, num_layers=2, bidirectional=True).double()
    lengths = torch.tensor([2, 4])
    check_central_differences(
        layer,
        normal(4, 2, 2, seed=1),
        make_input=lambda x: pack_padded_sequence(x, lengths, enforce_sorted=False),
    )


@pytest.mark.parametrize("options", RNNS)
def test_single_precision_is_as_good_as_torchs(options):
    check_single_precision(
        lambda *sizes, **more: RNN(*sizes, **options, **more),
        lambda *sizes, **more: nn.RNN(*sizes, **options, **more),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bidirectional": True, "batch_first": True},
        {"bias": False},
        {"nonlinearity": "relu"},
    ],
)
def test_a_layer_is_interchangeable_with_torchs(options):
    check_interchangeable(RNN, nn.RNN, 3, 5, **options)


def test_arguments_stand_where_torch_has_them():
    assert repr(RNN(3, 5, 2, "relu", False, True, 0.5, True)) == repr(
        nn.RNN(3, 5, 2, "relu", False, True, 0.5, True)
    )
    assert RNN(3, 5, 2, "relu").nonlinearity == "relu"
    assert (
        repr(RNNCell(3, 5, False, "relu", None, torch.float64)) == "RNNCell(3, 5, bias=False)"
    )


@pytest.mark.parametrize("options", RNNS)
def test_a_layer_is_its_cell_step_after_step(options):
    check_loop_over_cells(RNN(2, 3, **options).double(), RNNCell(2, 3, **options).double())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_any_arrangement_of_the_input_gives_the_same(options):
    check_arrangements(RNN(2, 3, **options).double())


def test_states_of_packed_sequences_keep_the_order_of_the_sequences():
    check_states_of_packed_sequences(RNN, nn.RNN)


def test_dropout_acts_between_layers_and_only_in_training():
    check_dropout(RNN, nn.RNN)


def test_any_float_type_and_device_will_do():
    check_types_and_devices(RNN)


def test_a_text_can_be_read_in_pieces():
    layer = RNN(2, 3, num_layers=2).double()
    x = normal(7, 4, 2)
    whole, last = layer(x)
    first, state = layer(x[:3])
    second, state = layer(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-14)


def test_an_input_without_gradient_is_not_asked_for_one():
    layer = RNN(2, 3)
    layer(normal(4, 2, 2, dtype=torch.float32))[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_the_gradient_cannot_be_differentiated_again_but_that_of_a_cell_can():
    x = normal(3, 2, 2).requires_grad_()
    output, _ = RNN(2, 3).double()(x)
    with pytest.raises(
        RuntimeError,
        match=r"with create_graph=True: take a loop .* over the layer's cell",
    ):
        torch.autograd.grad(output.sum(), x, create_graph=True)
    assert torch.autograd.gradgradcheck(
        RNNCell(2, 3).double(), (x[0], normal(2, 3).requires_grad_())
    )


def test_a_readers_own_layer_needs_only_its_pass_over_time():
    class Sum(Recurrent):
        def sequence(self, x, states, W_ih, W_hh, b_ih, b_hh):
            return (states[0] + x.cumsum(0),)

    x = torch.tensor([[1.0], [2.0], [3.0]])
    output, last = Sum(1, 1, bidirectional=True)(x, torch.tensor([[10.0], [20.0]]))
    assert output.tolist() == [[11, 26], [13, 25], [16, 23]]
    assert last.tolist() == [[16], [26]]
    _, last = Sum(1, 1, bidirectional=True)(packed(x[:1], x))
    assert last[..., 0].tolist() == [[1, 6], [1, 6]]
    with pytest.raises(
        NotImplementedError,
        match=r"Recurrent must say in sequence\(\) what happens from step to step",
    ):
        Recurrent(1, 1)(x)


@pytest.mark.parametrize("options", RNNS)
def test_a_cell_is_that_of_torch(options):
    for bias in (True, False):
        ours, theirs = twins(RNNCell, nn.RNNCell, 3, 5, bias=bias, **options)
        for shape in [(4,), (1,), ()]:
            assert_agree(ours, theirs, itself, [normal(*shape, 3)], [normal(*shape, 5, seed=1)])
            assert_agree(ours, theirs, itself, [normal(*shape, 3)])
    torch.manual_seed(0)
    ours = RNNCell(3, 5, **options)
    torch.manual_seed(0)
    theirs = nn.RNNCell(3, 5, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    assert repr(RNNCell(3, 5)) == repr(nn.RNNCell(3, 5))


def test_initial_weights_fill_their_interval():
    weights = torch.cat([p.flatten() for p in RNN(100, 64).parameters()])
    assert 0.124 < weights.max() <= 1 / math.sqrt(64)
    assert -1 / math.sqrt(64) <= weights.min() < -0.124
    assert abs(weights.mean()) < 0.003


@pytest.mark.parametrize("layer", [RNN, RNNCell])
def test_a_layer_refuses_what_is_no_layer(layer):
    for sizes in [(0, 3), (3, 0)]:
        with pytest.raises(
            ValueError, match=r"input_size and hidden_size must be at least 1, got \d and \d"
        ):
            layer(*sizes)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        layer(3, 4, nonlinearity="gelu")


def test_a_layer_refuses_impossible_options():
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        RNN(3, 4, 0)
    for dropout in (-0.1, 1.5):
        with pytest.raises(
            ValueError, match=f"dropout is a probability, between 0 and 1, got {dropout}"
        ):
            RNN(3, 4, 2, dropout=dropout)
    with pytest.warns(
        UserWarning,
        match=r"dropout=0.5 acts between layers, and there is only one: raise num_layers",
    ):
        RNN(3, 4, dropout=0.5)


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("layer", [RNN(3, 4), RNNCell(3, 4)])
def test_a_layer_refuses_inputs_that_do_not_fit(layer):
    with pytest.raises(
        TypeError,
        match=r"input must hold floating-point numbers, got torch.int64: convert with",
    ):
        layer(torch.ones(5, 2, 3, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"expected 3 features in the last dimension, got shape \(5, 2, 4\)"
    ):
        layer(torch.ones(5, 2, 4))
    with pytest.raises(TypeError, match="expected one state, a tensor, got 2 of them"):
        layer(torch.ones(2, 3), (torch.zeros(1, 4), torch.zeros(1, 4)))


@pytest.mark.parametrize(
    ("batch_first", "words"),
    [(False, r"\(time, batch, 3\)"), (True, r"\(batch, time, 3\)")],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3,), (1, 5, 2, 3), (0, 2, 3), (5, 0, 3), (0, 3)], ids=str)
def test_a_layer_refuses_what_is_no_sequence(batch_first, words, shape):
    with pytest.raises(
        ValueError,
        match=rf"expected a batch {words} or one sequence \(time, 3\), of at least one step",
    ):
        RNN(3, 4, batch_first=batch_first)(torch.ones(shape))


def test_a_layer_refuses_packed_sequences_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"expected 3 features in the last dimension, got shape \(7, 2\)"
    ):
        RNN(3, 4)(packed(torch.ones(5, 2), torch.ones(2, 2)))


@pytest.mark.usefixtures("plain_python")
def test_a_layer_refuses_states_of_a_wrong_shape():
    layer = RNN(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    with pytest.raises(
        ValueError,
        match=r"a state of shape \(4, 5, 4\) for an input .*, got \(4, 1, 4\): leave it out",
    ):
        layer(torch.ones(5, 7, 3), torch.zeros(4, 1, 4))  # would be stretched over the batch
    with pytest.raises(
        ValueError,
        match=r"a state of shape \(4, 4\) for an input of shape \(7, 3\), got \(4, 1, 4\)",
    ):
        layer(torch.ones(7, 3), torch.zeros(4, 1, 4))
    with pytest.raises(ValueError, match=r"a state of shape \(4, 2, 4\)"):
        layer(packed(torch.ones(5, 3), torch.ones(2, 3)), torch.zeros(2, 2, 4))
    with pytest.raises(
        ValueError,
        match=r"a state of shape \(5, 4\) for an input of shape \(5, 3\), got \(1, 4\)",
    ):
        RNNCell(3, 4)(torch.ones(5, 3), torch.zeros(1, 4))
