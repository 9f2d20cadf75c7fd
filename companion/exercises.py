"""Answers to the book's *write it yourself*: the reader's code is held against the companion's.

:func:`check` is the one function of the companion that prints. To speak to the reader is its
purpose, wherever it stands in a cell: before other lines, in an ``assert``, in a terminal.
"""

import copy
import inspect
import math
import re
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

__all__ = ["EXTREMES", "check"]

#: The numbers that :func:`check` tries beside ordinary ones, unless it is told otherwise.
EXTREMES = (0.0, -0.0, 1e-9, -1e-9, 30.0, -30.0, 1000.0, -1000.0)


def check(
    mine: Any,
    like: Callable,
    *cases: Any,
    shapes: str | Sequence[str] | None = None,
    extremes: Sequence[float] = EXTREMES,
    gradients: bool = True,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    hint: str = "",
    seed: int = 0,
    **options: Any,
) -> bool:
    """Hold a reader's function, class or module against the companion's, and say what came of
    it.

    >>> def my_softmax(x, dim):
    ...     return x.exp() / x.exp().sum(dim, keepdim=True)
    >>> check(my_softmax, softmax, shapes="batch classes", dim=1, hint="Can you shift x first?")
    my_softmax does not agree with companion.activations.softmax yet: the result is wrong
      in      input = [[1000]]
              dim = 1
      out     [[nan]]
      wanted  [[1]]
      hint    Can you shift x first?
    False

    The cases are run in float64, from the smallest to the largest, until one fails. What has to
    agree:

    - the result: type, shape, dtype, device and values of tensors; numbers, strings, and
      whatever ``==`` compares; tuples, lists and dictionaries of these;
    - the arguments after the call, so that nothing is changed in place unless ``like`` does it,
      and a module's buffers;
    - a second call with the same input, unless ``like`` is random (PyTorch's random numbers are
      seeded before each call);
    - the gradients of all floating-point arguments and of a module's parameters, for a fixed
      random gradient of the result, wherever ``like`` gives a gradient.

    A mistake of the reader's is shown and never raised: an exception, with its text and the
    line of the reader's code that it comes from; a forgotten ``return``; a NumPy array; a wrong
    shape or dtype; an input changed in place; a result that gives no gradient, or another value
    at each call.

    The message is printed, and the verdict is a plain bool, so that ``check(...)`` on a line of
    its own, ``if check(...)`` and ``assert check(...)`` all tell the reader what is wrong; a
    failing assertion shows nothing by itself.

    Args:
        mine: What the reader wrote: a function, a class or a module.
        like: What it should do. If it is a module, ``mine`` gets the values of its parameters,
            and must have named them alike. What is no function of its arguments is made one:
            ``check(partial(descend, MySGD), partial(descend, SGD), x)``, where ``descend(SGD,
            x)`` takes a few steps from ``x`` and returns where they lead.
        *cases: The arguments of one call each: a tuple, or a single argument. Floating-point
            tensors are made float64. Variables of the tape of chapter *Backpropagation* may
            stand for tensors.
        shapes: Shapes of tensors to draw, one shape for each argument, as ``"batch features"``,
            ``"3 features"`` or ``""``. ``"batch < classes"`` draws whole numbers from 0 to
            ``classes - 1``, ``"batch < 10"`` from 0 to 9. A name is a size, the same in all
            arguments of a case. Sizes differ from each other, or one of them is 1, or all are.
        extremes: Numbers that fill drawn tensors, one of them alone or all of them mixed. Leave
            out those that make no sense, such as 0 where there is a kink.
        gradients: Whether gradients are compared.
        rtol: The error allowed, relative to what is wanted.
        atol: The error allowed in any case.
        hint: Shown to the reader beside a mistake.
        seed: For all that is drawn. The global random state is left as it was.
        **options: Keyword arguments: a class is made with them, anything else is called with
            them.

    Returns:
        Whether all agreed.

    Raises:
        TypeError: If ``like`` cannot be called.
        ValueError: If there is no case, a shape cannot be read, or ``like`` refuses a case.
    """
    if not callable(like):
        raise TypeError(f"like must be a function, a class or a module, got {_kind(like)}")
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    if shapes is not None:
        cases += _draw([shapes] if isinstance(shapes, str) else shapes, extremes, seed)
    if not cases:
        raise ValueError(
            "check needs cases: the arguments of a call each, or the shapes to draw them in"
        )
    lines, compared = {}, "values"
    try:
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            torch.enable_grad(),
        ):
            theirs = _authors(_Subject, like, options)
            ours = _readers(_Subject, mine, options)
            ours.copy_state(theirs)
            for arguments in sorted(cases, key=_size):
                case = dict(zip(_names(theirs.call, len(arguments)), arguments, strict=True))
                lines = {"in": _listed(case | theirs.options)}
                wanted = _authors(theirs.run, case, seed)
                lines["wanted"] = _listed({"": wanted["result"]})
                got = _readers(ours.run, case, seed)
                wanted_again = _authors(theirs.run, case, seed + 1)["result"]
                got_again = _readers(ours.run, case, seed + 1)["result"]
                if _agree(wanted_again, wanted["result"], rtol, atol) and not _agree(
                    got_again, got["result"], rtol, atol
                ):
                    raise _Mistake(
                        "it gives two different results for the same input",
                        out="\n".join(_listed({"": y}) for y in (got["result"], got_again)),
                    )
                _compare_outcomes(got, wanted, case, rtol, atol)
                if gradients:
                    wanted = _authors(theirs.run, case, seed, True)
                    got = _readers(ours.run, case, seed, True)
                    _compare_outcomes(got, wanted, case, rtol, atol)
                    if "gradients" in wanted:
                        compared = "values and gradients"
    except _Mistake as mistake:
        print(f"{_name(mine)} does not agree with {_name(like)} yet: {mistake.what}")
        lines |= mistake.lines | ({"hint": textwrap.fill(hint, 86)} if hint else {})
        for label in ("in", "out", "at", "wanted", "worst", "given", "why", "hint"):
            if label in lines:
                print(f"  {label:<8}" + lines[label].replace("\n", "\n" + 10 * " "))
        return False
    number = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
    print(f"{_name(mine)} agrees with {_name(like)}: {number}, {compared}")
    return True


