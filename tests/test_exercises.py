import inspect
import random
from collections import Counter, namedtuple
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from companion import activations, layers, lstm
from companion.activations import relu, softmax
from companion.backpropagation import Variable, record
from companion.exercises import EXTREMES, _compare, _draw, _Mistake, check
from companion.layers import Linear, cross_entropy
from companion.optimization import SGD, Adam

HERE = Path(__file__)


@pytest.fixture
def said(capsys):
    """What was printed since the last call."""
    return lambda: capsys.readouterr().out


def naive_softmax(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


def test_agreement_is_one_line_and_true(said):
    assert check(torch.softmax, like=softmax, shapes="batch classes", dim=1) is True
    assert said() == (
        "torch's softmax agrees with companion.activations.softmax: "
        "17 cases, values and gradients\n"
    )


def test_a_mistake_shows_the_smallest_case_and_is_false(said):
    hint = "Can you shift x first?"
    assert check(naive_softmax, softmax, shapes="batch classes", dim=1, hint=hint) is False
    assert said() == (
        "naive_softmax does not agree with companion.activations.softmax yet: the result is "
        "wrong\n"
        "  in      input = [[1000]]\n"
        "          dim = 1\n"
        "  out     [[nan]]\n"
        "  wanted  [[1]]\n"
        "  hint    Can you shift x first?\n"
    )


def test_the_docstrings_example_is_what_happens(said):
    lines = inspect.getdoc(check).split("...")[1].split("\n\n")[0].splitlines()
    assert lines[1].startswith(">>> check(my_softmax, softmax")
    check(naive_softmax, softmax, shapes="batch classes", dim=1, hint="Can you shift x first?")
    assert "\n".join(lines[2:]) == said().replace("naive_", "my_") + "False"


def test_the_smallest_of_the_given_cases_is_shown_and_the_rest_not_run(said):
    seen = []

    def wrong(x):
        seen.append(x.numel())
        return x + (x.numel() > 2)

    cases = [torch.zeros(size) for size in (5, 1, 3, 2)]
    assert not check(wrong, torch.clone, *cases)
    assert said().splitlines()[1:] == [
        "  in      argument 1 = [0, 0, 0]",
        "  out     [1, 1, 1]",
        "  wanted  [0, 0, 0]",
        "  worst   1 in place of 0 at [0]; 3 of 3 entries are wrong",
    ]
    assert set(seen) == {1, 2, 3}


def test_a_failing_assertion_shows_the_message(said):
    with pytest.raises(AssertionError):
        assert check(lambda x: None, lambda x: x + 1, torch.zeros(1))
    assert said().startswith("<lambda> does not agree with <lambda> yet: the result is None")


def with_bug(bug):
    """A function that adds one, but for a bug."""

    def add_one(x):
        return bug(x)

    return add_one


def changes_in_place(x):
    y = x + 1
    x *= 2
    return y


def calls_in_place(x):
    return x.add_(1)


@pytest.mark.parametrize(
    ("bug", "what", "out"),
    [
        (lambda x: None, "the result is None (is a `return` missing?)", "None"),
        (lambda x: x.numpy() + 1, "the result is a NumPy array, and should be", "array([1.5])"),
        (lambda x: float(x) + 1, "the result is a float, and should be a Tensor", "1.5"),
        (lambda x: (x + 1, x), "the result is a tuple of 2, and should be", "[0] = [1.5]"),
        (lambda x: (x + 1)[0], "the result has the wrong shape", "Size([])"),
        (lambda x: (x + 1).float(), "the result has the wrong dtype", "float32"),
        (lambda x: x + 2, "the result is wrong", "[2.5]"),
        (lambda x: x * torch.nan, "the result is wrong", "[nan]"),
        (lambda x: 3 * x, "the gradient of x is wrong", "[3]"),
        (changes_in_place, "it changes x in place: work on a copy", "[1]"),
        (calls_in_place, "it changes x in place: work on a copy", "[1.5]"),
        (lambda x: x.detach() + 1, "the result gives no gradient", None),
        (lambda x: torch.tensor(x.tolist()).double() + 1, "the result gives no gradient", None),
        (lambda x: x + 1 + random.random(), "it gives two different results for", None),
        (lambda x: x + 1 + torch.rand(1), "it gives two different results for", None),
    ],
)
def test_every_usual_mistake_has_its_sentence(said, bug, what, out):
    def add_one(x):
        return x + 1

    assert not check(with_bug(bug), add_one, torch.full((1,), 0.5))
    lines = said().splitlines()
    assert lines[0].startswith(f"add_one does not agree with add_one yet: {what}")
    assert lines[1] == "  in      x = [0.5]"
    if out:
        assert lines[2] == f"  out     {out}"
    assert lines[-1].startswith("  why" if "no gradient" in what else "  wanted  ")


def test_two_different_results_are_both_shown_beside_what_was_wanted(said):
    count = iter(range(100))
    assert not check(lambda x: x + next(count), torch.clone, torch.zeros(1))
    assert said().splitlines()[2:] == ["  out     [0]", "          [1]", "  wanted  [0]"]


def raises(x):
    if x.numel() > 1:
        raise KeyError("no such key")  # the reader's line
    return x + 1


def raises_in_torch(x):
    return x @ torch.ones(7, 7).double()  # the reader's line


def raises_in_the_companion(x):
    return softmax(x, "rows")  # the reader's line


def raises_in_another_function(x):
    return raises(x)


class RaisesBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1

    @staticmethod
    def backward(ctx, g):
        return g / undefined  # the reader's line


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (raises, "KeyError: 'no such key'"),
        (raises_in_torch, "RuntimeError: "),
        (raises_in_the_companion, "TypeError: "),
        (raises_in_another_function, "KeyError: 'no such key'"),
        (RaisesBackwards.apply, "NameError: name 'undefined' is not defined"),
    ],
)
def test_an_exception_is_shown_with_the_line_of_the_readers_code(said, function, text):
    assert not check(function, lambda x: x + 1, torch.zeros(2, 3))
    shown = said()
    assert f"it raises {text.split(':')[0]}\n" in shown
    assert f"  out     {text}" in shown
    assert f"\n  at      {HERE.name}, line " in shown
    number = int(shown.split(f"{HERE.name}, line ")[1].split(":")[0])
    line = HERE.read_text(encoding="utf-8").splitlines()[number - 1]
    assert "the reader's line" in line
    assert f"line {number}: {line.strip()}\n  wanted  [[1, 1, 1],\n" in shown


