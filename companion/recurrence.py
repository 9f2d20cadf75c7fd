r"""Recurrent networks: one set of weights for every step of a sequence, and a hidden state that remembers.

Taught in chapter *Recurrence*. Names and arguments are those of ``torch.nn``, and a state dict moves both ways.

:class:`RNNCell` is the equation of one step. :class:`RNN` gives the same for whole sequences, much faster, since its
pass over time is one :class:`torch.autograd.Function` whose gradient, backpropagation through time, is written by
hand. What every recurrent layer needs around that pass (layers, directions, states, sequences of unequal length) is in
:class:`Recurrent`, on which the layers of the next chapter are built too.

A :class:`LanguageModel` reads text with such a layer, :func:`fit_truncated` trains it, :func:`bits_per_character`
judges it, and :func:`sample` lets it write. :class:`NGram` is the model to beat, which only counts.

References: Elman, *Finding structure in time*, Cognitive Science 14 (1990); for the gradient Werbos, *Backpropagation
through time: what it does and how to do it*, Proceedings of the IEEE 78 (1990); for the two directions Schuster and
Paliwal, *Bidirectional recurrent neural networks*, IEEE Transactions on Signal Processing 45 (1997).
"""

import math
import os
import warnings
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from companion.activations import softmax
from companion.layers import Linear, cross_entropy
from companion.training import History, modes_kept

__all__ = [
    "RNN",
    "Embedding",
    "LanguageModel",
    "NGram",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "bits_per_character",
    "first_derivative_only",
    "fit_truncated",
    "sample",
]


