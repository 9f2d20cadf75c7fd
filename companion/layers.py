"""Layers, losses and initial weights: what a feed-forward network is made of.

Taught in chapter *Layers*. Names and arguments are those of ``torch.nn``, and a state dict
moves both ways. Reference: Rumelhart, Hinton and Williams, *Learning representations by
back-propagating errors*, Nature 323 (1986).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from companion.checks import accepts, check_alike, checked

__all__ = [
    "MLP",
    "Linear",
    "Sequential",
    "binary_cross_entropy_with_logits",
    "count_parameters",
    "cross_entropy",
    "kaiming_normal_",
    "kaiming_uniform_",
    "mse_loss",
    "xavier_normal_",
    "xavier_uniform_",
]


class Linear(nn.Module):
    r"""Every output is a weighted sum of all inputs, plus a bias.

    .. math:: y = x W^\top + b

    Interchangeable with :class:`torch.nn.Linear`: the same parameters, and for the same seed
    the same initial numbers, drawn from :math:`\mathcal U(-1/\sqrt{n}, 1/\sqrt{n})`, where
    :math:`n` is ``in_features``.

    Args:
        in_features: Size of the input's last dimension.
        out_features: Size of the output's last dimension.
        bias: Whether to add :math:`b`.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        weight: :math:`W`, of shape (out_features, in_features).
        bias: :math:`b`, of shape (out_features,), or ``None``.

    Raises:
        ValueError: If a size is less than one.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"a layer needs at least one input and one output, got {in_features} and "
                f"{out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
            if bias
            else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights and biases anew."""
        kaiming_uniform_(self.weight, a=math.sqrt(5))  # this slope makes the bound 1 / √n
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            self.bias.uniform_(-bound, bound)

    @checked
    def forward(
        self, input: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """The weighted sums, for any number of leading dimensions.

        Args:
            input: One vector of ``in_features`` numbers for each place in the leading
                dimensions.

        Returns:
            One vector of ``out_features`` numbers for each.

        Raises:
            ValueError: If the last dimension is not ``in_features`` long.
        """
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"expected {self.in_features} features in the last dimension, got shape "
                f"{tuple(input.shape)}: put the features last (a batch of images becomes one "
                "of vectors by images.flatten(1))"
            )
        check_alike(self, input, self.weight)
        output = input @ self.weight.T
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """The sizes, for ``print(layer)``."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


class Sequential(nn.Module):
    """Modules one after another: each takes what the one before it gives.

    Interchangeable with :class:`torch.nn.Sequential`: parameters are named by place
    (``"0.weight"``). ``len(model)``, ``model[0]``, ``model[1:]`` and ``for module in model``
    work.

    Args:
        modules: The modules, in order.

    Raises:
        TypeError: If one of them is not a module.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        for place, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"expected a module at place {place}, got {module!r}: unpack a list with "
                    "Sequential(*modules), and take a function's module, such as nn.ReLU() for "
                    "torch.relu"
                )
            self.add_module(str(place), module)

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The last module's output.

        Args:
            input: Whatever the first module takes.
        """
        for module in self:
            input = module(input)
        return input

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())

    @checked
    def __getitem__(self, place: int | slice) -> nn.Module:
        if not isinstance(place, slice):
            return list(self)[place]
        part = Sequential()
        # under the names that they have in the whole
        for name, module in list(self._modules.items())[place]:
            part.add_module(name, module)
        return part


