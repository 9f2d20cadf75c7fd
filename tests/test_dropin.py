"""Every name that the companion shares with PyTorch, judged by PyTorch's own test cases.

``torch.testing._internal`` holds the inputs on which PyTorch tests itself: good ones, and ones
that must be refused. Each is given to both, in double precision; values, gradients and second
derivatives must be the same. A module that is new here is found by its ``__all__``.
"""

import contextlib
import copy
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import companion

try:
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
    from torch.testing._internal.common_optimizers import optim_db

    unavailable = None
except ImportError as error:  # no promise is made about it
    op_db = module_db = optim_db = ()
    unavailable = f"this PyTorch's own test cases cannot be imported: {error}"

needs_samples = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
pytestmark = [pytest.mark.usefixtures("plain_python"), pytest.mark.filterwarnings("ignore")]

EXACT = {"rtol": 1e-10, "atol": 1e-10, "equal_nan": True}

NAMESPACES = (
    *(nn.functional, nn, nn.init, nn.utils),
    *(torch.optim, torch.optim.lr_scheduler),
)


@dataclass(frozen=True)
class Difference:
    """A case in which ours does not do what PyTorch does, on purpose."""

    name: str
    kind: str  # "refused" by ours alone, "accepted" by ours alone, "once" differentiable
    case: str  # a pattern in what is said of it: our error, or theirs
    reason: str


# All differences; one that no case shows any more fails its test
DIFFERENT = [
    Difference("activations.softmax", "refused", "dtype", "the scores can be converted before"),
    Difference("activations.log_softmax", "refused", "dtype", "the same"),
    Difference("convolution.avg_pool2d", "refused", "divisor_override", "negative: a mistake"),
    Difference("convolution.max_pool2d", "refused", "return_indices", "no chapter unpools"),
    Difference("convolution.MaxPool2d", "refused", "return_indices", "the same"),
    Difference("lstm.LSTM", "refused", "proj_size", "no chapter teaches the projection"),
    Difference("lstm.LSTM", "once", "over the layer's cell", "the loop by hand is the lesson"),
    Difference("recurrence.RNN", "once", "over the layer's cell", "the same"),
    Difference("speech.ctc_loss", "once", "no second derivative", "theirs has none either"),
    *[
        Difference(name, "accepted", "of type bool, got: int", "0 and 1 mean False and True")
        for name in ("recurrence.RNN", "lstm.LSTM", "lstm.GRU")
    ],
]

# Shared names that are another thing
NOT_THE_SAME = {
    "backpropagation.cross_entropy": "differentiates on the chapter's own tape, not on tensors",
}


def _shared():
    for info in pkgutil.iter_modules(companion.__path__):
        module = importlib.import_module(f"companion.{info.name}")
        for name in getattr(module, "__all__", ()):
            for namespace in NAMESPACES:
                if hasattr(namespace, name):
                    yield f"{info.name}.{name}", getattr(module, name), getattr(namespace, name)


SHARED = [
    pytest.param(name, ours, theirs, id=name)
    for name, ours, theirs in _shared()
    if name not in NOT_THE_SAME
]
every_shared_name = pytest.mark.parametrize(("name", "ours", "theirs"), SHARED)


# What is compared: a case is a function of a function or class, ours or theirs, that returns an
# output and the leaves with respect to which it is differentiated


def _call(arguments, options, function, **neutral):
    leaves = [x for x in tree_leaves((arguments, options)) if _differentiable(x)]
    return function(*arguments, **neutral | options), leaves


def _build_and_call(theirs, constructor, arguments, cls, training=True, **neutral):
    """A module, with the parameters of theirs, so that the names in the state dict count."""
    torch.manual_seed(0)
    reference = theirs(*constructor.args, **constructor.kwargs)
    module = cls(*constructor.args, **neutral | constructor.kwargs)
    module.load_state_dict(reference.state_dict())
    output, leaves = _call(arguments.args, arguments.kwargs, module.double().train(training))
    return output, [*leaves, *(p for p in module.parameters() if p.requires_grad)]


def _five_steps(params, options, cls, **neutral):
    """What an optimiser makes of parameters, and of its own state."""
    params = copy.deepcopy(params if params is not None else _parameters())
    optimizer = cls(params, **neutral | copy.deepcopy(options))
    for seed in range(5):
        for group in optimizer.param_groups:
            for place, p in enumerate(group["params"]):
                p.grad = _normal(p.shape, seed=10 * seed + place).to(p)
        optimizer.step()
    groups, state = optimizer.param_groups, optimizer.state_dict()["state"]
    kept = {f"{n} {p}": s[n] for p, s in state.items() for n in sorted(s) if s[n] is not None}
    return [[group["params"] for group in groups], kept], []


def _parameters():
    return [nn.Parameter(_normal(shape)) for shape in [(3, 2), (4,), ()]]


