import itertools
import json
import math
import runpy
import sys
from collections import defaultdict
from pathlib import Path

import jiwer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import functional as F

from companion import datasets, speech
from companion.data import write_speech_model, write_speech_trials
from companion.datasets import SAMPLE_RATE, Recordings, Speech, spoken_digits
from companion.language_models import NGram
from companion.optimization import Adam
from companion.speech import (
    LABELS,
    Recognizer,
    add_noise,
    batches,
    ctc_loss,
    edit_distance,
    greedy_search,
    hz_to_mel,
    log_mel,
    mel_filterbank,
    mel_to_hz,
    prefix_beam_search,
    pretrained_recognizer,
    spectrogram,
    standardize,
    to_labels,
    to_text,
    transcribe,
    word_error_rate,
)
from companion.training import train

DATA = Path(speech.__file__).parent / "data"


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# From the wave to the channels


@pytest.mark.parametrize(("n_fft", "hop"), [(16, 5), (15, 15), (2, 1), (1, 3)])
def test_a_spectrogram_is_the_square_of_a_plain_fourier_transform(n_fft, hop):
    x = normal(50)
    frames = []
    for start in range(0, 50 - n_fft + 1, hop):
        row = []
        for k in range(n_fft // 2 + 1):
            total = 0
            for n in range(n_fft):
                w = 0.5 - 0.5 * math.cos(2 * math.pi * n / n_fft) if n_fft > 1 else 1.0
                turn = -2 * math.pi * k * n / n_fft
                total += w * x[start + n].item() * complex(math.cos(turn), math.sin(turn))
            row.append(abs(total) ** 2)
        frames.append(row)
    expected = torch.tensor(frames, dtype=torch.float64)
    torch.testing.assert_close(spectrogram(x, n_fft, hop), expected, rtol=1e-10, atol=1e-12)


def test_spectrogram_and_log_mel_are_those_of_stft_in_batches_and_both_precisions():
    x = normal(2, 3, 1000)
    window = torch.hann_window(256, dtype=torch.float64)
    stft = torch.stft(
        x.flatten(0, 1), 256, 80, window=window, center=False, return_complex=True
    )
    power = stft.abs().square().transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(spectrogram(x), power, rtol=1e-10, atol=1e-12)
    expected = (power @ mel_filterbank(129) + 1e-6).log()
    torch.testing.assert_close(log_mel(x), expected, rtol=1e-10, atol=1e-12)
    single = log_mel(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_mel(x.transpose(0, 1))[1, 0], log_mel(x[0, 1]))


def test_a_tone_has_its_power_at_its_frequency():
    t = torch.arange(SAMPLE_RATE, dtype=torch.float64) / SAMPLE_RATE
    power = spectrogram(
        0.5 * torch.sin(2 * math.pi * 1000 * t)
    )  # number 1000 · 256 / 8000 = 32
    assert (power.argmax(dim=1) == 32).all()
    # the amplitude times half the sum of the window, squared
    torch.testing.assert_close(power[:, 32], torch.full_like(power[:, 32], (0.5 * 64) ** 2))
    beside = (
        power[:, [31, 33]] / power[:, [32]]
    )  # a Hann window spreads to its neighbours alone
    torch.testing.assert_close(beside, torch.full_like(beside, 0.25), rtol=1e-6, atol=0)
    assert power[:, :30].max() < 1e-15


def test_no_more_frames_than_are_full():
    for samples, frames in [(256, 1), (335, 1), (336, 2), (416, 3)]:
        assert spectrogram(torch.ones(samples)).shape == (frames, 129)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(255),), "has 255 samples, fewer than one frame of 256"),
        ((torch.ones(300), 0), "must be at least 1, got 0 and 80"),
        ((torch.ones(300), 256, 0), "must be at least 1, got 256 and 0"),
    ],
)
def test_waves_without_a_frame_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        spectrogram(*arguments)


def test_the_mel_scale_is_reversible_and_passes_its_known_points():
    f = torch.logspace(-3, 4.3, 200, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(f)), f, rtol=1e-12, atol=0)
    torch.testing.assert_close(hz_to_mel(mel_to_hz(f)), f, rtol=1e-12, atol=0)
    known = hz_to_mel(torch.tensor([0.0, 700.0, 1000.0, 6300.0], dtype=torch.float64))
    expected = torch.tensor([0, 2595 * math.log10(2), 999.9855, 2595], dtype=torch.float64)
    torch.testing.assert_close(known, expected, rtol=1e-6, atol=0)


