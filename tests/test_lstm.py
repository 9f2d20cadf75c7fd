import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_recurrence import (
    assert_agree,
    check_against_torch,
    check_arrangements,
    check_central_differences,
    check_dropout,
    check_interchangeable,
    check_loop_over_cells,
    check_single_precision,
    check_states_of_packed_sequences,
    check_types_and_devices,
    itself,
    normal,
    seed,  # noqa: F401  (a fixture that every test uses)
    settings_of_a_layer,
    twins,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from companion import lstm
from companion.data import write_lstm_ablations as ablations
from companion.data import write_lstm_race as race
from companion.datasets import CHARACTERS, Texts, encode, python_documentation
from companion.language_models import NGram, bits_per_character
from companion.layers import count_parameters
from companion.lstm import GRU, LSTM, GRUCell, LSTMCell, pretrained_language_model

DATA = Path(lstm.__file__).parent / "data"
LAYERS = [(LSTM, nn.LSTM), (GRU, nn.GRU)]
CELLS = [(LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell)]


@pytest.fixture(params=LAYERS, ids=["LSTM", "GRU"])
def pair(request):
    """One of our layers, and PyTorch's."""
    return request.param


def states_of(layer, *shape):
    return [normal(*shape, seed=1 + n) for n in range(layer.states)]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(case=settings_of_a_layer(), pair=st.sampled_from(LAYERS))
def test_values_states_and_all_gradients_are_those_of_torch(case, pair):
    check_against_torch(*pair, case)


def test_a_long_sequence_gives_what_torch_gives(pair):
    ours, theirs = twins(*pair, 7, 9)
    assert_agree(ours, theirs, itself, [normal(100, 5, 7)], states_of(ours, 1, 5, 9))


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e4])
def test_gates_that_are_shut_or_wide_open_give_what_torch_gives(pair, scale):
    ours, theirs = twins(*pair, 3, 4)
    assert_agree(
        ours,
        theirs,
        itself,
        [scale * normal(6, 2, 3)],
        [scale * s for s in states_of(ours, 1, 2, 4)],
        1e-9,
    )


@pytest.mark.parametrize("part", [0, 1])
def test_a_loss_on_one_of_the_two_states_alone_has_torchs_gradient(part):
    ours, theirs = twins(LSTM, nn.LSTM, 3, 4)
    x = normal(6, 2, 3)
    gradients = [
        torch.autograd.grad(layer(x)[1][part].square().sum(), layer.parameters())
        for layer in (ours, theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}]
)
def test_gradients_agree_with_central_differences(pair, options):
    layer = pair[0](2, 2, **options).double()
    check_central_differences(layer, *states_of(layer, 4 if options else 1, 2, 2))


def test_gradients_through_unequal_lengths_agree_with_central_differences(pair):
    layer = pair[0](2, 2, bidirectional=True).double()
    lengths = torch.tensor([2, 4])
    check_central_differences(
        layer,
        *states_of(layer, 2, 2, 2),
        make_input=lambda x: pack_padded_sequence(x, lengths, enforce_sorted=False),
    )


def test_single_precision_is_as_good_as_torchs(pair):
    check_single_precision(*pair)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3, "bidirectional": True, "batch_first": True}, {"bias": False}],
)
def test_a_layer_is_interchangeable_with_torchs(pair, options):
    check_interchangeable(*pair, 3, 5, **options)


def test_arguments_stand_where_torch_has_them(pair):
    ours, theirs = pair
    assert repr(ours(3, 5, 2, False, True, 0.5, True)) == repr(
        theirs(3, 5, 2, False, True, 0.5, True)
    )


@pytest.mark.parametrize(("layer", "cell"), [(LSTM, LSTMCell), (GRU, GRUCell)])
def test_a_layer_is_its_cell_step_after_step(layer, cell):
    check_loop_over_cells(layer(2, 3).double(), cell(2, 3).double())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_any_arrangement_of_the_input_gives_the_same(pair, options):
    check_arrangements(pair[0](2, 3, **options).double())


def test_states_of_packed_sequences_keep_the_order_of_the_sequences(pair):
    check_states_of_packed_sequences(*pair)


def test_dropout_acts_between_layers_and_only_in_training(pair):
    check_dropout(*pair)


def test_any_float_type_and_device_will_do(pair):
    check_types_and_devices(pair[0])


def test_an_input_without_gradient_is_not_asked_for_one(pair):
    layer = pair[0](2, 3)
    layer(normal(4, 2, 2, dtype=torch.float32))[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_the_cell_state_is_kept_by_an_open_forget_gate_and_a_shut_input_gate():
    layer = LSTM(1, 1).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.bias_ih_l0[:] = torch.tensor([-1000.0, 1000.0, 0.0, 1000.0])  # i, f, g, o
    h, c = torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), 0.7).double().requires_grad_()
    _, (h, last) = layer(normal(500, 1, 1), (h, c))
    assert last.item() == c.item()
    assert h.item() == c.tanh().item()
    last.backward()
    assert c.grad.item() == 1  # after five hundred steps