class _Mistake(Exception):  # noqa: N818 - the reader's, no error of the program
    """What to tell the reader, and labelled lines that show it."""

    def __init__(self, what: str, **lines: str) -> None:
        super().__init__(what)
        self.what, self.lines = what, lines


class _Subject:
    """What is run, ``mine`` or ``like``, with its options."""

    def __init__(self, thing: Any, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        if isinstance(thing, type):
            thing, self.options = thing(**options), {}
        if not callable(thing):
            raise _Mistake(f"{_kind(thing)} cannot be called: give a function or a class")
        self.module = isinstance(thing, nn.Module)
        self.call = copy.deepcopy(thing).double() if self.module else thing

    def copy_state(self, other: "_Subject") -> None:
        """Take over the other's parameters, buffers and mode, if it is a module."""
        shapes = [
            {name: tuple(value.shape) for name, value in subject.call.state_dict().items()}
            if subject.module
            else {}
            for subject in (self, other)
        ]
        if shapes[1] and shapes[0] != shapes[1]:
            out, wanted = (
                ", ".join(f"{name} {shape}" for name, shape in of.items()) or "none"
                for of in shapes
            )
            raise _Mistake(
                "its parameters have other names or shapes",
                out=out,
                wanted=wanted,
            )
        if self.module and other.module:
            self.call.load_state_dict(other.call.state_dict())
            self.call.train(other.call.training)

    def run(self, case: dict[str, Any], seed: int, backward: bool = False) -> dict[str, Any]:
        """What comes out of a call, by kind."""
        case = _map(_fresh, case)
        inputs = {name: leaf for name, leaf in _leaves(case) if _is_floating(leaf)}
        for leaf in inputs.values():
            leaf.requires_grad = backward
        if self.module:
            self.call.zero_grad()
            inputs |= dict(self.call.named_parameters())
        torch.manual_seed(seed)
        result = self.call(*case.values(), **_map(_fresh, self.options))
        buffers = dict(self.call.named_buffers()) if self.module else {}
        outcome = {"result": _map(_data, result), "after": _map(_memory, case | buffers)}
        attached = [y for _, y in _leaves({"": result}) if getattr(y, "requires_grad", False)]
        if backward and attached:
            for y in attached:
                y.backward(_upstream(y.data), retain_graph=True)
            outcome["gradients"] = {
                name: torch.zeros_like(x.data) if x.grad is None else x.grad
                for name, x in inputs.items()
            }
        return outcome


def _authors(function, *arguments):
    """Run ``like``: what goes wrong is the fault of the exercise's author."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(
            f"like itself refuses a case or its options ({type(error).__name__}: {error}): "
            "change them, or write a number where a size must not be drawn"
        ) from error


def _readers(function, *arguments):
    """Run ``mine``: what goes wrong is to be shown to the reader."""
    try:
        return function(*arguments)
    except _Mistake:
        raise
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        lines = [
            f"{_file(frame.filename)}, line {frame.lineno}: {frame.line}"
            for frame in traceback.extract_tb(error.__traceback__)
            if _is_readers(frame.filename)
        ]
        raise _Mistake(
            f"it raises {type(error).__name__}",
            out=text,
            **({"at": lines[-1]} if lines else {}),
        ) from error


def _is_readers(filename):
    """Whether a file is none of the companion, the standard library and the packages."""
    path = Path(filename)
    library = Path(sysconfig.get_path("stdlib"))
    return not (
        path.is_relative_to(Path(__file__).parent)
        or path.is_relative_to(library)
        or {"site-packages", "dist-packages"} & set(path.parts)
    )


def _file(filename):
    """What the reader calls a file: the number of a cell, or the file's name."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cell = shell and shell.compile.format_code_name(filename)
    return " ".join(cell) if cell else Path(filename).name


def _compare_outcomes(got, wanted, case, rtol, atol):
    """Raise the first mistake in what came out of a call."""
    _compare(got["result"], wanted["result"], "the result", rtol, atol)
    before = _map(_memory, _map(_fresh, case))
    for name, after in wanted["after"].items():
        try:
            _compare(got["after"].get(name, after), after, f"{name} after the call", rtol, atol)
        except _Mistake as mistake:
            if name in before and _agree(after, before[name], 0, 0):
                mistake.what = f"it changes {name} in place: work on a copy"
            raise
    if "gradients" in wanted and "gradients" not in got:
        raise _Mistake(
            "the result gives no gradient",
            why="it is cut off from the input, by detach, item, no_grad, NumPy or torch.tensor",
        )
    for name, gradient in wanted.get("gradients", {}).items():
        try:
            _compare(got["gradients"][name], gradient, f"the gradient of {name}", rtol, atol)
        except _Mistake as mistake:
            given = {
                f"the gradient of {place}": _upstream(y)
                for place, y in _leaves({"the result": wanted["result"]})
                if _is_floating(y) and y.numel() > 1
            }
            mistake.lines |= {"given": _listed(given)} if given else {}
            raise


def _agree(got, wanted, rtol, atol):
    """Whether two results are the same, but for rounding."""
    try:
        _compare(got, wanted, "", rtol, atol)
    except _Mistake:
        return False
    return True


def _compare(got, wanted, name, rtol, atol):
    """Raise the first mistake in a result."""
    parts, wanted_parts = _parts(got), _parts(wanted)
    if wanted_parts is not None:
        if parts is None or parts.keys() != wanted_parts.keys():
            raise _wrong(f"{name} is {_kind(got)}, and should be {_kind(wanted)}", got, wanted)
        for key, part in wanted_parts.items():
            _compare(parts[key], part, f"{name}[{key!r}]", rtol, atol)
    elif isinstance(wanted, Tensor) and isinstance(got, Tensor):
        for attribute in ("shape", "dtype", "device"):
            out, right = (
                str(getattr(y, attribute)).removeprefix("torch.") for y in (got, wanted)
            )
            if out != right:
                raise _Mistake(f"{name} has the wrong {attribute}", out=out, wanted=right)
        same = torch.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
        if not same.all():
            mistake = _wrong(f"{name} is wrong", got, wanted)
            mistake.lines |= {"worst": _worst(got, wanted, same)} if same.numel() > 1 else {}
            raise mistake
    elif isinstance(wanted, Real) and isinstance(got, Real):
        both_nan = math.isnan(got) and math.isnan(wanted)
        if not (both_nan or math.isclose(got, wanted, rel_tol=rtol, abs_tol=atol)):
            raise _wrong(f"{name} is wrong", got, wanted)
    elif not isinstance(got, type(wanted)):
        raise _wrong(f"{name} is {_kind(got)}, and should be {_kind(wanted)}", got, wanted)
    elif got != wanted:
        raise _wrong(f"{name} is wrong", got, wanted)


def _wrong(what, got, wanted):
    """A mistake that shows both results."""
    return _Mistake(what, out=_listed({"": got}), wanted=_listed({"": wanted}))


def _worst(got, wanted, same):
    """Where the largest of several differences is."""
    difference = (1.0 * got - 1.0 * wanted).abs().nan_to_num(math.inf, math.inf)
    place = difference.masked_fill(same, -1).argmax()
    index = [int(i) for i in torch.unravel_index(place, same.shape)]
    ours, theirs = (y.flatten()[place].item() for y in (got, wanted))
    wrong = f"{int((~same).sum())} of {same.numel()} entries are wrong"
    return f"{ours:.8g} in place of {theirs:.8g} at {index}; {wrong}"


def _kind(thing):
    """What something is, in words."""
    if thing is None:
        return "None (is a `return` missing?)"
    if isinstance(thing, np.ndarray):
        return "a NumPy array"
    if isinstance(thing, list | tuple | dict):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"


def _name(thing):
    """What a function, a class or a module is called."""
    if isinstance(thing, partial):

        def shown(x):
            return _name(x) if callable(x) else _shown(x, "")

        arguments = [shown(x) for x in thing.args]
        arguments += [f"{key}={shown(x)}" for key, x in thing.keywords.items()]
        return f"{_name(thing.func)}({', '.join(arguments)})"
    if isinstance(owner := getattr(thing, "__self__", None), type):  # Operation.apply
        return f"{_name(owner)}.{thing.__name__}"
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    module = (getattr(thing, "__module__", None) or "").split(".")
    if module[0] == "companion":
        return f"{'.'.join(module)}.{thing.__qualname__}"
    return f"torch's {thing.__name__}" if module[0] == "torch" else thing.__name__


def _names(call, number):
    """Names for the arguments of a call."""
    try:
        signature = inspect.signature(getattr(call, "forward", call))
    except ValueError:  # a function that is not written in Python has none
        names = []
    else:
        names = [name for name, x in signature.parameters.items() if x.kind != x.VAR_POSITIONAL]
    return [*names, *(f"argument {n}" for n in range(len(names) + 1, number + 1))][:number]


def _listed(values):
    """A line for each value; for each tensor, where a value is a list of them."""
    lines = []
    for name, value in values.items():
        leaves = list(_leaves({name: value}))
        if not any(isinstance(leaf, Tensor) for _, leaf in leaves):
            leaves = [(name, value)]
        for place, leaf in leaves:
            label = f"{place} = " if place else ""
            lines.append(label + _shown(leaf, label))
    return "\n".join(lines)


def _shown(value, label):
    """A value in short. Further lines of a tensor stand to the right of its label."""
    if not _is_tensor(value):
        text = repr(value)
        return text if len(text) <= 300 else f"{text[:300]} ..."
    value = value.data.double() if _is_floating(value) else value.data
    text = np.array2string(
        value.cpu().numpy(),
        formatter={"float_kind": "{:g}".format},
        separator=", ",
        threshold=24,
        edgeitems=2,
        max_line_width=80,
        prefix=label,
    )
    return text if value.numel() <= 24 else f"{text} of shape {tuple(value.shape)}"


def _is_tensor(thing):
    """A tensor of PyTorch, or of a tape of our own."""
    return hasattr(thing, "backward")


def _is_floating(thing):
    return _is_tensor(thing) and thing.data.is_floating_point()


def _parts(tree):
    """The parts of a tuple, list or dictionary by their keys, and None for anything else."""
    if isinstance(tree, tuple | list):
        return dict(enumerate(tree))
    return tree if isinstance(tree, dict) else None


def _leaves(tree: dict) -> Iterator[tuple[str, Any]]:
    """Whatever is no tuple, list or dictionary in some named values, with a name for each."""
    for name, value in tree.items():
        if (parts := _parts(value)) is None:
            yield name, value
        else:
            yield from _leaves({f"{name}[{key!r}]": part for key, part in parts.items()})


def _map(function, tree):
    """A tuple, list or dictionary of what a function makes of its leaves."""
    parts = _parts(tree)
    if parts is None:
        return function(tree)
    parts = {key: _map(function, part) for key, part in parts.items()}
    if isinstance(tree, dict):
        return parts
    return getattr(tree, "_make", type(tree))(parts.values())


def _fresh(leaf):
    """A copy, in float64 if it is a tensor of floating-point numbers."""
    if not _is_tensor(leaf):
        return copy.deepcopy(leaf)
    data = leaf.data.double() if _is_floating(leaf) else leaf.data
    data = data.clone()
    return data if isinstance(leaf, Tensor) else type(leaf)(data)


def _data(leaf):
    """The plain tensor in a result."""
    return leaf.data.clone() if _is_tensor(leaf) else leaf


def _memory(leaf):
    """What tells later whether an argument was changed."""
    return _data(leaf) if _is_tensor(leaf) or isinstance(leaf, Real | str) else None


def _upstream(y: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The gradient of a result from which to go backwards."""
    if y.numel() == 1:
        return torch.ones_like(y)
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(y.shape, generator=generator, dtype=torch.float64).round(decimals=1).to(y)
    )


def _size(case):
    """How much there is to read in a case."""
    leaves = (leaf for _, leaf in _leaves({"": case}))
    return sum(
        x.data.numel() if _is_tensor(x) else len(x) if isinstance(x, str) else 1 for x in leaves
    )


def _draw(
    shapes: Sequence[str], extremes: Sequence[float], seed: int
) -> list[tuple[Shaped[Tensor, "..."], ...]]:
    """Cases of tensors of given shapes: ordinary ones, with sizes of one, and extreme ones."""
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        if not re.fullmatch(r"\s*(\w+\s*)*(<\s*\w+\s*)?", shape):
            raise ValueError(
                "a shape is made of names and numbers, as 'batch 3', '' or 'batch < classes', "
                f"got {shape!r}"
            )
    words = re.findall(r"\w+", " ".join(shapes))
    names = list(dict.fromkeys(word for word in words if not word.isdigit()))

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def mixed(shape):
        place = torch.randint(len(extremes), shape, generator=generator)
        return torch.tensor(extremes, dtype=torch.float64)[place]

    def case(ones, fill):
        drawn = 2 + torch.randperm(len(names) + 2, generator=generator)[: len(names)]
        size = dict(zip(names, drawn.tolist(), strict=True)) | dict.fromkeys(ones, 1)
        tensors = []
        for shape in shapes:
            dims, _, below = shape.partition("<")
            dims = [int(size.get(word, word)) for word in dims.split()]
            bound = below.strip()
            tensors.append(
                torch.randint(int(size.get(bound, bound)), dims, generator=generator)
                if bound
                else fill(dims)
            )
        return tuple(tensors)

    return [
        *(case((), normal) for _ in range(3)),
        *(case((name,), normal) for name in names),
        case(names, normal),
        *(
            case(names, partial(torch.full, fill_value=x, dtype=torch.float64))
            for x in extremes
        ),
        *(case((), mixed) for _ in range(3) if extremes),
    ]