def test_a_filterbank_is_what_the_equation_says():
    f_min, f_max, n_mels = 100.0, 3500.0, 12
    mel = lambda f: 2595 * math.log10(1 + f / 700)  # noqa: E731
    step = (mel(f_max) - mel(f_min)) / (n_mels + 1)
    corners = [700 * (10 ** ((mel(f_min) + j * step) / 2595) - 1) for j in range(n_mels + 2)]
    bank = mel_filterbank(65, f_min, f_max, n_mels, 8000)
    for k in range(65):
        f = k * 4000 / 64
        for j in range(n_mels):
            up = (f - corners[j]) / (corners[j + 1] - corners[j])
            down = (corners[j + 2] - f) / (corners[j + 2] - corners[j + 1])
            assert bank[k, j].item() == pytest.approx(max(0, min(up, down)), abs=1e-12)


def test_channels_add_up_to_one_between_the_first_top_and_the_last():
    bank = mel_filterbank(513, n_mels=40)
    corners = mel_to_hz(torch.linspace(0, hz_to_mel(torch.tensor(4000.0)).item(), 42))
    f = torch.linspace(0, 4000, 513)
    inside = (f >= corners[1]) & (f <= corners[-2])
    sums = bank.sum(dim=1)
    torch.testing.assert_close(sums[inside], torch.ones_like(sums[inside]), rtol=1e-9, atol=0)
    assert 450 < inside.sum() < 513
    assert (sums[~inside] < 1).all()


def test_a_spectrum_made_of_channels_gives_the_channels_back():
    """No channel can be told from the others: the filterbank has an inverse on its left."""
    bank = mel_filterbank(129)
    channels = normal(7, 40).exp()
    back = channels @ torch.linalg.pinv(bank) @ bank
    torch.testing.assert_close(back, channels, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_freqs": 1}, "at least 2 frequencies"),
        ({"n_freqs": 129, "f_max": 4001.0}, "f_max <= sample_rate / 2"),
        ({"n_freqs": 129, "f_min": 4000.0}, "0 <= f_min < f_max"),
        ({"n_freqs": 129, "f_min": -1.0}, "0 <= f_min < f_max"),
        ({"n_freqs": 129, "n_mels": 0}, "1 channel"),
        ({"n_freqs": 129, "n_mels": 100}, "100 triangles are too narrow for 129 frequencies"),
    ],
)
def test_filterbanks_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        mel_filterbank(**arguments)


def test_silence_has_the_logarithm_of_the_floor():
    assert torch.equal(log_mel(torch.zeros(256)), torch.full((1, 40), 1e-6).log())


def test_standardized_features_do_not_tell_loudness_or_the_microphone():
    x = normal(50, 8) * torch.rand(8) + normal(8)
    z = standardize(x)
    assert z.mean(dim=0).abs().max() < 1e-12
    assert z.square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(standardize(3 * x + normal(8, seed=1)), z)
    assert torch.equal(standardize(torch.ones(5, 8)), torch.zeros(5, 8))
    assert standardize(torch.ones(1, 8)).isfinite().all()


@pytest.mark.parametrize("snr", [-10.0, 0.0, 20.0])
def test_noise_has_the_power_that_was_asked_for_and_can_be_repeated(snr):
    x = 0.3 * torch.sin(torch.arange(40_000) / 5)
    noisy = add_noise(x, snr, torch.Generator().manual_seed(1))
    noise = noisy - x
    measured = 10 * math.log10(x.square().mean() / noise.square().mean())
    assert measured == pytest.approx(snr, abs=0.1)
    assert abs((x * noise).mean()) < 0.03 * (x.std() * noise.std())
    assert torch.equal(noisy, add_noise(x, snr, torch.Generator().manual_seed(1)))
    assert not torch.equal(noisy, add_noise(x, snr, torch.Generator().manual_seed(2)))
    assert len(add_noise(x[:0], snr)) == 0


def test_letters_become_labels_and_labels_letters():
    assert len(LABELS) == 28
    text = "the quick brown fox jumps over a lazy dog"
    labels = to_labels(text)
    assert labels.dtype == torch.int64
    assert labels.min() >= 1
    assert to_text(labels.tolist()) == text
    assert to_labels("abz ").tolist() == [1, 2, 26, 27]
    assert to_text([]) == ""
    for wrong in ("Two", "2", "two-one", "zwölf"):
        with pytest.raises(ValueError, match="only the letters a to z and spaces"):
            to_labels(wrong)
    for wrong in (0, 28, -1):
        with pytest.raises(ValueError, match=f"lie between 1 and 27, got {wrong}"):
            to_text([1, wrong])


# The loss


