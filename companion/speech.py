r"""Speech recognition: from the pressure of the air to letters.

Taught in chapter *Speech*. :func:`log_mel` turns a wave into frames of a few numbers each, a
:class:`Recognizer` gives each frame a probability for every letter, :func:`ctc_loss` trains it
without being told which frame belongs to which letter, :func:`greedy_search` and
:func:`prefix_beam_search` read the letters off, and :func:`word_error_rate` judges them.

The loss has PyTorch's name and arguments, the filterbank those of ``torchaudio``'s
``melscale_fbanks``.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from companion.activations import log_softmax, relu
from companion.checks import Unbounded, checked
from companion.convolution import Conv2d
from companion.datasets import SAMPLE_RATE
from companion.language_models import NGram
from companion.layers import Linear
from companion.lstm import LSTM
from companion.recurrence import first_derivative_only
from companion.training import modes_kept

__all__ = [
    "LABELS",
    "Batch",
    "Recognizer",
    "add_noise",
    "batches",
    "ctc_loss",
    "edit_distance",
    "greedy_search",
    "hz_to_mel",
    "log_mel",
    "mel_filterbank",
    "mel_to_hz",
    "prefix_beam_search",
    "pretrained_recognizer",
    "spectrogram",
    "standardize",
    "to_labels",
    "to_text",
    "transcribe",
    "word_error_rate",
]


@checked
def spectrogram(
    waveform: Float[Tensor, "*batch samples"], n_fft: int = 256, hop_length: int = 80
) -> Float[Tensor, "*batch frames frequencies"]:
    r"""The power of each frequency in each short stretch of a wave.

    .. math::
        S_{t,k} = \bigg| \sum_{n=0}^{N-1} w_n\, x_{tH + n}\, e^{-2\pi i k n / N} \bigg|^2,
        \qquad w_n = \tfrac12 - \tfrac12 \cos \frac{2\pi n}{N},
        \qquad k = 0, \dots, \tfrac N2

    A frame is :math:`N` samples, and :math:`H` samples after one begins the next. Nothing is
    added at the ends; samples that do not fill a frame are left out.

    Args:
        waveform: The samples.
        n_fft: :math:`N`, the length of a frame.
        hop_length: :math:`H`.

    Returns:
        :math:`S`, a row of :math:`N/2 + 1` numbers (rounded down) for each frame. With ``rate``
        samples a second, number :math:`k` belongs to the frequency ``k * rate / N``.

    Raises:
        ValueError: If a length is below one, or the wave shorter than one frame.
    """
    if n_fft < 1 or hop_length < 1:
        raise ValueError(
            f"n_fft and hop_length must be at least 1, got {n_fft} and {hop_length}"
        )
    if waveform.shape[-1] < n_fft:
        raise ValueError(
            f"the wave has {waveform.shape[-1]} samples, fewer than one frame of {n_fft}: give "
            "a longer one, or a smaller n_fft"
        )
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    frames = waveform.unfold(-1, n_fft, hop_length)  # (*batch, frames, N)
    spectrum = torch.fft.rfft(frames * window)
    return spectrum.real.square() + spectrum.imag.square()


@checked
def hz_to_mel(frequency: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Frequencies on a scale on which equal steps sound about equal.

    .. math:: m = 2595 \log_{10}\Big(1 + \frac{f}{700}\Big)

    Args:
        frequency: In hertz.

    Returns:
        In mel.

    Source: O'Shaughnessy, *Speech Communication: Human and Machine* (1987). The scale itself:
    Stevens, Volkmann and Newman, *A scale for the measurement of the psychological magnitude
    pitch*, Journal of the Acoustical Society of America 8 (1937).
    """
    return 2595 * (frequency / 700).log1p() / math.log(10)


