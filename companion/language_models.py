r"""Language models: how likely is each next character, or other token, after those before it?

Taught in chapter *Language models*. An :class:`Embedding` gives each token a vector, a
:class:`LanguageModel` reads them with a recurrent layer, :func:`fit_truncated` trains it,
:func:`bits_per_character` judges it, and :func:`sample` lets it write. :class:`NGram` is the
model to beat, which only counts.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F

from companion.activations import softmax
from companion.checks import Unbounded, accepts, checked
from companion.layers import Linear, cross_entropy
from companion.training import History, modes_kept, share, train

__all__ = [
    "Embedding",
    "LanguageModel",
    "NGram",
    "bits_per_character",
    "fit_truncated",
    "sample",
]


class Embedding(nn.Module):
    r"""A table with one vector for each token; the layer looks them up.

    .. math:: y = E_k

    That is the product of a one-hot row vector with the matrix :math:`E`, without the
    multiplications by zero. Interchangeable with :class:`torch.nn.Embedding`: the same
    parameter, and for the same seed the same initial numbers, drawn from
    :math:`\mathcal N(0, 1)`. Reference: Bengio, Ducharme, Vincent and Jauvin, *A neural
    probabilistic language model*, Journal of Machine Learning Research 3 (2003).

    Left out: ``max_norm`` and ``norm_type``, ``scale_grad_by_freq``, and ``sparse``.

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

    @accepts(max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False)
    @checked
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
                f"expected at least one token and one number for each, got {num_embeddings} "
                f"and {embedding_dim}"
            )
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx must be one of the {num_embeddings} tokens, got {padding_idx}: "
                "count the padding as a token of its own in num_embeddings"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.weight = nn.Parameter(
            torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial vectors anew."""
        self.weight.normal_()
        if self.padding_idx is not None:
            self.weight[self.padding_idx] = 0

    @checked
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
            raise TypeError(
                f"expected tokens of type torch.int64, got {input.dtype}: convert with "
                "tokens.long()"
            )
        if (
            input.numel()
            and (wrong := input[(input < 0) | (input >= self.num_embeddings)]).numel()
        ):
            raise ValueError(
                f"expected tokens from 0 to {self.num_embeddings - 1}, got {wrong[0]}: "
                "num_embeddings must be the size of the vocabulary"
            )
        tokens = input.flatten()
        vectors = self.weight.index_select(0, tokens)
        if self.padding_idx is not None:
            vectors = torch.where(
                tokens[:, None] == self.padding_idx, vectors.detach(), vectors
            )
        return vectors.view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """The sizes, for ``print(layer)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LanguageModel(nn.Module):
    r"""A recurrent network that reads characters, or other tokens, and says after each how
    likely every next one is.

    .. math:: x_t = E_{c_t}, \qquad h_t = f(x_t, h_{t-1}), \qquad z_t = h_t W^\top + b, \qquad
              \Pr(c_{t+1} = k \mid c_1, \dots, c_t) = \operatorname{softmax}(z_t)_k

    Reference: Mikolov, Karafiát, Burget, Černocký and Khudanpur, "Recurrent neural network
    based language model", *Interspeech* (2010).

    Args:
        vocabulary: How many different tokens there are.
        recurrent: :math:`f`, such as an :class:`~companion.recurrence.RNN`, or PyTorch's. An
            :class:`Embedding` gives it vectors of its ``input_size``.
        dropout: The probability with which each number in :math:`h_t` is dropped on its way to
            the output, while training.

    Raises:
        ValueError: If ``recurrent`` is bidirectional, and would see the token that is to be
            predicted, or takes the batch first.
    """

    @checked
    def __init__(self, vocabulary: int, recurrent: nn.Module, dropout: float = 0.0):
        super().__init__()
        if recurrent.bidirectional or recurrent.batch_first:
            raise ValueError(
                "a language model reads forward and step by step: build the recurrent layer "
                "without bidirectional (it would see the token that it has to predict) and "
                "without batch_first"
            )
        self.embedding = Embedding(vocabulary, recurrent.input_size)
        self.recurrent = recurrent
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(recurrent.hidden_size, vocabulary)

    @checked
    def forward(
        self, tokens: Int[Tensor, "batch time"], state: Any = None
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Any]:
        """The logits of each next token, and the state after the last one.

        Args:
            tokens: What is read, one text a row.
            state: What an earlier call returned, to go on where it stopped; by default nothing
                has been read yet.

        Returns:
            The logits :math:`z_t` for every step, and the state of ``recurrent``.
        """
        # (time, batch, hidden)
        outputs, state = self.recurrent(self.embedding(tokens.T), state)
        return self.head(self.dropout(outputs)).transpose(0, 1), state


@checked
def fit_truncated(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, " tokens"],
    *,
    epochs: int = 1,
    batch_size: int = 32,
    time: int = 64,
    max_norm: Unbounded = 1.0,
    carry: bool = True,
    validation: Int[Tensor, " validation_tokens"] | None = None,
    scheduler: Any = None,
    stop: Callable[[History], bool] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train a language model by truncated backpropagation through time.

    The text is cut into ``batch_size`` streams, which are read side by side, ``time`` tokens in
    each step of the optimiser. The state at the end of one chunk is where the next begins, but
    as a number only: its graph is cut off, so no gradient reaches further back than ``time``
    steps, and no more than those are kept in memory. What is left at the end of the streams,
    shorter than a chunk, is skipped.

    Gradients explode now and then in a recurrent network, so one that is longer than
    ``max_norm`` is shortened to it:

    .. math:: g \leftarrow g \min\!\Big(1, \frac{\texttt{max\_norm}}{\lVert g \rVert}\Big)

    The loop is :func:`companion.training.train`: the same seed gives the same numbers, and the
    global random state and the modes of the modules are afterwards what they were. Several
    processes divide the streams among them.

    References: Williams and Peng, "An efficient gradient-based algorithm for on-line training
    of recurrent network trajectories", *Neural Computation* 2 (1990); for the clipping Pascanu,
    Mikolov and Bengio, "On the difficulty of training recurrent neural networks", *ICML*
    (2013).

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state, as a
            :class:`LanguageModel` does.
        optimizer: Holds the model's parameters.
        tokens: The text to learn.
        epochs: How many passes through it; each begins with no state.
        batch_size: Number of streams.
        time: Length of a chunk in tokens, as far as a gradient reaches back.
        max_norm: The largest Euclidean length of the gradient of all parameters together;
            ``math.inf`` clips nothing.
        carry: Begin each chunk with the state in which the one before it ended. Without, the
            model forgets everything at each chunk's end.
        validation: A text whose :func:`bits_per_character` is measured after each epoch.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        stop: Whether to end after an epoch, as in :func:`~companion.training.train`.
        checkpoint: The file to go on from and to write, as there.
        seed: For what is random in the model, such as dropout.
        progress: Show a progress bar, which disappears at the end. The environment variable
            ``TQDM_DISABLE`` hides it.

    Returns:
        The loss of each step in nats a token, the length of each gradient and, with
        ``validation``, for each epoch ``validation_loss`` in nats a token and
        ``validation_metric`` in bits.

    Raises:
        ValueError: If a number is out of range, the text is shorter than one chunk for each
            stream, or ``train`` refuses something.
        FloatingPointError: If the loss is not finite.
    """
    if min(epochs + 1, batch_size, time) < 1 or not max_norm > 0:
        raise ValueError(
            "epochs must not be negative, batch_size and time must be at least 1 and max_norm "
            f"above 0, got {epochs}, {batch_size}, {time} and {max_norm}"
        )
    inputs, targets = _streams(tokens.to(next(model.parameters()).device), batch_size)
    chunks = [
        slice(start, start + time) for start in range(0, inputs.shape[1] - time + 1, time)
    ]
    if not chunks:
        raise ValueError(
            f"{batch_size} streams of {time} tokens and the one after each need "
            f"{batch_size * time + 1} tokens, got {len(tokens)}: shorten the chunks (time), or "
            "read fewer streams (batch_size)"
        )
    inputs, targets = share(inputs), share(targets)
    state = None

    def step(chunk):
        nonlocal state
        begins = chunk.start == 0 or not carry
        logits, state = model(inputs[:, chunk], None if begins else _detached(state))
        return cross_entropy(logits.flatten(0, 1), targets[:, chunk].flatten())

    def measure():
        bits = bits_per_character(model, validation)
        return bits * math.log(2), bits

    return train(
        step,
        optimizer,
        chunks,
        model=model,
        epochs=epochs,
        scheduler=scheduler,
        max_norm=max_norm,
        validation=None if validation is None else measure,
        stop=stop,
        checkpoint=checkpoint,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
@checked
def bits_per_character(
    model: nn.Module, tokens: Int[Tensor, " tokens"], streams: int = 16
) -> float:
    r"""How many bits a language model needs for a character of a text that it reads for the
    first time.

    .. math:: -\frac1n \sum_t \log_2 \Pr(c_{t+1} \mid c_1, \dots, c_t)

    A model that gives the true next character a probability of one half each time needs one
    bit; one that knows only that there are 97 characters needs :math:`\log_2 97 \approx 6.6`.

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state.
        tokens: The text.
        streams: The text is cut into so many, which are read side by side because that is
            faster. Each begins with no state, which makes the result a few thousandths worse
            than that of one stream.

    Returns:
        Bits a character; lower is better.

    Raises:
        ValueError: If the text is too short for so many streams.
    """
    inputs, targets = _streams(tokens.to(next(model.parameters()).device), streams)
    total, state = 0.0, None
    with modes_kept(model):
        model.eval()
        for chunk, target in zip(
            inputs.split(256, dim=1), targets.split(256, dim=1), strict=True
        ):
            logits, state = model(chunk, state)
            total += cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="sum"
            ).item()
    return total / targets.numel() / math.log(2)


@torch.no_grad()
@checked
def sample(
    model: nn.Module,
    prompt: Int[Tensor, " prompt"],
    length: int,
    temperature: Unbounded = 1.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Int[Tensor, " length"]:
    r"""Let a language model write: draw a token, feed it back in, draw the next.

    .. math:: \Pr(c_{t+1} = k) = \operatorname{softmax}(z_t / \tau)_k

    At temperature :math:`\tau = 1` tokens come with the model's own probabilities. Below, the
    likely ones become likelier, until at 0 the likeliest is always taken; above, all become
    more alike.

    The tail of the distribution can be cut off before the draw: after the temperature only the
    ``top_k`` likeliest tokens are kept, and of these, with their probabilities made to add up
    to one again, the fewest that together have at least ``top_p`` (the *nucleus*). Of equally
    likely tokens the one of lower number comes first.

    References: Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines",
    *Cognitive Science* 9 (1985), for the temperature of a network; Fan, Lewis and Dauphin,
    "Hierarchical neural story generation", *ACL* (2018), for ``top_k``; Holtzman, Buys, Du,
    Forbes and Choi, "The curious case of neural text degeneration", *ICLR* (2020), for
    ``top_p``.

    Args:
        model: Maps tokens (batch, time) and a state to logits and a state.
        prompt: What the model reads before it writes; at least one token.
        length: How many tokens to write.
        temperature: :math:`\tau`, zero or more.
        generator: Makes the draws repeatable.
        top_k: How many tokens to choose from, at least 1; by default from all of them.
        top_p: The share of the probability to choose from, above 0; by default 1, all of it.

    Returns:
        The tokens that were written, without the prompt.

    Raises:
        ValueError: If the prompt is empty, the length or the temperature negative, or ``top_k``
            or ``top_p`` out of range.
    """
    if len(prompt) == 0 or length < 0 or not temperature >= 0:
        raise ValueError(
            "sampling needs a prompt of at least one token, and a length and a temperature of "
            f"at least 0, got {len(prompt)} tokens, {length} and {temperature}"
        )
    if (top_k is not None and top_k < 1) or not 0 < top_p <= 1:
        raise ValueError(
            "there must be a token left to choose: top_k must be at least 1 and top_p above 0 "
            f"and at most 1, got {top_k} and {top_p}"
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
                p = _without_tail(softmax(z / temperature, dim=0), top_k, top_p)
                token = p.multinomial(1, generator=generator)
            written.append(token)
    return torch.cat(written) if written else prompt[:0]


def _without_tail(p, top_k, top_p):
    """The probabilities with zeros for all but the likeliest tokens, adding up to one again."""
    kept, tokens = p.sort(descending=True, stable=True)
    kept = kept[:top_k] / kept[:top_k].sum()
    if top_p < 1:
        before = kept.cumsum(0) - kept
        kept = kept[before < top_p]
    return torch.zeros_like(p).scatter(0, tokens[: len(kept)], kept / kept.sum())


class NGram:
    r"""A language model that counts: how often has each token followed the last few?

    The more of them it looks at, the better its guess where it has seen them, and the rarer
    that is. So all lengths are mixed. Let a context :math:`u` have occurred :math:`N(u)` times,
    :math:`N(uc)` of them with :math:`c` after it, and let :math:`V(u)` different tokens have
    followed. The counts have a share of the probability, and the context that is one token
    shorter, :math:`u'`, distributes the rest. With ``"witten-bell"`` its share is that of new
    tokens among what followed,

    .. math:: \Pr(c \mid u) = \frac{N(uc) + V(u)\, \Pr(c \mid u')}{N(u) + V(u)},

    and with ``"kneser-ney"`` it is what a discount :math:`0 < D < 1` takes from every count,

    .. math:: \Pr(c \mid u)
                  = \frac{\max(N(uc) - D,\, 0) + D\, V(u)\, \Pr(c \mid u')}{N(u)}, \qquad
              D = \frac{n_1 + 1}{n_1 + 2\, n_2 + 2},

    where :math:`n_1` and :math:`n_2` count what occurred once and twice (raised by one, so that
    :math:`D` is never zero). There, moreover, shorter contexts count not how *often* they
    occurred with :math:`c` after them, but after how many *different* tokens: what always
    stands in one place is no good guess elsewhere.

    A context that was never seen passes everything on to the shorter one, and the empty context
    to :math:`1 / \text{vocabulary}`.

    References: Witten and Bell, "The zero-frequency problem: estimating the probabilities of
    novel events in adaptive text compression", *IEEE Transactions on Information Theory* 37
    (1991); Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic
    language modelling", *Computer Speech & Language* 8 (1994), for the discount; Kneser and
    Ney, "Improved backing-off for m-gram language modeling", *ICASSP* (1995), for the counts of
    shorter contexts; for the mixed form Chen and Goodman, "An empirical study of smoothing
    techniques for language modeling", *Computer Speech & Language* 13 (1999).

    Args:
        order: :math:`n`, the length of what is counted: the last :math:`n - 1` tokens and the
            next. 1 is a unigram, 2 a bigram.
        vocabulary: How many different tokens there are.
        smoothing: ``"witten-bell"`` or ``"kneser-ney"``.

    Raises:
        ValueError: If ``order`` is below one, or so large that the contexts cannot be numbered
            in 64 bits, or if the smoothing is neither of the two.
    """

    @checked
    def __init__(self, order: int, vocabulary: int, smoothing: str = "witten-bell"):
        if order < 1 or vocabulary < 1 or vocabulary**order >= 2**63:
            raise ValueError(
                "an n-gram needs an order and a vocabulary of at least 1, and vocabulary ** "
                f"order below 2 ** 63, got {order} and {vocabulary}"
            )
        if smoothing not in ("witten-bell", "kneser-ney"):
            raise ValueError(
                f"smoothing must be 'witten-bell' or 'kneser-ney', got {smoothing!r}"
            )
        self.order, self.vocabulary, self.smoothing = order, vocabulary, smoothing

    @checked
    def fit(self, tokens: Int[Tensor, " tokens"]) -> "NGram":
        """Count.

        Args:
            tokens: The text to learn.

        Returns:
            The model itself.

        Raises:
            ValueError: If the text is empty, or a token is not in the vocabulary.
        """
        self.counts_ = []
        for n in range(1, self.order + 1):
            counted = self._numbered(tokens, n)
            # once for each different token before
            if self.smoothing == "kneser-ney" and n < self.order:
                counted = self._numbered(tokens, n + 1).unique() % self.vocabulary**n
            grams, occurrences = counted.unique(return_counts=True)
            contexts, which, followers = (grams // self.vocabulary).unique(
                return_inverse=True, return_counts=True
            )
            totals = torch.zeros_like(contexts).index_add_(0, which, occurrences)
            self.counts_.append((grams, occurrences, contexts, totals, followers))
        return self

    @checked
    def probability(self, tokens: Int[Tensor, "*batch time"]) -> Float64[Tensor, "*batch time"]:
        """How likely each token is after those before it. Before the first stands token 0, as
        often as is needed.

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
        for n, (grams, occurrences, contexts, totals, followers) in enumerate(
            self.counts_, start=1
        ):
            gram = self._numbered(tokens, n)
            N_uc = _look_up(gram, grams, occurrences)
            N_u, V_u = (
                _look_up(gram // self.vocabulary, contexts, values)
                for values in (totals, followers)
            )
            if self.smoothing == "witten-bell":
                mixed = (N_uc + V_u * p) / (N_u + V_u)
            else:
                n_1, n_2 = ((occurrences == times).sum().item() for times in (1, 2))
                D = (n_1 + 1) / (n_1 + 2 * n_2 + 2)
                mixed = ((N_uc - D).clamp(min=0) + D * V_u * p) / N_u
            p = torch.where(N_u > 0, mixed, p)  # 0 / 0 where the context was never seen
        return p

    @checked
    def bits(self, tokens: Int[Tensor, " tokens"]) -> float:
        """Bits a token for a text, the mean of −log₂ of :meth:`probability`.

        Args:
            tokens: The text.

        Returns:
            Bits a token; lower is better.
        """
        return -self.probability(tokens).log2().mean().item()

    def _numbered(self, tokens, n):
        """For each place, the n tokens that end there as one number: the digits of a number to
        base ``vocabulary``.
        """
        if tokens.numel() == 0:
            raise ValueError(
                "there is nothing to count in an empty text: give at least one token"
            )
        if not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(
                f"expected tokens from 0 to {self.vocabulary - 1}, got {tokens.min()} to "
                f"{tokens.max()}: give vocabulary the number of different tokens"
            )
        padded = F.pad(tokens.long(), (n - 1, 0))
        number = torch.zeros_like(tokens, dtype=torch.int64)
        for digit in padded.unfold(-1, n, 1).unbind(-1):
            number = number * self.vocabulary + digit
        return number


def _look_up(keys, known, values):
    """The value that belongs to each key, or 0 where the sorted ``known`` lack it."""
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return torch.where(known[place] == keys, values[place], 0).double()


def _streams(tokens, streams):
    """Inputs and targets (streams, time): a text cut into equal stretches, and the same shifted
    by one token.
    """
    length = (len(tokens) - 1) // streams if streams > 0 else 0
    if length < 1:
        raise ValueError(
            f"{streams} streams need at least one token each, and one after the last, got "
            f"{len(tokens)} tokens: read fewer streams, but at least one"
        )
    return tuple(
        tokens[shift : shift + streams * length].view(streams, length) for shift in (0, 1)
    )


def _detached(state):
    """A state, whatever tensors it is made of, cut off from the graph that computed it."""
    if isinstance(state, tuple):
        return tuple(map(_detached, state))
    return None if state is None else state.detach()