def collapsed(path, blank=0):
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def by_brute_force(log_probs, blank=0):
    """The probability of every sequence of labels: the sum over its alignments."""
    y, total = log_probs.exp(), defaultdict(float)
    for path in itertools.product(range(y.shape[1]), repeat=len(y)):
        total[collapsed(path, blank)] += math.prod(y[t, k].item() for t, k in enumerate(path))
    return total


@pytest.mark.parametrize(
    ("time", "classes", "blank"), [(1, 2, 0), (4, 3, 0), (5, 3, 2), (4, 4, 1)]
)
def test_the_loss_is_that_of_all_alignments_together(time, classes, blank):
    log_probs = normal(time, classes, seed=time).log_softmax(1)
    total = by_brute_force(log_probs, blank)
    assert sum(total.values()) == pytest.approx(1)
    for labels, probability in total.items():
        loss = ctc_loss(
            log_probs, torch.tensor(labels).long(), [time], [len(labels)], blank, "sum"
        )
        assert loss.item() == pytest.approx(-math.log(probability), rel=1e-12)


def test_with_equal_probabilities_the_loss_counts_alignments():
    for time, count in [(3, 3), (4, 2), (9, 4), (6, 1)]:
        log_probs = torch.full((time, 6), 1 / 6, dtype=torch.float64).log()
        loss = ctc_loss(log_probs, torch.arange(1, count + 1), [time], [count], 0, "sum")
        paths = math.comb(time + count, 2 * count)  # all labels differ
        assert loss.item() == pytest.approx(time * math.log(6) - math.log(paths), rel=1e-12)


