r"""Recurrent networks: one set of weights for every step, and a hidden state that remembers.

Taught in chapter *Recurrence*. Names and arguments are those of ``torch.nn``, and a state dict
moves both ways.

:class:`RNNCell` is the equation of one step. :class:`RNN` gives the same for whole sequences,
much faster, since its pass over time is one :class:`torch.autograd.Function` whose gradient,
backpropagation through time, is written by hand. What every recurrent layer needs around that
pass (layers, directions, states, sequences of unequal length) is in :class:`Recurrent`, on
which the layers of a later chapter are built too.

References: Elman, *Finding structure in time*, Cognitive Science 14 (1990); for the gradient
Werbos, *Backpropagation through time: what it does and how to do it*, Proceedings of the IEEE
78 (1990); for the two directions Schuster and Paliwal, *Bidirectional recurrent neural
networks*, IEEE Transactions on Signal Processing 45 (1997).
"""

import math
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from companion.checks import check_alike, checked

__all__ = ["RNN", "RNNCell", "Recurrent", "RecurrentCell", "first_derivative_only"]


class RecurrentCell(nn.Module):
    r"""The weights of one step, on which :class:`RNNCell` and the cells of chapter *LSTM* are
    built.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of a state.
        bias: Whether to add biases.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        gates: How many blocks of ``hidden_size`` rows the weights have: one, unless a subclass
            says otherwise.
        states: How many states go from step to step: one, unless a subclass says otherwise.
        weight_ih: From the input, of shape (gates · hidden_size, input_size).
        weight_hh: From the state before, of shape (gates · hidden_size, hidden_size).
        bias_ih: Of shape (gates · hidden_size,), or ``None``.
        bias_hh: The same. One of the two would do, but PyTorch's state dict has both.

    Raises:
        ValueError: If a size is less than one.
    """

    gates, states = 1, 1

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        _add_weights(self, "", input_size, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw all parameters anew from :math:`\mathcal U(-1/\sqrt{n}, 1/\sqrt{n})`, n being
        ``hidden_size``.
        """
        _reset(self)

    @checked
    def start(
        self,
        input: Float[Tensor, "..."],
        hx: Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...] | None,
    ) -> tuple[Float[Tensor, "..."], ...]:
        """The states before the step, after a check of all shapes.

        Args:
            input: One vector of ``input_size`` numbers for each sequence.
            hx: The state or the states, one vector of ``hidden_size`` numbers for each
                sequence; by default zeros.

        Returns:
            The states.

        Raises:
            TypeError: If the input does not hold floating-point numbers, or there are too few
                or too many states.
            ValueError: If a shape is not what it should be.
        """
        _check_features(self, input)
        return _checked_states(hx, self.states, (*input.shape[:-1], self.hidden_size), input)

    def extra_repr(self) -> str:
        """The sizes, for ``print(cell)``."""
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


class RNNCell(RecurrentCell):
    r"""One step of a plain recurrent network: the new state from the input and the state
    before.

    .. math:: h_t = \varphi\big(x_t W_{ih}^\top + b_{ih} + h_{t-1} W_{hh}^\top + b_{hh}\big)

    Interchangeable with :class:`torch.nn.RNNCell`.

    Args:
        input_size: Length of :math:`x_t`.
        hidden_size: Length of :math:`h_t`.
        bias: Whether to add :math:`b_{ih}` and :math:`b_{hh}`.
        nonlinearity: :math:`\varphi`, ``"tanh"`` or ``"relu"``.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one, or the non-linearity is unknown.
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = _known(nonlinearity)

    def forward(
        self,
        input: Float[Tensor, "*batch inputs"],
        hx: Float[Tensor, "*batch hidden"] | None = None,
    ) -> Float[Tensor, "*batch hidden"]:
        """The state after one step.

        Args:
            input: :math:`x_t`, one vector for each sequence.
            hx: :math:`h_{t-1}`; zero by default.

        Returns:
            :math:`h_t`.

        Raises:
            TypeError: If the input does not hold floating-point numbers.
            ValueError: If a shape is not what it should be.
        """
        (h,) = self.start(input, hx)
        s = F.linear(input, self.weight_ih, self.bias_ih) + F.linear(
            h, self.weight_hh, self.bias_hh
        )
        return s.tanh() if self.nonlinearity == "tanh" else s.relu()


class Recurrent(nn.Module):
    r"""What every recurrent layer needs around its pass over time; a subclass adds that pass,
    :meth:`~Recurrent.sequence`.

    It stacks layers, each reading the output of the one below; lets a second set of weights
    read each layer's input from the end, and puts the two outputs side by side; drops numbers
    between layers; takes states, zero where none are given, and returns the last ones; and
    takes sequences of unequal length as a PackedSequence
    (:func:`torch.nn.utils.rnn.pack_sequence` makes one). These are filled up with zeros to a
    common length. What comes after a sequence's end cannot change what came before, so only two
    things need care: the last state is taken at each sequence's own end, and to be read from
    the end, each sequence is reversed within its own length.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of a state.
        num_layers: How many layers are stacked.
        bias: Whether to add biases.
        batch_first: Whether tensors are (batch, time, features), not (time, batch, features).
            States and packed sequences are not affected.
        dropout: Probability with which a number of a layer's output, except the last layer's,
            is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        gates: How many blocks of ``hidden_size`` rows the weights have: one, unless a subclass
            says otherwise.
        states: How many states go from step to step: one, unless a subclass says otherwise.
        weight_ih_l0: From the input to layer 0, of shape (gates · hidden_size, input_size).
            Layer 1 has ``weight_ih_l1``, of shape (gates · hidden_size, directions ·
            hidden_size), and so on; the weights of the second direction have ``_reverse`` at
            the end of their names.
        weight_hh_l0: From the state before, of shape (gates · hidden_size, hidden_size).
        bias_ih_l0: Of shape (gates · hidden_size,); missing if there are no biases.
        bias_hh_l0: The same.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.
    """

    gates, states = 1, 1

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability, between 0 and 1, got {dropout}")
        if dropout and num_layers == 1:
            warnings.warn(
                (
                    f"dropout={dropout} acts between layers, and there is only one: raise "
                    "num_layers, or leave it out"
                ),
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers, self.bias = (
            input_size,
            hidden_size,
            num_layers,
            bias,
        )
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            inputs = len(self._directions) * hidden_size if layer else input_size
            for direction in self._directions:
                _add_weights(self, f"_l{layer}{direction}", inputs, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw all parameters anew from :math:`\mathcal U(-1/\sqrt{n}, 1/\sqrt{n})`, n being
        ``hidden_size``.
        """
        _reset(self)

    def sequence(
        self,
        x: Float[Tensor, "time batch inputs"],
        states: tuple[Float[Tensor, "batch hidden"], ...],
        W_ih: Float[Tensor, "rows inputs"],
        W_hh: Float[Tensor, "rows hidden"],
        b_ih: Float[Tensor, " rows"] | None,
        b_hh: Float[Tensor, " rows"] | None,
    ) -> tuple[Float[Tensor, "time batch hidden"], ...]:
        """One layer's pass over time, in one direction: what a subclass has to write.

        Args:
            x: The layer's input.
            states: The states before the first step.
            W_ih: The weights from the input.
            W_hh: The weights from the state before.
            b_ih: The one bias, or ``None``.
            b_hh: The other, or ``None``.

        Returns:
            The states after every step. The first of them is the layer's output.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say in sequence() what happens from step to step"
        )

    @checked
    def forward(
        self,
        input: Float[Tensor, "..."] | PackedSequence,
        hx: Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...] | None = None,
    ) -> tuple[
        Float[Tensor, "..."] | PackedSequence,
        Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...],
    ]:
        """The output of the last layer at every step, and the states of all layers after the
        last step.

        Args:
            input: A batch (time, batch, input_size), or with ``batch_first`` (batch, time,
                input_size), or one sequence (time, input_size), or sequences of unequal length,
                packed.
            hx: The states before the first step, (layers · directions, batch, hidden_size)
                each, for one sequence without the batch: a tensor, or a pair of tensors if
                there are two. Zero by default.

        Returns:
            The output, which is like the input but has directions · hidden_size features, and
            the states after the last step, which are like ``hx``.

        Raises:
            TypeError: If the input does not hold floating-point numbers, or there are too few
                or too many states.
            ValueError: If a shape is not what it should be.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        _check_features(self, input)
        if input.dim() not in (2, 3) or 0 in input.shape[:-1]:
            raise ValueError(
                f"expected a batch {'(batch, time' if self.batch_first else '(time, batch'}, "
                f"{self.input_size}) or one sequence (time, {self.input_size}), of at least "
                f"one step, got shape {tuple(input.shape)}"
            )
        if input.dim() == 2:
            output, states = self._run(input[:, None], self._start(hx, input))
            return output[:, 0], self._end([state[:, 0] for state in states])
        x = input.transpose(0, 1) if self.batch_first else input
        output, states = self._run(x, self._start(hx, x))
        return output.transpose(0, 1) if self.batch_first else output, self._end(states)

    def _forward_packed(self, packed, hx):
        """Fill up with zeros, run, and pack again."""
        # sizes: how many sequences, the longest first, go on at each step
        data, sizes, order, back = packed
        _check_features(self, data)
        # (time, batch): no padding
        real = (torch.arange(int(sizes[0])) < sizes[:, None]).to(data.device)
        x = data.new_zeros(*real.shape, data.shape[1]).masked_scatter(real[..., None], data)
        states = self._start(hx, x)
        if order is not None:
            states = [state[:, order] for state in states]
        output, states = self._run(x, states, lengths=real.sum(0))
        if back is not None:
            states = [state[:, back] for state in states]
        return PackedSequence(output[real], sizes, order, back), self._end(states)

    def _run(self, x, states, lengths=None):
        """All layers, one after the other, in all directions: the last output, and the last
        states.
        """
        last = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                weights = [
                    getattr(self, f"{name}_l{layer}{direction}", None) for name in WEIGHTS
                ]
                start = tuple(state[len(last)] for state in states)
                read = _reversed(x, lengths) if direction else x
                steps = self.sequence(read, start, *weights)
                last.append([_last(state, lengths) for state in steps])
                outputs.append(_reversed(steps[0], lengths) if direction else steps[0])
            x = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
        return x, [torch.stack(state) for state in zip(*last, strict=True)]

    def _start(self, hx, x):
        """The states before the first step, each (layers · directions, batch, hidden)."""
        shape = (self.num_layers * len(self._directions), *x.shape[1:-1], self.hidden_size)
        states = _checked_states(hx, self.states, shape, x)
        return [state[:, None] for state in states] if x.dim() == 2 else states

    def _end(self, states):
        """In the form of ``hx``."""
        return states[0] if self.states == 1 else tuple(states)

    def extra_repr(self) -> str:
        """What differs from the defaults, for ``print(layer)``."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        given = [
            f"{name}={getattr(self, name)}"
            for name, value in defaults.items()
            if getattr(self, name) != value
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])