def test_the_gradient_of_an_lstm_is_differentiated_once_those_of_a_gru_and_of_cells_again():
    x = normal(3, 2, 2).requires_grad_()
    output, _ = LSTM(2, 3).double()(x)
    with pytest.raises(
        RuntimeError,
        match=r"with create_graph=True: take a loop .* over the layer's cell",
    ):
        torch.autograd.grad(output.sum(), x, create_graph=True)
    gru, lstm_cell, gru_cell = (
        GRU(2, 3).double(),
        LSTMCell(2, 3).double(),
        GRUCell(2, 3).double(),
    )
    assert torch.autograd.gradgradcheck(lambda x: gru(x)[0], x)
    state = normal(2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(gru_cell, (x[0], state))
    assert torch.autograd.gradgradcheck(
        lambda x, h, c: lstm_cell(x, (h, c)), (x[0], state, normal(2, 3, seed=2))
    )


@pytest.mark.parametrize(("ours", "theirs"), CELLS)
def test_a_cell_is_that_of_torch(ours, theirs):
    for bias in (True, False):
        check_interchangeable(ours, theirs, 3, 5, bias=bias)
        ours_cell, theirs_cell = twins(ours, theirs, 3, 5, bias=bias)
        for shape in [(4,), (1,), ()]:
            assert_agree(
                ours_cell,
                theirs_cell,
                itself,
                [normal(*shape, 3)],
                states_of(ours_cell, *shape, 5),
            )
            assert_agree(ours_cell, theirs_cell, itself, [normal(*shape, 3)])


@pytest.mark.parametrize("layer", [LSTM, GRU, LSTMCell, GRUCell])
def test_a_layer_refuses_what_is_no_layer(layer):
    with pytest.raises(
        ValueError, match="input_size and hidden_size must be at least 1, got 3 and 0"
    ):
        layer(3, 0)


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("layer", [LSTM(3, 4), GRU(3, 4), LSTMCell(3, 4), GRUCell(3, 4)])
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


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("layer", [LSTM(3, 4), LSTMCell(3, 4)])
def test_an_lstm_needs_both_states(layer):
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"expected a pair of states, \(h, c\), got a tensor"):
        layer(x, torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"expected a pair of states, \(h, c\), got 1 of them"):
        layer(x, (torch.zeros(1, 4),))
    fitting = torch.zeros(2, 4) if isinstance(layer, LSTMCell) else torch.zeros(1, 4)
    with pytest.raises(
        ValueError,
        match=r"a state of shape \(\d, 4\) for an input .*, got \(3, 4\): leave it out",
    ):
        layer(x, (fitting, torch.zeros(3, 4)))


# What comes with the companion


def test_the_pretrained_language_model_beats_counting_on_text_that_it_has_not_seen():
    texts = python_documentation()
    train, test = encode(texts.train), encode(texts.test)[:8000]
    model = pretrained_language_model()
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (
        bits_per_character(model, test) < NGram(5, len(CHARACTERS)).fit(train).bits(test) - 0.1
    )


def test_the_stored_language_model_is_small_and_says_what_it_is():
    path = DATA / "language_model.safetensors"
    assert path.stat().st_size < 2_000_000
    with safe_open(path, "pt") as stored:
        assert stored.metadata().keys() == {"what", "text", "licence"}
        assert set(stored.keys()) == set(pretrained_language_model().state_dict())


def test_the_script_trains_such_a_model(tmp_path, monkeypatch):
    script = runpy.run_path(str(DATA / "write_language_model.py"))
    few = Texts("def f(x):\n    return x\n" * 200, "if x:\n    y\n" * 20, "")
    for name, value in {
        "python_documentation": lambda: few,
        "EPOCHS": 1,
        "BATCH": 8,
        "TIME": 8,
    }.items():
        monkeypatch.setitem(script["write"].__globals__, name, value)
    script["write"](tmp_path / "model.safetensors")
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as ours,
        safe_open(DATA / "language_model.safetensors", "pt") as stored,
    ):
        assert ours.metadata() == stored.metadata()
        for name in stored.keys():  # noqa: SIM118  (not a dictionary)
            a, b = ours.get_tensor(name), stored.get_tensor(name)
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_script_of_the_ablations_writes_what_is_stored_but_for_the_settings(
    tmp_path, monkeypatch
):
    stored = json.loads((DATA / "lstm_ablations.json").read_text(encoding="utf-8"))
    assert stored["settings"] == ablations.SETTINGS
    for setting, value in {
        "steps": 1,
        "steps_of_running_sum": 1,
        "fresh_sequences": 40,
    }.items():
        monkeypatch.setitem(ablations.SETTINGS, setting, value)
    ablations.write(tmp_path / "ablations.json")
    written = json.loads((tmp_path / "ablations.json").read_text(encoding="utf-8"))
    assert keys(written["errors"]) == keys(stored["errors"])