@st.composite
def problems(draw):
    size, time = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    classes = draw(st.integers(2, 5))
    blank = draw(st.integers(0, classes - 1))
    frames = draw(st.lists(st.integers(0, time), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
    others = [label for label in range(classes) if label != blank]
    longest = max(*lengths, 1, 1) + draw(st.integers(0, 1))
    row = st.lists(st.sampled_from(others), min_size=longest, max_size=longest)
    targets = torch.tensor(draw(st.lists(row, min_size=size, max_size=size)))
    if draw(st.booleans()):
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    z = normal(time, size, classes, seed=draw(st.integers(0, 99)))
    z = z * draw(st.sampled_from([1.0, 10.0, 1e4]))
    if sum(lengths) == 0 and targets.dim() == 1:
        targets = targets.long()
    options = {
        "blank": blank,
        "reduction": draw(st.sampled_from(["none", "mean", "sum"])),
        "zero_infinity": draw(st.booleans()),
    }
    kind = draw(st.sampled_from([torch.tensor, tuple]))
    return z, targets, kind(frames), kind(lengths), options


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problem=problems())
def test_values_and_gradients_are_those_of_torch(problem):
    z, targets, frames, lengths, options = problem
    if targets.dim() == 1 and targets.numel() == 0:  # PyTorch's own refuses that
        targets = torch.zeros(z.shape[1], 1, dtype=torch.int64) + (options["blank"] == 0)
    results = []
    for function in (ctc_loss, F.ctc_loss):
        logits = z.clone().requires_grad_()
        log_probs = logits.log_softmax(2)
        log_probs.retain_grad()
        loss = function(log_probs, targets, frames, lengths, **options)
        (loss * torch.arange(1, loss.numel() + 1).view_as(loss)).sum().backward()
        results.append((loss.detach(), log_probs.grad, logits.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_the_gradient_agrees_with_central_differences():
    targets = torch.tensor([[1, 2, 2], [3, 0, 0], [0, 0, 0]])
    logits = normal(6, 3, 4).requires_grad_()

    def loss(z):
        return ctc_loss(z.log_softmax(2), targets, [6, 4, 5], [3, 1, 0], reduction="none")

    assert torch.autograd.gradcheck(loss, logits)


def test_the_gradient_is_softmax_minus_occupancy():
    """Which alignments pass a label at a frame, counted one by one."""
    log_probs = normal(5, 4).log_softmax(1).requires_grad_()
    ctc_loss(log_probs, torch.tensor([2, 1]), [5], [2], reduction="sum").backward()
    y, through = log_probs.detach().exp(), torch.zeros(5, 4, dtype=torch.float64)
    for path in itertools.product(range(4), repeat=5):
        if collapsed(path) == (2, 1):
            p = math.prod(y[t, k].item() for t, k in enumerate(path))
            for t, k in enumerate(path):
                through[t, k] += p
    torch.testing.assert_close(log_probs.grad, y - through / through[0].sum())
    assert log_probs.grad.sum(dim=1).abs().max() < 1e-14


def test_an_empty_target_is_a_blank_at_every_frame():
    log_probs = normal(7, 2, 5).log_softmax(2).requires_grad_()
    empty = torch.zeros(2, 0, dtype=torch.int64)
    losses = ctc_loss(log_probs, empty, [7, 3], [0, 0], reduction="none")
    expected = [-log_probs[:7, 0, 0].sum(), -log_probs[:3, 1, 0].sum()]
    torch.testing.assert_close(losses, torch.stack(expected))
    mean = ctc_loss(log_probs, empty, [7, 3], [0, 0])  # divided by at least 1
    torch.testing.assert_close(mean, losses.mean())


@pytest.mark.parametrize(("labels", "needed"), [([1, 2, 3], 3), ([1, 1, 2], 4), ([2, 2, 2], 5)])
def test_each_label_needs_a_frame_and_a_repetition_one_more(labels, needed):
    for frames in range(1, 8):
        log_probs = normal(frames, 4).log_softmax(1).requires_grad_()
        arguments = torch.tensor(labels), [frames], [3]
        loss = ctc_loss(log_probs, *arguments)
        assert (loss.item() == math.inf) == (frames < needed)
        loss.backward()
        assert log_probs.grad.isnan().all() == (frames < needed)
        log_probs.grad = None
        kept = ctc_loss(log_probs, *arguments, zero_infinity=True)
        kept.backward()
        assert (kept.item() == 0) == (frames < needed)
        assert (log_probs.grad == 0).all() == (frames < needed)


def test_what_stands_behind_the_ends_is_not_read():
    log_probs, targets = normal(8, 2, 5).log_softmax(2), torch.tensor([[1, 2, 3], [4, 4, 1]])
    results = []
    for junk in (0.0, math.nan, math.inf):
        x, y = log_probs.clone(), targets.clone()
        x[5:, 1], y[0, 2] = junk, -7
        x.requires_grad_()
        loss = ctc_loss(x, y, [8, 5], [2, 3], reduction="none")
        loss.sum().backward()
        assert (x.grad[5:, 1] == 0).all()
        results.append((loss.detach(), x.grad[:5]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_labels_that_are_impossible_at_a_frame_are_no_trouble():
    log_probs = normal(6, 1, 4).log_softmax(2)
    log_probs[2, 0, 1] = log_probs[4, 0, 0] = -math.inf
    results = []
    for function in (ctc_loss, F.ctc_loss):
        x = log_probs.clone().requires_grad_()
        loss = function(x, torch.tensor([[1, 2]]), [6], [2])
        loss.backward()
        assert loss.isfinite()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)
    assert results[0][1].isfinite().all()
    finite = results[1][1].isfinite()
    torch.testing.assert_close(results[0][1][finite], results[1][1][finite])


def test_single_precision_is_as_good_as_torchs():
    z = normal(200, 4, 28, seed=3)
    targets = torch.randint(1, 28, (4, 30), generator=torch.Generator().manual_seed(0))
    errors = []
    for function in (ctc_loss, F.ctc_loss):
        gradients = []
        for dtype in (torch.float64, torch.float32):
            logits = z.to(dtype, copy=True).requires_grad_()
            loss = function(logits.log_softmax(2), targets, [200] * 4, [30] * 4)
            assert loss.dtype == dtype
            gradients.append(torch.autograd.grad(loss, logits)[0].double())
        errors.append((gradients[0] - gradients[1]).abs().max().item())
    assert errors[0] < 2 * errors[1]
    assert errors[0] < 1e-5


def test_one_sequence_needs_no_batch():
    log_probs = normal(5, 4).log_softmax(1)
    targets = torch.tensor([1, 3])
    batched = ctc_loss(log_probs[:, None], targets[None], [5], [2], reduction="none")
    alone = ctc_loss(log_probs, targets, torch.tensor(5), torch.tensor(2), reduction="none")
    assert alone.shape == ()
    torch.testing.assert_close(alone, batched[0], rtol=0, atol=0)


def test_the_loss_cannot_be_differentiated_twice():
    log_probs = normal(5, 4).log_softmax(1).requires_grad_()
    loss = ctc_loss(log_probs, torch.tensor([1]), [5], [1])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, log_probs, create_graph=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_probs": torch.zeros(5)}, r"\(time, batch, labels\) or \(time, labels\)"),
        ({"log_probs": torch.zeros(5, 0, 4)}, "none of them empty"),
        ({"blank": 4}, "blank must be one of the labels, 0 to 3, got 4"),
        ({"reduction": "median"}, "reduction must be 'mean', 'sum' or 'none', got 'median'"),
        ({"input_lengths": [5]}, "input_lengths must have a length .* each of the 2"),
        ({"input_lengths": [5, -1]}, "at least 0"),
        ({"input_lengths": [5, 6]}, "log_probs has 5 frames, got input_lengths of 6"),
        ({"target_lengths": [3, 1]}, r"got shape \(2, 2\) for 2 sequences .* \[3, 1\]"),
        ({"targets": torch.tensor([1, 2, 3, 1])}, r"one after the other, got shape \(4,\)"),
        ({"targets": torch.tensor([[1, 4], [1, 1]])}, "from 0 to 3 .* got 4"),
        ({"targets": torch.tensor([[1, 0], [1, 1]])}, "other than the blank, 0, got 0"),
    ],
)
def test_problems_that_do_not_fit_are_refused(changes, words):
    arguments = {
        "log_probs": torch.zeros(5, 2, 4),
        "targets": torch.tensor([[1, 2], [3, 1]]),
        "input_lengths": [5, 5],
        "target_lengths": [2, 1],
    }
    ctc_loss(**arguments)
    with pytest.raises(ValueError, match=words):
        ctc_loss(**arguments | changes)


def test_lengths_are_whole_numbers():
    with pytest.raises(TypeError, match="input_lengths"):
        ctc_loss(torch.zeros(5, 1, 4), torch.tensor([[1]]), [5.0], [1])


# Decoding


@settings(max_examples=60, deadline=None, derandomize=True)
@given(path=st.lists(st.integers(0, 3), max_size=12), blank=st.integers(0, 3))
def test_greedy_search_collapses_the_likeliest_alignment(path, blank):
    scores = F.one_hot(torch.tensor(path, dtype=torch.int64), 4).double()
    assert greedy_search(scores, blank) == list(collapsed(path, blank))


def test_the_likeliest_alignment_need_not_be_the_likeliest_text():
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy_search(log_probs) == []  # 0.36
    (best, score), (second, less) = prefix_beam_search(log_probs)
    assert (best, second) == ((1,), ())
    assert math.exp(score) == pytest.approx(0.64)
    assert math.exp(less) == pytest.approx(0.36)


@pytest.mark.parametrize(("time", "classes", "blank"), [(1, 3, 0), (5, 3, 0), (4, 4, 2)])
def test_a_wide_beam_finds_every_text_with_its_probability(time, classes, blank):
    log_probs = (2 * normal(time, classes, seed=7)).log_softmax(1)
    expected = by_brute_force(log_probs, blank)
    found = prefix_beam_search(log_probs, 10_000, blank, cutoff=-math.inf)
    assert {labels for labels, _ in found} == set(expected)
    for labels, score in found:
        assert math.exp(score) == pytest.approx(expected[labels], rel=1e-10)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


def test_with_a_language_model_the_score_is_that_of_the_equation():
    texts = [[1, 2], [2, 2, 1], [1]]
    model = NGram(3, 3).fit(
        torch.cat(
            [F.pad(torch.tensor(text), (2, 0)) for text in texts] + [torch.zeros(1).long()]
        )
    )
    log_probs = normal(5, 3, seed=2).log_softmax(1)
    found = prefix_beam_search(
        log_probs, 10_000, language_model=model, weight=0.7, bonus=0.3, cutoff=-math.inf
    )
    acoustic = by_brute_force(log_probs)
    assert len(found) == len(acoustic)
    for labels, score in found:
        tokens = torch.tensor([0, 0, *labels, 0])
        prior = model.probability(tokens)[2:].log().sum().item()
        expected = math.log(acoustic[labels]) + 0.7 * prior + 0.3 * len(labels)
        assert score == pytest.approx(expected, rel=1e-9)
    alone = prefix_beam_search(log_probs, 10_000, cutoff=-math.inf)
    assert [labels for labels, _ in alone] != [labels for labels, _ in found]


def test_a_narrow_beam_and_a_cutoff_find_less_and_never_more():
    log_probs = (3 * normal(6, 4, seed=4)).log_softmax(1)
    exact = dict(prefix_beam_search(log_probs, 100_000, cutoff=-math.inf))
    for width in (1, 3, 20):
        for cutoff in (-2.0, -math.inf):
            found = prefix_beam_search(log_probs, width, cutoff=cutoff)
            assert 1 <= len(found) <= width
            for labels, score in found:
                assert score <= exact[labels] + 1e-12
    assert prefix_beam_search(log_probs, 20)[0][0] == max(exact, key=exact.get)


def test_nothing_heard_is_the_empty_text_and_the_impossible_no_text():
    assert prefix_beam_search(torch.zeros(0, 3)) == [((), 0.0)]
    assert prefix_beam_search(torch.full((2, 3), -math.inf)) == []


def test_a_beam_that_cannot_be_searched_is_refused():
    log_probs = normal(4, 3).log_softmax(1)
    with pytest.raises(ValueError, match="at least 1 beginning, got 0"):
        prefix_beam_search(log_probs, 0)
    for model, blank in [(NGram(2, 4), 0), (NGram(2, 3), 1)]:
        with pytest.raises(
            ValueError, match="must know the 3 labels, with the blank as token 0"
        ):
            prefix_beam_search(log_probs, blank=blank, language_model=model)
    with pytest.raises(ValueError, match="blank must be one of the labels, 0 to 2, got 3"):
        greedy_search(log_probs, 3)


# Errors

words = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6)


def by_recursion(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        by_recursion(a[1:], b) + 1,
        by_recursion(a, b[1:]) + 1,
        by_recursion(a[1:], b[1:]) + (a[0] != b[0]),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(a=st.text("ab", max_size=5), b=st.text("abc", max_size=5))
def test_edit_distance_is_the_least_number_of_changes(a, b):
    assert edit_distance(a, b) == by_recursion(a, b) == edit_distance(list(b), list(a))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=4))