class MLP(nn.Module):
    r"""A multilayer perceptron: linear layers with a non-linearity between them.

    .. math:: h_0 = x, \qquad h_l = \varphi(h_{l-1} W_l^\top + b_l), \qquad
              y = h_{L-1} W_L^\top + b_L

    Args:
        sizes: Length of the input, of each hidden layer, and of the output: ``MLP([784, 256,
            10])`` hides one layer.
        activation: :math:`\varphi`, a function or a module.

    Attributes:
        layers: The :class:`Linear` layers, one fewer than there are sizes.
        activation: The activation given.

    Raises:
        ValueError: If there are fewer than two sizes, or one of them is less than one.
        TypeError: If the activation is a class, not a function or a module.
    """

    @checked
    def __init__(
        self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor] = torch.relu
    ):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(
                "expected at least two sizes, input and output, as in MLP([784, 256, 10]), got "
                f"{sizes}"
            )
        if isinstance(activation, type):
            raise TypeError(
                f"expected a function or a module, got a class: write {activation.__name__}(), "
                "with brackets"
            )
        self.layers = nn.ModuleList(Linear(*shape) for shape in pairwise(sizes))
        self.activation = activation

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The output layer's weighted sums; no activation follows them.

        Args:
            input: One vector of ``sizes[0]`` numbers for each place in the leading dimensions.

        Returns:
            One vector of ``sizes[-1]`` numbers for each.
        """
        *hidden, output = self.layers
        h = input
        for layer in hidden:
            h = self.activation(layer(h))
        return output(h)


@accepts(size_average=None, reduce=None, weight=None)
@checked
def mse_loss(
    input: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, reduction: str = "mean"
) -> Float[Tensor, "..."]:
    r"""Squared error, the loss of regression.

    .. math:: \ell_i = (\hat y_i - y_i)^2

    Left out: ``weight``, and ``size_average`` and ``reduce``, which ``reduction`` replaced.

    Args:
        input: Predictions :math:`\hat y`.
        target: True values :math:`y`, of the same shape and in the same unit.
        reduction: ``"mean"`` or ``"sum"`` over all elements, or ``"none"``.

    Returns:
        The mean or the sum, a scalar, or all squared errors; in squared units of ``target``.

    Raises:
        ValueError: If the shapes differ, or the reduction is unknown.
            (:func:`torch.nn.functional.mse_loss` only warns when it stretches (n, 1) against
            (n,) to n × n errors.)
    """
    _check_shapes(input, target)
    return _reduce((input - target).square(), reduction)


@accepts(size_average=None, reduce=None)
@checked
def binary_cross_entropy_with_logits(
    input: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    weight: Float[Tensor, "..."] | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    r"""Minus the logarithm of the probability that the sigmoid gives to the true answer, the
    loss of questions with two answers, yes and no.

    For a logit :math:`z` and the target :math:`y`, one for yes and zero for no,

    .. math:: \ell = -y \log \sigma(z) - (1 - y) \log(1 - \sigma(z))
                  = y \log(1 + e^{-z}) + (1 - y) \log(1 + e^z),
              \qquad \frac{\partial \ell}{\partial z} = \sigma(z) - y.

    It is :func:`cross_entropy` with the logits :math:`(0, z)`. ``pos_weight`` multiplies the
    term of yes, ``weight`` the whole; both may be of any shape that broadcasts to that of
    ``input``. The mean divides by the number of elements, whatever their weights. No
    exponential overflows, and no digit of a small loss is lost. Source: Cox, *The regression
    analysis of binary sequences*, Journal of the Royal Statistical Society B 20 (1958).

    Left out: ``size_average`` and ``reduce``, which ``reduction`` replaced.

    Args:
        input: Logits: log odds of yes.
        target: One for yes, zero for no, or the probability of yes, as floating-point numbers
            in the shape of ``input``; they get a gradient too.
        weight: A factor for each loss.
        reduction: ``"mean"`` or ``"sum"`` over all elements, or ``"none"``.
        pos_weight: A factor for the loss where the answer is yes.

    Returns:
        The mean or the sum, a scalar, or all losses; in nats.

    Raises:
        ValueError: If the shapes do not fit, or the reduction is unknown.
    """
    _check_shapes(input, target)
    for name, factor in [("weight", weight), ("pos_weight", pos_weight)]:
        _check_broadcast(name, factor, input)
    yes, no = target * _Softplus.apply(-input), (1 - target) * _Softplus.apply(input)
    losses = (yes if pos_weight is None else pos_weight * yes) + no
    return _reduce(losses if weight is None else weight * losses, reduction)


class _Softplus(torch.autograd.Function):
    """log(1 + eˣ), which is −log σ(−x), and its slope σ(x), at zero too."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))  # no exponential overflows

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