class RNN(Recurrent):
    r"""Layers of plain recurrent units, each as in :class:`RNNCell`, over whole sequences.

    Interchangeable with :class:`torch.nn.RNN`: ``output, h = rnn(input, h)``.

    **Backpropagation through time.** Let :math:`\delta_t` be the gradient of the loss :math:`L`
    with respect to the sum inside the non-linearity. From the last step to the first,

    .. math:: \delta_t = \bigg(\frac{\partial L}{\partial h_t}\bigg|_{\text{direct}}
                         + \delta_{t+1} W_{hh}\bigg)
                         \odot \varphi'_t, \qquad
              \varphi'_t = 1 - h_t^2 \;\text{ for tanh}, \quad [h_t > 0] \;\text{ for relu},

    and then, with all steps in one product,

    .. math::

        \frac{\partial L}{\partial W_{ih}} = \sum_t \delta_t^\top x_t, \qquad
        \frac{\partial L}{\partial W_{hh}} = \sum_t \delta_t^\top h_{t-1}, \qquad
        \frac{\partial L}{\partial b} = \sum_t \delta_t, \qquad
        \frac{\partial L}{\partial x_t} = \delta_t W_{ih}.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of the state.
        num_layers: How many layers are stacked.
        nonlinearity: :math:`\varphi`, ``"tanh"`` or ``"relu"``.
        bias: Whether to add biases.
        batch_first: Whether tensors are (batch, time, features), not (time, batch, features).
        dropout: Probability with which a number of a layer's output, except the last layer's,
            is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one, the non-linearity is unknown, or ``dropout`` is
            not a probability.

    The gradient cannot be differentiated again; a loop over :class:`RNNCell` can.
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = _known(nonlinearity)

    def sequence(self, x, states, W_ih, W_hh, b_ih, b_hh):
        """One layer's pass over time: the hidden states."""
        (h,) = states
        return (
            _RNN.apply(x, h, W_ih, W_hh, b_ih + b_hh if self.bias else None, self.nonlinearity),
        )