def _rates(arguments, options, cls, **neutral):
    """The rates and momenta that a schedule gives."""
    optimizer = torch.optim.SGD(_parameters(), lr=0.1, momentum=0.9)
    scheduler = cls(optimizer, *arguments, **neutral | options)
    seen = []
    for _ in range(12):
        group = optimizer.param_groups[0]
        seen.append([torch.tensor(group[name]) for name in ("lr", "momentum")])
        optimizer.step()
        scheduler.step()
    return seen, []


def _filled(shape, options, function, **neutral):
    torch.manual_seed(0)
    return function(torch.empty(shape, dtype=torch.float64), **neutral | options), []


def _stacked(cls, **neutral):
    torch.manual_seed(0)
    module = cls(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), **neutral).double()
    return _call([_normal((5, 3)).requires_grad_()], {}, module)


def _flattened(arguments, cls, **neutral):
    return _call([_normal((2, 3, 4, 5)).requires_grad_()], {}, cls(*arguments, **neutral))


# Names for which PyTorch has no inputs
OWN = {
    "Flatten": [partial(_flattened, options) for options in [(), (0,), (1, 2), (-2,), (0, -3)]],
    "Sequential": [_stacked],
    **{
        f"{kind}_{law}_": [
            partial(_filled, shape, options)
            for shape in [(5, 3), (6, 4, 3, 3)]
            for options in choices
        ]
        for kind, choices in {
            "kaiming": [{}, {"a": 0.2}, {"mode": "fan_out", "nonlinearity": "relu"}],
            "xavier": [{}, {"gain": 2.0}],
        }.items()
        for law in ("normal", "uniform")
    },
    "StepLR": [partial(_rates, (3,), {}), partial(_rates, (5, 0.5), {})],
    "OneCycleLR": [
        partial(_rates, (1.0,), {"total_steps": 12}),
        partial(_rates, (1.0, 20), {"pct_start": 0.5, "div_factor": 10.0}),
        partial(_rates, (1.0, 20), {"cycle_momentum": False}),
    ],
}


def _cases(name, theirs):
    """(what it is, case) for each of PyTorch's own inputs, or of ours."""
    torch.manual_seed(0)
    short = name.split(".")[1]
    for info in op_db:
        if info.name in (short, f"nn.functional.{short}"):
            for s in info.sample_inputs("cpu", torch.float64, requires_grad=True):
                yield f"{s.args} {s.kwargs}", partial(_call, (s.input, *s.args), s.kwargs)
    for info in module_db:
        if info.module_cls is theirs:
            for training in (True, False):
                for s in info.module_inputs_func(info, "cpu", torch.float64, True, training):
                    if s.forward_input is not None:
                        inputs = s.constructor_input, s.forward_input
                        case = partial(_build_and_call, theirs, *inputs, training=training)
                        yield f"{s.desc} {inputs[0].args} {inputs[0].kwargs}", case
    for info in optim_db:
        if info.optim_cls is theirs:
            for s in info.optim_inputs_func("cpu"):
                yield f"{s.desc} {s.kwargs}", partial(_five_steps, s.params, s.kwargs)
    for place, case in enumerate(OWN.get(short, ())):
        yield f"own case {place}", case


def _mistakes(name, theirs):
    """(what it is, case) for each of the inputs that PyTorch refuses."""
    torch.manual_seed(0)
    short = name.split(".")[1]
    for info in op_db:
        if info.name in (short, f"nn.functional.{short}") and info.error_inputs_func:
            for e in info.error_inputs("cpu"):
                s = e.sample_input
                yield e.error_regex, partial(_call, (s.input, *s.args), s.kwargs)
    for info in module_db:
        if info.module_cls is theirs and info.module_error_inputs_func:
            for e in info.module_error_inputs_func(info, "cpu", torch.float64, True, True):
                s = e.module_error_input
                if e.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                    case = partial(_call, s.constructor_input.args, s.constructor_input.kwargs)
                else:
                    inputs = s.constructor_input, s.forward_input
                    case = partial(_build_and_call, theirs, *inputs)
                yield e.error_regex, case
    for info in optim_db:
        if info.optim_cls is theirs:
            for e in info.optim_error_inputs_func("cpu", torch.float64):
                s = e.optimizer_error_input
                params = _parameters() if s.params is None else s.params
                yield e.error_regex, partial(_call, (params,), s.kwargs)