def test_an_exception_outside_the_readers_code_has_no_line(said):
    assert not check(lambda x: x, torch.add, (torch.zeros(1), torch.zeros(1)))
    shown = said()
    assert "TypeError: " in shown
    assert "takes 1 positional argument but 2 were given" in shown
    assert "  at " not in shown


def test_an_interruption_goes_through():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(interrupted, torch.clone, torch.zeros(1))


def test_in_a_notebook_the_line_is_that_of_the_cell():
    from nbclient import NotebookClient

    cells = [
        "import torch\nfrom companion.exercises import check",
        "def mine(x):\n    y = x\n    return y / missing",
        "check(mine, torch.clone, torch.zeros(1))",
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    NotebookClient(notebook, timeout=60).execute()
    stream, verdict = notebook.cells[2].outputs
    assert "  at      Cell In[2], line 3: return y / missing\n" in stream.text
    assert verdict.data["text/plain"] == "False"
    nbformat.validate(notebook)


@pytest.mark.parametrize(("mine", "kind"), [(None, "None"), (torch.zeros(3), "a Tensor")])
def test_what_cannot_be_called_is_the_readers_mistake(said, mine, kind):
    assert not check(mine, relu, shapes="n")
    first, *rest = said().splitlines()
    assert f"yet: {kind}" in first
    assert "cannot be called: give a function or a class" in first
    assert rest == []


# large tensors


def test_where_the_largest_difference_is_stands_beside_large_tensors(said):
    def wrong(x):
        y = x.clone()
        y[1, 2] += 1
        y[3, 4] -= 2
        return y

    assert not check(wrong, torch.clone, torch.zeros(10, 10))
    shown = said()
    assert "  worst   -2 in place of 0 at [3, 4]; 2 of 100 entries are wrong\n" in shown
    assert "..." in shown
    assert shown.count("of shape (10, 10)") == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nothing_differs_more_than_what_is_not_finite(said, value):
    def wrong(x):
        return torch.tensor([1.0, 5, value, 0]).to(x)

    assert not check(wrong, torch.clone, torch.zeros(4))
    assert f"  worst   {value:g} in place of 0 at [2]; 3 of 4 entries are wrong\n" in said()


def test_booleans_and_whole_numbers_have_a_largest_difference_too(said):
    assert not check(lambda x: x < 1, lambda x: x > 1, torch.arange(4))
    assert "  worst   1 in place of 0 at [0]; 3 of 4 entries are wrong\n" in said()
    assert not check(lambda x: x**2, lambda x: x**3, torch.arange(4))
    assert "  worst   9 in place of 27 at [3]; 2 of 4 entries are wrong\n" in said()


def test_nan_and_infinity_agree_with_themselves():
    cases = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert check(torch.clone, torch.clone, cases)
    assert check(lambda x: float("nan"), lambda x: float("nan"), 0)


def test_another_device_is_a_mistake():
    with pytest.raises(_Mistake) as mistake:
        _compare(torch.zeros(1, device="meta"), torch.zeros(1), "it", 0, 0)
    assert mistake.value.what == "it has the wrong device"
    assert mistake.value.lines == {"out": "meta", "wanted": "cpu"}


def test_the_tolerances_are_those_given():
    off = {"mine": lambda x: x + 1e-3, "like": torch.clone}
    assert not check(*off.values(), torch.full((1,), 10.0))
    assert check(*off.values(), torch.full((1,), 10.0), rtol=1.1e-4)
    assert check(*off.values(), torch.full((1,), 10.0), atol=1.1e-3)
    assert not check(*off.values(), torch.full((1,), 10.0), rtol=0.9e-4, atol=0.0)
    assert check(lambda x: x + 1e-3, lambda x: x, 10.0, rtol=1.1e-4)
    assert not check(lambda x: x + 1e-3, lambda x: x, 10.0, rtol=0.9e-4)


# what goes in


def test_floating_point_arguments_and_options_are_float64_and_nothing_else_is():
    seen = []

    def spy(x, state, n, weight):
        seen.append((x.dtype, state[0].dtype, n.dtype, weight.dtype))
        return x * weight

    x = torch.ones(3)
    assert check(spy, spy, (x, (x, x), torch.arange(3)), weight=torch.ones(3))
    assert set(seen) == {(torch.float64, torch.float64, torch.int64, torch.float64)}
    assert x.dtype == torch.float32
    assert not x.requires_grad


def test_lists_dictionaries_strings_and_objects_pass_through_as_copies(said):
    thing = nn.Linear(2, 2)

    def spy(words, table, module):
        assert module is not thing
        return [*words, *table, str(module)]

    assert check(spy, spy, (["a", "b"], {"c": 1}, thing))
    assert said() == "spy agrees with spy: 1 case, values\n"

    def sorts(words, *rest):
        words.sort()
        return words[0]

    assert not check(sorts, lambda words, *rest: min(words), (["b", "a"],))
    assert "it changes words in place" in said()
    assert not check(sorts, lambda words, *rest: min(words), (["b", "a"], 3))
    assert "  in      words = ['b', 'a']\n          argument 2 = 3\n" in said()


def test_what_like_changes_in_place_has_to_be_changed_likewise(said):
    def fill(x):
        x.data.fill_(1)

    assert check(fill, fill, torch.zeros(2))
    assert not check(lambda x: None, fill, torch.zeros(2))
    assert "yet: x after the call is wrong\n" in said()


def test_long_text_is_cut(said):
    assert not check(lambda s: 0, len, "x" * 1000)
    assert max(map(len, said().splitlines())) < 350


def test_the_global_random_state_is_left_alone_and_seeds_decide():
    before = torch.get_rng_state()
    drop = partial(nn.functional.dropout, p=0.5)
    assert check(drop, nn.functional.dropout, shapes="n", p=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert not check(lambda x: x, drop, torch.ones(50))


def test_no_grad_around_it_does_not_matter():
    with torch.no_grad():
        assert not check(lambda x: 3 * x - 2, torch.clone, torch.ones(1))


# what comes out


def test_tuples_lists_and_dictionaries_are_compared_part_by_part(said):
    Pair = namedtuple("Pair", "first second")
    assert check(lambda x: [x, 2 * x], lambda x: Pair(x, 2 * x), torch.ones(2))
    said()
    assert not check(lambda x: (x, 3 * x), lambda x: Pair(x, 2 * x), torch.ones(1))
    heading, *lines = said().splitlines()
    assert heading.endswith("yet: the result[1] is wrong")
    assert lines == ["  in      x = [1]", "  out     [3]", "  wanted  [2]"]
    assert not check(lambda x: {"a": 1}, lambda x: {"a": 2, "b": 3}, 0)
    assert "the result is a dict of 1, and should be a dict of 2\n" in said()
    assert not check(lambda x: {"a": 1}, lambda x: {"a": 2}, 0)
    assert "the result['a'] is wrong\n" in said()
    assert not check(lambda x: [1, 2, 3], lambda x: [1, 2], 0)
    assert "a list of 3, and should be a list of 2\n" in said()


def test_numbers_strings_and_whatever_has_an_equality(said):
    assert check(lambda n: n * 0.1 * 3, lambda n: n * 0.3, 1, 2, 3)
    assert check(lambda n: np.float64(n), lambda n: n, 1)
    assert check(lambda text: {*text}, lambda text: set(text), "hello", "")
    assert check(lambda text: Counter(text), lambda text: dict(Counter(text)), "hello")
    assert not check(lambda n: torch.tensor(n), lambda n: n, 1.5)
    assert "the result is a Tensor, and should be a float" in said()
    assert not check(lambda n: n + 1, lambda n: n, 1)
    assert "  out     2\n  wanted  1\n" in said()
    assert not check(str.upper, str.lower, "a")
    assert "  out     'A'\n  wanted  'a'\n" in said()
    assert not check(lambda text: [text], str.lower, "a")
    assert "the result is a list of 1, and should be a str" in said()


# gradients


def test_the_gradient_from_which_it_came_is_shown(said):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 1 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    assert not check(Doubled.apply, lambda x: x, torch.zeros(2))
    heading, *lines = said().splitlines()
    assert heading.startswith("Doubled.apply does not agree with <lambda> yet: ")
    assert "the gradient of x is wrong" in heading
    assert lines == [
        "  in      x = [0, 0]",
        "  out     [3, -0.6]",
        "  wanted  [1.5, -0.3]",
        "  worst   3 in place of 1.5 at [0]; 2 of 2 entries are wrong",
        "  given   the gradient of the result = [1.5, -0.3]",
    ]


def test_gradients_of_every_argument_count_also_those_in_tuples(said):
    def add(x, state):
        return x + state[0] + state[1]

    def cut(x, state):
        return x + state[0] + state[1].detach()

    x = torch.zeros(1)
    assert check(add, add, (x, (x, x)))
    assert not check(cut, add, (x, (x, x)))
    assert "the gradient of state[1] is wrong\n" in said()
    assert check(cut, add, (x, (x, x)), gradients=False)


def test_every_part_of_a_result_has_its_gradient(said):
    def both(x):
        return {"a": x, "b": [2 * x, len(x)]}

    def cut(x):
        return {"a": x, "b": [2 * x.detach(), len(x)]}

    assert check(both, both, torch.zeros(2))
    assert not check(cut, both, torch.zeros(2))
    assert "the gradient of x is wrong" in (shown := said())
    assert "given   the gradient of the result['a'] = [1.5, -0.3]\n" in shown
    assert "          the gradient of the result['b'][0] = [1.5, -0.3]\n" in shown


def test_parts_of_a_result_that_share_a_computation_each_go_backwards_through_it():
    def shared(x):
        y = x.exp()
        return y, y.square()

    assert check(shared, shared, torch.zeros(2))


def test_where_like_gives_no_gradient_none_is_wanted(said):
    assert check(lambda x: x.sign() + 0 * x, lambda x: x.detach().sign(), torch.ones(2))
    assert said().endswith("1 case, values\n")


def test_variables_of_the_tape_may_stand_for_tensors(said):
    def tanh(x, slope):
        y = x.data.tanh()
        return record("tanh", y, (x, lambda g: g * slope(y)))

    right, wrong = partial(tanh, slope=lambda y: 1 - y**2), partial(tanh, slope=lambda y: 1 - y)
    case = Variable(torch.tensor([0.5, -1.0]))
    assert check(right, Variable.tanh, case)
    assert said().endswith(
        "companion.backpropagation.Variable.tanh: 1 case, values and gradients\n"
    )
    assert not check(wrong, Variable.tanh, case)
    assert (shown := said()).startswith("tanh(slope=<lambda>) does not agree with companion.")
    assert "the gradient of self is wrong\n" in shown
    assert not check(lambda x: x.data.tanh(), Variable.tanh, case)
    assert "the result gives no gradient" in said()


# classes and modules


class MyLinear(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_a_class_is_made_with_the_options_and_gets_the_others_parameters(said):
    options = {"in_features": 3, "out_features": 4}
    assert check(MyLinear, Linear, shapes="batch 3", **options)
    assert said() == (
        "MyLinear agrees with companion.layers.Linear: 16 cases, values and gradients\n"
    )

    class NoTranspose(MyLinear):
        def forward(self, x):
            return x @ self.weight + self.bias  # the reader's line

    assert not check(NoTranspose, Linear, shapes="batch 3", **options)
    assert "self.bias  # the reader's line\n" in said()

    class Cut(MyLinear):
        def forward(self, x):
            return x @ self.weight.T + self.bias.detach()

    assert not check(Cut, Linear, shapes="batch 3", **options)
    assert "the gradient of bias is wrong\n" in said()


def test_modules_already_made_are_copied_and_left_as_they_were():
    mine, like = MyLinear(3, 4), Linear(3, 4)
    before = like.weight.clone()
    assert check(mine, like, shapes="batch 3")
    assert torch.equal(mine.weight, torch.zeros(4, 3))
    assert torch.equal(like.weight, before)
    assert mine.weight.grad is like.weight.grad is None


def test_parameters_of_other_names_are_a_mistake(said):
    class Renamed(MyLinear):
        def __init__(self, in_features, out_features):
            super().__init__(in_features, out_features)
            self.b = self.bias
            del self.bias

    class Plain:
        def __init__(self, in_features, out_features):
            pass

        def __call__(self, x):
            return x

    for mine, out in [(Renamed, "weight (4, 3), b (4,)"), (Plain, "none")]:
        assert not check(mine, Linear, shapes="batch 3", in_features=3, out_features=4)
        heading, *lines = said().splitlines()
        assert heading.startswith(
            f"{mine.__name__} does not agree with companion.layers.Linear"
        )
        assert "its parameters have other names or shapes" in heading
        assert lines == [f"  out     {out}", "  wanted  weight (4, 3), bias (4,)"]


def test_a_class_that_cannot_be_made_is_the_readers_mistake(said):
    class Forgot(nn.Module):
        def __init__(self, dim):
            self.weight = nn.Parameter(torch.zeros(dim))  # the reader's line

    assert not check(Forgot, activations.Softmax, shapes="batch classes", dim=1)
    assert "it raises AttributeError" in (shown := said())
    assert "self.weight = nn.Parameter(torch.zeros(dim))  # the reader's line\n" in shown


class Running(nn.BatchNorm1d):
    pass


class Forgetful(nn.BatchNorm1d):
    def forward(self, x):
        before = self.running_mean.clone()
        y = super().forward(x)
        self.running_mean = before
        return y


def test_buffers_after_the_call_count(said):
    case = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert check(Running, nn.BatchNorm1d, case, num_features=2)
    assert not check(Forgetful, nn.BatchNorm1d, case, num_features=2)
    assert "yet: running_mean after the call is wrong\n" in said()


def test_the_mode_is_that_of_like():
    case = torch.ones(50)
    assert check(nn.Dropout(), nn.Dropout().eval(), case)
    assert not check(lambda x: x, nn.Dropout(), case)


def test_a_function_may_be_held_against_a_class():
    assert check(partial(torch.softmax, dim=1), activations.Softmax, shapes="n k", dim=1)


def test_what_chapters_need_can_be_said(said):
    shapes = ("batch classes", "batch < classes")
    assert check(nn.functional.cross_entropy, cross_entropy, shapes=shapes)

    def naive(z, y):
        return -z.softmax(1).log()[range(len(y)), y].mean()

    assert not check(naive, cross_entropy, shapes=shapes)
    sequence = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    state = torch.randn(2, 1, 2, 4, generator=torch.Generator().manual_seed(1)).unbind()
    cases = sequence, (sequence, tuple(state))
    assert check(nn.LSTM, lstm.LSTM, *cases, input_size=3, hidden_size=4)
    said()

    def descend(Optimizer, w):
        w = nn.Parameter(w.clone())
        optimizer = Optimizer([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (w**2).sum().backward()
            optimizer.step()
        return w.detach()

    right, wrong, judge = (partial(descend, by) for by in (torch.optim.SGD, Adam, SGD))
    assert check(right, judge, shapes="n")
    named = "descend(torch's SGD) agrees with descend(companion.optimization.SGD): "
    assert said() == f"{named}16 cases, values\n"
    assert not check(wrong, judge, shapes="n")
    assert "descend(companion.optimization.Adam) does not agree" in said()


def test_names_of_partial_functions_show_their_arguments(said):
    assert check(partial(torch.softmax, dim=-1), partial(softmax, dim=1), shapes="n k")
    named = "torch's softmax(dim=-1) agrees with companion.activations.softmax(dim=1): "
    assert said().startswith(named)
    assert check(partial(pow, 2), partial(pow, 2), 3)
    assert said().startswith("pow(2) agrees with pow(2): 1 case")


# drawing


def test_drawn_sizes_agree_within_a_case_differ_between_names_and_are_one_in_some():
    cases = _draw(("batch in", "out in", "out", "", "2 in"), EXTREMES, seed=0)
    sizes = []
    for x, W, b, scalar, two in cases:
        assert x.shape[1] == W.shape[1] == two.shape[1]
        assert W.shape[0] == len(b)
        assert scalar.shape == ()
        assert len(two) == 2
        sizes.append((len(x), *W.shape))
    assert {tuple(size == 1 for size in triple) for triple in sizes} == {
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, True, True),
    }
    assert all(len({n for n in s if n > 1}) == sum(n > 1 for n in s) for s in sizes)


def test_every_extreme_number_is_drawn_alone_and_among_others():
    cases = [x for (x,) in _draw(("n",), EXTREMES, seed=0)]
    alone = [str(x.item()) for x in cases if len(x) == 1 and x.item() in EXTREMES]
    assert alone == [str(value) for value in EXTREMES]
    mixed = [x for x in cases if len(x) > 1 and set(x.tolist()) <= set(EXTREMES)]
    assert len(mixed) == 3
    assert len(cases) == 3 + 1 + 1 + len(EXTREMES) + 3
    assert len(_draw(("n",), (), seed=0)) == 5


def test_whole_numbers_are_drawn_below_their_bound():
    cases = _draw(("classes", "40 < classes", "40 < 3"), (), seed=0)
    for scores, y, z in cases:
        assert y.dtype == z.dtype == torch.int64
        assert set(y.tolist()) == set(range(len(scores)))
        assert set(z.tolist()) == {0, 1, 2}


def test_the_seed_decides_what_is_drawn():
    def drawn(seed):
        return torch.cat([x for (x,) in _draw(("7",), (), seed)])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


# mistakes of an author


@pytest.mark.usefixtures("plain_python")
def test_an_author_is_told_what_is_wrong_with_an_exercise():
    with pytest.raises(
        TypeError, match="like must be a function, a class or a module, got a str"
    ):
        check(relu, "relu", shapes="n")
    with pytest.raises(ValueError, match="check needs cases: the arguments of a call each, or"):
        check(relu, relu)
    for shape in ("n, k", "n < ", "2*n", "n < k < m", "-1"):
        with pytest.raises(
            ValueError, match="a shape is made of names and numbers, as 'batch 3'"
        ):
            check(relu, relu, shapes=shape)
    with pytest.raises(
        ValueError, match=r"like itself refuses a case .*\(.*Error: .*\): change"
    ):
        check(torch.add, torch.matmul, shapes=("n 2", "n 2"))
    with pytest.raises(ValueError, match="like itself refuses a case or its options"):
        check(relu, layers.Linear, torch.zeros(2, 3), in_features=-1, out_features=2)
    with pytest.raises(ValueError, match="cannot be called"):
        check(relu, Counter, torch.zeros(2))