@accepts(size_average=None, reduce=None)
@checked
def cross_entropy(
    input: Float[Tensor, "..."],
    target: Int[Tensor, "..."] | Float[Tensor, "..."],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Float[Tensor, "..."]:
    r"""Minus the logarithm of the probability that softmax gives to the true class, the loss of
    classification.

    For one example with logits :math:`z` and class :math:`y` out of :math:`K`,

    .. math:: \ell = -\sum_k q_k \log \operatorname{softmax}(z)_k
                  = \log \sum_k e^{z_k} - \sum_k q_k z_k,
              \qquad \frac{\partial \ell}{\partial z_k} = \operatorname{softmax}(z)_k - q_k,

    where :math:`q` is one at the true class and zero elsewhere, or any probabilities; smoothed
    by :math:`\varepsilon`, they are multiplied by :math:`1 - \varepsilon`, and
    :math:`\varepsilon / K` is added to every class. With weights :math:`w` for the classes,
    :math:`w_k q_k` stands for :math:`q_k`, and the mean over classes :math:`y_n` divides by
    :math:`\sum_n w_{y_n}`; that over probabilities still divides by their number. Sources:
    Bridle, *Training stochastic model recognition algorithms as networks can lead to maximum
    mutual information estimation of parameters*, NIPS 1989; for the smoothing Szegedy,
    Vanhoucke, Ioffe, Shlens and Wojna, *Rethinking the Inception architecture for computer
    vision*, CVPR 2016.

    Left out: ``size_average`` and ``reduce``, which ``reduction`` replaced.

    Args:
        input: Logits: (classes,), (batch, classes) or (batch, classes, ...).
        target: The true classes, 0 to classes − 1, of type int64, in the shape of ``input``
            without the classes; or probabilities :math:`q`, floating-point numbers in the shape
            of ``input``, which get a gradient too.
        weight: :math:`w`, one number for each class.
        ignore_index: Places with this target have no loss, and the mean does not count them.
        reduction: ``"mean"`` or ``"sum"`` over the places, or ``"none"``.
        label_smoothing: :math:`\varepsilon`, from 0 to 1.

    Returns:
        The mean or the sum, a scalar, or every place's loss; in nats. The mean is ``nan`` if
        every place is ignored.

    Raises:
        TypeError: If the targets are neither of type int64 nor probabilities, or the weights
            are not of the logits' type.
        ValueError: If the shapes do not fit, a target is not a class, or an option is out of
            its range.

    The transforms of :mod:`torch.func` do not work on it.
    """
    dim = min(1, input.dim() - 1)  # where the classes are
    soft = target.is_floating_point() and target.shape == input.shape != ()
    if not soft:
        _check_classes(input, target, dim)
    elif ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} is a class, but the targets are probabilities: where "
            "they are all zero, there is no loss"
        )
    _check_weight(weight, input, dim)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}")
    if soft:
        q = _smoothed(target, weight, label_smoothing, dim)
        return _reduce(_SoftCrossEntropy.apply(input, q, dim), reduction)
    target, ignored = _split_ignored(target, ignore_index, input.shape[dim])
    smoothing = label_smoothing if weight is None else 0
    losses = _CrossEntropy.apply(input, target.unsqueeze(dim), dim, smoothing)
    if weight is None and ignored is None:
        return _reduce(losses, reduction)
    counts = torch.ones_like(losses) if weight is None else weight[target]
    if weight is not None:
        losses = (1 - label_smoothing) * counts * losses
        if label_smoothing:
            q = _smoothed(torch.zeros_like(input), weight, label_smoothing, dim)
            losses = losses + _SoftCrossEntropy.apply(input, q, dim)
    if ignored is not None:
        losses, counts = losses.masked_fill(ignored, 0), counts.masked_fill(ignored, 0)
    loss = _reduce(losses, reduction)
    return loss / counts.mean() if reduction == "mean" else loss