def _normal(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _differentiable(x):
    return isinstance(x, torch.Tensor) and x.requires_grad


def _derivatives(outputs, leaves, again):
    """Of a random sum of all outputs; ``again`` those of a random sum of its derivatives."""
    outputs = [y for y in tree_leaves(outputs) if _differentiable(y)]
    if not outputs or not leaves:
        return [torch.zeros_like(x) for x in leaves]
    upstream = [_normal(y.shape, seed=1) for y in outputs]
    gradients = torch.autograd.grad(
        outputs, leaves, upstream, create_graph=again, retain_graph=True, allow_unused=True
    )
    if again:
        return _derivatives(gradients, leaves, again=False)
    pairs = zip(gradients, leaves, strict=True)
    return [torch.zeros_like(x) if g is None else g for g, x in pairs]


def _outcome(case, function, **neutral):
    output, leaves = case(function, **neutral)
    values = [y.detach() if isinstance(y, torch.Tensor) else y for y in tree_leaves(output)]
    first = _derivatives(output, leaves, again=False)
    try:
        second = _derivatives(output, leaves, again=True)
    except RuntimeError as error:
        second = error
    return values, first, second


def _parameters_of(function):
    """The parameters by name; from the docstring where PyTorch hides them."""
    parameters = {}
    with contextlib.suppress(ValueError):
        parameters = inspect.signature(function).parameters
    if not parameters or "kwargs" in parameters:
        name = getattr(function, "__name__", "")
        name = "max_pool2d" if name == "fn" else name
        signature = re.search(rf"(?:__init__|{name})\(([^)]*)\)", function.__doc__)
        if signature:
            parameters = inspect.signature(eval(f"lambda {signature[1]}: 0", {})).parameters
    return {
        n: p
        for n, p in parameters.items()
        if not n.startswith("_") and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def _missing(ours, theirs):
    """What theirs takes and ours does not, with the values that ask for nothing."""
    parameters = _parameters_of(ours)
    return {n: p.default for n, p in _parameters_of(theirs).items() if n not in parameters}


def _judge(name, kind, seen):
    """Each thing seen must be on the list, and each on the list must have been seen."""
    listed = [d for d in DIFFERENT if (d.name, d.kind) == (name, kind)]
    unknown = [said for said in seen if not any(re.search(d.case, said) for d in listed)]
    assert not unknown, f"{name}: {kind}, and not on the list: {unknown}"
    unused = [d.case for d in listed if not any(re.search(d.case, said) for said in seen)]
    assert not unused, f"{name} no longer differs here, take it off the list: {unused}"


# Tests


def test_there_is_something_to_judge():
    names = {name for name, _, _ in _shared()}
    assert {"layers.cross_entropy", "lstm.LSTM", "optimization.Adam"} <= names
    assert NOT_THE_SAME.keys() <= names
    assert {d.name for d in DIFFERENT} <= names - NOT_THE_SAME.keys()
    assert OWN.keys() <= {name.split(".")[1] for name in names}


@needs_samples
@every_shared_name
def test_values_and_derivatives_are_those_of_pytorch(name, ours, theirs):
    neutral, refused, once, count = _missing(ours, theirs), [], [], 0
    for said, case in _cases(name, theirs):
        values, first, second = _outcome(case, theirs)
        try:
            our_values, our_first, our_second = _outcome(case, ours, **neutral)
        except (TypeError, ValueError) as error:
            refused.append(str(error))
            continue
        count += 1
        say = partial("{2} {0} {1}: {3}".format, name, said)
        assert_close(our_values, values, **EXACT, msg=partial(say, "values of"))
        assert_close(our_first, first, **EXACT, msg=partial(say, "gradients of"))
        if isinstance(our_second, RuntimeError):
            once.append(str(our_second))
        elif not isinstance(second, RuntimeError):
            assert_close(our_second, second, **EXACT, msg=partial(say, "second derivatives of"))
    assert count, f"{name}: PyTorch has no inputs for it, so add some to OWN"
    _judge(name, "refused", refused)
    _judge(name, "once", once)


@needs_samples
@every_shared_name
def test_what_pytorch_refuses_is_refused(name, ours, theirs):
    accepted = []
    for said, case in _mistakes(name, theirs):
        try:
            case(ours)
        except (TypeError, ValueError):
            continue
        accepted.append(said)
    _judge(name, "accepted", accepted)


@every_shared_name
def test_every_argument_of_pytorch_is_taken_or_named_in_the_docstring(name, ours, theirs):
    unnamed = [n for n in _missing(ours, theirs) if f"``{n}" not in ours.__doc__]
    assert not unnamed, f"{name} lacks {unnamed}, and its docstring does not say so"


@every_shared_name
def test_what_is_given_by_place_is_what_pytorch_takes_there(name, ours, theirs):
    by_place = [
        [n for n, p in _parameters_of(function).items() if p.kind != p.KEYWORD_ONLY]
        for function in (ours, theirs)
    ]
    assert by_place[0] == by_place[1][: len(by_place[0])]


@every_shared_name
def test_defaults_are_those_of_pytorch(name, ours, theirs):
    our_parameters, their_parameters = _parameters_of(ours), _parameters_of(theirs)
    for n in our_parameters.keys() & their_parameters.keys():
        given = our_parameters[n].default
        assert given in (their_parameters[n].default, inspect.Parameter.empty), n
