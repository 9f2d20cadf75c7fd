r"""Backpropagation: every gradient of a network for about the price of two more forward passes.

Taught in chapter *Backpropagation*. The module goes the way of the chapter: the gradients of
one network by hand (:func:`two_layer_gradients`); a tape that finds them for any network
(:class:`Variable`); a judge for both (:func:`gradient_check`); a picture of what the tape holds
(:func:`draw_graph`).

References: Seppo Linnainmaa, *The representation of the cumulative rounding error of an
algorithm as a Taylor expansion of the local rounding errors* (in Finnish), Master's thesis,
University of Helsinki (1970), and *Taylor expansion of the accumulated rounding error*, BIT 16
(1976), 146–160. David Rumelhart, Geoffrey Hinton and Ronald Williams, *Learning representations
by back-propagating errors*, Nature 323 (1986), 533–536. Andreas Griewank and Andrea Walther,
*Evaluating Derivatives*, second edition, SIAM (2008). Atılım Güneş Baydin, Barak Pearlmutter,
Alexey Radul and Jeffrey Siskind, *Automatic differentiation in machine learning: a survey*,
Journal of Machine Learning Research 18(153) (2018).
"""

from collections.abc import Callable, Mapping
from functools import wraps
from itertools import accumulate, pairwise, product
from math import inf, isnan
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.checks import check_alike, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Variable",
    "cross_entropy",
    "draw_graph",
    "gradient_check",
    "record",
    "sum_to_shape",
    "topological_order",
    "two_layer_gradients",
]


@checked
def two_layer_gradients(
    x: Float[Tensor, "batch features"],
    y: Int[Tensor, " batch"],
    W1: Float[Tensor, "features hidden"],
    b1: Float[Tensor, " hidden"],
    W2: Float[Tensor, "hidden classes"],
    b2: Float[Tensor, " classes"],
) -> tuple[Float[Tensor, ""], tuple[Tensor, Tensor, Tensor, Tensor]]:
    r"""The loss of a two-layer network and its four gradients, by hand.

    .. math::

        a = xW_1 + b_1, \qquad h = \max(0, a), \qquad z = hW_2 + b_2, \qquad
        L = -\frac{1}{n} \sum_{i=1}^{n} \log \frac{e^{z_{i y_i}}}{\sum_k e^{z_{ik}}}

    Each line of the second half is the chain rule applied to one line of the first, in the
    opposite order.

    Args:
        x: Inputs, one example a row.
        y: The class of each example, from 0 to ``classes - 1``.
        W1: Weights of the first layer.
        b1: Biases of the first layer.
        W2: Weights of the second layer.
        b2: Biases of the second layer.

    Returns:
        The mean cross-entropy in nats, and its gradients with respect to ``W1``, ``b1``, ``W2``
        and ``b2``, each of the shape of its parameter.

    Source: Rumelhart, Hinton and Williams, Nature 323 (1986), 533–536.
    """
    check_alike("the network", x, W1, b1, W2, b2)
    n, rows = len(x), torch.arange(len(x), device=x.device)
    # forward: from the inputs to the loss
    a = x @ W1 + b1  # (batch, hidden)
    h = a.clamp(min=0)  # (batch, hidden)
    z = h @ W2 + b2  # (batch, classes)
    log_p = z - _log_sum_exp(z, 1)  # (batch, classes)
    loss = -log_p[rows, y].mean()  # ()
    # backward: from the loss to the parameters; dz is short for ∂L/∂z
    dz = log_p.exp()  # (batch, classes): the probabilities,
    dz[rows, y] -= 1  # less one for the class that was right,
    dz /= n  # for the mean
    dW2 = h.T @ dz  # (hidden, classes)
    db2 = dz.sum(0)  # (classes)
    dh = dz @ W2.T  # (batch, hidden)
    da = torch.where(a > 0, dh, 0)  # (batch, hidden)
    dW1 = x.T @ da  # (features, hidden)
    db1 = da.sum(0)  # (hidden)
    return loss, (dW1, db1, dW2, db2)


def _log_sum_exp(a, dim):
    """The logarithm of Σ exp(a) over ``dim``, kept at size one. Nothing overflows: the largest
    entry is taken out.
    """
    largest_number = torch.finfo(a.dtype).max  # infinity minus infinity is not a number
    top = a.amax(dim, keepdim=True).clamp(-largest_number, largest_number)
    return top + (a - top).exp().sum(dim, keepdim=True).log()