def keys(tree):
    """A tree of dictionaries without what hangs on it; of a list its length."""
    return {k: keys(v) for k, v in tree.items()} if isinstance(tree, dict) else len(tree)


@pytest.mark.parametrize("variant", ["full", "no output gate"])
def test_a_stored_error_is_what_the_script_finds(variant):
    stored = json.loads((DATA / "lstm_ablations.json").read_text(encoding="utf-8"))["errors"]
    error = ablations.error("adding", variant, 10, seed=1)
    assert error == pytest.approx(stored["adding"][variant]["10"][1], rel=0.5)


@pytest.mark.parametrize(
    ("task", "x_shape", "y_shape"),
    [
        (ablations.adding, (7, 5, 2), (5, 1)),
        (ablations.copying, (9, 5, 10), (5,)),
        (ablations.running_sum, (7, 5, 2), (7, 5, 1)),
    ],
)
def test_the_tasks_ask_for_what_they_say(task, x_shape, y_shape):
    x, y = task(5, torch.Generator().manual_seed(0), length=7)
    assert (x.shape, y.shape) == (x_shape, y_shape)
    if task is ablations.copying:
        assert torch.equal(
            x.argmax(-1), torch.cat([y[None], torch.full((7, 5), 8), y[None] * 0 + 9])
        )
        return
    numbers, marks = x.unbind(-1)
    if task is ablations.adding:
        assert torch.equal(marks[:3].sum(0), torch.ones(5))
        assert torch.equal(marks[3:].sum(0), torch.ones(5))
        assert torch.equal(y[:, 0], (numbers * marks).sum(0))
    else:
        for sequence in range(5):
            total = 0.0
            for number, mark, wanted in zip(
                *(a[:, sequence] for a in (numbers, marks, y[..., 0])), strict=True
            ):
                total = number + (0.0 if mark else total)
                assert total == wanted


@pytest.mark.parametrize(("variant", "place"), ablations.GATES.items())
def test_a_gate_that_is_taken_away_is_open_and_stays_so(variant, place):
    layer = ablations.layer_of(variant, 2, 10)
    x = normal(5, 4, 2, dtype=torch.float32)
    z = x[0] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
    assert torch.equal(z.chunk(4, dim=1)[place].sigmoid(), torch.ones(4, 32))
    layer(x)[0].square().sum().backward()
    for parameter in layer.parameters():
        parts = parameter.grad.chunk(4)
        assert not parts[place].any()
        assert all(part.any() for number, part in enumerate(parts) if number != place)


@pytest.mark.parametrize(
    ("variant", "forget", "write"),
    [
        ("full", math.log(10), -math.log(10)),
        ("forget bias log T", math.log(10), None),
        ("forget bias 1", 1.0, None),
        ("GRU", math.log(10), None),
    ],
)
def test_a_variant_begins_with_its_biases(variant, forget, write):
    torch.manual_seed(0)
    plain = (GRU if variant == "GRU" else LSTM)(3, 32)
    torch.manual_seed(0)
    layer = ablations.layer_of(variant, 3, 10)
    first, second, *rest = layer.bias_hh_l0.chunk(layer.gates)
    assert torch.equal(second, torch.full((32,), forget))
    begun = plain.bias_hh_l0[:32] if write is None else torch.full((32,), write)
    assert torch.equal(first, begun)
    assert torch.equal(torch.cat(rest), plain.bias_hh_l0[64:])
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        assert torch.equal(layer.get_parameter(name), plain.get_parameter(name))


def test_the_race_is_between_models_of_the_sizes_that_it_names():
    small, large, gated, *longer = map(count_parameters, map(race.model_of, race.RUNNERS))
    assert abs(large / gated - 1) < 0.005
    assert longer == [large, gated]
    assert small < gated / 2.5


def test_the_script_of_the_race_writes_what_is_stored(tmp_path, monkeypatch):
    stored = json.loads((DATA / "lstm_race.json").read_text(encoding="utf-8"))
    few = Texts("def f(x):\n    return x\n" * 100, "if x:\n    y\n" * 20, "while y:\n" * 20)
    monkeypatch.setattr(race, "python_documentation", lambda: few)
    race.write(tmp_path / "race.json")
    written = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))
    for runner, rates in stored.items():
        assert written[runner].keys() == rates.keys()
        assert sorted(map(len, written[runner].values())) == sorted(map(len, rates.values()))
        for tries in (*rates.values(), *written[runner].values()):
            for run in tries:
                assert len(run["validation"]) == race.RUNNERS[runner][2]
                assert run.keys() == {"seconds", "validation", "test"}


def test_lstm_takes_no_projection_and_refuses_one():
    assert repr(LSTM(3, 2, proj_size=0)) == repr(LSTM(3, 2))
    with pytest.raises(ValueError, match="proj_size can only be 0 here, got 1"):
        LSTM(3, 2, proj_size=1)