@checked
def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses to be differentiated again.

    PyTorch's own ``once_differentiable`` refuses in most cases, and in the others takes the
    gradient for a constant.

    Args:
        backward: The ``backward`` of a :class:`torch.autograd.Function`.

    Returns:
        The same, but it raises a RuntimeError where ``create_graph=True`` asks for a gradient
        with a graph of its own.
    """

    @wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a hand-written pass over time has no second derivative, so its gradient "
                "cannot be computed with create_graph=True: take a loop that autograd can "
                "follow instead, such as one over the layer's cell"
            )
        return backward(ctx, *grads)

    return checked


class _RNN(torch.autograd.Function):
    """All steps of one layer, and the way back through them."""

    @staticmethod
    def forward(ctx, x, h, W_ih, W_hh, b, nonlinearity):
        # (time, batch, hidden): the inputs of all steps in one product
        hs = F.linear(x, W_ih, b)
        ctx.save_for_backward(x, h, W_ih, W_hh, hs)
        ctx.nonlinearity = nonlinearity
        for s in hs:  # in place, so that each sum becomes its state
            s.addmm_(h, W_hh.T)
            h = s.tanh_() if nonlinearity == "tanh" else s.relu_()
        return hs

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_hs):
        x, h, W_ih, W_hh, hs = ctx.saved_tensors
        before = torch.cat([h[None], hs[:-1]])
        slopes = 1 - hs * hs if ctx.nonlinearity == "tanh" else hs.sign()
        deltas, later = torch.empty_like(hs), torch.zeros_like(h)
        for t in reversed(range(len(x))):
            later = torch.addmm(grad_hs[t], later, W_hh, out=deltas[t]).mul_(slopes[t])
        flat = deltas.flatten(0, 1)  # (time · batch, hidden)
        return (
            (flat @ W_ih).view_as(x) if ctx.needs_input_grad[0] else None,
            later @ W_hh,
            flat.T @ x.flatten(0, 1),
            flat.T @ before.flatten(0, 1),
            flat.sum(0) if ctx.needs_input_grad[4] else None,
            None,
        )


# in the order in which they are drawn
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _add_weights(module, suffix, inputs, device, dtype):
    """Empty parameters for one step."""
    hidden = module.hidden_size
    if min(inputs, hidden) < 1:
        raise ValueError(
            f"input_size and hidden_size must be at least 1, got {inputs} and {hidden}"
        )
    rows = module.gates * hidden
    for name, shape in zip(
        WEIGHTS, [(rows, inputs), (rows, hidden), (rows,), (rows,)], strict=True
    ):
        wanted = module.bias or name.startswith("weight")
        parameter = (
            nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
        )
        module.register_parameter(name + suffix, parameter)


@torch.no_grad()
def _reset(module):
    bound = 1 / math.sqrt(module.hidden_size)
    for parameter in module.parameters():
        parameter.uniform_(-bound, bound)


def _known(nonlinearity):
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return nonlinearity


def _check_features(layer, input):
    if input.shape[-1:] != (layer.input_size,):
        raise ValueError(
            f"expected {layer.input_size} features in the last dimension, got shape "
            f"{tuple(input.shape)}: tokens get theirs from an Embedding"
        )
    check_alike(layer, input, next(layer.parameters()))


def _checked_states(hx, count, shape, input):
    """As many states of that shape, zero if none are given."""
    if hx is None:
        return (input.new_zeros(shape),) * count
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if len(states) != count:
        wanted = "one state, a tensor" if count == 1 else "a pair of states, (h, c)"
        raise TypeError(
            f"expected {wanted}, got "
            f"{'a tensor' if isinstance(hx, Tensor) else f'{len(states)} of them'}"
        )
    for state in states:
        if state.shape != shape:
            raise ValueError(
                f"expected a state of shape {shape} for an input of shape "
                f"{tuple(input.shape)}, got {tuple(state.shape)}: leave it out to start at zero"
            )
        check_alike("the state", input, state)
    return states


def _reversed(x, lengths):
    """Each sequence backwards within its own length; the padding stays behind it."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (time, batch)
    return x.gather(0, order[..., None].expand_as(x))


def _last(x, lengths):
    """What stands at each sequence's own last step."""
    return (
        x[-1] if lengths is None else x[lengths - 1, torch.arange(x.shape[1], device=x.device)]
    )