def _explained(operation):
    """The same method, which says in words when tensors do not fit each other."""

    @wraps(operation)
    def explained(*operands):
        try:
            return operation(*operands)
        except RuntimeError as error:
            given = [_value(x) if isinstance(x, Variable) else x for x in operands]
            if _is_possible(operation, given):  # then something else went wrong
                raise
            shown = [
                f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"{x}"
                for x in given
            ]
            raise ValueError(
                f"{operation.__name__} of {' and '.join(shown)}: shapes and types must "
                f"fit each other ({error})"
            ) from error

    return explained


def _is_possible(operation, given):
    """Whether tensors fit each other: such without memory tell of shapes, not of types."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    if len({(x.dtype, x.device) for x in tensors}) > 1:
        return False
    try:
        operation(*(Variable(x.to("meta")) if isinstance(x, Tensor) else x for x in given))
    except RuntimeError:
        return False
    return True


class Variable:
    r"""A tensor that remembers what it was computed from, and can therefore find its own
    gradients.

    Each operation computes its value with plain tensors and stores, for each of its inputs, a
    *pullback*: the function from :math:`g = \partial L / \partial y`, the gradient with respect
    to the operation's result :math:`y` of whatever :math:`L` is differentiated later, to the
    gradient with respect to that input. What is stored is the tape; :meth:`backward` plays it
    from its end to its beginning.

    Names, argument order and results are those of :class:`torch.Tensor`. Plain tensors and
    numbers may stand wherever a Variable may, and count as constants. Where nothing requires a
    gradient, nothing is stored. Data changed in place between the forward and the backward pass
    spoil the gradients, and, unlike PyTorch, this tape does not notice.

    Args:
        data: A tensor, or a number.
        requires_grad: Whether gradients with respect to this Variable are wanted; True for a
            parameter.

    Attributes:
        data: The value, a plain tensor.
        grad: After :meth:`backward`, the gradient, a plain tensor of the shape, type and device
            of ``data``, else None. It adds up over several calls, so set it to None after each
            update.
        requires_grad: Whether gradients flow to or through this Variable.
        operation: The name of the operation that made it; empty if none did.
        edges: A pair of input and pullback for each input; None once :meth:`backward` has freed
            them.
        depth: The number of operations on the longest path to it; a result's is always more
            than its inputs'.

    Raises:
        TypeError: If a gradient is asked of data that are not of floating point.
        ValueError: If ``data`` are on PyTorch's own tape.

    Example:
        >>> x = Variable(3.0, requires_grad=True)
        >>> y = x * x + 2 * x
        >>> y.backward()
        >>> x.grad
        tensor(8.)
    """

    __slots__ = ("__weakref__", "data", "depth", "edges", "grad", "operation", "requires_grad")
    # numpy on the left hands over to the methods below, rather than loop over our entries
    __array_ufunc__ = None

    def __init__(self, data, requires_grad=False):
        try:
            self.data = torch.as_tensor(data)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"data must be a tensor or a number, got {data!r}") from error
        self.grad = None
        self.requires_grad = requires_grad
        self.operation, self.edges, self.depth = "", (), 0
        if self.data.requires_grad:
            raise ValueError(
                "the tensor is on PyTorch's own tape (requires_grad=True): give Variable its "
                "x.detach()"
            )
        if requires_grad and not self.data.is_floating_point():
            raise TypeError(
                f"only floating point has gradients, got {self.data.dtype}: give Variable a "
                "x.float()"
            )

    def __repr__(self):
        return f"Variable({self.data}{', requires_grad=True' if self.requires_grad else ''})"

    # Arithmetic -------------------------------------------------------------------------------

    @_explained
    def __add__(self, other):
        return record(
            "+", _value(self) + _value(other), (self, lambda g: g), (other, lambda g: g)
        )

    @_explained
    def __sub__(self, other):
        return record(
            "-", _value(self) - _value(other), (self, lambda g: g), (other, lambda g: -g)
        )

    @_explained
    def __mul__(self, other):
        a, b = _value(self), _value(other)
        return record("*", a * b, (self, lambda g: g * b), (other, lambda g: g * a))

    @_explained
    def __truediv__(self, other):
        b = _value(other)
        y = _value(self) / b
        return record("/", y, (self, lambda g: g / b), (other, lambda g: -g * (y / b)))

    def __neg__(self):
        return record("-", -self.data, (self, lambda g: -g))

    def __pow__(self, n):
        if not isinstance(n, int | float):
            raise TypeError(
                f"the exponent must be a number, got {type(n).__name__}: write (n * "
                "x.log()).exp()"
            )
        a = self.data
        return record(
            f"** {n}",
            a**n,
            (self, lambda g: g * (n * a ** (n - 1) if n else torch.zeros_like(a))),
        )

    @_explained
    def __matmul__(self, other):
        a, b = torch.as_tensor(_value(self)), torch.as_tensor(_value(other))
        A = a.unsqueeze(0) if a.dim() == 1 else a  # a vector on the left is a row
        B = b.unsqueeze(1) if b.dim() == 1 else b  # and on the right a column
        Y = A @ B  # (..., n, m)
        return record(
            "@",
            Y.squeeze([-2] * (a.dim() == 1) + [-1] * (b.dim() == 1)),
            (self, lambda g: sum_to_shape(g.reshape(Y.shape) @ B.mT, A.shape).reshape(a.shape)),
            (
                other,
                lambda g: sum_to_shape(A.mT @ g.reshape(Y.shape), B.shape).reshape(b.shape),
            ),
        )

    __radd__, __rmul__ = __add__, __mul__  # a plain tensor or number on the left

    def __rsub__(self, other):
        return Variable.__sub__(other, self)

    def __rtruediv__(self, other):
        return Variable.__truediv__(other, self)

    def __rmatmul__(self, other):
        return Variable.__matmul__(other, self)

    # Functions of each entry ------------------------------------------------------------------

    def exp(self) -> "Variable":
        """The exponential, its own derivative."""
        y = self.data.exp()
        return record("exp", y, (self, lambda g: g * y))

    def log(self) -> "Variable":
        """The natural logarithm; the derivative is 1/x."""
        a = self.data
        return record("log", a.log(), (self, lambda g: g / a))

    def tanh(self) -> "Variable":
        """The hyperbolic tangent y; the derivative is 1 − y²."""
        y = self.data.tanh()
        return record("tanh", y, (self, lambda g: g * (1 - y * y)))

    def sigmoid(self) -> "Variable":
        """The logistic function y; the derivative is y(1 − y)."""
        y = self.data.sigmoid()
        return record("sigmoid", y, (self, lambda g: g * (y * (1 - y))))

    def relu(self) -> "Variable":
        """max(0, x); the derivative is one where x is positive, else zero: the sign of the
        result.
        """
        y = self.data.relu()
        return record("relu", y, (self, lambda g: g * y.sign()))

    # Reductions: y keeps each reduced dimension at size one, so that g in the shape of y
    # broadcasts against the input -

    @checked
    def sum(
        self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
    ) -> "Variable":
        """The sum over ``dim``, or over everything; each entry receives the whole gradient."""
        a, dim = self.data, _dims(self.data, dim)
        y = a.sum(dim, keepdim=True)
        return record(
            "sum", _drop(y, dim, keepdim), (self, lambda g: g.reshape(y.shape).expand(a.shape))
        )

    @checked
    def mean(
        self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
    ) -> "Variable":
        """The mean over ``dim``, or over everything; each entry receives an equal share of the
        gradient.
        """
        a, dim = self.data, _dims(self.data, dim)
        y = a.mean(dim, keepdim=True)
        share = y.numel() / max(a.numel(), 1)
        return record(
            "mean",
            _drop(y, dim, keepdim),
            (self, lambda g: g.reshape(y.shape).expand(a.shape) * share),
        )

    @checked
    def amax(
        self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
    ) -> "Variable":
        """The largest entry over ``dim``, or of all; equal largest entries share the gradient
        evenly.
        """
        a, dim = self.data, _dims(self.data, dim)
        y = a.amax(dim, keepdim=True)

        def share(g):
            largest = a == y
            return g.reshape(y.shape) * largest / largest.sum(dim, keepdim=True)

        return record("amax", _drop(y, dim, keepdim), (self, share))

    @checked
    def max(
        self, dim: int | None = None, keepdim: bool = False
    ) -> "Variable | tuple[Variable, Tensor]":
        """As :meth:`amax` of all entries; or over ``dim``, with the indices, where one of
        equals takes the gradient.
        """
        if dim is None:
            return self.amax()
        a = self.data
        y, index = a.max(dim, keepdim=True)
        scatter = (self, lambda g: torch.zeros_like(a).scatter_(dim, index, g.reshape(y.shape)))
        return record("max", _drop(y, dim, keepdim), scatter), _drop(index, dim, keepdim)

    @checked
    def logsumexp(self, dim: int | tuple[int, ...], keepdim: bool = False) -> "Variable":
        """The logarithm of the sum of exponentials over ``dim``; the derivative is softmax."""
        a = self.data
        y = _log_sum_exp(a, dim)
        return record(
            "logsumexp",
            _drop(y, dim, keepdim),
            (self, lambda g: g.reshape(y.shape) * (a - y).exp()),
        )

    # Views and indexing -----------------------------------------------------------------------

    @_explained
    @checked
    def reshape(self, *shape: int | tuple[int, ...]) -> "Variable":
        """The same entries in another shape."""
        a = self.data
        return record("reshape", a.reshape(*shape), (self, lambda g: g.reshape(a.shape)))

    @checked
    def transpose(self, dim0: int, dim1: int) -> "Variable":
        """The same entries with two dimensions exchanged."""
        return record(
            "transpose",
            self.data.transpose(dim0, dim1),
            (self, lambda g: g.transpose(dim0, dim1)),
        )

    @property
    def T(self) -> "Variable":  # noqa: N802
        """The transpose of a matrix."""
        if self.data.dim() != 2:
            raise ValueError(
                f".T is for matrices, got shape {tuple(self.shape)}: use x.transpose(dim0, "
                "dim1)"
            )
        return self.transpose(0, 1)

    def __getitem__(self, key):
        a = self.data

        def scatter(g):  # an entry that was taken twice receives both gradients
            positions = torch.arange(a.numel(), device=a.device).reshape(a.shape)[key]
            return (
                a.new_zeros(a.numel())
                .index_put_((positions,), g, accumulate=True)
                .reshape(a.shape)
            )

        return record("index", a[key], (self, scatter))

    # What is no operation ---------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """The shape of ``data``."""
        return self.data.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of the entries of ``data``."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Where ``data`` lie."""
        return self.data.device

    def item(self) -> float:
        """The value of a scalar, as a number."""
        return self.data.item()

    def detach(self) -> "Variable":
        """The same data as a constant: no gradient flows back through it."""
        return Variable(self.data)

    # The backward pass ------------------------------------------------------------------------

    @checked
    def backward(
        self, gradient: Float[Tensor, "..."] | None = None, retain_graph: bool = False
    ) -> None:
        r"""Adds to ``grad`` of every Variable that this one was computed from the derivative of
        this one.

        A Variable :math:`x` used in several results :math:`y_j` collects a term from each, and
        passes their sum on:

        .. math:: \frac{\partial L}{\partial x}
                  = \sum_j \frac{\partial L}{\partial y_j} \frac{\partial y_j}{\partial x}

        Args:
            gradient: :math:`\partial L / \partial y` for this Variable :math:`y`, of its shape.
                A scalar is its own :math:`L`, and needs none.
            retain_graph: Whether to keep the tape for another backward pass, and the gradients
                of intermediate results, for :func:`draw_graph` to show. Otherwise each is freed
                as soon as it has been used.

        Raises:
            RuntimeError: If nothing requires a gradient, if there are several entries and no
                ``gradient``, or if an earlier backward pass has freed the tape.
            ValueError: If ``gradient`` has another shape than this Variable.

        Source: Griewank and Walther, *Evaluating Derivatives* (2008), section 3.2.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "this does not require grad, and nothing that it was computed from does: "
                "make a parameter with Variable(data, requires_grad=True)"
            )
        if gradient is None:
            if self.data.numel() != 1:
                raise RuntimeError(
                    "grad can be implicitly created only for scalar outputs, got shape "
                    f"{tuple(self.shape)}: reduce it with .mean() or .sum(), or give backward "
                    "a gradient of that shape"
                )
            gradient = torch.ones_like(self.data)
        if gradient.shape != self.shape:
            raise ValueError(
                f"gradient must have the output's shape {tuple(self.shape)}, got "
                f"{tuple(gradient.shape)}"
            )

        tape = topological_order(self)
        for y in tape:
            if y.edges:
                y.grad = None  # of an earlier pass that retained the graph
        self._accumulate(gradient, gradient)
        while tape:
            # the deepest: every result computed from it is done, so its gradient is complete
            y = tape.pop()
            g = y.grad
            for x, pullback in y.edges:
                if isinstance(x, Variable) and x.requires_grad:
                    x._accumulate(pullback(g), g)
            if y.edges and not retain_graph:
                y.edges = y.grad = None

    def _accumulate(self, contribution, g):
        if contribution.shape != self.data.shape:
            contribution = sum_to_shape(contribution, self.data.shape)
        contribution = contribution.to(self.data)
        if self.grad is not None:
            self.grad += contribution
        elif contribution.untyped_storage().data_ptr() == g.untyped_storage().data_ptr():
            self.grad = contribution.clone()  # a view of g: the memory is not ours to add to
        else:
            self.grad = contribution.contiguous()


@checked
def record(operation: str, data: Tensor, *edges) -> Variable:
    """The result of an operation, with what its backward pass needs.

    A new operation takes two lines; the sine for one, whose derivative is the cosine::

        def sin(x):
            return record("sin", x.data.sin(), (x, lambda g: g * x.data.cos()))

    A pullback returns a new tensor, or a view of its argument. It need not undo broadcasting:
    :meth:`Variable.backward` does. It must not refer to the result, or the two would keep each
    other alive until Python's garbage collector finds them.

    Args:
        operation: A name to show in a picture.
        data: The result's value.
        *edges: For each input a pair of the input (a Variable, or a constant) and its pullback,
            the function from the result's gradient to the input's.

    Returns:
        The result, which requires a gradient if any input does.
    """
    result = Variable(data)
    result.operation = operation
    for x, _ in edges:
        if isinstance(x, Variable) and x.requires_grad:
            result.requires_grad, result.edges, result.depth = (
                True,
                edges,
                max(result.depth, x.depth + 1),
            )
    return result


@checked
def sum_to_shape(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of a tensor from the gradient of what it was broadcast to.

    Broadcasting copies an entry forwards, so backwards the gradients of its copies are added.

    Args:
        g: The gradient, of the shape that broadcasting made.
        shape: The shape that the tensor had before.

    Returns:
        ``g`` summed over every dimension that broadcasting added or stretched.
    """
    if g.shape == shape:
        return g
    added = g.dim() - len(shape)
    if added < 0 or any(size not in (1, g.shape[added + d]) for d, size in enumerate(shape)):
        raise ValueError(
            f"shape {tuple(shape)} does not broadcast to {tuple(g.shape)}, the shape of "
            "g: give the shape that the tensor had"
        )
    stretched = [added + d for d, size in enumerate(shape) if size == 1]
    return g.sum([*range(added), *stretched], keepdim=True).reshape(shape)


