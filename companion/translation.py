r"""Machine translation: one network reads a sentence, another writes it in a second language
and looks back at the first while it writes.

Taught in chapter *Machine translation*. A :class:`Vocabulary` of words, or of pieces of words
that :func:`bpe` finds, makes tokens of texts. An :class:`Encoder` and a :class:`Decoder`, with
a :class:`DotProductAttention` or :class:`AdditiveAttention` between them, make a
:class:`Translator`; :func:`fit_translator` trains it on minibatches of
:class:`SimilarLengths`, :func:`greedy` and :func:`beam_search` let it write, and :func:`bleu`
judges what it wrote.

References: Sutskever, Vinyals and Le, "Sequence to sequence learning with neural networks",
*NIPS* (2014); Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to
align and translate", *ICLR* (2015); Luong, Pham and Manning, "Effective approaches to
attention-based neural machine translation", *EMNLP* (2015).
"""

import heapq
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from companion.activations import log_softmax
from companion.checks import Unbounded, check_alike, checked
from companion.language_models import Embedding
from companion.layers import Linear, cross_entropy
from companion.lstm import LSTM
from companion.training import History, modes_kept, train

__all__ = [
    "BEGIN",
    "END",
    "PADDING",
    "UNKNOWN",
    "AdditiveAttention",
    "Bleu",
    "Decoder",
    "DotProductAttention",
    "Encoder",
    "SimilarLengths",
    "Translator",
    "Vocabulary",
    "beam_search",
    "bleu",
    "bpe",
    "dot_product_attention",
    "fit_translator",
    "greedy",
    "pretrained_translator",
    "word_vocabulary",
]

PADDING = 0
"""The token that fills up the shorter texts of a minibatch."""
UNKNOWN = 1
"""The token for what a vocabulary lacks."""
BEGIN = 2
"""The token with which every text begins."""
END = 3
"""The token with which every text ends."""
_SPECIAL = ("<padding>", "<unknown>", "<begin>", "<end>")


class Vocabulary:
    """The tokens of a language and their numbers.

    A text is split into words and punctuation marks, each with the blank before it, so that
    putting them together gives the text back. With ``merges`` a word is split further: into its
    characters, which are then put together again, pair by pair, in the order of the list. So a
    word that was never seen is several known pieces, not an unknown one.

    Args:
        tokens: All tokens; the four special ones, for padding, what is unknown, the beginning
            and the end of a text, are put before them as numbers 0 to 3.
        merges: The pairs of pieces that are put together; by default words stay whole.

    Attributes:
        tokens: What each number stands for.
        merges: As given.

    Raises:
        ValueError: If a token is twice among them.

    See :func:`word_vocabulary` and :func:`bpe`, which find the tokens in texts.
    """

    @checked
    def __init__(
        self, tokens: Sequence[str], merges: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self.tokens, self.merges = [*_SPECIAL, *tokens], merges
        self._number = {token: number for number, token in enumerate(self.tokens)}
        if len(self._number) < len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"tokens must be different from each other, got {twice!r} twice")
        self._rank = {tuple(pair): rank for rank, pair in enumerate(merges or ())}
        self._pieces = {}  # of words that have been split before

    def __len__(self) -> int:
        return len(self.tokens)

    @checked
    def split(self, text: str) -> list[str]:
        """The tokens of a text, as strings.

        Args:
            text: Any text.

        Returns:
            Words or pieces of words. Together they are the text with a blank before it.
        """
        words = _words(text)
        if self.merges is None:
            return words
        for word in words:
            if word not in self._pieces:
                self._pieces[word] = self._merge(list(word))
        return [piece for word in words for piece in self._pieces[word]]

    def _merge(self, pieces):
        while pairs := [pair for pair in pairwise(pieces) if pair in self._rank]:
            pieces = _merged(pieces, min(pairs, key=self._rank.__getitem__))
        return pieces

    @checked
    def encode(self, text: str) -> Int64[Tensor, " tokens"]:
        """A text as numbers, between that of the beginning and that of the end.

        Args:
            text: Any text; what the vocabulary lacks becomes the unknown token.

        Returns:
            The tokens' numbers.
        """
        numbers = [self._number.get(token, UNKNOWN) for token in self.split(text)]
        return torch.tensor([BEGIN, *numbers, END])

    @checked
    def decode(self, tokens: Int[Tensor, " tokens"]) -> str:
        """The text that these tokens stand for.

        Args:
            tokens: Numbers. What comes after the end is not read.

        Returns:
            The text, in which an unknown token is written ``<unknown>``.

        Raises:
            ValueError: If a number is not that of a token.
        """
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise ValueError(
                f"a token's number lies between 0 and {len(self) - 1}, got {tokens.min()} to "
                f"{tokens.max()}: decode with the vocabulary that the text was written in"
            )
        numbers = tokens.tolist()
        if END in numbers:
            numbers = numbers[: numbers.index(END)]
        shown = {PADDING: "", BEGIN: "", UNKNOWN: " <unknown>"}
        return "".join(shown.get(n, self.tokens[n]) for n in numbers).strip()


