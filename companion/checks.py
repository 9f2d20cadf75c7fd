"""Errors that teach: a signature says what a function wants, and is checked on every call.

A signature says of each argument what it is: a whole number, a word, a tensor of floating-point
numbers of shape (batch, features). :func:`checked` compares the arguments with it, so that a
mistake ends in a sentence about that argument, and not in the middle of a computation.
:func:`check_alike` says which layer has which type of number, and :func:`accepts` takes
arguments of PyTorch that ours lacks, as long as they ask for nothing.
"""

import math
import reprlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from itertools import chain, cycle
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray
from torch import Tensor

__all__ = ["Unbounded", "accepts", "check_alike", "checked"]

Unbounded = Annotated[float, "infinite too"]
"""The annotation of a number that may be infinite."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Check a function's arguments against its signature before it runs.

    A tensor must hold numbers of the right kind and have the right number of dimensions, and
    dimensions of one name must have one size: ``x: Float[Tensor, "batch features"]`` and
    ``y: Int[Tensor, " batch"]`` want one ``y`` for each row of ``x``. An ``int`` must be whole,
    a ``float`` finite, unless it is :data:`Unbounded`. Which numbers make sense is left to the
    function. No entry of a tensor is looked at, so nothing waits for an accelerator.

    Args:
        function: Any function. What has no annotation, and what a ``**`` collects, is not
            checked.

    Returns:
        The function, with its checks.

    Raises:
        TypeError: When the function is called with another kind of thing.
        ValueError: When it is called with a tensor of another shape, or with infinity or NaN.

    Example:
        >>> @checked
        ... def mean(x: Float[Tensor, " n"]):
        ...     return x.mean()
        >>> mean([1.0, 2.0])
        Traceback (most recent call last):
        TypeError: x must be a tensor, got [1.0, 2.0]: make it one with torch.as_tensor(x)
    """
    parameters = signature(function).parameters.values()
    by_kind = defaultdict(list)
    for p in parameters:
        if p.kind != Parameter.VAR_POSITIONAL or p.annotation != Parameter.empty:
            by_kind[p.kind].append((p.name, _check(p.annotation)))
    in_order, starred = (
        by_kind[Parameter.POSITIONAL_OR_KEYWORD],
        by_kind[Parameter.VAR_POSITIONAL],
    )
    checks = dict(in_order + by_kind[Parameter.KEYWORD_ONLY])

    @wraps(function)
    def wrapper(*args, **kwargs):
        sizes = {}
        named = chain(in_order, cycle(starred)) if starred else in_order
        for (name, check), value in zip(named, args, strict=False):
            check(name, value, sizes)
        for name, value in kwargs.items():
            if name in checks:
                checks[name](name, value, sizes)
        return function(*args, **kwargs)

    return wrapper


def accepts(**neutral: Any) -> Callable[[_Function], _Function]:
    """Take arguments of PyTorch that ours lacks, as long as they ask for nothing.

    Code that names them all, with the values that change nothing, runs unchanged; code that
    wants what they do hears at once that it cannot have it. It stands above :func:`checked`.

    Args:
        neutral: The arguments, each with the value that is accepted.

    Returns:
        A decorator. Its function raises a ``ValueError`` if such an argument has another value.

    Example:
        >>> @accepts(inplace=False)
        ... def double(x): return 2 * x
        >>> double(4, inplace=False)
        8
    """

    def decorate(function):
        @wraps(function)
        def wrapper(*args, **kwargs):
            for name in neutral.keys() & kwargs.keys():
                value = kwargs.pop(name)
                if value != neutral[name]:
                    raise ValueError(
                        f"{name} can only be {neutral[name]!r} here, got "
                        f"{reprlib.repr(value)}: what it asks for is left out, as the "
                        "docstring says; take PyTorch's own for it"
                    )
            return function(*args, **kwargs)

        return wrapper

    return decorate


