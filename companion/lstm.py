r"""Gated recurrent networks: the long short-term memory, and its smaller relative, the gated
recurrent unit.

Taught in chapter *LSTM*. Names and arguments are those of ``torch.nn``, and a state dict moves
both ways. The argument ``proj_size``, a linear map of the LSTM's state, is left out.

:class:`LSTMCell` and :class:`GRUCell` are the equations of one step. :class:`LSTM` and
:class:`GRU` give the same for whole sequences, with the layers, directions and packed sequences
of :class:`companion.recurrence.Recurrent`. The pass of the LSTM over time is one
:class:`torch.autograd.Function` with a gradient written by hand; the GRU leaves its own to
autograd.

References: Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 9 (1997);
for the forget gate Gers, Schmidhuber and Cummins, *Learning to forget: continual prediction
with LSTM*, Neural Computation 12 (2000); for the gradient through all gates and all steps
Graves and Schmidhuber, *Framewise phoneme classification with bidirectional LSTM and other
neural network architectures*, Neural Networks 18 (2005); for the GRU Cho et al., *Learning
phrase representations using RNN encoder–decoder for statistical machine translation*, EMNLP
2014.
"""

from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from companion.checks import accepts
from companion.datasets import CHARACTERS
from companion.language_models import LanguageModel
from companion.recurrence import Recurrent, RecurrentCell, first_derivative_only

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell", "pretrained_language_model"]


class LSTMCell(RecurrentCell):
    r"""One step of a long short-term memory: three gates decide what is kept, what is written
    and what is shown.

    .. math::

        i_t &= \sigma\big(x_t W_{ii}^\top + b_{ii} + h_{t-1} W_{hi}^\top + b_{hi}\big) &&
        \text{input gate} \\ f_t &= \sigma\big(x_t W_{if}^\top + b_{if} + h_{t-1} W_{hf}^\top +
        b_{hf}\big) && \text{forget gate} \\ g_t &= \tanh\big(x_t W_{ig}^\top + b_{ig} + h_{t-1}
        W_{hg}^\top + b_{hg}\big) && \text{candidate} \\ o_t &= \sigma\big(x_t W_{io}^\top +
        b_{io} + h_{t-1} W_{ho}^\top + b_{ho}\big) && \text{output gate} \\ c_t &= f_t \odot
        c_{t-1} + i_t \odot g_t && \text{cell state} \\ h_t &= o_t \odot \tanh c_t &&
        \text{hidden state}

    The four blocks of rows of each weight and bias stand in the order i, f, g, o.
    Interchangeable with :class:`torch.nn.LSTMCell`.

    Args:
        input_size: Length of :math:`x_t`.
        hidden_size: Length of :math:`h_t` and of :math:`c_t`.
        bias: Whether to add biases.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one.
    """

    gates, states = 4, 2

    def forward(
        self,
        input: Float[Tensor, "*batch inputs"],
        hx: tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]] | None = None,
    ) -> tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]]:
        """The two states after one step.

        Args:
            input: :math:`x_t`, one vector for each sequence.
            hx: :math:`h_{t-1}` and :math:`c_{t-1}`; zero by default.

        Returns:
            :math:`h_t` and :math:`c_t`.

        Raises:
            TypeError: If the input does not hold floating-point numbers, or ``hx`` is not a
                pair.
            ValueError: If a shape is not what it should be.
        """
        h, c = self.start(input, hx)
        s = linear(input, self.weight_ih, self.bias_ih) + linear(
            h, self.weight_hh, self.bias_hh
        )
        i, f, g, o = s.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class LSTM(Recurrent):
    r"""Layers of long short-term memories, each as in :class:`LSTMCell`, over whole sequences.

    Interchangeable with :class:`torch.nn.LSTM` (without ``proj_size``): ``output, (h, c) =
    lstm(input, (h, c))``.

    **Backpropagation through time.** Let :math:`\bar h_t` and :math:`\bar c_t` be the gradients
    of the loss :math:`L` with respect to the states, and :math:`\delta_t` that with respect to
    the four sums inside the gates. From the last step to the first,

    .. math::

        \bar h_t &= \frac{\partial L}{\partial h_t}\bigg|_{\text{direct}}
                    + \delta_{t+1} W_{hh} \\
        \bar c_t &= \frac{\partial L}{\partial c_t}\bigg|_{\text{direct}}
                    + \bar c_{t+1} \odot f_{t+1}
                    + \bar h_t \odot o_t \odot (1 - \tanh^2 c_t) \\
        \delta^i_t &= \bar c_t \odot g_t \odot i_t \odot (1 - i_t), \qquad
        \delta^f_t = \bar c_t \odot c_{t-1} \odot f_t \odot (1 - f_t) \\
        \delta^g_t &= \bar c_t \odot i_t \odot (1 - g_t^2), \qquad
        \delta^o_t = \bar h_t \odot \tanh c_t \odot o_t \odot (1 - o_t)

    and then, with all steps in one product,

    .. math::

        \frac{\partial L}{\partial W_{ih}} = \sum_t \delta_t^\top x_t, \qquad
        \frac{\partial L}{\partial W_{hh}} = \sum_t \delta_t^\top h_{t-1}, \qquad
        \frac{\partial L}{\partial b} = \sum_t \delta_t, \qquad
        \frac{\partial L}{\partial x_t} = \delta_t W_{ih}.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of each of the two states.
        num_layers: How many layers are stacked.
        bias: Whether to add biases.
        batch_first: Whether tensors are (batch, time, features), not (time, batch, features).
        dropout: Probability with which a number of a layer's output, except the last layer's,
            is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.

    The gradient cannot be differentiated again; a loop over :class:`LSTMCell` can.
    """

    gates, states = 4, 2
    __init__ = accepts(proj_size=0)(Recurrent.__init__)

    def sequence(self, x, states, W_ih, W_hh, b_ih, b_hh):
        """One layer's pass over time: the hidden and the cell states."""
        return _LSTM.apply(x, *states, W_ih, W_hh, b_ih + b_hh if self.bias else None)


