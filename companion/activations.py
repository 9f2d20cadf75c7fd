r"""Activation functions: what stands between two linear layers, and keeps them from being one.

Taught in chapter *Activations*. Names, arguments and defaults are those of
:mod:`torch.nn.functional`, and of :mod:`torch.nn` for the modules; the arguments that only
choose how PyTorch works (``inplace``, ``dtype``) are left out.

Each function stands beside the rule that carries a gradient back through it: one computes the
output :math:`y = f(x)`, the other turns :math:`g = \partial L / \partial y` into
:math:`\partial L / \partial x`, given :math:`g` and :math:`y`. :class:`HandDerived` joins the
two. :func:`gelu` is a product, which autograd differentiates as precisely and as fast.

**Stable forms.** An exponential that could be infinite is capped, or shifted below zero; a
difference that would cancel is an ``expm1`` or an ``erfc``. NaN passes through.

**Powers of two.** Exponentials are computed as :math:`e^x = 2^{x \log_2 e}`: on some processors
``torch.exp2`` is three times as fast as ``torch.exp``. Rounding :math:`x \log_2 e` costs about
:math:`|x|` units in the last place, which is nothing near zero and two of seven digits at the
far end of a sigmoid's tail in float32.

**In place.** A method whose name ends in an underscore (``mul_``, ``clamp_``) overwrites a
tensor that was just made, and that nobody else sees: this saves the time and the memory of
another one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.checks import accepts, checked

__all__ = [
    "GELU",
    "HandDerived",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "gelu",
    "leaky_relu",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]


class HandDerived(torch.autograd.Function):
    """A function whose gradient is written by hand: ``HandDerived.apply(input, value,
    gradient)``.

    ``value(x)`` computes the output without autograd's help. ``gradient(g, y)`` takes the
    gradient of the loss with respect to the output, and the output, and returns the gradient
    with respect to the input. It is made of tensor operations, so autograd can differentiate it
    again. Only the output is kept in memory until then.
    """

    @staticmethod
    @checked
    def forward(
        ctx: Any,
        input: Float[Tensor, "..."],
        value: Callable[..., Tensor],
        gradient: Callable[..., Tensor],
    ) -> Float[Tensor, "..."]:
        """``value(input)``, remembered for the way back."""
        output = value(input)
        ctx.save_for_backward(output)
        ctx.gradient = gradient
        return output

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], None, None]:
        """``gradient(g, output)``; the two functions themselves have none."""
        return ctx.gradient(g, *ctx.saved_tensors), None, None


@accepts(inplace=False)
@checked
def relu(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The rectified linear unit: what is positive passes, the rest is zero.

    .. math:: f(x) = \max(0, x), \qquad
              f'(x) = \begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}

    At the kink every slope between 0 and 1 would do; 0 is PyTorch's choice. Where the output is
    zero no gradient passes: the weights of a unit that is zero on every example stay as they
    are.

    References: Fukushima, "Visual feature extraction by a multilayered network of analog
    threshold elements", *IEEE Transactions on Systems Science and Cybernetics* 5 (1969); Nair
    and Hinton, "Rectified linear units improve restricted Boltzmann machines", *ICML* (2010).

    Left out: ``inplace``.

    Args:
        input: Numbers of any shape.

    Returns:
        The same shape, zero or more.

    Raises:
        TypeError: If ``input`` does not hold floating-point numbers.
    """
    return HandDerived.apply(
        input,
        lambda x: x.clamp(min=0),
        lambda g, y: y.sign().mul_(g),  # the sign of y is 1 or 0, since y is never negative
    )


@accepts(inplace=False)
@checked
def leaky_relu(
    input: Float[Tensor, "*shape"], negative_slope: float = 0.01
) -> Float[Tensor, "*shape"]:
    r"""A rectifier that lets a little through on the negative side, so that no unit dies.

    .. math:: f(x) = \max(\alpha x, x), \qquad
              f'(x) = \begin{cases} 1 & x > 0 \\ \alpha & x \le 0 \end{cases}

    Reference: Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic
    models", *ICML Workshop on Deep Learning for Audio, Speech and Language Processing* (2013).

    Left out: ``inplace``.

    Args:
        input: Numbers of any shape.
        negative_slope: :math:`\alpha` between 0, which is :func:`relu`, and 1, which is a
            straight line.

    Returns:
        The same shape.

    Raises:
        TypeError: If ``input`` does not hold floating-point numbers.
        ValueError: If ``negative_slope`` is not between 0 and 1.
    """
    if not 0 <= negative_slope <= 1:
        raise ValueError(
            "negative_slope must lie between 0 (a ReLU) and 1 (a straight line), got "
            f"{negative_slope}: outside, the larger of the two lines is no longer the leaky one"
        )
    return HandDerived.apply(
        input,
        lambda x: (negative_slope * x).clamp_(min=x),
        # 1 where y is positive, negative_slope elsewhere
        lambda g, y: y.sign().clamp_(min=negative_slope).mul_(g),
    )