class _CrossEntropy(torch.autograd.Function):
    """log Σₖ exp zₖ − Σₖ qₖ zₖ along one dimension, and its gradient softmax(z) − q."""

    @staticmethod
    def forward(ctx, logits, target, dim, smoothing):
        # the loss stays the same, and no exponential overflows
        shifted = logits - logits.amax(dim, keepdim=True)
        expected = (1 - smoothing) * shifted.gather(dim, target)  # Σₖ qₖ zₖ
        if smoothing:
            expected += smoothing * shifted.mean(dim, keepdim=True)
        exponentials = shifted.mul_(
            math.log2(math.e)
        ).exp2_()  # eˣ is 2 to the power x log₂ e, and powers of 2 are fast
        total = exponentials.sum(dim, keepdim=True)  # softmax is exponentials / total
        ctx.save_for_backward(logits, target, exponentials, total)
        ctx.dim, ctx.smoothing = dim, smoothing
        return (total.log() - expected).squeeze(dim)

    @staticmethod
    def backward(ctx, grad):
        logits, target, exponentials, total = ctx.saved_tensors
        # a second derivative is wanted: they have to be functions of the logits again
        if torch.is_grad_enabled():
            exponentials = (logits - logits.amax(ctx.dim, keepdim=True)).exp()
            total = exponentials.sum(ctx.dim, keepdim=True)
        grad = grad.unsqueeze(ctx.dim)
        gradient = exponentials * (grad / total)  # (softmax − q) grad, term by term
        gradient.scatter_add_(ctx.dim, target, (ctx.smoothing - 1) * grad)
        if ctx.smoothing:
            gradient -= ctx.smoothing / logits.shape[ctx.dim] * grad
        return gradient, None, None, None


class _SoftCrossEntropy(torch.autograd.Function):
    """−Σₖ qₖ log softmax(z)ₖ along one dimension, and its gradients: softmax(z) Σₖ qₖ − q for
    the logits, −log softmax(z) for q.
    """

    @staticmethod
    def forward(ctx, logits, q, dim):
        surprise = _surprise(logits, dim)
        ctx.save_for_backward(logits, q, surprise)
        ctx.dim = dim
        return (q * surprise).sum(dim)

    @staticmethod
    def backward(ctx, grad):
        logits, q, surprise = ctx.saved_tensors
        # a second derivative is wanted: it has to be a function of the logits again
        if torch.is_grad_enabled():
            surprise = _surprise(logits, ctx.dim)
        grad = grad.unsqueeze(ctx.dim)
        gradient = _exp(-surprise) * (grad * q.sum(ctx.dim, keepdim=True)) - grad * q
        return gradient, grad * surprise if ctx.needs_input_grad[1] else None, None


def _surprise(logits, dim):
    """−log softmax(z), of which softmax(z) is the exponential."""
    shifted = logits - logits.amax(dim, keepdim=True)
    return _exp(shifted).sum(dim, keepdim=True).log() - shifted


def _exp(x):
    """eˣ = 2 to the power x log₂ e: powers of 2 are fast."""
    return (math.log2(math.e) * x).exp2_()


def _smoothed(q, weight, smoothing, dim):
    """wₖ ((1 − ε) qₖ + ε / K)."""
    if smoothing:
        q = (1 - smoothing) * q + smoothing / q.shape[dim]
    return q if weight is None else q * weight.view(-1, *[1] * (q.dim() - dim - 1))