@checked
def topological_order(output: Variable) -> list[Variable]:
    """Every Variable that ``output`` depends on and that requires a gradient, each before what
    is computed from it.

    Any result is deeper than its inputs, so sorting by depth is enough, and no recursion limits
    the depth.

    Args:
        output: Where the search begins; it comes last.

    Returns:
        The tape, in an order in which it could have been written.

    Raises:
        RuntimeError: If an earlier backward pass has freed a part of it.
    """
    # a dictionary keeps its order, so that sums come out the same every time
    found, stack = {output: True}, [output]
    while stack:
        y = stack.pop()
        if y.edges is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time, or to draw it: an earlier "
                f"pass has freed {y.operation!r}. Compute the output again, or call "
                "backward(retain_graph=True) the first time"
            )
        for x, _ in y.edges:
            if isinstance(x, Variable) and x.requires_grad and x not in found:
                found[x] = True
                stack.append(x)
    return sorted(found, key=lambda y: y.depth)


def _value(x):
    """The plain tensor or number in an operand."""
    if isinstance(x, Variable):
        return x.data
    if isinstance(x, (Tensor, int, float)):
        return x
    raise TypeError(
        f"a Variable goes with Variables, tensors and numbers, got {type(x).__name__}: use "
        "torch.as_tensor"
    )