def test_the_word_error_rate_is_that_of_jiwer(pairs):
    said, heard = zip(*((" ".join(a), " ".join(b)) for a, b in pairs), strict=True)
    assert word_error_rate(said, heard) == pytest.approx(jiwer.wer(list(said), list(heard)))


def test_known_error_rates():
    assert edit_distance("kitten", "sitting") == 3
    assert word_error_rate(["one two", "three four"], ["one two", "three four"]) == 0
    assert word_error_rate(["one two", "three four"], ["one", "four four five"]) == 0.75
    assert word_error_rate(["one"], ["two three four"]) == 3


@pytest.mark.parametrize(
    ("said", "heard", "words"),
    [
        (["one"], [], "each reference needs a hypothesis, got 1 and 0"),
        ([], [], "hold no words"),
        (["", " "], ["one", ""], "hold no words"),
    ],
)
def test_a_rate_of_nothing_is_refused(said, heard, words):
    with pytest.raises(ValueError, match=words):
        word_error_rate(said, heard)


# The recogniser


def recordings(*lengths, channels=6):
    return [normal(n, channels, seed=n, dtype=torch.float32) for n in lengths]


def test_batches_hold_every_recording_once_beside_others_of_its_length():
    features, texts = recordings(9, 3, 7, 4, 8), ["one", "a", "", "b c", "two"]
    made = batches(features, texts, batch_size=2)
    assert [batch.lengths.tolist() for batch in made] == [[3, 4], [7, 8], [9]]
    assert [place for batch in made for place in batch.places] == [1, 3, 2, 4, 0]
    for batch in made:
        assert batch.features.shape == (len(batch.places), batch.lengths.max(), 6)
        for i, place in enumerate(batch.places):
            n, m = batch.lengths[i], batch.target_lengths[i]
            assert torch.equal(batch.features[i, :n], features[place])
            assert (batch.features[i, n:] == 0).all()
            assert to_text(batch.targets[i, :m].tolist()) == texts[place]
            assert (batch.targets[i, m:] == 0).all()


