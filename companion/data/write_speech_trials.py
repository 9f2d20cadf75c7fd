"""Write ``speech_trials.json``: what a recogniser loses without the logarithm, and without
the blank.

Run ``python companion/data/write_speech_trials.py``; it takes eight minutes on one core. All
learn from the recordings that come with the companion, for as long, each with four rates; the
rate that did best in validation is taken with two more seeds. Word error rates are those of the
likeliest alignment.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from companion.data.write_speech_model import learn, prepare
from companion.datasets import Recordings, spoken_digits
from companion.speech import (
    Recognizer,
    mel_filterbank,
    spectrogram,
    standardize,
    transcribe,
    word_error_rate,
)

VARIANTS = ("all", "no logarithm", "no blank")
RATES = (1.6e-3, 4e-3, 1e-2, 2.5e-2)
SEEDS = (0, 1, 2)
EPOCHS = 40


def frames(variant: str, recordings: Recordings) -> list[Tensor]:
    """What a variant hears."""
    if variant != "no logarithm":
        return [prepare(wave) for wave in recordings.waves]
    filters = mel_filterbank(129).float()
    return [standardize(spectrogram(wave) @ filters) for wave in recordings.waves]


def spelled(variant: str, recordings: Recordings) -> list[str]:
    """What a variant can write: without a blank no letter twice in a row."""
    if variant != "no blank":
        return recordings.texts
    return ["".join(letter for letter, _ in groupby(text)) for text in recordings.texts]


def trained(variant: str, rate: float, seed: int, epochs: int = EPOCHS) -> Recognizer:
    """A recogniser that has learned."""
    data = spoken_digits().train
    torch.manual_seed(seed)
    model = Recognizer()
    if variant == "no blank":
        model.head.bias.data[0] = -1e4  # its probability is zero at every frame
    learn(
        model,
        frames(variant, data),
        spelled(variant, data),
        epochs=epochs,
        rate=rate,
        batch_size=16,
        seed=seed,
    )
    return model


def errors(variant: str, model: Recognizer, recordings: Recordings) -> float:
    """The word error rate of a variant."""
    return word_error_rate(
        spelled(variant, recordings), transcribe(model, frames(variant, recordings))
    )


def write(target: Path) -> None:
    """Run all trials and write what came out.

    Args:
        target: The file to write.
    """
    data, results = spoken_digits(), {}
    for variant in VARIANTS:

        def trial(rate, seed, variant=variant):
            model = trained(variant, rate, seed)
            scores = [errors(variant, model, part) for part in (data.validation, data.test)]
            print(f"{variant}, rate {rate}, seed {seed}: {scores}", flush=True)
            return scores

        by_rate = {rate: trial(rate, SEEDS[0]) for rate in RATES}
        best = min(RATES, key=lambda rate, scores=by_rate: scores[rate][0])
        tests = [by_rate[best][1], *(trial(best, seed)[1] for seed in SEEDS[1:])]
        validation = {str(rate): scores[0] for rate, scores in by_rate.items()}
        results[variant] = {"validation": validation, "rate": best, "test": tests}
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("speech_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
