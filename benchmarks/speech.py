"""The loss of speech recognition against ``torch.nn.functional``, whose loops are compiled, and
the features against ``torchaudio``'s formula, written with ``torch.stft``.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from benchmarks.measure import Row, forward_backward
from companion.datasets import SAMPLE_RATE
from companion.speech import ctc_loss, log_mel, mel_filterbank

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """CTC over 200 frames, and ten seconds of sound in frames."""
    torch.manual_seed(0)
    logits = torch.randn(200, 16, 28, requires_grad=True)
    targets = torch.randint(1, 28, (16, 30))
    frames, lengths = torch.full((16,), 200), torch.full((16,), 30)
    ours, theirs = (
        forward_backward(
            lambda loss=loss: loss(logits.log_softmax(2), targets, frames, lengths), [logits]
        )
        for loss in (ctc_loss, F.ctc_loss)
    )
    yield Row("ctc_loss T=200, batch 16, 28 labels, forward and backward", ours, theirs, 3.0)

    wave = torch.randn(10 * SAMPLE_RATE)
    window, filters = torch.hann_window(256), mel_filterbank(129).float()

    def by_stft():
        spectrum = torch.stft(wave, 256, 80, window=window, center=False, return_complex=True)
        return (spectrum.abs().square().T @ filters + 1e-6).log()

    yield Row("log_mel, 10 s", lambda: log_mel(wave), by_stft, 1.5)