class Embedding(nn.Module):
    r"""A table with one vector for each token; the layer looks them up.

    .. math:: y = E_k

    That is the product of a one-hot row vector with the matrix :math:`E`, without the multiplications by zero.
    Interchangeable with :class:`torch.nn.Embedding`: the same parameter, and for the same seed the same initial
    numbers, drawn from :math:`\mathcal N(0, 1)`. Reference: Bengio, Ducharme, Vincent and Jauvin, *A neural
    probabilistic language model*, Journal of Machine Learning Research 3 (2003).

    Args:
        num_embeddings: Number of tokens :math:`K`.
        embedding_dim: Length of each vector.
        padding_idx: A token that only fills up: its vector starts at zero and has no gradient.
        device: Where the table lives.
        dtype: Its float type.

    Attributes:
        weight: :math:`E`, of shape (num_embeddings, embedding_dim).

    Raises:
        ValueError: If a size is less than one, or ``padding_idx`` is not a token.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if min(num_embeddings, embedding_dim) < 1:
            raise ValueError(
                f"expected at least one token and one number for each, got {num_embeddings} and {embedding_dim}"
            )
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx must be one of the {num_embeddings} tokens, got {padding_idx}: "
                "count the padding as a token of its own in num_embeddings"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial vectors anew."""
        self.weight.normal_()
        if self.padding_idx is not None:
            self.weight[self.padding_idx] = 0

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
        """The vector of each token.

        Args:
            input: Tokens, from 0 to ``num_embeddings`` − 1.

        Returns:
            One vector of ``embedding_dim`` numbers for each.

        Raises:
            TypeError: If the tokens are not integers.
            ValueError: If one of them is not in the table.
        """
        if input.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"expected tokens of type torch.int64, got {input.dtype}: convert with tokens.long()")
        if input.numel() and (wrong := input[(input < 0) | (input >= self.num_embeddings)]).numel():
            raise ValueError(
                f"expected tokens from 0 to {self.num_embeddings - 1}, got {wrong[0]}: "
                "num_embeddings must be the size of the vocabulary"
            )
        tokens = input.flatten()
        vectors = self.weight.index_select(0, tokens)
        if self.padding_idx is not None:
            vectors = torch.where(tokens[:, None] == self.padding_idx, vectors.detach(), vectors)
        return vectors.view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """The sizes, for ``print(layer)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class RecurrentCell(nn.Module):
    r"""The weights of one step, on which :class:`RNNCell` and the cells of the next chapter are built.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of a state.
        bias: Whether to add biases.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        gates: How many blocks of ``hidden_size`` rows the weights have: one, unless a subclass says otherwise.
        states: How many states go from step to step: one, unless a subclass says otherwise.
        weight_ih: From the input, of shape (gates · hidden_size, input_size).
        weight_hh: From the state before, of shape (gates · hidden_size, hidden_size).
        bias_ih: Of shape (gates · hidden_size,), or ``None``.
        bias_hh: The same. One of the two would do, but PyTorch's state dict has both.

    Raises:
        ValueError: If a size is less than one.
    """

    gates, states = 1, 1

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
        r"""Draw all parameters anew from :math:`\mathcal U(-1/\sqrt{n}, 1/\sqrt{n})`, n being ``hidden_size``."""
        _reset(self)

    def start(
        self, input: Float[Tensor, "..."], hx: Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...] | None
    ) -> tuple[Float[Tensor, "..."], ...]:
        """The states before the step, after a check of all shapes.

        Args:
            input: One vector of ``input_size`` numbers for each sequence.
            hx: The state or the states, one vector of ``hidden_size`` numbers for each sequence; by default zeros.

        Returns:
            The states.

        Raises:
            TypeError: If the input does not hold floating-point numbers, or there are too few or too many states.
            ValueError: If a shape is not what it should be.
        """
        _check_features(input, self.input_size)
        return _checked_states(hx, self.states, (*input.shape[:-1], self.hidden_size), input)

    def extra_repr(self) -> str:
        """The sizes, for ``print(cell)``."""
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


class RNNCell(RecurrentCell):
    r"""One step of a plain recurrent network: the new state from the input and the state before.

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
        self, input: Float[Tensor, "*batch inputs"], hx: Float[Tensor, "*batch hidden"] | None = None
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
        s = F.linear(input, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        return s.tanh() if self.nonlinearity == "tanh" else s.relu()


class Recurrent(nn.Module):
    r"""What every recurrent layer needs around its pass over time; a subclass adds that pass, :meth:`sequence`.

    It stacks layers, each reading the output of the one below; lets a second set of weights read each layer's input
    from the end, and puts the two outputs side by side; drops numbers between layers; takes states, zero where none
    are given, and returns the last ones; and takes sequences of unequal length as a PackedSequence
    (:func:`torch.nn.utils.rnn.pack_sequence` makes one). These are filled up with zeros to a common length. What comes
    after a sequence's end cannot change what came before, so only two things need care: the last state is taken at
    each sequence's own end, and to be read from the end, each sequence is reversed within its own length.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of a state.
        num_layers: How many layers are stacked.
        bias: Whether to add biases.
        batch_first: Whether tensors are (batch, time, features), not (time, batch, features). States and packed
            sequences are not affected.
        dropout: Probability with which a number of a layer's output, except the last layer's, is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        gates: How many blocks of ``hidden_size`` rows the weights have: one, unless a subclass says otherwise.
        states: How many states go from step to step: one, unless a subclass says otherwise.
        weight_ih_l0: From the input to layer 0, of shape (gates · hidden_size, input_size). Layer 1 has
            ``weight_ih_l1``, of shape (gates · hidden_size, directions · hidden_size), and so on; the weights of the
            second direction have ``_reverse`` at the end of their names.
        weight_hh_l0: From the state before, of shape (gates · hidden_size, hidden_size).
        bias_ih_l0: Of shape (gates · hidden_size,); missing if there are no biases.
        bias_hh_l0: The same.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.
    """

    gates, states = 1, 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
                f"dropout={dropout} acts between layers, and there is only one: raise num_layers, or leave it out",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            inputs = len(self._directions) * hidden_size if layer else input_size
            for direction in self._directions:
                _add_weights(self, f"_l{layer}{direction}", inputs, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw all parameters anew from :math:`\mathcal U(-1/\sqrt{n}, 1/\sqrt{n})`, n being ``hidden_size``."""
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
        raise NotImplementedError(f"{type(self).__name__} must say in sequence() what happens from step to step")

    def forward(
        self,
        input: Float[Tensor, "..."] | PackedSequence,
        hx: Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...] | None = None,
    ) -> tuple[Float[Tensor, "..."] | PackedSequence, Float[Tensor, "..."] | tuple[Float[Tensor, "..."], ...]]:
        """The output of the last layer at every step, and the states of all layers after the last step.

        Args:
            input: A batch (time, batch, input_size), or with ``batch_first`` (batch, time, input_size), or one sequence
                (time, input_size), or sequences of unequal length, packed.
            hx: The states before the first step, (layers · directions, batch, hidden_size) each, for one sequence
                without the batch: a tensor, or a pair of tensors if there are two. Zero by default.

        Returns:
            The output, which is like the input but has directions · hidden_size features, and the states after the
            last step, which are like ``hx``.

        Raises:
            TypeError: If the input does not hold floating-point numbers, or there are too few or too many states.
            ValueError: If a shape is not what it should be.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        _check_features(input, self.input_size)
        if input.dim() not in (2, 3) or 0 in input.shape[:-1]:
            raise ValueError(
                f"expected a batch {'(batch, time' if self.batch_first else '(time, batch'}, {self.input_size}) or one "
                f"sequence (time, {self.input_size}), of at least one step, got shape {tuple(input.shape)}"
            )
        if input.dim() == 2:
            output, states = self._run(input[:, None], self._start(hx, input))
            return output[:, 0], self._end([state[:, 0] for state in states])
        x = input.transpose(0, 1) if self.batch_first else input
        output, states = self._run(x, self._start(hx, x))
        return output.transpose(0, 1) if self.batch_first else output, self._end(states)

    def _forward_packed(self, packed, hx):
        """Fill up with zeros, run, and pack again."""
        data, sizes, order, back = packed  # sizes: how many sequences, the longest first, go on at each step
        _check_features(data, self.input_size)
        real = (torch.arange(int(sizes[0])) < sizes[:, None]).to(data.device)  # (time, batch): no padding
        x = data.new_zeros(*real.shape, data.shape[1]).masked_scatter(real[..., None], data)
        states = self._start(hx, x)
        if order is not None:
            states = [state[:, order] for state in states]
        output, states = self._run(x, states, lengths=real.sum(0))
        if back is not None:
            states = [state[:, back] for state in states]
        return PackedSequence(output[real], sizes, order, back), self._end(states)

    def _run(self, x, states, lengths=None):
        """All layers, one after the other, in all directions: the last output, and the last states."""
        last = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                weights = [getattr(self, f"{name}_l{layer}{direction}", None) for name in WEIGHTS]
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
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        given = [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])


class RNN(Recurrent):
    r"""Layers of plain recurrent units, each as in :class:`RNNCell`, over whole sequences.

    Interchangeable with :class:`torch.nn.RNN`: ``output, h = rnn(input, h)``.

    **Backpropagation through time.** Let :math:`\delta_t` be the gradient of the loss :math:`L` with respect to the sum
    inside the non-linearity. From the last step to the first,

    .. math:: \delta_t = \bigg(\frac{\partial L}{\partial h_t}\bigg|_{\text{direct}} + \delta_{t+1} W_{hh}\bigg)
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
        dropout: Probability with which a number of a layer's output, except the last layer's, is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one, the non-linearity is unknown, or ``dropout`` is not a probability.

    The gradient cannot be differentiated again; a loop over :class:`RNNCell` can.
    """

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype)
        self.nonlinearity = _known(nonlinearity)

    def sequence(self, x, states, W_ih, W_hh, b_ih, b_hh):
        """One layer's pass over time: the hidden states."""
        (h,) = states
        return (_RNN.apply(x, h, W_ih, W_hh, b_ih + b_hh if self.bias else None, self.nonlinearity),)


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses to be differentiated again.

    PyTorch's own ``once_differentiable`` refuses in most cases, and in the others takes the gradient for a constant.

    Args:
        backward: The ``backward`` of a :class:`torch.autograd.Function`.

    Returns:
        The same, but it raises a RuntimeError where ``create_graph=True`` asks for a gradient with a graph of its own.
    """

    @wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a hand-written pass over time has no second derivative, so its gradient cannot be computed with "
                "create_graph=True: loop over the layer's cell instead"
            )
        return backward(ctx, *grads)

    return checked


class _RNN(torch.autograd.Function):
    """All steps of one layer, and the way back through them."""

    @staticmethod
    def forward(ctx, x, h, W_ih, W_hh, b, nonlinearity):
        hs = F.linear(x, W_ih, b)  # (time, batch, hidden): the inputs of all steps in one product
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


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # in the order in which they are drawn


def _add_weights(module, suffix, inputs, device, dtype):
    """Empty parameters for one step."""
    hidden = module.hidden_size
    if min(inputs, hidden) < 1:
        raise ValueError(f"input_size and hidden_size must be at least 1, got {inputs} and {hidden}")
    rows = module.gates * hidden
    for name, shape in zip(WEIGHTS, [(rows, inputs), (rows, hidden), (rows,), (rows,)], strict=True):
        wanted = module.bias or name.startswith("weight")
        parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
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


def _check_features(input, size):
    if not input.is_floating_point():
        raise TypeError(
            f"expected floating-point numbers, got {input.dtype}: look tokens up in an Embedding, "
            "or convert numbers with input.float()"
        )
    if input.shape[-1:] != (size,):
        raise ValueError(f"expected {size} features in the last dimension, got shape {tuple(input.shape)}")


def _checked_states(hx, count, shape, input):
    """As many states of that shape, zero if none are given."""
    if hx is None:
        return (input.new_zeros(shape),) * count
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if len(states) != count:
        wanted = "one state, a tensor" if count == 1 else "a pair of states, (h, c)"
        raise TypeError(f"expected {wanted}, got {'a tensor' if isinstance(hx, Tensor) else f'{len(states)} of them'}")
    for state in states:
        if state.shape != shape:
            raise ValueError(
                f"expected a state of shape {shape} for an input of shape {tuple(input.shape)}, "
                f"got {tuple(state.shape)}: leave it out to start at zero"
            )
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
    return x[-1] if lengths is None else x[lengths - 1, torch.arange(x.shape[1], device=x.device)]


class LanguageModel(nn.Module):
    r"""A recurrent network that reads characters, or other tokens, and says after each how likely every next one is.

    .. math:: x_t = E_{c_t}, \qquad h_t = f(x_t, h_{t-1}), \qquad z_t = h_t W^\top + b, \qquad
              \Pr(c_{t+1} = k \mid c_1, \dots, c_t) = \operatorname{softmax}(z_t)_k

    Reference: Mikolov, Karafiát, Burget, Černocký and Khudanpur, "Recurrent neural network based language model",
    *Interspeech* (2010).

    Args:
        vocabulary: How many different tokens there are.
        recurrent: :math:`f`, such as an :class:`RNN`, or PyTorch's. An :class:`Embedding` gives it vectors of its
            ``input_size``.
        dropout: The probability with which each number in :math:`h_t` is dropped on its way to the output, while
            training.

    Raises:
        ValueError: If ``recurrent`` is bidirectional, and would see the token that is to be predicted, or takes the
            batch first.
    """

    def __init__(self, vocabulary: int, recurrent: nn.Module, dropout: float = 0.0):
        super().__init__()
        if recurrent.bidirectional or recurrent.batch_first:
            raise ValueError(
                "a language model reads forward and step by step: build the recurrent layer without bidirectional "
                "(it would see the token that it has to predict) and without batch_first"
            )
        self.embedding = Embedding(vocabulary, recurrent.input_size)
        self.recurrent = recurrent
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(recurrent.hidden_size, vocabulary)

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: Any = None
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Any]:
        """The logits of each next token, and the state after the last one.

        Args:
            tokens: What is read, one text a row.
            state: What an earlier call returned, to go on where it stopped; by default nothing has been read yet.

        Returns:
            The logits :math:`z_t` for every step, and the state of ``recurrent``.
        """
        outputs, state = self.recurrent(self.embedding(tokens.T), state)  # (time, batch, hidden)
        return self.head(self.dropout(outputs)).transpose(0, 1), state


def fit_truncated(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, " tokens"],
    *,
    epochs: int = 1,
    batch_size: int = 32,
    time: int = 64,
    max_norm: float = 1.0,
    carry: bool = True,
    validation: Int[Tensor, " validation_tokens"] | None = None,
    scheduler: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train a language model by truncated backpropagation through time.

    The text is cut into ``batch_size`` streams, which are read side by side, ``time`` tokens in each step of the
    optimiser. The state at the end of one chunk is where the next begins, but as a number only: its graph is cut off,
    so no gradient reaches further back than ``time`` steps, and no more than those are kept in memory. What is left
    at the end of the streams, shorter than a chunk, is skipped.

    Gradients explode now and then in a recurrent network, so one that is longer than ``max_norm`` is shortened to it:

    .. math:: g \leftarrow g \min\!\Big(1, \frac{\texttt{max\_norm}}{\lVert g \rVert}\Big)

    As with :func:`companion.training.fit`, the same seed gives the same numbers, and the global random state and the
    modes of the modules are afterwards what they were.

    References: Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", *Neural Computation* 2 (1990); for the clipping Pascanu, Mikolov and Bengio, "On the difficulty of
    training recurrent neural networks", *ICML* (2013).

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state, as a :class:`LanguageModel` does.
        optimizer: Holds the model's parameters.
        tokens: The text to learn.
        epochs: How many passes through it; each begins with no state.
        batch_size: Number of streams.
        time: Length of a chunk in tokens, as far as a gradient reaches back.
        max_norm: The largest Euclidean length of the gradient of all parameters together; ``math.inf`` clips nothing.
        carry: Begin each chunk with the state in which the one before it ended. Without, the model forgets
            everything at each chunk's end.
        validation: A text whose :func:`bits_per_character` is measured after each epoch.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        seed: For what is random in the model, such as dropout.
        progress: Show a progress bar, which disappears at the end. The environment variable ``TQDM_DISABLE`` hides it.

    Returns:
        The loss of each step in nats a token and, with ``validation``, of each epoch: ``validation_loss`` in nats a
        token and ``validation_metric`` in bits.

    Raises:
        ValueError: If a number is out of range, or the text is shorter than one chunk for each stream.
    """
    from tqdm.auto import tqdm

    if min(epochs + 1, batch_size, time) < 1 or not max_norm > 0:
        raise ValueError(
            "epochs must not be negative, batch_size and time must be at least 1 and max_norm above 0, got "
            f"{epochs}, {batch_size}, {time} and {max_norm}"
        )
    inputs, targets = _streams(tokens.to(next(model.parameters()).device), batch_size)
    chunks = [slice(start, start + time) for start in range(0, inputs.shape[1] - time + 1, time)]
    if not chunks:
        raise ValueError(
            f"{batch_size} streams of {time} tokens and the one after each need {batch_size * time + 1} tokens, got "
            f"{len(tokens)}: shorten the chunks (time), or read fewer streams (batch_size)"
        )
    history = History(steps_per_epoch=len(chunks))
    hidden = not progress or "TQDM_DISABLE" in os.environ
    bar = tqdm(total=epochs * len(chunks), desc="training", unit="step", leave=False, disable=hidden)
    with bar, modes_kept(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for _ in range(epochs):
            model.train()
            begin = perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
            state = None
            for chunk in chunks:
                logits, state = model(inputs[:, chunk], _detached(state) if carry else None)
                loss = cross_entropy(logits.flatten(0, 1), targets[:, chunk].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                history.loss.append(loss.item())
                history.seconds.append(perf_counter() - begin)
                bar.update()
            if validation is not None:
                bits = bits_per_character(model, validation)
                history.validation_loss.append(bits * math.log(2))
                history.validation_metric.append(bits)
                bar.set_postfix(bits=bits)
    return history


@torch.no_grad()
def bits_per_character(model: nn.Module, tokens: Int[Tensor, " tokens"], streams: int = 16) -> float:
    r"""How many bits a language model needs for a character of a text that it reads for the first time.

    .. math:: -\frac1n \sum_t \log_2 \Pr(c_{t+1} \mid c_1, \dots, c_t)

    A model that gives the true next character a probability of one half each time needs one bit; one that knows only
    that there are 97 characters needs :math:`\log_2 97 \approx 6.6`.

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state.
        tokens: The text.
        streams: The text is cut into so many, which are read side by side because that is faster. Each begins with no
            state, which makes the result a few thousandths worse than that of one stream.

    Returns:
        Bits a character; lower is better.

    Raises:
        ValueError: If the text is too short for so many streams.
    """
    inputs, targets = _streams(tokens.to(next(model.parameters()).device), streams)
    total, state = 0.0, None
    with modes_kept(model):
        model.eval()
        for chunk, target in zip(inputs.split(256, dim=1), targets.split(256, dim=1), strict=True):
            logits, state = model(chunk, state)
            total += cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    return total / targets.numel() / math.log(2)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Int[Tensor, " prompt"],
    length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " length"]:
    r"""Let a language model write: draw a token, feed it back in, draw the next.

    .. math:: \Pr(c_{t+1} = k) = \operatorname{softmax}(z_t / \tau)_k

    At temperature :math:`\tau = 1` tokens come with the model's own probabilities. Below, the likely ones become
    likelier, until at 0 the likeliest is always taken; above, all become more alike.

    Reference: Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines", *Cognitive Science* 9
    (1985), for the temperature of a network.

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state.
        prompt: What the model reads before it writes; at least one token.
        length: How many tokens to write.
        temperature: :math:`\tau`, zero or more.
        generator: Makes the draws repeatable.

    Returns:
        The tokens that were written, without the prompt.

    Raises:
        ValueError: If the prompt is empty, or the length or the temperature negative.
    """
    if len(prompt) == 0 or length < 0 or not temperature >= 0:
        raise ValueError(
            "sampling needs a prompt of at least one token, and a length and a temperature of at least 0, got "
            f"{len(prompt)} tokens, {length} and {temperature}"
        )
    written, state = [], None
    token = prompt.to(next(model.parameters()).device)
    with modes_kept(model):
        model.eval()
        for _ in range(length):
            logits, state = model(token[None], state)
            z = logits[0, -1]
            if temperature == 0:
                token = z.argmax(keepdim=True)
            else:
                token = softmax(z / temperature, dim=0).multinomial(1, generator=generator)
            written.append(token)
    return torch.cat(written) if written else prompt[:0]


class NGram:
    r"""A language model that counts: how often has each token followed the last few?

    The more of them it looks at, the better its guess where it has seen them, and the rarer that is. So all lengths are
    mixed. Let a context :math:`h` have occurred :math:`N(h)` times, :math:`N(hc)` of them with :math:`c` after it, and
    let :math:`V(h)` different tokens have followed. The counts have a share of the probability, and the context that
    is one token shorter, :math:`h'`, distributes the rest. With ``"witten-bell"`` its share is that of new tokens
    among what followed,

    .. math:: \Pr(c \mid h) = \frac{N(hc) + V(h)\, \Pr(c \mid h')}{N(h) + V(h)},

    and with ``"kneser-ney"`` it is what a discount :math:`0 < D < 1` takes from every count,

    .. math:: \Pr(c \mid h) = \frac{\max(N(hc) - D,\, 0) + D\, V(h)\, \Pr(c \mid h')}{N(h)}, \qquad
              D = \frac{n_1 + 1}{n_1 + 2\, n_2 + 2},

    where :math:`n_1` and :math:`n_2` count what occurred once and twice (raised by one, so that :math:`D` is never
    zero). There, moreover, shorter contexts count not how *often* they occurred with :math:`c` after them, but after
    how many *different* tokens: what always stands in one place is no good guess elsewhere.

    A context that was never seen passes everything on to the shorter one, and the empty context to
    :math:`1 / \text{vocabulary}`.

    References: Witten and Bell, "The zero-frequency problem: estimating the probabilities of novel events in adaptive
    text compression", *IEEE Transactions on Information Theory* 37 (1991); Kneser and Ney, "Improved backing-off for
    m-gram language modeling", *ICASSP* (1995); for the mixed forms Chen and Goodman, "An empirical study of smoothing
    techniques for language modeling", *ACL* (1996).

    Args:
        order: :math:`n`, the length of what is counted: the last :math:`n - 1` tokens and the next. 1 is a unigram,
            2 a bigram.
        vocabulary: How many different tokens there are.
        smoothing: ``"witten-bell"`` or ``"kneser-ney"``.

    Raises:
        ValueError: If ``order`` is below one, or so large that the contexts cannot be numbered in 64 bits, or if the
            smoothing is neither of the two.
    """

    def __init__(self, order: int, vocabulary: int, smoothing: str = "witten-bell"):
        if order < 1 or vocabulary < 1 or vocabulary**order >= 2**63:
            raise ValueError(
                "an n-gram needs an order and a vocabulary of at least 1, and vocabulary ** order below 2 ** 63, got "
                f"{order} and {vocabulary}"
            )
        if smoothing not in ("witten-bell", "kneser-ney"):
            raise ValueError(f"smoothing must be 'witten-bell' or 'kneser-ney', got {smoothing!r}")
        self.order, self.vocabulary, self.smoothing = order, vocabulary, smoothing

    def fit(self, tokens: Int[Tensor, " tokens"]) -> "NGram":
        """Count.

        Args:
            tokens: The text to learn.

        Returns:
            The model itself.

        Raises:
            ValueError: If the text is empty, or a token is not in the vocabulary.
        """
        if len(tokens) == 0:
            raise ValueError("there is nothing to count in an empty text")
        self.counts_ = []
        for n in range(1, self.order + 1):
            counted = self._numbered(tokens, n)
            if self.smoothing == "kneser-ney" and n < self.order:  # once for each different token before
                counted = self._numbered(tokens, n + 1).unique() % self.vocabulary**n
            grams, occurrences = counted.unique(return_counts=True)
            contexts, which, followers = (grams // self.vocabulary).unique(return_inverse=True, return_counts=True)
            totals = torch.zeros_like(contexts).index_add_(0, which, occurrences)
            self.counts_.append((grams, occurrences, contexts, totals, followers))
        return self

    def probability(self, tokens: Int[Tensor, "*batch time"]) -> Float64[Tensor, "*batch time"]:
        """How likely each token is after those before it. Before the first stands token 0, as often as is needed.

        Args:
            tokens: A text, or several of the same length.

        Returns:
            The probability of each token.

        Raises:
            ValueError: If nothing has been counted yet, or a token is not in the vocabulary.
        """
        if not hasattr(self, "counts_"):
            raise ValueError("this model has counted nothing yet: call fit with a text first")
        p = torch.full(tokens.shape, 1 / self.vocabulary, dtype=torch.float64)
        for n, (grams, occurrences, contexts, totals, followers) in enumerate(self.counts_, start=1):
            gram = self._numbered(tokens, n)
            N_hc = _look_up(gram, grams, occurrences)
            N_h, V_h = (_look_up(gram // self.vocabulary, contexts, values) for values in (totals, followers))
            if self.smoothing == "witten-bell":
                mixed = (N_hc + V_h * p) / (N_h + V_h)
            else:
                n_1, n_2 = ((occurrences == times).sum().item() for times in (1, 2))
                D = (n_1 + 1) / (n_1 + 2 * n_2 + 2)
                mixed = ((N_hc - D).clamp(min=0) + D * V_h * p) / N_h
            p = torch.where(N_h > 0, mixed, p)  # 0 / 0 where the context was never seen
        return p

    def bits(self, tokens: Int[Tensor, " tokens"]) -> float:
        """Bits a token for a text, the mean of −log₂ of :meth:`probability`.

        Args:
            tokens: The text.

        Returns:
            Bits a token; lower is better.
        """
        return -self.probability(tokens).log2().mean().item()

    def _numbered(self, tokens, n):
        """For each place, the n tokens that end there as one number: the digits of a number to base ``vocabulary``."""
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(
                f"expected tokens from 0 to {self.vocabulary - 1}, got {tokens.min()} to {tokens.max()}: "
                "give vocabulary the number of different tokens"
            )
        padded = F.pad(tokens, (n - 1, 0))
        number = torch.zeros_like(tokens)
        for digit in padded.unfold(-1, n, 1).unbind(-1):
            number = number * self.vocabulary + digit
        return number


def _look_up(keys, known, values):
    """The value that belongs to each key, or 0 where the sorted ``known`` lack it."""
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return torch.where(known[place] == keys, values[place], 0).double()


def _streams(tokens, streams):
    """Inputs and targets (streams, time): a text cut into equal stretches, and the same shifted by one token."""
    length = (len(tokens) - 1) // streams if streams > 0 else 0
    if length < 1:
        raise ValueError(
            f"{streams} streams need at least one token each, and one after the last, got {len(tokens)} tokens: "
            "read fewer streams, but at least one"
        )
    return tuple(tokens[shift : shift + streams * length].view(streams, length) for shift in (0, 1))


def _detached(state):
    """A state, whatever tensors it is made of, cut off from the graph that computed it."""
    if isinstance(state, tuple):
        return tuple(map(_detached, state))
    return None if state is None else state.detach()