def _split_ignored(target, ignore_index, classes):
    """The targets, all of them classes, and where the loss is ignored; ``None`` if nowhere."""
    lowest, highest = (int(end) for end in target.aminmax()) if target.numel() else (0, 0)
    if lowest >= 0 and highest < classes and not lowest <= ignore_index <= highest:
        return target, None
    ignored = target == ignore_index
    target = target.masked_fill(ignored, 0)  # any class will do there
    nearest = target.clamp(0, classes - 1)
    if not torch.equal(target, nearest):
        raise ValueError(
            f"expected classes from 0 to {classes - 1}, or ignore_index={ignore_index}, got "
            f"{target[target != nearest][0]}: number the classes from 0, and have one logit "
            "for each"
        )
    return target, ignored


def _check_shapes(input, target):
    if input.shape != target.shape:
        raise ValueError(
            f"expected predictions and targets of one shape, got {tuple(input.shape)} and "
            f"{tuple(target.shape)}: drop a dimension of size one with squeeze(1), or add it "
            "with unsqueeze(1)"
        )


def _check_broadcast(name, factor, input):
    if factor is None:
        return
    try:
        fits = torch.broadcast_shapes(factor.shape, input.shape) == input.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"expected a {name} that broadcasts to the shape of the logits, "
            f"{tuple(input.shape)}, got {tuple(factor.shape)}"
        )


def _check_classes(input, target, dim):
    if target.dtype != torch.int64:
        raise TypeError(
            f"expected class indices of type torch.int64 as targets, got {target.dtype}: "
            "convert indices with target.long(), one-hot rows with target.argmax(1); "
            f"probabilities are floating-point numbers in the shape of the logits, here "
            f"{tuple(input.shape)}"
        )
    if input.dim() == 0 or target.shape != input.shape[:dim] + input.shape[dim + 1 :]:
        raise ValueError(
            "expected logits of shape (classes,), (batch, classes) or (batch, classes, ...), "
            f"and targets of that shape without the classes, got {tuple(input.shape)} and "
            f"{tuple(target.shape)}"
        )


def _check_weight(weight, input, dim):
    if weight is None:
        return
    if weight.shape != input.shape[dim : dim + 1]:
        raise ValueError(
            f"expected one weight for each of the {input.shape[dim]} classes, got a weight of "
            f"shape {tuple(weight.shape)}"
        )
    if weight.dtype != input.dtype:
        raise TypeError(
            f"expected weights of the logits' type {input.dtype}, got {weight.dtype}: convert "
            "with weight.to(logits)"
        )