@checked
def sigmoid(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The logistic function: from any number to a probability.

    .. math:: \sigma(x) = \frac{1}{1 + e^{-x}} = \frac{e^x}{1 + e^x}, \qquad
              \sigma'(x) = \sigma(x)\,(1 - \sigma(x))

    The second form keeps every digit of the left tail, down to the smallest number of the type:
    in the first, :math:`e^{-x}` is infinite before :math:`\sigma(x)` is zero. On the right the
    value rounds to one, and the slope to zero, from about 17 in float32 and 37 in float64.

    Args:
        input: Numbers of any shape; log odds, if the output is to be a probability.

    Returns:
        The same shape, from 0 to 1.

    Raises:
        TypeError: If ``input`` does not hold floating-point numbers.
    """

    def value(x):
        e = _exp(x).clamp_(max=torch.finfo(x.dtype).max)  # finite, or e / (1 + e) is inf / inf
        return e.div_(1 + e)

    # (y − y y) g
    return HandDerived.apply(
        input, value, lambda g, y: torch.addcmul(y, y, y, value=-1).mul_(g)
    )


@checked
def tanh(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The hyperbolic tangent: a sigmoid that is centred at zero.

    .. math:: \tanh x = \frac{e^x - e^{-x}}{e^x + e^{-x}} = \frac{e^{2x} - 1}{(e^{2x} - 1) + 2}
              = 2\,\sigma(2x) - 1, \qquad \tanh'(x) = 1 - \tanh^2 x

    The middle form needs :math:`e^{2x} - 1` only, and ``expm1`` computes that without
    cancellation near zero, where :math:`\tanh x \approx x`. It is most precise for
    :math:`x > 0`; the sign is put back at the end.

    Reference: LeCun, Bottou, Orr and Müller, "Efficient BackProp", *Neural Networks: Tricks of
    the Trade* (1998), on why a centred output helps.

    Args:
        input: Numbers of any shape.

    Returns:
        The same shape, from −1 to 1.

    Raises:
        TypeError: If ``input`` does not hold floating-point numbers.
    """

    def value(x):
        # finite, or m / (m + 2) is inf / inf
        m = (2 * x).abs_().expm1_().clamp_(max=torch.finfo(x.dtype).max)
        return m.div_(m + 2).copysign_(x)

    return HandDerived.apply(input, value, lambda g, y: (1 - y * y).mul_(g))


@accepts(dtype=None)
@checked
def softmax(input: Float[Tensor, "*shape"], dim: int | None = None) -> Float[Tensor, "*shape"]:
    r"""From scores to probabilities that add up to one along ``dim``.

    .. math:: y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}
                  = \frac{e^{x_i - m}}{\sum_j e^{x_j - m}}, \qquad
              \frac{\partial y_i}{\partial x_k} = y_i\,(\delta_{ik} - y_k), \qquad
              \frac{\partial L}{\partial x_k} = y_k \Big(g_k - \sum_i g_i\, y_i\Big)

    With :math:`m = \max_j x_j` no exponential is above one, and at least one is one: nothing
    overflows, and the sum is never zero.

    Reference: Bridle, "Probabilistic interpretation of feedforward classification network
    outputs, with relationships to statistical pattern recognition", *Neurocomputing* (1990).

    Left out: ``dtype``; convert the scores before.

    Args:
        input: Scores of any shape.
        dim: The dimension along which the results add up to one; required, although PyTorch
            still guesses it.

    Returns:
        The same shape, from 0 to 1.

    Raises:
        TypeError: If ``dim`` is not given, or if ``input`` does not hold floating-point
            numbers.
    """

    def value(x):
        e = _exp(_shifted(x, dim))
        return e.div_(e.sum(dim, keepdim=True))

    return HandDerived.apply(
        input, value, lambda g, y: (g - (g * y).sum(dim, keepdim=True)).mul_(y)
    )


@accepts(dtype=None)
@checked
def log_softmax(
    input: Float[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "*shape"]:
    r"""The logarithm of :func:`softmax`, finite even where the probability itself rounds to
    zero. Where it rounds to one, the logarithm is zero.

    .. math:: y_i = x_i - m - \log \sum_j e^{x_j - m}, \qquad m = \max_j x_j, \qquad
              \frac{\partial L}{\partial x_k} = g_k - e^{y_k} \sum_i g_i

    Reference: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax
    functions", *IMA Journal of Numerical Analysis* 41 (2021).

    Left out: ``dtype``; convert the scores before.

    Args:
        input: Scores of any shape.
        dim: The dimension along which the probabilities add up to one; required, although
            PyTorch still guesses it.

    Returns:
        The same shape, zero or less.

    Raises:
        TypeError: If ``dim`` is not given, or if ``input`` does not hold floating-point
            numbers.
    """

    def value(x):
        z = _shifted(x, dim)
        return z - _exp(z).sum(dim, keepdim=True).log_()

    return HandDerived.apply(input, value, lambda g, y: g - _exp(y) * g.sum(dim, keepdim=True))


@checked
def gelu(input: Float[Tensor, "*shape"], approximate: str = "none") -> Float[Tensor, "*shape"]:
    r"""The Gaussian error linear unit: :math:`x` times the probability that a standard normal
    number is below it.

    .. math:: f(x) = x\,\Phi(x), \qquad f'(x) = \Phi(x) + x\,\varphi(x), \qquad
              \Phi(x) = \tfrac{1}{2} \operatorname{erfc}\!\Big(\!-\frac{x}{\sqrt 2}\Big), \qquad
              \varphi(x) = \Phi'(x) = \frac{e^{-x^2/2}}{\sqrt{2\pi}}

    ``erfc`` is :math:`1 - \operatorname{erf}`, computed without the difference, which would
    leave nothing of the left tail. The approximation, which GPT-2 uses, puts a sigmoid in the
    place of :math:`\Phi`:

    .. math:: f(x) \approx x\,\sigma\!\Big(\sqrt{8/\pi}\,\big(x + 0.044715\,x^3\big)\Big)
              = \frac{x}{2} \Big(1 + \tanh\!\big(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\big)\Big)

    Reference: Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415
    (2016).

    Args:
        input: Numbers of any shape.
        approximate: ``"none"`` or ``"tanh"``.

    Returns:
        The same shape.

    Raises:
        TypeError: If ``input`` does not hold floating-point numbers.
        ValueError: If ``approximate`` is neither of the two.
    """
    x = input
    if approximate == "none":
        return x * _NormalDistribution.apply(x)
    if approximate == "tanh":
        slope = math.sqrt(8 / math.pi)
        return x * sigmoid(x * (slope + 0.044715 * slope * x * x))
    raise ValueError(
        "approximate must be 'none' (exact, by erfc) or 'tanh' (as in GPT-2), got "
        f"{approximate!r}"
    )


class _NormalDistribution(torch.autograd.Function):
    """Φ, the probability that a standard normal number is below x. Its derivative is the bell
    curve φ.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (-math.sqrt(0.5) * x).erfc_().mul_(0.5)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * _exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _exp(x):
    """The exponential as a power of two, eˣ = 2^(x log₂ e)."""
    return (math.log2(math.e) * x).exp2_()


def _shifted(input, dim):
    """``input`` moved along ``dim`` until its largest entry is zero, so that no exponential
    overflows.
    """
    if dim is None:
        raise TypeError(
            "softmax and log_softmax need dim, along which the probabilities add up to one: "
            "for scores of shape (batch, classes) that is dim=1"
        )
    if not -max(input.dim(), 1) <= dim < max(input.dim(), 1):
        raise ValueError(
            f"scores of shape {tuple(input.shape)} have no dimension dim={dim}: take "
            "dim=-1 for the last"
        )
    # an empty tensor has no largest entry
    return input - (input.detach().amax(dim, keepdim=True) if input.numel() else 0)


class ReLU(nn.Module):
    """:func:`relu` as a module, without ``inplace``."""

    __init__ = accepts(inplace=False)(nn.Module.__init__)

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`relu` of ``input``."""
        return relu(input)


class LeakyReLU(nn.Module):
    """:func:`leaky_relu` as a module, without ``inplace``.

    Args:
        negative_slope: The slope on the negative side, between 0 and 1.
    """

    @accepts(inplace=False)
    @checked
    def __init__(self, negative_slope: float = 0.01):
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`leaky_relu` of ``input``."""
        return leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope, for ``print(module)``."""
        return f"negative_slope={self.negative_slope}"


class Sigmoid(nn.Module):
    """:func:`sigmoid` as a module."""

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`sigmoid` of ``input``."""
        return sigmoid(input)


class Tanh(nn.Module):
    """:func:`tanh` as a module."""

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`tanh` of ``input``."""
        return tanh(input)


class Softmax(nn.Module):
    """:func:`softmax` as a module.

    Args:
        dim: The dimension along which the results add up to one.
    """

    @checked
    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`softmax` of ``input``."""
        return softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The dimension, for ``print(module)``."""
        return f"dim={self.dim}"


class LogSoftmax(nn.Module):
    """:func:`log_softmax` as a module.

    Args:
        dim: The dimension along which the probabilities add up to one.
    """

    @checked
    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`log_softmax` of ``input``."""
        return log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The dimension, for ``print(module)``."""
        return f"dim={self.dim}"


class GELU(nn.Module):
    """:func:`gelu` as a module.

    Args:
        approximate: ``"none"`` or ``"tanh"``.
    """

    @checked
    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """:func:`gelu` of ``input``."""
        return gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """The approximation, for ``print(module)``."""
        return f"approximate={self.approximate!r}"