def _dims(a, dim):
    """The dimensions to reduce, where None means all."""
    return tuple(range(a.dim())) if dim is None or dim == () else dim


def _drop(y, dim, keepdim):
    """A result whose reduced dimensions have size one, with or without them."""
    return y if keepdim else y.squeeze(dim)


@checked
def cross_entropy(input: Variable, target: Int[Tensor, " batch"]) -> Variable:
    r"""The mean negative log-likelihood of the right classes, as
    :func:`torch.nn.functional.cross_entropy`.

    .. math::

        L = \frac{1}{n} \sum_{i=1}^{n} \Bigl(\log \sum_k e^{z_{ik}} - z_{i y_i}\Bigr), \qquad
        \frac{\partial L}{\partial z_{ik}}
            = \frac{1}{n} \bigl(\mathrm{softmax}(z_i)_k - [k = y_i]\bigr)

    Args:
        input: The logits :math:`z`, of shape (batch, classes).
        target: The class :math:`y_i` of each example, from 0 to ``classes - 1``, as int64.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError: If the targets are not int64.
        ValueError: If the shapes do not fit, if there is no example, or if a target is not a
            class.
    """
    z = _value(input)
    if z.dim() != 2 or target.shape != z.shape[:1] or len(target) == 0:
        raise ValueError(
            "cross_entropy wants logits of shape (batch, classes) and one target for each of "
            f"at least one example, got {tuple(z.shape)} and {tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise TypeError(
            f"targets must be class numbers of type int64, got {target.dtype}: use "
            "target.long()"
        )
    n, classes = z.shape
    lowest, highest = target.aminmax()
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"targets must be classes from 0 to {classes - 1}, got {lowest} to {highest}"
        )
    right = target[:, None]  # (batch, 1)
    # (batch, classes): the loss is the same, and no exponential overflows
    z = z - z.amax(1, keepdim=True)
    e = z.exp()  # (batch, classes)
    total = e.sum(1, keepdim=True)  # (batch, 1)

    def pullback(g):
        dz = e / total  # (batch, classes)
        dz.scatter_add_(1, right, dz.new_full((n, 1), -1))
        return dz * (g / n)

    return record("cross_entropy", (total.log() - z.gather(1, right)).mean(), (input, pullback))