def check_alike(owner: object, input: Tensor, *parameters: Tensor | None) -> None:
    """Check that a layer's input has the type of number of its parameters, and their device.

    Under autocast PyTorch converts, and the types may differ.

    Args:
        owner: The layer, or a name, for the message.
        input: What the layer is given.
        parameters: The parameters that the input meets; one may be ``None``.

    Raises:
        TypeError: If a parameter has another type of number.
        ValueError: If a parameter is on another device.
    """
    for parameter in parameters:
        if parameter is None:
            continue
        if input.dtype != parameter.dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(
                f"{owner} holds {parameter.dtype}, and its input is {input.dtype}: convert the "
                f"input, x.{_conversion(parameter.dtype)}, or what holds the other, as by "
                f"model.{_conversion(input.dtype)}"
            )
        if input.device != parameter.device:
            raise ValueError(
                f"{owner} is on {parameter.device}, and its input on {input.device}: move the "
                f"input, x.to('{parameter.device}'), or the other, model.to('{input.device}')"
            )


# what jaxtyping calls a kind of number, in words, and what makes a tensor one
_KINDS = {
    "Float": ("floating-point numbers", "float()"),
    "Bool": ("truth values, torch.bool", "bool()"),
    "Int": ("whole numbers", "long()"),
    "Int64": ("whole numbers of torch.int64", "long()"),
    "UInt8": ("bytes, torch.uint8", "to(torch.uint8)"),
}
# what counts as a number, beside Python's own: numpy's, and those of torch.compile
_WHOLE_NUMBERS = (int, np.integer, torch.SymInt)
_NUMBERS = (*_WHOLE_NUMBERS, float, np.floating, torch.SymFloat)
_TRUTHS = (bool, int, np.bool_, torch.SymBool)
# of a value of just this type it is known without a closer look that it fits
_FITTING = {
    int: int,
    float: int,
    Unbounded: int,
    bool: bool,
    str: str,
    NoneType: NoneType,
    Tensor: Tensor,
}
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    Unbounded: "a number",
    str: "a string",
    NoneType: "None",
    torch.device: "a device, such as 'cpu',",
    torch.dtype: "a type of number, such as torch.float32,",
}


def _check(wanted):
    """A function of an argument's name, its value and the sizes known so far, which raises
    unless the annotation ``wanted`` allows that value.
    """
    options = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    if Any in options or Parameter.empty in options:
        return lambda name, value, sizes: None
    if torch.device in options:  # it may be a string, but not just any
        options = (torch.device, NoneType)
    tensors = [option for option in options if _is_shaped(option)]
    others = [option for option in options if not _is_shaped(option)]
    fitting = {_FITTING[option] for option in others if option in _FITTING}

    def check(name, value, sizes):
        if type(value) in fitting or any(_fits(value, option) for option in others):
            return
        a_number = isinstance(value, float) and {float, Unbounded} & {*options}
        kind = ValueError if a_number else TypeError
        advice = ""
        if tensors and isinstance(value, Sequence | np.ndarray):
            advice = f": make it one with torch.as_tensor({name})"
        elif isinstance(value, Tensor) and value.numel() == 1:
            advice = f": a tensor of one number becomes that number by {name}.item()"
        words = " or ".join(dict.fromkeys(map(_words, options)))
        raise kind(f"{name} must be {words}, got {_shown(value)}{advice}")

    return _check_tensor(tensors, check) if tensors else check