def _words(text):
    """Words and punctuation marks, each with the blank before it."""
    return re.findall(r" ?\w+| ?[^\w\s]", " " + " ".join(text.split()))


@checked
def word_vocabulary(texts: Sequence[str], least: int = 1) -> Vocabulary:
    """The vocabulary of all words and punctuation marks that occur often enough.

    Args:
        texts: Where to look; the training texts alone.
        least: How often a word has to occur. Rarer ones will be unknown.

    Returns:
        The vocabulary, the most frequent word first.

    Raises:
        ValueError: If ``least`` is below one.
    """
    if least < 1:
        raise ValueError(f"least must be at least 1, got {least}")
    counts = Counter(word for text in texts for word in _words(text))
    return Vocabulary([word for word, count in counts.most_common() if count >= least])


@checked
def bpe(texts: Sequence[str], merges: int) -> Vocabulary:
    """A vocabulary of pieces of words, found by byte-pair encoding.

    It begins with all characters. The pair of neighbours that occurs most often, counted within
    words only, becomes a new piece wherever it stands, and so on, ``merges`` times. Of pairs
    that are equally frequent, the one whose pieces are older goes first.

    References: Gage, "A new algorithm for data compression", *The C Users Journal* 12 (1994);
    for translation Sennrich, Haddow and Birch, "Neural machine translation of rare words with
    subword units", *ACL* (2016).

    Args:
        texts: Where to look; the training texts alone.
        merges: How many pairs to put together; fewer if all words are whole before.

    Returns:
        The vocabulary, which has characters, sorted, and then the pieces in the order in which
        they were made.

    Raises:
        ValueError: If ``merges`` is negative.
    """
    if merges < 0:
        raise ValueError(f"merges must not be negative, got {merges}")
    counts = Counter(word for text in texts for word in _words(text))
    words, times = [list(word) for word in counts], list(counts.values())
    age = {c: n for n, c in enumerate(sorted({c for word in counts for c in word}))}
    frequency, places, learned = Counter(), defaultdict(set), []
    for number, pieces in enumerate(words):
        for pair in pairwise(pieces):
            frequency[pair] += times[number]
            places[pair].add(number)

    def entry(pair):
        return -frequency[pair], *(age[piece] for piece in pair), pair

    heap = [entry(pair) for pair in frequency]
    heapq.heapify(heap)
    while heap and len(learned) < merges:
        *_, pair = popped = heapq.heappop(heap)
        if popped != entry(pair) or not frequency[pair]:
            continue  # its frequency has changed since: a newer entry is in the heap
        learned.append(pair)
        age.setdefault("".join(pair), len(age))
        changed = set()
        for number in places.pop(pair):
            before, words[number] = words[number], _merged(words[number], pair)
            more = Counter(pairwise(words[number]))
            more.subtract(pairwise(before))
            for other, change in more.items():
                if change:
                    frequency[other] += change * times[number]
                    places[other].add(number)
                    changed.add(other)
        for other in changed:
            heapq.heappush(heap, entry(other))
    return Vocabulary(list(age), learned)


def _merged(pieces, pair):
    """The pieces with every occurrence of the pair, from the left, made one."""
    merged = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