def _reduce(losses, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


@torch.no_grad()
@checked
def kaiming_normal_(
    tensor: Float[Tensor, "fan_out fan_in *kernel"],
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "fan_out fan_in *kernel"]:
    r"""Fill a weight from :math:`\mathcal N(0, \sigma^2)` so that signals keep their size from
    layer to layer.

    .. math:: \sigma = \frac{g}{\sqrt n}

    Here :math:`n` counts the inputs of one output (``"fan_in"``) or the outputs of one input
    (``"fan_out"``), and the gain :math:`g` makes up for what the non-linearity takes away:
    :math:`\sqrt 2` for ReLU, which silences half of its inputs. Source: He, Zhang, Ren and Sun,
    *Delving deep into rectifiers: surpassing human-level performance on ImageNet
    classification*, ICCV 2015.

    Args:
        tensor: The weight, (outputs, inputs, ...), filled in place.
        a: Slope of a leaky ReLU for negative inputs.
        mode: ``"fan_in"`` keeps the variance of the activations, ``"fan_out"`` that of the
            gradients.
        nonlinearity: The non-linearity that follows: linear, sigmoid, tanh, relu, leaky_relu or
            selu.
        generator: Source of random numbers; torch's own if there is none.

    Returns:
        ``tensor`` itself.

    Raises:
        ValueError: If the weight has fewer than two dimensions or no elements, or a name is
            unknown.
    """
    return tensor.normal_(0, _kaiming_std(tensor, a, mode, nonlinearity), generator=generator)


@torch.no_grad()
@checked
def kaiming_uniform_(
    tensor: Float[Tensor, "fan_out fan_in *kernel"],
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "fan_out fan_in *kernel"]:
    r"""Fill a weight from a uniform distribution as wide as :func:`kaiming_normal_` makes the
    normal one.

    .. math:: \mathcal U(-\sqrt 3\,\sigma, \sqrt 3\,\sigma), \qquad \sigma = \frac{g}{\sqrt n}

    Args:
        tensor: The weight, (outputs, inputs, ...), filled in place.
        a: Slope of a leaky ReLU for negative inputs.
        mode: ``"fan_in"`` keeps the variance of the activations, ``"fan_out"`` that of the
            gradients.
        nonlinearity: The non-linearity that follows: linear, sigmoid, tanh, relu, leaky_relu or
            selu.
        generator: Source of random numbers; torch's own if there is none.

    Returns:
        ``tensor`` itself.

    Raises:
        ValueError: If the weight has fewer than two dimensions or no elements, or a name is
            unknown.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
@checked
def xavier_normal_(
    tensor: Float[Tensor, "fan_out fan_in *kernel"],
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "fan_out fan_in *kernel"]:
    r"""Fill a weight from :math:`\mathcal N(0, \sigma^2)`, a compromise between activations and
    gradients.

    .. math:: \sigma = g \sqrt{\frac{2}{n_{\text{in}} + n_{\text{out}}}}

    Source: Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
    networks*, AISTATS 2010.

    Args:
        tensor: The weight, (outputs, inputs, ...), filled in place.
        gain: Factor :math:`g` for the non-linearity that follows, such as 5/3 for tanh.
        generator: Source of random numbers; torch's own if there is none.

    Returns:
        ``tensor`` itself.

    Raises:
        ValueError: If the weight has fewer than two dimensions or no elements.
    """
    return tensor.normal_(0, _xavier_std(tensor, gain), generator=generator)


@torch.no_grad()
@checked
def xavier_uniform_(
    tensor: Float[Tensor, "fan_out fan_in *kernel"],
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "fan_out fan_in *kernel"]:
    r"""Fill a weight from a uniform distribution as wide as :func:`xavier_normal_` makes the
    normal one.

    .. math:: \mathcal U(-\sqrt 3\,\sigma, \sqrt 3\,\sigma),
              \qquad \sigma = g \sqrt{\frac{2}{n_{\text{in}} + n_{\text{out}}}}

    Args:
        tensor: The weight, (outputs, inputs, ...), filled in place.
        gain: Factor for the non-linearity that follows, such as 5/3 for tanh.
        generator: Source of random numbers; torch's own if there is none.

    Returns:
        ``tensor`` itself.

    Raises:
        ValueError: If the weight has fewer than two dimensions or no elements.
    """
    bound = math.sqrt(3) * _xavier_std(tensor, gain)
    return tensor.uniform_(-bound, bound, generator=generator)


def _kaiming_std(weight, a, mode, nonlinearity):
    gains = {"linear": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
    gains["leaky_relu"] = math.sqrt(2 / (1 + a**2))
    if nonlinearity not in gains:
        raise ValueError(
            f"nonlinearity must be one of {', '.join(gains)}, got {nonlinearity!r}"
        )
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan_in, fan_out = _fans(weight)
    return gains[nonlinearity] / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def _xavier_std(weight, gain):
    if gain < 0:
        raise ValueError(f"gain must not be negative, got {gain}: it multiplies a spread")
    return gain * math.sqrt(2 / sum(_fans(weight)))


def _fans(weight):
    if weight.numel() == 0:
        raise ValueError(
            "expected a weight with at least one input and output, got shape "
            f"{tuple(weight.shape)}"
        )
    kernel = weight[0, 0].numel()  # 1 for a matrix, 25 for a 5 × 5 convolution
    return weight.shape[1] * kernel, weight.shape[0] * kernel


@checked
def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """How many numbers a module learns.

    Args:
        module: Any module.
        trainable_only: Leave out frozen parameters, those with ``requires_grad=False``.

    Returns:
        The number of elements of all parameters; a parameter that several layers share counts
        once.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)