def _check_tensor(options, otherwise):
    """The same for annotations of jaxtyping that differ in the kind of number alone, with
    ``otherwise`` for a value that is no tensor.
    """
    kind, dims = options[0].dtype.__name__, options[0].dim_str.split()
    dtypes = set().union(*map(_dtypes, options))
    any_number = [place for place, dim in enumerate(dims) if dim[0] in "*."]
    least = len(dims) - len(any_number)
    # where each size stands: after the dimensions of any number, counted from the end
    places = [
        (place - len(dims) if any_number and place > any_number[0] else place, dim)
        for place, dim in enumerate(dims)
        if dim.isidentifier() or dim.isdigit()
    ]
    fixed = {dim: (int(dim), "the signature") for dim in dims if dim.isdigit()}
    wanted = f"({', '.join(dims)}{',' * (len(dims) == 1)})"

    def check(name, value, sizes):
        if not isinstance(value, Tensor):
            return otherwise(name, value, sizes)
        if value.dtype not in dtypes:
            words, conversion = _KINDS.get(kind, (kind.lower(), f"to(torch.{kind.lower()})"))
            raise TypeError(
                f"{name} must hold {words}, got {value.dtype}: convert with {name}.{conversion}"
            )
        if (dim := value.dim()) != least and (dim < least or not any_number):
            advice = "add one by unsqueeze" if dim < least else "drop one by squeeze"
            raise ValueError(
                f"{name} must have the dimensions {wanted}, got shape {tuple(value.shape)}: "
                f"{advice}, or flatten some"
            )
        shape = value.shape if places else ()
        for place, dim in places:
            known = fixed.get(dim) or sizes.get(dim)
            if known is None:
                sizes[dim] = shape[place], name
            elif shape[place] != known[0]:
                raise ValueError(
                    f"{name} must have the dimensions {wanted}, with {dim} {known[0]} as in "
                    f"{known[1]}, got shape {tuple(shape)}"
                )

    return check


def _is_shaped(wanted):
    return isinstance(wanted, type) and issubclass(wanted, AbstractArray)


def _dtypes(wanted):
    """The types of number that an annotation of jaxtyping allows."""
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    tests = {
        "Shaped": lambda dtype: True,
        "Float": lambda dtype: dtype.is_floating_point,
        "Int": lambda dtype: (
            not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        ),
    }
    kind = wanted.dtype.__name__
    return set(
        filter(tests.get(kind, lambda dtype: f"torch.{kind.lower()}" == str(dtype)), every)
    )


def _fits(value, wanted):
    """Whether a value is what an annotation names. What is not known here always fits."""
    if wanted is Any:
        return True
    if isinstance(wanted, str):  # of a library that is imported only where it is needed
        names = [cls.__name__.removesuffix("Type") for cls in type(value).__mro__[:-1]]
        return any(name in wanted for name in names)
    if _is_shaped(wanted):
        return isinstance(value, Tensor)
    if wanted is torch.device:
        return _is_device(value)
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            return False
        if kind is tuple and ... not in parts:
            return not parts or (len(value) == len(parts) and all(map(_fits, value, parts)))
        return all(_fits(entry, parts[0]) for entry in value)
    if kind is Annotated:  # Unbounded
        return isinstance(value, _NUMBERS) and -math.inf <= value <= math.inf  # not NaN
    if kind is float:
        return isinstance(value, _NUMBERS) and -math.inf < value < math.inf
    kind = {int: _WHOLE_NUMBERS, bool: _TRUTHS}.get(kind, kind)
    return callable(value) if kind is Callable else isinstance(value, kind)


def _is_device(value):
    try:
        return torch.device(value) is not None
    except (RuntimeError, TypeError):
        return False


def _words(wanted):
    """What an annotation wants, in words."""
    if wanted in _WORDS:
        return _WORDS[wanted]
    if _is_shaped(wanted):
        return "a tensor"
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if kind is Callable:
        return "a function"
    if kind is tuple and ... not in parts:
        return f"({', '.join(map(_words, parts))})"
    if kind:
        return f"a sequence, each entry {_words(parts[0])}" if parts else f"a {kind.__name__}"
    return wanted if isinstance(wanted, str) else f"a {wanted.__name__}"


def _shown(value):
    """A value, briefly."""
    if isinstance(value, Tensor | np.ndarray):
        name = "a tensor" if isinstance(value, Tensor) else "a NumPy array"
        return f"{name} of shape {tuple(value.shape)}"
    return text if len(text := reprlib.repr(value)) <= 60 else f"a {type(value).__name__}"


def _conversion(dtype):
    """The method of tensors and models that converts to a type of number."""
    names = {torch.float32: "float()", torch.float64: "double()", torch.float16: "half()"}
    return names.get(dtype, f"to({dtype})")