class _LSTM(torch.autograd.Function):
    """All steps of one layer, and the way back through them. Capital letters hold all steps,
    small ones one step.
    """

    @staticmethod
    def forward(ctx, x, h, c, W_ih, W_hh, b):
        # (time, batch, 4 hidden): the inputs of all steps in one product
        S = linear(x, W_ih, b)
        I, F, G, O = S.chunk(4, dim=-1)
        IF = S[..., : 2 * h.shape[1]]  # side by side, for they have the same non-linearity
        H, C, tanh_C = (torch.empty_like(I) for _ in range(3))  # (time, batch, hidden)
        ctx.save_for_backward(x, h, c, W_ih, W_hh, S, H, C, tanh_C)
        for s, i_f, i, f, g, o, h_t, c_t, tanh_c in _steps(S, IF, I, F, G, O, H, C, tanh_C):
            s.addmm_(h, W_hh.T)
            # in place, so that the sums become the gates
            i_f.sigmoid_(), g.tanh_(), o.sigmoid_()
            c = torch.mul(f, c, out=c_t).addcmul_(i, g)
            h = torch.mul(o, torch.tanh(c, out=tanh_c), out=h_t)
        return H, C

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_H, grad_C):
        x, h, c, W_ih, W_hh, S, H, C, tanh_C = ctx.saved_tensors
        I, F, G, O = S.chunk(4, dim=-1)
        H_before, C_before = torch.cat([h[None], H[:-1]]), torch.cat([c[None], C[:-1]])
        # What each sum does to c (the first three) or to h (the last) is known for all steps
        # beforehand ...
        D = torch.addcmul(S, S, S, value=-1)  # σ (1 − σ), for three of the four
        D_i, D_f, D_g, D_o = D.chunk(4, dim=-1)
        D_i *= G
        D_f *= C_before
        torch.mul(1 - G * G, I, out=D_g)
        D_o *= tanh_C
        D_ifg = D.unflatten(-1, (4, -1))[:, :, :3]  # (time, batch, 3, hidden)
        V = torch.addcmul(O, H, tanh_C, value=-1)  # from c to h: o (1 − tanh² c)
        # ... and only what comes from later steps is left to the loop
        dh, dc = torch.zeros_like(h), torch.zeros_like(c)
        for grad_h, grad_c, v, f, d, d_ifg, d_o in reversed(
            [*_steps(grad_H, grad_C, V, F, D, D_ifg, D_o)]
        ):
            dh += grad_h
            dc.add_(grad_c).addcmul_(dh, v)
            d_ifg *= dc[:, None]
            d_o *= dh
            torch.mm(d, W_hh, out=dh)
            dc *= f
        deltas = D.flatten(0, 1)  # (time · batch, 4 hidden)
        return (
            (deltas @ W_ih).view_as(x) if ctx.needs_input_grad[0] else None,
            dh,
            dc,
            deltas.T @ x.flatten(0, 1),
            deltas.T @ H_before.flatten(0, 1),
            deltas.sum(0) if ctx.needs_input_grad[5] else None,
        )