@pytest.mark.parametrize(
    ("features", "texts", "error", "words"),
    [
        ([], [], ValueError, "at least one recording"),
        (recordings(3), ["a", "b"], ValueError, "got 1 recordings, 2 texts"),
        ([torch.ones(3)], ["a"], ValueError, r"got shapes \(3,\)"),
        ([torch.ones(3, 6), torch.ones(3, 5)], ["a", "b"], ValueError, "as many channels"),
        ([torch.ones(0, 6)], ["a"], ValueError, "at least one frame"),
        ([torch.ones(3, 6).long()], ["a"], TypeError, "floating-point numbers of one type"),
        ([torch.ones(3, 6), torch.ones(3, 6).double()], ["a", "b"], TypeError, "of one type"),
    ],
)
def test_recordings_that_make_no_batch_are_refused(features, texts, error, words):
    with pytest.raises(error, match=words):
        batches(features, texts)


def test_company_in_a_batch_changes_nothing():
    torch.manual_seed(0)
    model, features = Recognizer(6, 8).double(), [x.double() for x in recordings(9, 1, 14, 2)]
    (batch,) = batches(features, ["a"] * 4)
    log_probs, lengths = model(batch.features, batch.lengths)
    assert log_probs.shape == (7, 4, 28)
    assert lengths.tolist() == [1, 1, 5, 7]
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(7, 4).double())
    for i, place in enumerate(batch.places):
        x = features[place]
        alone, length = model(x[None], torch.tensor([len(x)]))
        assert length == lengths[i]
        torch.testing.assert_close(alone[:, 0], log_probs[: lengths[i], i])