class SimilarLengths:
    """Minibatches of token sequences of about the same length: every pair once an epoch, in an
    order that is new each time.

    The pairs are shuffled and sorted by length, cut into minibatches, and these are shuffled.
    So little is filled up with padding, and little time is spent on it.

    Args:
        pairs: Tokens of a text and of its translation.
        batch_size: Pairs in a minibatch; the longest may be fewer.
        generator: Draws the orders.

    Raises:
        ValueError: If there are no pairs, or ``batch_size`` is below one.
    """

    @checked
    def __init__(
        self,
        pairs: Sequence[tuple[Int64[Tensor, "..."], Int64[Tensor, "..."]]],
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        if batch_size < 1 or not len(pairs):
            raise ValueError(
                "wanted at least one pair and a batch_size of at least 1, got "
                f"{len(pairs)} and {batch_size}"
            )
        self.pairs, self.batch_size, self.generator = pairs, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Int64[Tensor, "..."], Int64[Tensor, "..."]]]:
        shuffled = torch.randperm(len(self.pairs), generator=self.generator).tolist()
        order = sorted(shuffled, key=lambda n: [len(tokens) for tokens in self.pairs[n]])
        for batch in torch.randperm(len(self), generator=self.generator).tolist():
            start = batch * self.batch_size
            pairs = [self.pairs[n] for n in order[start : start + self.batch_size]]
            sides = zip(*pairs, strict=True)
            yield tuple(pad_sequence(side, batch_first=True) for side in sides)


@checked
def dot_product_attention(
    query: Float[Tensor, "batch queries features"],
    key: Float[Tensor, "batch keys features"],
    value: Float[Tensor, "batch keys values"],
    mask: Bool[Tensor, "batch keys"] | None = None,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "batch queries values"], Float[Tensor, "batch queries keys"]]:
    r"""For each query a mean of all values, in which those count most whose keys point in its
    direction.

    .. math:: a_{tj} = \operatorname{softmax}_j(\text{scale} \cdot q_t \cdot k_j), \qquad
              c_t = \sum_j a_{tj} v_j

    Reference: Luong, Pham and Manning (2015).

    Args:
        query: What is asked, :math:`q_t`.
        key: What the values are found by, :math:`k_j`.
        value: :math:`v_j`.
        mask: False where a key is padding, which gets the weight zero. At least one key of each
            sequence must be true.
        scale: What the scores are multiplied by.

    Returns:
        The means :math:`c_t`, and the weights :math:`a_{tj}`, whose rows add up to one.

    Raises:
        TypeError: If query, key and value differ in their type of number.
    """
    check_alike("attention", query, key, value)
    if mask is None:
        scores = scale * (query @ key.transpose(1, 2))
    else:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        scores = torch.baddbmm(bias[:, None], query, key.transpose(1, 2), alpha=scale)
    weights = scores.softmax(dim=-1)
    return weights @ value, weights