def _steps(*sequences):
    """For each step a tuple of what the sequences hold there."""
    return zip(*(sequence.unbind() for sequence in sequences), strict=True)


class GRUCell(RecurrentCell):
    r"""One step of a gated recurrent unit: two gates, and no state but the hidden one.

    .. math::

        r_t &= \sigma\big(x_t W_{ir}^\top + b_{ir} + h_{t-1} W_{hr}^\top + b_{hr}\big) &&
        \text{reset gate} \\ u_t &= \sigma\big(x_t W_{iu}^\top + b_{iu} + h_{t-1} W_{hu}^\top +
        b_{hu}\big) && \text{update gate} \\ n_t &= \tanh\big(x_t W_{in}^\top + b_{in} + r_t
        \odot (h_{t-1} W_{hn}^\top + b_{hn})\big) && \text{candidate} \\ h_t &= (1 - u_t) \odot
        n_t + u_t \odot h_{t-1}

    The three blocks of rows of each weight and bias stand in the order r, u, n. Interchangeable
    with :class:`torch.nn.GRUCell`, whose description calls the update gate z. In the paper the
    reset gate acts on the state before the product with the weights; this is PyTorch's form, in
    which both products can be made at once.

    Args:
        input_size: Length of :math:`x_t`.
        hidden_size: Length of :math:`h_t`.
        bias: Whether to add biases.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one.
    """

    gates = 3

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
        return _gru_step(
            linear(input, self.weight_ih, self.bias_ih), h, self.weight_hh, self.bias_hh
        )


class GRU(Recurrent):
    """Layers of gated recurrent units, each as in :class:`GRUCell`, over whole sequences.

    Interchangeable with :class:`torch.nn.GRU`.

    Args:
        input_size: Length of the input of one step.
        hidden_size: Length of the state.
        num_layers: How many layers are stacked.
        bias: Whether to add biases.
        batch_first: Whether tensors are (batch, time, features), not (time, batch, features).
        dropout: Probability with which a number of a layer's output, except the last layer's,
            is zero in training.
        bidirectional: Whether each layer reads in both directions.
        device: Where the parameters live.
        dtype: Their float type.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.
    """

    gates = 3

    def sequence(self, x, states, W_ih, W_hh, b_ih, b_hh):
        """One layer's pass over time: the hidden states."""
        (h,) = states
        hs = []
        for from_input in linear(x, W_ih, b_ih):
            h = _gru_step(from_input, h, W_hh, b_hh)
            hs.append(h)
        return (torch.stack(hs),)


def _gru_step(from_input, h, W_hh, b_hh):
    """The new state, given what the input contributes to the three sums."""
    from_state = linear(h, W_hh, b_hh)
    (r, u, n), (r_h, u_h, n_h) = from_input.chunk(3, dim=-1), from_state.chunk(3, dim=-1)
    r, u = (r + r_h).sigmoid(), (u + u_h).sigmoid()
    n = (n + r * n_h).tanh()
    return (1 - u) * n + u * h


def pretrained_language_model() -> LanguageModel:
    """A language model of Python's documentation that comes with the companion, and need not be
    trained.

    Two LSTM layers of 256 units read characters as vectors of 64 numbers. It was trained on the
    first part of :func:`companion.datasets.python_documentation`, chosen on the second, and has
    not seen the third. ``companion/data/write_language_model.py`` wrote the file, in half
    precision.

    Returns:
        The model, in evaluation mode and single precision; :func:`companion.datasets.encode`
        makes its tokens.
    """
    from safetensors.torch import load

    model = LanguageModel(
        len(CHARACTERS), LSTM(64, 256, num_layers=2, dropout=0.2), dropout=0.2
    )
    model.load_state_dict(
        load((files("companion") / "data" / "language_model.safetensors").read_bytes())
    )
    return model.eval()