def test_every_letter_may_depend_on_every_frame():
    torch.manual_seed(0)
    model = Recognizer(6, 8).double()
    x = normal(1, 12, 6).requires_grad_()
    log_probs, _ = model(x, torch.tensor([12]))
    for t in range(6):
        (gradient,) = torch.autograd.grad(log_probs[t, 0, 3], x, retain_graph=True)
        assert (gradient.abs().sum(dim=2) > 0).all()


def test_a_recogniser_learns_what_it_hears():
    """Tones instead of voices: each word is a chord of its own."""
    g = torch.Generator().manual_seed(0)
    chords = {name: torch.randn(1, 6, generator=g) for name in ("one", "two", "six")}
    texts = [" ".join(pair) for pair in itertools.product(chords, repeat=2)]
    features = [
        torch.cat([chords[word].expand(8, 6) for word in text.split()])
        + 0.1 * torch.randn(16, 6, generator=g)
        for text in texts
    ]
    torch.manual_seed(0)
    model = Recognizer(6, 24)
    history = train(
        model.loss,
        Adam(model.parameters(), lr=0.03),
        batches(features, texts, batch_size=9),
        model=model,
        epochs=100,
        progress=False,
    )
    assert history.loss[0] > 2
    assert history.loss[-1] < 0.1
    assert transcribe(model, features) == texts
    search = lambda log_probs: prefix_beam_search(log_probs, 4)[0][0]  # noqa: E731
    assert transcribe(model, features[::-1], search) == texts[::-1]


@pytest.mark.parametrize(
    ("features", "lengths", "words"),
    [
        (torch.zeros(1, 5, 4), [5], "built for 6 channels, got features of shape"),
        (torch.zeros(1, 5, 6), [6], "between 1 and the 5 frames"),
        (torch.zeros(1, 5, 6), [0], "between 1 and the 5 frames"),
    ],
)
def test_frames_that_the_recogniser_does_not_know_are_refused(features, lengths, words):
    with pytest.raises(ValueError, match=words):
        Recognizer(6, 8)(features, torch.tensor(lengths))


# What is shipped


@pytest.mark.parametrize(("noise", "most"), [(False, 0.05), (True, 0.06)])
def test_a_shipped_recogniser_understands_voices_that_it_never_heard(noise, most):
    model, test = pretrained_recognizer(noise), spoken_digits().test
    assert not model.training
    frames = [write_speech_model.prepare(wave) for wave in test.waves]
    assert word_error_rate(test.texts, transcribe(model, frames)) <= most
    assert word_error_rate(test.texts, transcribe(model, [-x for x in frames])) > 0.5


def test_the_two_shipped_recognisers_differ_in_noise():
    test = spoken_digits().test
    g = torch.Generator().manual_seed(0)
    noisy = [write_speech_model.prepare(add_noise(x, 15.0, g)) for x in test.waves]
    clean, used = (
        word_error_rate(test.texts, transcribe(pretrained_recognizer(noise), noisy))
        for noise in (False, True)
    )
    assert used < 0.25 < 0.4 < clean


def test_the_files_of_the_recognisers_are_small_and_say_what_they_are():
    for name, noise in [("speech_model", "False"), ("speech_model_noise", "True")]:
        path = DATA / f"{name}.safetensors"
        assert path.stat().st_size < 400_000
        with safe_open(path, "pt") as file:
            assert file.metadata()["noise"] == noise
            assert "Recognizer(hidden=96)" in file.metadata()["what"]
            assert {file.get_tensor(key).dtype for key in set(file.keys())} == {torch.float16}


def few(part, count):
    return Recordings(*(field[:count] for field in part))


@pytest.fixture
def short(monkeypatch):
    """Twelve recordings a part, whoever asks."""
    parts = Speech(*(few(part, 12) for part in spoken_digits()))
    monkeypatch.setattr(datasets, "spoken_digits", lambda **_: parts)
    monkeypatch.setattr(write_speech_trials, "spoken_digits", lambda: parts)
    return parts