@checked
def mel_to_hz(mel: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The inverse of :func:`hz_to_mel`.

    .. math:: f = 700 \big(10^{m / 2595} - 1\big)

    Args:
        mel: In mel.

    Returns:
        In hertz.
    """
    return 700 * (mel * math.log(10) / 2595).expm1()


@checked
def mel_filterbank(
    n_freqs: int,
    f_min: float = 0.0,
    f_max: float = SAMPLE_RATE / 2,
    n_mels: int = 40,
    sample_rate: int = SAMPLE_RATE,
) -> Float[Tensor, "n_freqs n_mels"]:
    r"""Triangles that gather the frequencies of a spectrum into ``n_mels`` channels.

    Their corners :math:`f_0 < f_1 < \dots` are equally far apart in mel. Channel :math:`j`
    rises from 0 at :math:`f_{j}` to 1 at :math:`f_{j+1}` and falls to 0 at :math:`f_{j+2}`:

    .. math::
        M_{kj} = \max\Big(0,\ \min\Big(\frac{f_k - f_{j}}{f_{j+1} - f_{j}},\
        \frac{f_{j+2} - f_k}{f_{j+2} - f_{j+1}}\Big)\Big)

    Between the first and the last top, the channels add up to one at every frequency.

    Args:
        n_freqs: Numbers in a spectrum, from 0 Hz to half the sample rate.
        f_min: The first corner, in hertz.
        f_max: The last.
        n_mels: Channels.
        sample_rate: Samples a second.

    Returns:
        :math:`M`, in double precision. A power spectrum times it gives the channels.

    Raises:
        ValueError: If the corners are not in order or beyond half the sample rate, or a
            triangle is so narrow that no frequency of the spectrum lies in it.

    Source: Davis and Mermelstein, *Comparison of parametric representations for monosyllabic
    word recognition in continuously spoken sentences*, IEEE Transactions on Acoustics, Speech,
    and Signal Processing 28 (1980).
    """
    if n_freqs < 2 or n_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            "a filterbank needs at least 2 frequencies and 1 channel, and 0 <= f_min < f_max "
            f"<= sample_rate / 2, got {n_freqs}, {n_mels}, {f_min}, {f_max} and {sample_rate}"
        )
    frequencies = torch.linspace(0, sample_rate / 2, n_freqs, dtype=torch.float64)
    low, high = hz_to_mel(torch.tensor([f_min, f_max], dtype=torch.float64))
    corners = mel_to_hz(torch.linspace(low, high, n_mels + 2, dtype=torch.float64))
    widths = corners.diff()
    distances = frequencies[:, None] - corners  # (n_freqs, n_mels + 2)
    rising = distances[:, :-2] / widths[:-1]
    falling = -distances[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    if not triangles.any(dim=0).all():
        raise ValueError(
            f"{n_mels} triangles are too narrow for {n_freqs} frequencies, some have none: use "
            "fewer channels (n_mels), or longer frames (n_fft)"
        )
    return triangles


@checked
def log_mel(
    waveform: Float[Tensor, "*batch samples"],
    sample_rate: int = SAMPLE_RATE,
    n_fft: int = 256,
    hop_length: int = 80,
    n_mels: int = 40,
) -> Float[Tensor, "*batch frames n_mels"]:
    r"""What a recogniser hears: the logarithm of the power in each channel of
    :func:`mel_filterbank`, frame by frame.

    .. math:: \log\big(S M + 10^{-6}\big)

    Args:
        waveform: The samples, between -1 and 1.
        sample_rate: Samples a second.
        n_fft: Samples in a frame.
        hop_length: From the beginning of one frame to that of the next.
        n_mels: Channels.

    Returns:
        A row of ``n_mels`` numbers for each frame.

    Raises:
        ValueError: As :func:`spectrogram` and :func:`mel_filterbank`.
    """
    power = spectrogram(waveform, n_fft, hop_length)
    filters = mel_filterbank(
        power.shape[-1], 0.0, sample_rate / 2, n_mels=n_mels, sample_rate=sample_rate
    )
    return (power @ filters.to(power) + 1e-6).log()


@checked
def standardize(features: Float[Tensor, "frames channels"]) -> Float[Tensor, "frames channels"]:
    """Features without what is the same in all frames of a recording, such as the loudness and
    the microphone: the mean of each channel is taken off, and all are divided by the standard
    deviation that is left.

    Args:
        features: One row a frame.

    Returns:
        The same, with means of zero and a variance of one over all channels together; zeros
        if nothing changes from frame to frame.
    """
    centred = features - features.mean(dim=0)
    return centred / centred.square().mean().sqrt().clamp(min=1e-6)


@checked
def add_noise(
    waveform: Float[Tensor, " samples"], snr: float, generator: torch.Generator | None = None
) -> Float[Tensor, " samples"]:
    r"""A wave and white noise, the power of the wave ``snr`` decibels above that of the noise.

    .. math:: 10 \log_{10} \frac{\overline{x^2}}{\sigma^2} = \text{snr}

    Args:
        waveform: The samples :math:`x`; the mean of their squares is taken over all of them.
        snr: The signal-to-noise ratio in decibels. At 0 they are equally strong.
        generator: Makes the noise repeatable.

    Returns:
        The sum, which may go beyond -1 and 1.
    """
    noise = torch.randn(
        len(waveform), generator=generator, dtype=waveform.dtype, device=waveform.device
    )
    power = waveform.square().mean() if len(waveform) else 0.0
    return waveform + noise * (power * 10 ** (-snr / 10)) ** 0.5


LABELS = "-abcdefghijklmnopqrstuvwxyz "
"""What a recogniser can say of a frame: nothing (the blank, number 0), a letter, a space."""


@checked
def to_labels(text: str) -> Int64[Tensor, " labels"]:
    """The number of each letter of a text in :data:`LABELS`.

    Args:
        text: Small letters and spaces.

    Returns:
        Numbers from 1 on.

    Raises:
        ValueError: If there is something else in the text.
    """
    if wrong := sorted(set(text) - set(LABELS[1:])):
        raise ValueError(
            f"a text for a recogniser has only the letters a to z and spaces, got {wrong} in "
            f"{text!r}: write numbers as words, and capitals small"
        )
    return torch.tensor([LABELS.index(letter) for letter in text], dtype=torch.int64)


@checked
def to_text(labels: Sequence[int]) -> str:
    """The inverse of :func:`to_labels`.

    Args:
        labels: Numbers of letters.

    Returns:
        The text.

    Raises:
        ValueError: If a number is not that of a letter or space.
    """
    if wrong := [label for label in labels if not 0 < label < len(LABELS)]:
        raise ValueError(
            f"labels of letters lie between 1 and {len(LABELS) - 1}, got {wrong[0]}: decode "
            "with greedy_search or prefix_beam_search first, which take blanks out"
        )
    return "".join(LABELS[label] for label in labels)


@checked
def ctc_loss(
    log_probs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."],
    input_lengths: Int[Tensor, "..."] | Sequence[int],
    target_lengths: Int[Tensor, "..."] | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Float[Tensor, "..."]:
    r"""Connectionist temporal classification: minus the logarithm of the probability that a
    sequence of labels has under all its alignments together.

    An alignment :math:`\pi` has one label or blank for each frame. The map :math:`B` writes a
    repeated label once and then takes the blanks out, and

    .. math::
        L = -\log \Pr(l), \qquad
        \Pr(l) = \sum_{\pi:\, B(\pi) = l}\ \prod_t y_{t, \pi_t}, \qquad
        \log y = \text{log\_probs}

    Let :math:`l'` be the labels with a blank before, between and after them. Then, with
    :math:`a_t(s)` for what arrives at place :math:`s` from the frames before :math:`t`, and
    :math:`b_t(s)` for what is still to come after it,

    .. math::
        a_{t+1}(s) &= \sum_{r \to s} a_t(r)\, y_{t, l'_r}, \qquad
        b_{t-1}(s) = \sum_{s \to r} b_t(r)\, y_{t, l'_r} \\
        \gamma_t(s) &= \frac{a_t(s)\, y_{t, l'_s}\, b_t(s)}{\Pr(l)}, \qquad
        \frac{\partial L}{\partial z_{tk}} = y_{tk} - \sum_{s:\, l'_s = k} \gamma_t(s)

    where :math:`r \to s` if :math:`s` is :math:`r` or :math:`r + 1`, or :math:`r + 2` and
    :math:`l'_s` is neither a blank nor :math:`l'_r`. All of it is computed in logarithms.

    Interchangeable with :func:`torch.nn.functional.ctc_loss`, also in this: what comes back as
    the gradient is that with respect to the logits :math:`z` **before** the log-softmax that
    made ``log_probs``. Its rows add up to zero, so the log-softmax hands it on unchanged, and
    the product is right. For rows that are not log-probabilities it is not the derivative.

    Args:
        log_probs: Logarithms of probabilities, (time, batch, labels) or, for one sequence,
            (time, labels).
        targets: The labels, (batch, longest), what stands behind a target's end is not read; or
            all of them one after the other, (sum of target_lengths,).
        input_lengths: The frames of each sequence.
        target_lengths: The labels of each target.
        blank: The number of the blank.
        reduction: ``"mean"`` over the batch, each loss divided by its target's length (at least
            1) before; ``"sum"``, or ``"none"``.
        zero_infinity: Take an infinite loss, and its gradient, for zero.

    Returns:
        The loss. It is infinite where no alignment exists, since each label needs a frame, and
        two equal ones in a row need a frame for the blank between them.

    Raises:
        TypeError: If something holds the wrong kind of number.
        ValueError: If shapes or lengths do not fit, a label does not exist or is the blank, or
            the reduction is unknown.

    Source: Graves, Fernández, Gomez and Schmidhuber, *Connectionist temporal classification:
    labelling unsegmented sequence data with recurrent neural networks*, ICML (2006).
    """
    if log_probs.dim() not in (2, 3) or 0 in log_probs.shape:
        raise ValueError(
            "log_probs must have the dimensions (time, batch, labels) or (time, labels), none "
            f"of them empty, got shape {tuple(log_probs.shape)}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    batch = log_probs if log_probs.dim() == 3 else log_probs[:, None]
    time, size, classes = batch.shape
    _check_blank(blank, classes)
    frames, lengths = (
        _lengths(name, given, size, batch.device)
        for name, given in (
            ("input_lengths", input_lengths),
            ("target_lengths", target_lengths),
        )
    )
    if (frames > time).any():
        raise ValueError(
            f"log_probs has {time} frames, got input_lengths of {frames.max()}: give the "
            "lengths after what the model has left out, not those of its input"
        )
    labels = _padded(targets.to(batch.device), lengths, size, classes, blank)
    loss = CTC.apply(batch, labels, frames, lengths, blank, zero_infinity)
    if reduction == "mean":
        return (loss / lengths.clamp(min=1)).mean()
    if reduction == "sum":
        return loss.sum()
    return loss if log_probs.dim() == 3 else loss[0]


class CTC(torch.autograd.Function):
    """The losses of a batch, and their gradients with respect to the logits."""

    @staticmethod
    def forward(ctx, log_probs, labels, frames, lengths, blank, zero_infinity):
        T, N, _ = log_probs.shape
        device = log_probs.device
        places = 2 * lengths + 1  # of each sequence in l'
        path = torch.full((N, 2 * labels.shape[1] + 1), blank, device=device)
        path[:, 1::2] = labels
        s = torch.arange(path.shape[1], device=device)
        t = torch.arange(T, device=device)[:, None]
        # read backwards, the way to the end is a way from the beginning: one batch for both
        s_back = (places[:, None] - 1 - s).clamp(min=0)  # (N, places)
        t_back = (frames - 1 - t).clamp(min=0)[..., None].expand(T, N, len(s))

        def back(x):
            return x.gather(0, t_back).gather(2, s_back.expand_as(x))

        y = log_probs.gather(2, path.expand(T, N, len(s)))  # (time, N, places), log
        both_ways = torch.cat([path, path.gather(1, s_back)])
        arriving, to_come = _ways(torch.cat([y, back(y)], dim=1), both_ways, blank).chunk(2, 1)
        occupancy = arriving + y + back(to_come)
        occupancy[:, s >= places[:, None]] = -math.inf
        log_p = occupancy[0].logsumexp(dim=-1)  # the same at every frame
        no_frames = torch.where(lengths == 0, 0.0, -math.inf).to(log_p)
        log_p = torch.where(frames == 0, no_frames, log_p)
        impossible = log_p == -math.inf
        if zero_infinity:
            log_p = log_p.masked_fill(impossible, 0.0)
        ctx.save_for_backward(
            log_probs, path, occupancy, log_p, (t < frames) & ~(impossible & zero_infinity)
        )
        return -log_p

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        log_probs, path, occupancy, log_p, counts = ctx.saved_tensors
        gamma = (occupancy - log_p[:, None]).exp()  # (time, N, places)
        gradient = log_probs.exp().scatter_add_(2, path.expand_as(gamma), -gamma)
        gradient += 0 * log_p[:, None]  # as in PyTorch: nothing but NaN where Pr(l) is zero
        gradient = (grad[:, None] * gradient).masked_fill_(~counts[..., None], 0.0)
        return gradient, None, None, None, None, None


def _ways(y, path, blank):
    """For each frame and place, the logarithm of what arrives there from the frames before."""
    _, N, P = y.shape
    skip = torch.full_like(y[0], -math.inf)  # from two places before
    skip[:, 2:].masked_fill_((path[:, 2:] != blank) & (path[:, 2:] != path[:, :-2]), 0.0)
    arriving = torch.full_like(y, -math.inf)
    arriving[0, :, :2] = 0.0  # a sequence begins with the first blank or the first label
    # what stood at each place, behind two that nobody can come from
    stood = y.new_full((N, P + 2), -math.inf)
    for y_t, here, there in zip(y[:-1], arriving[:-1], arriving[1:], strict=True):
        torch.add(here, y_t, out=stood[:, 2:])
        torch.logaddexp(stood[:, 2:], stood[:, 1:-1], out=there)
        torch.logaddexp(there, stood[:, :-2] + skip, out=there)
    return arriving


def _check_blank(blank, classes):
    if not 0 <= blank < classes:
        raise ValueError(
            f"blank must be one of the labels, 0 to {classes - 1}, got {blank}: it is the "
            "place in log_probs that means that nothing is said"
        )


def _lengths(name, given, size, device):
    """One whole number for each sequence."""
    if not isinstance(given, Tensor) and any(type(length) is not int for length in given):
        raise TypeError(f"{name} must hold whole numbers, got {list(given)}")
    lengths = torch.as_tensor(given, dtype=torch.int64, device=device)
    lengths = lengths.unsqueeze(0) if lengths.dim() == 0 else lengths
    if lengths.shape != (size,) or (lengths < 0).any():
        raise ValueError(
            f"{name} must have a length of at least 0 for each of the {size} sequences, got "
            f"{lengths.tolist()}"
        )
    return lengths


def _padded(targets, lengths, size, classes, blank):
    """The targets of a batch as one tensor (batch, longest); blanks fill it up."""
    longest = int(lengths.max())
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    if targets.dim() == 1 and len(targets) == lengths.sum():
        given = targets
    elif targets.dim() == 2 and len(targets) == size and targets.shape[1] >= longest:
        given = targets[:, :longest][real]
    else:
        raise ValueError(
            "targets must be (batch, longest), or all labels one after the other, got shape "
            f"{tuple(targets.shape)} for {size} sequences and target_lengths of "
            f"{lengths.tolist()}"
        )
    if (wrong := given[(given < 0) | (given >= classes) | (given == blank)]).numel():
        raise ValueError(
            f"targets must be labels from 0 to {classes - 1} other than the blank, {blank}, "
            f"got {wrong[0]}: the blank stands between labels by itself"
        )
    return torch.full_like(real, blank, dtype=torch.int64).masked_scatter_(real, given.long())


@checked
def greedy_search(log_probs: Float[Tensor, "time labels"], blank: int = 0) -> list[int]:
    """The labels of the likeliest alignment: the best label of each frame, repeated ones once,
    without blanks.

    Args:
        log_probs: Logarithms of probabilities, or any scores, of one sequence.
        blank: The number of the blank.

    Returns:
        The labels.

    Raises:
        ValueError: If there is no such blank.
    """
    _check_blank(blank, log_probs.shape[1])
    best = log_probs.argmax(dim=1).unique_consecutive()
    return best[best != blank].tolist()


@checked
def prefix_beam_search(
    log_probs: Float[Tensor, "time labels"],
    beam_width: int = 16,
    blank: int = 0,
    *,
    language_model: NGram | None = None,
    weight: float = 1.0,
    bonus: float = 0.0,
    cutoff: Unbounded = -14.0,
) -> list[tuple[tuple[int, ...], float]]:
    r"""The labels that are likeliest over all their alignments, and with a language model.

    Goes from frame to frame and keeps, of all beginnings of texts, the ``beam_width`` with the
    highest score

    .. math::
        \log \Pr(l \mid \text{sound}) + \alpha \log \Pr(l) + \beta |l|.

    Of each it knows the probability of the alignments that end in a blank, and of those that
    end in its last label, since after the former the same label may come again, and after the
    latter it would be the old one.

    Args:
        log_probs: Logarithms of probabilities of one sequence.
        beam_width: How many beginnings are kept. With as many as there are, and
            ``cutoff=-math.inf``, the probabilities are exact.
        blank: The number of the blank.
        language_model: Gives :math:`\Pr(l)`. It has as many tokens as there are labels, and
            was fitted to texts with ``order - 1`` blanks before each, and one at the end.
        weight: :math:`\alpha`.
        bonus: :math:`\beta` for each label, since a language model makes longer texts ever less
            likely.
        cutoff: A label whose log-probability in a frame is below this begins nothing there.

    Returns:
        Up to ``beam_width`` pairs of labels and score, the best first.

    Raises:
        ValueError: If the width is below one, or the language model has another number of
            tokens or another blank than 0.

    Source: Graves and Jaitly, *Towards end-to-end speech recognition with recurrent neural
    networks*, ICML (2014); Hannun, Maas, Jurafsky and Ng, *First-pass large vocabulary
    continuous speech recognition using bi-directional recurrent DNNs*, arXiv:1408.2873 (2014).
    """
    _, labels = log_probs.shape
    _check_blank(blank, labels)
    if beam_width < 1:
        raise ValueError(f"beam_width must keep at least 1 beginning, got {beam_width}")
    if language_model is not None and (blank, language_model.vocabulary) != (0, labels):
        raise ValueError(
            f"the language model must know the {labels} labels, with the blank as token 0 "
            f"between texts, got {language_model.vocabulary} tokens and the blank {blank}"
        )
    known = {}  # contexts whose continuations were asked for before

    def prior(prefix):
        """The logarithm of Pr of each next label, or of the end, which is the blank."""
        if language_model is None:
            return [0.0] * labels
        order = language_model.order
        context = ((0,) * order + prefix)[len(prefix) + 1 :]
        if context not in known:
            texts = torch.tensor([[*context, label] for label in range(labels)])
            p = language_model.probability(texts)[:, -1]
            known[context] = (weight * p.log()).tolist()
        return known[context]

    # for each beginning: alignments that end in a blank, in its last label; the prior
    beams, scores, best = {(): (0.0, -math.inf, 0.0)}, {(): 0.0}, [()]
    for frame in log_probs.tolist():
        likely = [k for k, value in enumerate(frame) if k != blank and value >= cutoff]
        grown = defaultdict(lambda: [-math.inf, -math.inf, 0.0])
        for prefix, (ends_blank, ends_label, score) in beams.items():
            both = _log_add(ends_blank, ends_label)
            same = grown[prefix]
            same[0] = _log_add(same[0], both + frame[blank])
            same[2] = score
            if prefix:
                same[1] = _log_add(same[1], ends_label + frame[prefix[-1]])
            next_label = prior(prefix)
            for label in likely:
                longer = grown[(*prefix, label)]
                before = ends_blank if prefix[-1:] == (label,) else both
                longer[1] = _log_add(longer[1], before + frame[label])
                longer[2] = score + next_label[label] + bonus
        scores = {
            prefix: _log_add(*values[:2]) + values[2]
            for prefix, values in grown.items()
            if max(values[:2]) > -math.inf  # not "aa" while there was no frame for a blank
        }
        best = sorted(scores, key=scores.get, reverse=True)[:beam_width]
        beams = {prefix: grown[prefix] for prefix in best}
    finished = {prefix: scores[prefix] + prior(prefix)[blank] for prefix in best}
    return sorted(finished.items(), key=lambda pair: pair[1], reverse=True)


def _log_add(a, b):
    """log(exp a + exp b)"""
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


@checked
def edit_distance(a: str | Sequence[Any], b: str | Sequence[Any]) -> int:
    r"""How many insertions, deletions and replacements turn one sequence into another.

    .. math::
        D_{ij} = \min\big(D_{i-1,j} + 1,\ D_{i,j-1} + 1,\ D_{i-1,j-1} + [a_i \ne b_j]\big)

    Args:
        a: A string, or a list of words.
        b: Another.

    Returns:
        The least number of changes.

    Source: Levenshtein, *Binary codes capable of correcting deletions, insertions, and
    reversals*, Soviet Physics Doklady 10 (1966); the recursion of Wagner and Fischer, *The
    string-to-string correction problem*, Journal of the ACM 21 (1974).
    """
    row = list(range(len(b) + 1))  # from nothing to each beginning of b
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@checked
def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Changes that the words of ``hypotheses`` need to become those of ``references``, for each
    word of the latter.

    Args:
        references: What was said.
        hypotheses: What was understood, in the same order.

    Returns:
        0 if all words are right; may be above 1, where too many words were heard.

    Raises:
        ValueError: If there are not as many of one as of the other, or no words were said.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"each reference needs a hypothesis, got {len(references)} and {len(hypotheses)}"
        )
    said = [text.split() for text in references]
    if not any(said):
        raise ValueError("the references hold no words: a rate needs at least one")
    changes = sum(
        edit_distance(words, text.split()) for words, text in zip(said, hypotheses, strict=True)
    )
    return changes / sum(map(len, said))


class Batch(NamedTuple):
    """Recordings side by side, filled up with zeros."""

    features: Float[Tensor, "batch frames channels"]
    """Of each frame."""
    lengths: Int64[Tensor, " batch"]
    """The frames of each recording."""
    targets: Int64[Tensor, "batch letters"]
    """What is said, by :func:`to_labels`."""
    target_lengths: Int64[Tensor, " batch"]
    """The letters of each."""
    places: list[int]
    """Where the recordings stood before they were sorted."""


@checked
def batches(
    features: Sequence[Tensor], texts: Sequence[str], batch_size: int = 32
) -> list[Batch]:
    """Minibatches of recordings that are about equally long, so that little is filled up.

    Args:
        features: Of each recording, (frames, channels).
        texts: What is said in each.
        batch_size: How many go into a batch.

    Returns:
        The batches, the shortest recordings first.

    Raises:
        TypeError: If features are no tensors of floating-point numbers of one type.
        ValueError: If there are not as many texts as recordings, or none, or their features
            have different channels.
    """
    if len(features) != len(texts) or not len(texts) or batch_size < 1:
        raise ValueError(
            "batches need at least one recording, a text for each, and a batch_size of at "
            f"least 1, got {len(features)} recordings, {len(texts)} texts and {batch_size}"
        )
    for x in features:
        _check_frames(x, features[0])
    order = sorted(range(len(texts)), key=lambda place: len(features[place]))
    made = []
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        x, y = [features[i] for i in places], [to_labels(texts[i]) for i in places]
        lengths, letters = (torch.tensor([len(entry) for entry in each]) for each in (x, y))
        padded = (pad_sequence(each, batch_first=True) for each in (x, y))
        made.append(Batch(next(padded), lengths, next(padded), letters, places))
    return made


def _check_frames(x, first):
    """The same kind of frames as those of the first recording."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype != first.dtype:
        raise TypeError(
            "features must be tensors of floating-point numbers of one type, got "
            f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}: make them with log_mel"
        )
    if x.dim() != 2 or len(x) == 0 or x.shape[1:] != first.shape[1:]:
        raise ValueError(
            "features must be (frames, channels), at least one frame and as many channels for "
            f"each recording, got shapes {tuple(first.shape)} and {tuple(x.shape)}"
        )


class Recognizer(nn.Module):
    r"""For each frame, how likely is each letter, or none?

    A convolution over five frames halves their number, a bidirectional LSTM reads on from there
    in both directions, and a linear layer with a softmax speaks:

    .. math::
        u = \operatorname{ReLU}(\operatorname{conv}(x)), \qquad
        h = \operatorname{LSTM}(u), \qquad
        \log y_t = \operatorname{log\_softmax}(h_t W^\top + b)

    What stands beside a recording in a batch does not change what is heard in it.

    Args:
        channels: Numbers in a frame.
        hidden: Kernels of the convolution, and units of the LSTM in each direction.
        labels: What can be said of a frame; number 0 is the blank.

    Raises:
        ValueError: If a size is below one.
    """

    @checked
    def __init__(self, channels: int = 40, hidden: int = 64, labels: int = len(LABELS)):
        super().__init__()
        self.channels = channels
        self.convolution = Conv2d(1, hidden, (5, channels), stride=(2, 1), padding=(2, 0))
        self.lstm = LSTM(hidden, hidden, bidirectional=True)
        self.head = Linear(2 * hidden, labels)

    @checked
    def forward(
        self, features: Float[Tensor, "batch frames channels"], lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "time batch labels"], Int64[Tensor, " batch"]]:
        """Log-probabilities, in the form that :func:`ctc_loss` takes.

        Args:
            features: The frames, zeros behind the end of each recording.
            lengths: How many frames each has.

        Returns:
            The logarithms of the probabilities at every second frame, and how many of these
            there are of each recording.

        Raises:
            ValueError: If there are other channels, or a length is below one or beyond the
                frames.
        """
        if features.shape[2] != self.channels:
            raise ValueError(
                f"this recognizer was built for {self.channels} channels, got features of "
                f"shape {tuple(features.shape)}: make them with n_mels={self.channels}"
            )
        if not 1 <= lengths.min() <= lengths.max() <= features.shape[1]:
            raise ValueError(
                f"lengths must lie between 1 and the {features.shape[1]} frames, got "
                f"{lengths.tolist()}"
            )
        u = relu(self.convolution(features[:, None])).squeeze(3)  # (batch, hidden, time)
        lengths = (lengths.long() + 1) // 2
        packed = pack_padded_sequence(u.permute(2, 0, 1), lengths.cpu(), enforce_sorted=False)
        h, _ = pad_packed_sequence(self.lstm(packed)[0])
        return log_softmax(self.head(h), dim=2), lengths

    @checked
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """:func:`ctc_loss` of a minibatch: what training lowers."""
        log_probs, lengths = self(batch.features, batch.lengths)
        return ctc_loss(log_probs, batch.targets, lengths, batch.target_lengths)


@torch.no_grad()
@checked
def transcribe(
    model: nn.Module,
    features: Sequence[Tensor],
    decode: Callable[[Tensor], Sequence[int]] = greedy_search,
) -> list[str]:
    """What a recogniser hears.

    Args:
        model: Such as a :class:`Recognizer`.
        features: Of each recording, (frames, channels).
        decode: Makes labels of the log-probabilities (time, labels) of one recording.

    Returns:
        A text for each recording.
    """
    heard = [""] * len(features)
    with modes_kept(model):
        model.eval()
        for batch in batches(features, heard):
            log_probs, lengths = model(batch.features, batch.lengths)
            for i, place in enumerate(batch.places):
                heard[place] = to_text(decode(log_probs[: lengths[i], i]))
    return heard


@checked
def pretrained_recognizer(noise: bool = False) -> Recognizer:
    """A recogniser of spoken digits that comes with the companion, and need not be trained.

    It has heard the training part of ``spoken_digits(full=True)``, its settings were chosen on
    the validation part, and the test's voices it has not heard.
    ``companion/data/write_speech_model.py`` wrote the file, in half precision.

    Args:
        noise: The one that has heard every recording with :func:`add_noise` too, at 0 to 30
            decibels.

    Returns:
        The model, in evaluation mode and single precision, for frames that were made by
        :func:`log_mel` and :func:`standardize`.
    """
    from safetensors.torch import load

    model = Recognizer(hidden=96)
    name = "speech_model_noise.safetensors" if noise else "speech_model.safetensors"
    model.load_state_dict(load((files("companion") / "data" / name).read_bytes()))
    return model.eval()