@checked
def gradient_check(
    function: Callable[..., Tensor | Variable],
    *inputs: Tensor | Variable,
    step: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> bool:
    r"""Compares backpropagation with central differences in every entry of every input.

    .. math:: \frac{\partial f}{\partial x_k} = \frac{f(x + h e_k) - f(x - h e_k)}{2h} + O(h^2)

    The two errors of the right side, of the order of :math:`h^2` from the curve and
    :math:`\varepsilon / h` from rounding, are about equal at :math:`h = \varepsilon^{1/3}`,
    which leaves ten digits of the sixteen of float64. An output of several entries is first
    reduced to one number, a weighted sum with fixed random weights.

    Args:
        function: What to differentiate: from Variables to a Variable, by this chapter's tape,
            or from tensors to a tensor, by PyTorch's.
        *inputs: Where to differentiate it, in float64. They are left as they were.
        step: :math:`h`; by default :math:`\varepsilon^{1/3} \max(1, |x_k|)`.
        rtol: The error allowed, relative to the central difference.
        atol: The error allowed in any case.

    Returns:
        True, as :func:`torch.autograd.gradcheck` does.

    Raises:
        AssertionError: If an entry disagrees; the message shows the worst.
        TypeError: If an input is not float64.
        ValueError: If the function gives two outputs for the same inputs.
    """
    for number, x in enumerate(inputs):
        if x.dtype != torch.float64:
            raise TypeError(
                f"central differences need all of float64's digits, input {number} is "
                f"{x.dtype}: use .double()"
            )
    if not (step is None or step > 0) or min(rtol, atol) < 0:
        raise ValueError(
            f"step must be above 0, rtol and atol at least 0, got {step}, {rtol} and {atol}"
        )
    values = [x.data.clone() for x in inputs]

    def evaluate(requires_grad=False):
        copies = [
            Variable(v.clone()) if isinstance(x, Variable) else v.clone()
            for x, v in zip(inputs, values, strict=True)
        ]
        for copy in copies:
            copy.requires_grad = requires_grad
        return function(*copies), copies

    output, copies = evaluate(requires_grad=True)
    if not torch.allclose(evaluate()[0].data, output.data, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "the function gave two outputs for the same inputs: draw its random numbers "
            "beforehand"
        )
    weights = torch.ones_like(output.data)
    if weights.numel() > 1:
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(
            weights
        )
    output.backward(weights)

    entries = []  # for each: error / allowed error, error, input, index, and both derivatives
    for number, (copy, value) in enumerate(zip(copies, values, strict=True)):
        for index in product(*map(range, value.shape)):
            centre = value[index].item()
            h = step or torch.finfo(torch.float64).eps ** (1 / 3) * max(1.0, abs(centre))
            value[index] = centre + h
            above = evaluate()[0].data
            value[index] = centre - h
            below = evaluate()[0].data
            value[index] = centre
            numeric = ((above - below) * weights).sum().item() / ((centre + h) - (centre - h))
            analytic = 0.0 if copy.grad is None else copy.grad[index].item()
            error = abs(analytic - numeric)
            excess = error / (atol + rtol * abs(numeric))
            entries.append(
                (inf if isnan(excess) else excess, error, number, index, analytic, numeric)
            )
    wrong = [entry for entry in entries if entry[0] > 1]
    if wrong:
        _, error, number, index, analytic, numeric = max(wrong)
        raise AssertionError(
            f"{len(wrong)} of {len(entries)} entries disagree, "
            f"the worst in input {number} at index {index}:\n"
            f"  backpropagation      {analytic: .12g}\n"
            f"  central differences  {numeric: .12g}\n"
            f"  difference           {error: .3g}, allowed {atol + rtol * abs(numeric):.3g}\n"
            "Unless the function has a kink or a jump within a step of that entry, the "
            "derivative is wrong."
        )
    return True


@checked
def draw_graph(
    output: Variable,
    names: Mapping[str, Tensor | Variable] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws what the tape holds: values flow down along the arrows, gradients flow up against
    them.

    A box with sharp corners and a thick edge is a parameter, a dashed one a constant, a rounded
    one the result of an operation, the darkest the output. Each shows its value (its shape, if
    it has more than two entries) and, after ``backward(retain_graph=True)``, its gradient (the
    Euclidean norm, if it has more than two entries).

    Args:
        output: The Variable whose computation to draw.
        names: Names to show, such as ``{"x": x, "W": W}``, for Variables and for constant
            tensors.
        ax: The Matplotlib axes to draw in; by default those of a new figure that is large
            enough.

    Returns:
        The axes.

    Raises:
        RuntimeError: If a backward pass has freed the tape.

    Source: The layout is that of Kozo Sugiyama, Shojiro Tagawa and Mitsuhiko Toda, *Methods for
    visual understanding of hierarchical system structures*, IEEE Transactions on Systems, Man,
    and Cybernetics 11 (1981), 109–125.
    """
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path

    values, arrows = _values_and_arrows(output)
    arrows, place = _layout(arrows, id(output))
    titles = {id(_value(x)): name for name, x in (names or {}).items()}
    (left, right), (bottom, top) = (
        (min(xs) - 0.55, max(xs) + 0.55) for xs in zip(*place.values(), strict=True)
    )
    if ax is None:
        figure = plt.figure(
            figsize=(1.4 * (right - left), 0.85 * (top - bottom)), layout="none"
        )
        ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.axis("off")

    for number, (*stops, end) in enumerate(arrows):
        beside = sorted(
            (place[other[-2]], n) for n, other in enumerate(arrows) if other[-1] == end
        )
        x, y = place[end]
        # from left to right
        port = x + 0.2 * (beside.index((place[stops[-1]], number)) - (len(beside) - 1) / 2)
        points, codes = [], []
        for (x0, y0), (x1, y1) in pairwise([*(place[key] for key in stops), (port, y)]):
            points += [
                (x0, y0 - 0.35),
                (x0, (y0 + y1) / 2),
                (x1, (y0 + y1) / 2),
                (x1, y1 + 0.35),
            ]
            codes += [
                Path.LINETO if codes else Path.MOVETO,
                Path.CURVE4,
                Path.CURVE4,
                Path.CURVE4,
            ]
        arrow = Path(points, codes)
        ax.add_patch(
            FancyArrowPatch(
                path=arrow, arrowstyle="-|>", mutation_scale=9, color="0.45", shrinkB=0
            )
        )

    for key, value in values.items():
        x, y = place[key]
        leaf, constant = (
            not getattr(value, "edges", ()),
            not getattr(value, "requires_grad", False),
        )
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.48, y - 0.35),
                0.96,
                0.7,
                boxstyle="square,pad=0" if leaf else "round,pad=0,rounding_size=0.12",
                facecolor=("black", 0.0 if leaf else 0.2 if value is output else 0.07),
                edgecolor="black",
                linestyle="--" if constant else "-",
                linewidth=1.8 if leaf and not constant else 0.8,
            )
        )
        title, *lines = _caption(value, titles)
        style = {"ha": "center", "va": "center_baseline", "size": 8, "color": "black"}
        for line, text in enumerate([title, *lines]):
            ax.text(
                x,
                y + 0.2 * (len(lines) / 2 - line),
                text,
                weight="normal" if line else "bold",
                **style,
            )
    return ax


def _values_and_arrows(output):
    """What to draw by its key, and for each input of each operation an arrow of two keys; the
    output comes last.
    """
    values, arrows = {}, []
    for y in topological_order(output):
        for position, (x, _) in enumerate(y.edges):
            # each number has a box of its own
            key = id(x) if isinstance(x, Variable | Tensor) else (id(y), position)
            values[key] = x
            arrows.append((key, id(y)))
        values[id(y)] = y
    return values, arrows


def _layout(arrows, output):
    """The arrows, with a joint in each row that they pass, and the place of every box and
    joint.
    """
    row = {output: 0}
    for start, end in reversed(arrows):
        row[start] = max(row.get(start, 0), row[end] + 1)  # the longest path to the output
    arrows = [
        [a, *((n, r) for r in range(row[a] - 1, row[b], -1)), b]
        for n, (a, b) in enumerate(arrows)
    ]

    neighbours = {output: []}
    for arrow in arrows:
        for a, b in pairwise(arrow):
            # from joint to joint an arrow should run straight
            weight = 1 if a in row or b in row else 50
            neighbours.setdefault(a, []).append((b, weight))
            neighbours.setdefault(b, []).append((a, weight))
    rows = [[] for _ in range(max(row.values()) + 1)]
    for key in neighbours:
        rows[row[key] if key in row else key[1]].append(key)
    x = {key: float(column) for keys in rows for column, key in enumerate(keys)}
    # the barycentre heuristic: each to the mean of its neighbours, then apart again
    for _ in range(20):
        for keys in (*rows, *reversed(rows)):
            wanted = {
                key: _mean([(x[other], weight) for other, weight in neighbours[key]])
                for key in keys
            }
            keys.sort(key=wanted.get)
            widths = [1.1 if key in row else 0.4 for key in keys]  # of boxes and joints
            x |= zip(keys, _apart([wanted[key] for key in keys], widths), strict=True)
    return arrows, {key: (x[key], r) for r, keys in enumerate(rows) for key in keys}


def _mean(weighted):
    return sum(value * weight for value, weight in weighted) / max(
        sum(weight for _, weight in weighted), 1
    )


def _apart(wanted, widths):
    """Places near those wanted, in the same order, at which boxes of these widths do not
    overlap.
    """
    offsets = [end - width / 2 for end, width in zip(accumulate(widths), widths, strict=True)]
    slack = [place - offset for place, offset in zip(wanted, offsets, strict=True)]
    right = list(accumulate(slack, max))
    left = list(accumulate(reversed(slack), min))[::-1]
    return [(r + l) / 2 + offset for r, l, offset in zip(right, left, offsets, strict=True)]


def _caption(x, titles):
    """A title, and unless the value is a number, lines for it and for its gradient."""
    if not isinstance(x, Variable | Tensor):
        return [f"{x:g}"]
    operation = getattr(x, "operation", "")
    name = titles.get(id(_value(x)), "")
    kind = operation or ("parameter" if x.requires_grad else "constant")
    title = f"{name} = {operation}" if name and operation else name or kind
    lines = [title, _brief(_value(x), lambda data: f"{tuple(data.shape)}")]
    if x.grad is not None:
        lines.append("grad " + _brief(x.grad, lambda grad: f"norm {grad.norm():.2g}"))
    return lines


def _brief(data, otherwise):
    """One or two numbers, or else what ``otherwise`` makes of them."""
    if data.numel() > 2:
        return otherwise(data)
    return ", ".join(f"{entry:.3g}" for entry in data.flatten().tolist()).replace("-", "−")