def test_the_script_writes_both_recognisers_in_the_form_that_is_shipped(
    tmp_path, monkeypatch, short
):
    script = DATA / "write_speech_model.py"
    text = script.read_text().replace("EPOCHS, RATE = 26,", "EPOCHS, RATE = 2,")
    (tmp_path / script.name).write_text(text)
    monkeypatch.setattr(sys, "argv", [script.name, "--target", str(tmp_path / "m.safetensors")])
    runpy.run_path(str(tmp_path / script.name), run_name="__main__")
    states = []
    for new, old in [("m", "speech_model"), ("m_noise", "speech_model_noise")]:
        with (
            safe_open(tmp_path / f"{new}.safetensors", "pt") as ours,
            safe_open(DATA / f"{old}.safetensors", "pt") as stored,
        ):
            assert ours.metadata() == stored.metadata()
            assert set(ours.keys()) == set(stored.keys())
            for key in set(ours.keys()):
                assert ours.get_tensor(key).shape == stored.get_tensor(key).shape
            states.append(ours.get_tensor("head.weight"))
    assert not torch.equal(*states)


def test_a_perturbed_batch_has_moved_channels_and_two_hidden_stretches():
    features, texts = recordings(*range(40, 56), channels=40), ["a"] * 16
    (batch,) = batches([x.abs() + 1 for x in features], texts, 16)
    torch.manual_seed(0)
    again = write_speech_model.perturbed(batch)
    assert torch.equal(again.targets, batch.targets)
    assert torch.equal(again.lengths, batch.lengths)
    shifts, widths = set(), set()
    for x, new, n in zip(batch.features, again.features, batch.lengths, strict=True):
        found = []
        for shift in range(-3, 4):
            moved = x[:n, (torch.arange(40) + shift).clamp(0, 39)]
            if torch.equal(torch.where(new[:n] == 0, 0.0, moved), new[:n]):
                found.append(shift)
        assert len(found) == 1
        shifts.add(found[0])
        hidden = new[:n] == 0
        times, channels = hidden.all(dim=1), hidden.all(dim=0)
        assert torch.equal(hidden, times[:, None] | channels)
        for stretch in (times, channels):
            places = stretch.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[-1] + 1)) if places else True
            widths.add(len(places))
        assert (new[n:] == 0).all()
    assert min(shifts) == -3
    assert max(shifts) == 3
    assert max(widths) == 6


def test_the_trials_chose_their_rates_in_validation_and_report_the_test():
    trials = json.loads((DATA / "speech_trials.json").read_text())
    assert list(trials) == list(write_speech_trials.VARIANTS)
    for found in trials.values():
        scores = {float(rate): score for rate, score in found["validation"].items()}
        assert list(scores) == list(write_speech_trials.RATES)
        assert found["rate"] == min(scores, key=scores.get)
        assert min(scores) < found["rate"] < max(scores)
        assert len(found["test"]) == 3


def test_the_script_of_the_trials_runs_whole(tmp_path, monkeypatch, short):
    monkeypatch.setattr(write_speech_trials, "trained", trial := Trial())
    monkeypatch.setattr(
        write_speech_trials, "errors", lambda variant, model, part: model(part is short.test)
    )
    write_speech_trials.write(tmp_path / "trials.json")
    written = json.loads((tmp_path / "trials.json").read_text())
    for found in written.values():
        assert found["rate"] == 1e-2
        assert found["test"] == [0.01, 1.01, 2.01]
        assert found["validation"] == {
            str(rate): abs(rate - 1e-2) for rate in write_speech_trials.RATES
        }
    assert len(trial.asked) == 3 * 6


class Trial:
    """Models that do best in validation at a rate of 0.01, and in the test the worse the
    larger the rate.
    """

    def __init__(self):
        self.asked = []

    def __call__(self, variant, rate, seed):
        self.asked.append((variant, rate, seed))
        return lambda test: seed + rate if test else abs(rate - 1e-2)


def test_the_variants_hear_and_write_what_their_names_say(short):
    part = short.train
    everything, no_logarithm = (
        write_speech_trials.frames(name, part) for name in ("all", "no logarithm")
    )
    power = spectrogram(part.waves[0]) @ mel_filterbank(129).float()
    torch.testing.assert_close(no_logarithm[0], standardize(power))
    torch.testing.assert_close(everything[0], standardize((power + 1e-6).log()))
    three = Recordings([], ["three seven", "eight"], [])
    assert write_speech_trials.spelled("no blank", three) == ["thre seven", "eight"]
    assert write_speech_trials.spelled("all", three) == three.texts
    model = write_speech_trials.trained("no blank", 1e-3, 0, epochs=1)
    frames = write_speech_trials.frames("no blank", part)
    log_probs, _ = model(frames[0][None], torch.tensor([len(frames[0])]))
    assert log_probs[..., 0].max() < -9000
