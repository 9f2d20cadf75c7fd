"""Write ``speech_model.safetensors`` and ``speech_model_noise.safetensors``: the recognisers of
spoken digits that come with the companion.

Run ``python companion/data/write_speech_model.py``; it takes about two minutes on one core for
each. Both learn from the training part of ``companion.datasets.spoken_digits(full=True)``, for
as many steps. Their settings were chosen on its validation part, and the test part stays
unread. The numbers are stored in half precision.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from companion.datasets import spoken_digits
from companion.optimization import AdamW, OneCycleLR
from companion.speech import (
    Batch,
    Recognizer,
    add_noise,
    batches,
    log_mel,
    standardize,
    transcribe,
    word_error_rate,
)
from companion.training import History, train

ABOUT = {
    "what": "Recognizer(hidden=96) of companion.speech",
    "data": "strings of digits spoken by eSpeak NG, companion.datasets.spoken_digits",
    "licence": "Weights: MIT",
}
EPOCHS, RATE = 26, 8e-3


def prepare(wave: Tensor) -> Tensor:
    """What the recognisers hear of a wave."""
    return standardize(log_mel(wave))


def perturbed(batch: Batch) -> Batch:
    """A batch of other voices: in each recording all channels are moved up or down by up to
    three, as if the mouth were smaller or larger, and a stretch of time and one of channels are
    hidden.
    """
    x, lengths = batch.features, batch.lengths[:, None, None]
    count, frames, channels = x.shape
    k, t = torch.arange(channels), torch.arange(frames)[:, None]
    moved = (k + torch.randint(-3, 4, (count, 1, 1))).clamp(0, channels - 1)
    hidden = torch.zeros_like(x, dtype=torch.bool)
    for place, size in ((t, lengths), (k, channels)):
        start = (torch.rand(count, 1, 1) * size).long()
        hidden |= (place >= start) & (place < start + torch.randint(0, 7, (count, 1, 1)))
    x = x.gather(2, moved.expand_as(x))
    return batch._replace(features=x.masked_fill(hidden, 0.0))


def learn(
    model: Recognizer,
    features: Sequence[Tensor],
    texts: Sequence[str],
    *,
    epochs: int = EPOCHS,
    rate: float = RATE,
    batch_size: int = 32,
    perturb: bool = True,
    seed: int = 0,
) -> History:
    """Train a recogniser by CTC.

    Args:
        model: What is trained.
        features: Of each recording.
        texts: What is said in each.
        epochs: How often all are heard.
        rate: The highest learning rate.
        batch_size: Recordings of about the same length.
        perturb: Whether to make them :func:`perturbed`.
        seed: For the order of the batches and the perturbations.

    Returns:
        The losses.
    """
    made = batches(features, texts, batch_size)
    optimizer = AdamW(model.parameters(), lr=rate)
    return train(
        lambda batch: model.loss(perturbed(batch) if perturb else batch),
        optimizer,
        DataLoader(made, batch_size=None, shuffle=True),
        model=model,
        epochs=epochs,
        scheduler=OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * len(made)),
        max_norm=1.0,
        seed=seed,
    )


def write(target: Path, noise: bool = False) -> None:
    """Train a model and write its parameters.

    Args:
        target: The file to write.
        noise: Whether it hears each recording with noise too, at 0 to 30 decibels.
    """
    full = spoken_digits(full=True)
    torch.manual_seed(0)
    model = Recognizer(hidden=96)
    waves, texts, epochs = full.train.waves, full.train.texts, EPOCHS
    if noise:  # twice as many recordings, half as often
        waves = waves + [add_noise(x, float(30 * torch.rand(()))) for x in waves]
        texts, epochs = texts + texts, EPOCHS // 2
    history = learn(model, [prepare(wave) for wave in waves], texts, epochs=epochs)
    heard = transcribe(model, [prepare(wave) for wave in full.validation.waves])
    rate = word_error_rate(full.validation.texts, heard)
    print(f"{history.seconds[-1]:.0f} s, word error rate in validation {rate:.3f}")
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(half, target, metadata=ABOUT | {"noise": str(noise)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("speech_model.safetensors")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write(arguments.target)
    write(arguments.target.with_stem(f"{arguments.target.stem}_noise"), noise=True)