class DotProductAttention(nn.Module):
    r"""Attention whose scores are products, :math:`e_{tj} = s_t W \cdot m_j`.

    The matrix turns a state of the decoder into a vector as long as those of the memory; Luong,
    Pham and Manning (2015) call that form *general*.

    Args:
        query_size: Length of the decoder's state :math:`s_t`.
        memory_size: Length of the encoder's vectors :math:`m_j`.

    Raises:
        ValueError: If a size is less than one.
    """

    def __init__(self, query_size: int, memory_size: int):
        super().__init__()
        self.query = Linear(query_size, memory_size, bias=False)

    @checked
    def forward(
        self,
        states: Float[Tensor, "batch queries query_size"],
        memory: Float[Tensor, "batch keys memory_size"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> tuple[Float[Tensor, "batch queries memory_size"], Float[Tensor, "batch queries keys"]]:
        """The mean of the memory that each state asks for, and its weights.

        Args:
            states: The decoder's states :math:`s_t`.
            memory: What the encoder has kept, :math:`m_j`.
            mask: False where the memory is padding.

        Returns:
            As :func:`dot_product_attention`.
        """
        return dot_product_attention(self.query(states), memory, memory, mask)


class AdditiveAttention(nn.Module):
    r"""Attention whose scores come from a network with one hidden layer.

    .. math:: e_{tj} = \tanh(s_t W_s^\top + m_j W_m^\top) \cdot v, \qquad
              a_{tj} = \operatorname{softmax}_j(e_{tj}), \qquad c_t = \sum_j a_{tj} m_j

    Reference: Bahdanau, Cho and Bengio (2015).

    Args:
        query_size: Length of the decoder's state :math:`s_t`.
        memory_size: Length of the encoder's vectors :math:`m_j`.
        hidden_size: Units of the hidden layer.

    Raises:
        ValueError: If a size is less than one.
    """

    def __init__(self, query_size: int, memory_size: int, hidden_size: int):
        super().__init__()
        self.query = Linear(query_size, hidden_size, bias=False)
        self.key = Linear(memory_size, hidden_size, bias=False)
        self.score = Linear(hidden_size, 1, bias=False)

    @checked
    def forward(
        self,
        states: Float[Tensor, "batch queries query_size"],
        memory: Float[Tensor, "batch keys memory_size"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> tuple[Float[Tensor, "batch queries memory_size"], Float[Tensor, "batch queries keys"]]:
        """The mean of the memory that each state asks for, and its weights.

        Args:
            states: The decoder's states :math:`s_t`.
            memory: What the encoder has kept, :math:`m_j`.
            mask: False where the memory is padding.

        Returns:
            As :func:`dot_product_attention`.
        """
        hidden = self.query(states)[:, :, None] + self.key(memory)[:, None]
        scores = self.score(hidden.tanh())[..., 0]  # (batch, queries, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -math.inf)
        weights = scores.softmax(dim=-1)
        return weights @ memory, weights


class Encoder(nn.Module):
    """An LSTM that reads a text and keeps a vector for each of its tokens.

    Args:
        vocabulary: How many different tokens there are.
        embedding_dim: Length of a token's vector.
        hidden_size: Units of the LSTM, in each direction.
        bidirectional: Read from both ends; else from the first token to the last.
        dropout: The probability with which each number of an embedding, or of what is kept, is
            zero in training.

    Attributes:
        memory_size: Length of the vectors that are kept.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.
    """

    @checked
    def __init__(
        self,
        vocabulary: int,
        embedding_dim: int,
        hidden_size: int,
        *,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_dropout(dropout)
        self.embedding = Embedding(vocabulary, embedding_dim, padding_idx=PADDING)
        self.recurrent = LSTM(embedding_dim, hidden_size, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.memory_size = hidden_size * (2 if bidirectional else 1)

    @checked
    def forward(
        self, source: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time memory"], Float[Tensor, "batch memory"]]:
        """Read texts.

        Args:
            source: A text a row, filled up with padding.

        Returns:
            The hidden states at every token, those of both directions side by side, zero where
            there is padding; and the last of each direction.

        Raises:
            ValueError: If a text has nothing but padding.
        """
        lengths = (source != PADDING).sum(1)
        if source.numel() == 0 or not lengths.min():
            raise ValueError(
                "each text needs at least one token that is no padding, got "
                f"{tuple(source.shape)} tokens: encode texts with a Vocabulary"
            )
        x = self.dropout(self.embedding(source.T))
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        outputs, (h, _) = self.recurrent(packed)
        memory, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        return self.dropout(memory), h.transpose(0, 1).flatten(1)


def _check_dropout(dropout):
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability, between 0 and 1, got {dropout}")


class Decoder(nn.Module):
    r"""An LSTM that writes a text: a language model that begins where the encoder ended, and
    looks back at what the encoder has kept.

    .. math:: s_t = \operatorname{LSTM}(E_{y_{t-1}}, s_{t-1}), \qquad
              \tilde s_t = \tanh([s_t; c_t]\, W_c^\top + b_c), \qquad
              z_t = \tilde s_t W^\top + b

    where :math:`c_t` is what the attention returns for :math:`s_t`, and the two states before
    the first step are :math:`\tanh` of a linear map of the encoder's last states. Without
    attention :math:`\tilde s_t = s_t`, and these are all that the decoder knows of the text.
    The form is that of Luong, Pham and Manning (2015), without feeding :math:`\tilde s_t` back.

    Args:
        vocabulary: How many different tokens there are.
        embedding_dim: Length of a token's vector.
        hidden_size: Units of the LSTM.
        memory_size: That of the encoder.
        attention: Maps states, memory and mask to means of the memory and weights, as a
            :class:`DotProductAttention` or :class:`AdditiveAttention` does; ``None`` for a
            decoder that never looks back.
        dropout: The probability with which each number of an embedding, or of
            :math:`\tilde s_t`, is zero in training.

    Raises:
        ValueError: If a size is less than one, or ``dropout`` is not a probability.
    """

    @checked
    def __init__(
        self,
        vocabulary: int,
        embedding_dim: int,
        hidden_size: int,
        memory_size: int,
        attention: nn.Module | None = None,
        *,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_dropout(dropout)
        self.embedding = Embedding(vocabulary, embedding_dim)
        self.start = Linear(memory_size, 2 * hidden_size)
        self.recurrent = LSTM(embedding_dim, hidden_size)
        self.attention = attention
        if attention is not None:
            self.combine = Linear(hidden_size + memory_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(hidden_size, vocabulary)

    @checked
    def begin(
        self, last: Float[Tensor, "batch memory_size"]
    ) -> tuple[Float[Tensor, "1 batch hidden"], Float[Tensor, "1 batch hidden"]]:
        """The two states of the LSTM before the first token.

        Args:
            last: The encoder's last states.

        Returns:
            Hidden state and cell state.
        """
        h, c = self.start(last).tanh().chunk(2, dim=-1)
        return h[None], c[None]

    @checked
    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        memory: Float[Tensor, "batch source memory_size"],
        mask: Bool[Tensor, "batch source"] | None,
        state: tuple[Float[Tensor, "1 batch hidden"], Float[Tensor, "1 batch hidden"]],
    ) -> tuple[
        Float[Tensor, "batch time vocabulary"],
        tuple[Float[Tensor, "1 batch hidden"], Float[Tensor, "1 batch hidden"]],
        Float[Tensor, "batch time source"] | None,
    ]:
        """The logits of each next token.

        Args:
            tokens: What has been written so far, or since the state.
            memory: What the encoder has kept.
            mask: False where it is padding.
            state: From :meth:`begin`, or what an earlier call returned.

        Returns:
            The logits after each token, the state after the last, and the weights of the
            attention, if there is one.
        """
        x = self.dropout(self.embedding(tokens.T))
        outputs, state = self.recurrent(x, state)
        states, weights = outputs.transpose(0, 1), None  # (batch, time, hidden)
        if self.attention is not None:
            context, weights = self.attention(states, memory, mask)
            states = self.combine(torch.cat([states, context], dim=-1)).tanh()
        return self.head(self.dropout(states)), state, weights


class Translator(nn.Module):
    """An encoder and a decoder, with the vocabularies of the two languages.

    Args:
        encoder: Reads.
        decoder: Writes.
        source: The vocabulary of what is read.
        target: The vocabulary of what is written.

    Raises:
        ValueError: If encoder, decoder and vocabularies do not fit together.
    """

    @checked
    def __init__(
        self, encoder: Encoder, decoder: Decoder, source: Vocabulary, target: Vocabulary
    ):
        super().__init__()
        sizes = (
            encoder.embedding.num_embeddings,
            decoder.embedding.num_embeddings,
            encoder.memory_size,
        )
        if sizes != (len(source), len(target), decoder.start.in_features):
            raise ValueError(
                f"the vocabularies have {len(source)} and {len(target)} tokens and the decoder "
                f"wants a memory of {decoder.start.in_features} numbers, but the two networks "
                f"were built for {sizes[0]} and {sizes[1]} tokens, with a memory of {sizes[2]}"
            )
        self.encoder, self.decoder = encoder, decoder
        self.source, self.target = source, target

    @checked
    def read(
        self, source: Int[Tensor, "batch time"]
    ) -> tuple[
        Float[Tensor, "batch time memory"],
        Bool[Tensor, "batch time"],
        tuple[Float[Tensor, "1 batch hidden"], Float[Tensor, "1 batch hidden"]],
    ]:
        """What the decoder needs of texts.

        Args:
            source: A text a row, filled up with padding.

        Returns:
            The memory, the mask that is false at padding, and the decoder's first state.
        """
        memory, last = self.encoder(source)
        return memory, source != PADDING, self.decoder.begin(last)

    @checked
    def forward(
        self, source: Int[Tensor, "batch time"], target: Int[Tensor, "batch steps"]
    ) -> Float[Tensor, "batch steps vocabulary"]:
        """The logits of each next token of the translation, given the true ones before it
        (teacher forcing).

        Args:
            source: A text a row, filled up with padding.
            target: Its translation, or the beginning of it.

        Returns:
            The logits after each token of ``target``.
        """
        return self.decoder(target, *self.read(source))[0]

    @checked
    def translate(
        self,
        texts: Sequence[str],
        width: int = 1,
        alpha: float = 1.0,
        longest: int = 60,
        batch_size: int = 64,
    ) -> list[str]:
        """Translations of texts.

        Args:
            texts: What to translate.
            width: How many hypotheses :func:`beam_search` keeps; with 1 it is :func:`greedy`.
            alpha: How much :func:`beam_search` makes up for length.
            longest: The most tokens of a translation.
            batch_size: How many texts are translated at once, those of similar length together.

        Returns:
            A translation for each text, in the same order.

        Raises:
            ValueError: If a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        device = self.encoder.embedding.weight.device
        encoded = [self.source.encode(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda n: len(encoded[n]))
        translations = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            source = pad_sequence([encoded[n] for n in batch], batch_first=True).to(device)
            written, _ = beam_search(self, source, width, alpha, longest)
            for n, tokens in zip(batch, written.cpu(), strict=True):
                translations[n] = self.target.decode(tokens)
        return translations


@checked
def fit_translator(
    model: Translator,
    optimizer: torch.optim.Optimizer,
    pairs: Sequence[tuple[str, str]],
    *,
    epochs: int = 1,
    batch_size: int = 64,
    max_norm: Unbounded = 1.0,
    label_smoothing: float = 0.0,
    validation: Sequence[tuple[str, str]] | None = None,
    scheduler: Any = None,
    stop: Callable[[History], bool] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train a translator on texts and their translations, by teacher forcing.

    The loss is the mean of

    .. math:: -\log \Pr(y_t \mid y_1, \dots, y_{t-1}, x)

    over all tokens of the translations, their ends too and padding apart. The loop is
    :func:`companion.training.train`, on minibatches of :class:`SimilarLengths`.

    Args:
        model: The translator.
        optimizer: Holds its parameters.
        pairs: Texts :math:`x` and their translations :math:`y`.
        epochs: How many passes through them.
        batch_size: Pairs in a minibatch.
        max_norm: The largest Euclidean length of the gradient of all parameters together.
        label_smoothing: As in :func:`companion.layers.cross_entropy`, in training only.
        validation: Pairs on which the loss is measured after each epoch.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        stop: Whether to end after an epoch, as in :func:`~companion.training.train`.
        checkpoint: The file to go on from and to write, as there.
        seed: For the order of the pairs, and for dropout.
        progress: Show a progress bar, which disappears at the end.

    Returns:
        The loss of each step and, with ``validation``, that of each epoch in
        ``validation_loss``, in nats a token.

    Raises:
        ValueError: If there are no pairs, a number is out of range, or ``train`` refuses
            something.
        FloatingPointError: If the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = SimilarLengths(_encoded(model, pairs), batch_size, generator)
    unseen = [] if validation is None else [*_in_order(_encoded(model, validation))]
    if validation is not None and not unseen:
        raise ValueError("validation has no pairs: give at least one, or None")
    device = model.encoder.embedding.weight.device

    def loss(batch, **options):
        source, target = (tokens.to(device) for tokens in batch)
        logits = model(source, target[:, :-1]).flatten(0, 1)
        return cross_entropy(logits, target[:, 1:].flatten(), ignore_index=PADDING, **options)

    def measure():
        counts = [(target[:, 1:] != PADDING).sum().item() for _, target in unseen]
        losses = [loss(batch).item() for batch in unseen]
        return sum(map(math.prod, zip(counts, losses, strict=True))) / sum(counts)

    return train(
        lambda batch: loss(batch, label_smoothing=label_smoothing),
        optimizer,
        batches,
        model=model,
        epochs=epochs,
        scheduler=scheduler,
        max_norm=max_norm,
        validation=measure if unseen else None,
        stop=stop,
        checkpoint=checkpoint,
        seed=seed,
        progress=progress,
    )


def _encoded(model, pairs):
    return [(model.source.encode(text), model.target.encode(other)) for text, other in pairs]


def _in_order(pairs, batch_size=64):
    """Minibatches of similar length, always the same."""
    pairs = sorted(pairs, key=lambda pair: len(pair[1]))
    for start in range(0, len(pairs), batch_size):
        sides = zip(*pairs[start : start + batch_size], strict=True)
        yield tuple(pad_sequence(side, batch_first=True) for side in sides)


@torch.no_grad()
@checked
def greedy(
    model: Translator, source: Int[Tensor, "batch time"], longest: int = 60
) -> tuple[Int64[Tensor, "batch steps"], Float[Tensor, "batch steps time"] | None]:
    """Write translations, each time the likeliest next token.

    Args:
        model: The translator.
        source: A text a row, filled up with padding.
        longest: The most tokens of a translation.

    Returns:
        The tokens of each translation, with its end and filled up with padding; and the weights
        of the attention with which each was written, if there is one.

    Raises:
        ValueError: If ``longest`` is below one.
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
    with modes_kept(model):
        model.eval()
        memory, mask, state = model.read(source)
        token = source.new_full((len(source),), BEGIN)
        ended, written, looked = token == END, [], []
        while len(written) < longest and not ended.all():
            logits, state, weights = model.decoder(token[:, None], memory, mask, state)
            token = logits[:, -1].argmax(dim=-1).masked_fill(ended, PADDING)
            ended = ended | (token == END)
            written.append(token)
            looked.append(weights)
    weights = None if looked[0] is None else torch.cat(looked, dim=1)
    return torch.stack(written, dim=1), weights


@torch.no_grad()
@checked
def beam_search(
    model: Translator,
    source: Int[Tensor, "batch time"],
    width: int = 4,
    alpha: float = 1.0,
    longest: int = 60,
) -> tuple[Int64[Tensor, "batch steps"], Float[Tensor, " batch"]]:
    r"""Write translations, keeping several beginnings of each.

    At every step each beginning is continued by every token, and of all these the likeliest
    ``width`` are kept. One that has come to its end is taken out, and there is a place less for
    the others. Of those taken out the one of the highest score is the translation,

    .. math:: \frac{1}{|y|^\alpha} \sum_{t=1}^{|y|} \log \Pr(y_t \mid y_1, \dots, y_{t-1}, x),

    where :math:`|y|` counts the end. With a width of 1 that is what :func:`greedy` writes, for
    any :math:`\alpha`.

    References: Sutskever, Vinyals and Le (2014) for the search; for dividing by a power of the
    length Wu et al., *Google's neural machine translation system*, arXiv:1609.08144 (2016).

    Args:
        model: The translator.
        source: A text a row, filled up with padding.
        width: How many beginnings are kept.
        alpha: How much length is made up for: with 0 not at all, with 1 the score is the mean
            of a token.
        longest: The most tokens of a translation. A text of which nothing came to its end gets
            the likeliest beginning of that length.

    Returns:
        The tokens of each translation, with its end and filled up with padding; and its score.

    Raises:
        ValueError: If a number is out of range.
    """
    if min(width, longest) < 1 or alpha < 0:
        raise ValueError(
            "width and longest must be at least 1 and alpha must not be negative, got "
            f"{width}, {longest} and {alpha}"
        )
    N, places = len(source), torch.arange(width, device=source.device)
    rows = torch.arange(N, device=source.device)[:, None]  # (N, 1)
    with modes_kept(model):
        model.eval()
        memory, mask, state = model.read(source)
        # the beginnings of one text are neighbours in the batch
        memory, mask = (x.repeat_interleave(width, dim=0) for x in (memory, mask))
        state = tuple(x.repeat_interleave(width, dim=1) for x in state)
        written = source.new_full((N, width, 1), BEGIN)
        log_p = memory.new_full((N, width), -math.inf)
        log_p[:, 0] = 0  # at first all beginnings are the same
        left = torch.full_like(rows, width)  # places
        best, result = memory.new_full((N,), -math.inf), source.new_zeros(N, longest)
        for t in range(1, longest + 1):
            logits, state, _ = model.decoder(written[..., -1].view(-1, 1), memory, mask, state)
            continued = log_p[..., None] + log_softmax(logits[:, 0], dim=-1).view(N, width, -1)
            log_p, choice = continued.flatten(1).topk(width)
            log_p = log_p.masked_fill(places >= left, -math.inf)
            parent, token = choice // logits.shape[-1], choice % logits.shape[-1]
            written = torch.cat([written[rows, parent], token[..., None]], dim=-1)
            state = tuple(x[:, (rows * width + parent).flatten()] for x in state)
            ended = (token == END) & (log_p > -math.inf)
            _keep_best(best, result, log_p.masked_fill(~ended, -math.inf) / t**alpha, written)
            log_p = log_p.masked_fill(ended, -math.inf)
            left = left - ended.sum(1, keepdim=True)
            if not left.any():
                break
        unfinished = (best == -math.inf)[:, None]
        rest = log_p.masked_fill(~unfinished, -math.inf) / longest**alpha
        _keep_best(best, result, rest, written)
    return result[:, :t], best


def _keep_best(best, result, scores, written):
    """Of each row's hypotheses take the best, if it is better than what there is."""
    top, which = scores.max(dim=1)
    better = (top > best).nonzero()[:, 0]
    best[better] = top[better]
    result[better, : written.shape[-1] - 1] = written[better, which[better], 1:]


class Bleu(NamedTuple):
    """What :func:`bleu` found."""

    score: float
    """The geometric mean of the precisions times the penalty, from 0 to 100."""
    precisions: list[float]
    """How many in a hundred runs of one, two, three and four tokens are in a reference too."""
    bp: float
    """The brevity penalty."""
    sys_len: int
    """Tokens of the hypotheses."""
    ref_len: int
    """Tokens of the references; of several for one text the one that is nearest in length."""


@checked
def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    r"""BLEU-4 of a whole corpus: how many runs of one to four tokens of the translations stand
    in human ones.

    .. math:: \text{BLEU} = 100 \cdot \min\big(1, e^{1 - r/c}\big)
                            \Big(\prod_{n=1}^4 p_n\Big)^{1/4}

    Of the runs of :math:`n` tokens in all hypotheses, :math:`p_n` are right: a run counts as
    often as it stands in the hypothesis, but at most as often as in the reference that has it
    most often. The hypotheses have :math:`c` tokens and the references :math:`r`. If one of the
    precisions is zero, so is BLEU.

    The arguments are those of ``sacrebleu.corpus_bleu``, of which this is the score with
    ``tokenize="none"`` and ``smooth_method="none"``. Reference: Papineni, Roukos, Ward and Zhu,
    "BLEU: a method for automatic evaluation of machine translation", *ACL* (2002).

    Args:
        hypotheses: Translations, their tokens parted by blanks.
        references: Human translations: one list for each human, with a translation for each
            hypothesis.

    Returns:
        The score and what it was made of, named as in sacrebleu.

    Raises:
        ValueError: If there are no hypotheses, or a list of references has another length.
    """
    if not hypotheses or not references or {*map(len, references)} != {len(hypotheses)}:
        raise ValueError(
            f"each of {len(hypotheses)} hypotheses needs a translation in every list of "
            f"references, got lists of {', '.join(str(len(r)) for r in references) or 'none'}: "
            "for one human's translations write [references]"
        )
    right, total = [0] * 4, [0] * 4
    sys_len = ref_len = 0
    for hypothesis, *humans in zip(hypotheses, *references, strict=True):
        tokens, others = hypothesis.split(), [human.split() for human in humans]
        sys_len += len(tokens)
        ref_len += min(map(len, others), key=lambda length: (abs(length - len(tokens)), length))
        for n in range(1, 5):
            runs = _runs(tokens, n)
            allowed = _runs(others[0], n)
            for other in others[1:]:
                allowed |= _runs(other, n)  # the larger count of each
            right[n - 1] += (runs & allowed).total()  # the smaller
            total[n - 1] += max(len(tokens) - n + 1, 0)
    precisions = [100 * a / b if b else 0.0 for a, b in zip(right, total, strict=True)]
    bp = 1.0 if sys_len >= ref_len else math.exp(1 - ref_len / sys_len) if sys_len else 0.0
    return Bleu(bp * math.prod(precisions) ** 0.25, precisions, bp, sys_len, ref_len)


def _runs(tokens, n):
    """How often each run of n tokens occurs."""
    return Counter(zip(*(tokens[k:] for k in range(n)), strict=False))


def pretrained_translator() -> Translator:
    """A translator from English to German that comes with the companion, and need not be
    trained.

    It reads and writes pieces of words that :func:`bpe` found, with additive attention between
    an encoder of 192 LSTM units in each direction and a decoder of 192. It was trained on the
    first part of :func:`companion.datasets.sentence_pairs`, and has seen neither of the others.
    ``companion/data/write_translation_model.py`` wrote the file, in half precision.

    Returns:
        The translator, in evaluation mode and single precision.
    """
    from safetensors import safe_open

    file = files("companion") / "data" / "translation_model.safetensors"
    with as_file(file) as path, safe_open(path, framework="pt") as stored:
        names = stored.keys()
        state = {name: stored.get_tensor(name).float() for name in names}
        parts = json.loads(stored.metadata()["vocabularies"])
    source, target = (Vocabulary(t, [tuple(pair) for pair in merges]) for t, merges in parts)
    model = Translator(
        Encoder(len(source), 128, 192),
        Decoder(len(target), 128, 192, 384, AdditiveAttention(192, 384, 192)),
        source,
        target,
    )
    model.load_state_dict(state)
    return model.eval()
