"""Write ``translation_trials.json``: translators from which one thing was taken away.

Run ``python companion/data/write_translation_trials.py``; it takes about ten minutes on one
core. Every network has as many parameters as the whole one, within one in fifty: where a part
is missing, the others are larger. All begin with a forget bias of two, without which those that
never look back learn much later, and are trained for as many epochs on the same data, with
three seeds each.

On names of numbers the decoder looks back or does not; where it does not, the encoder reads
forward, backward or in both directions; and one that looks back is trained on its own outputs,
without teacher forcing. On sentences the decoder looks back or does not. The chapter *Machine
translation* draws the results, and runs a part of it again.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from companion.datasets import number_words, sentence_pairs
from companion.layers import count_parameters, cross_entropy
from companion.optimization import Adam, CosineWithWarmup
from companion.training import History, train
from companion.translation import (
    BEGIN,
    PADDING,
    AdditiveAttention,
    Decoder,
    Encoder,
    SimilarLengths,
    Translator,
    Vocabulary,
    bleu,
    bpe,
    word_vocabulary,
)

SEEDS = (0, 1, 2)
TRIALS = {  # direction of the encoder, whether the decoder looks back, is taught by the teacher
    "both, attention": ("both", True, True),
    "both": ("both", False, True),
    "forward": ("forward", False, True),
    "backward": ("backward", False, True),
    "no teacher": ("both", True, False),
}
SENTENCE_TRIALS = ("both, attention", "both")


def model_of(trial: str, source: Vocabulary, target: Vocabulary, hidden: int) -> Translator:
    """A fresh translator that is as large as the whole one of so many units.

    Args:
        trial: One of ``TRIALS``.
        source: The vocabulary that is read.
        target: The vocabulary that is written.
        hidden: Units of the whole one, in each of its three LSTMs.
    """
    direction, attention, _ = TRIALS[trial]

    def built(bidirectional, attention, size):
        encoder = Encoder(len(source), hidden // 2, size, bidirectional=bidirectional)
        looks = AdditiveAttention(size, encoder.memory_size, size) if attention else None
        decoder = Decoder(len(target), hidden // 2, size, encoder.memory_size, looks)
        for lstm in (encoder.recurrent, decoder.recurrent):
            for name, bias in lstm.named_parameters():
                if name.startswith("bias_hh"):
                    bias.data.chunk(4)[1].fill_(2.0)  # what is in the cells is kept
        return Translator(encoder, decoder, source, target)

    wanted = count_parameters(built(True, True, hidden))
    sizes = range(hidden, 2 * hidden)
    return min(
        (built(direction == "both", attention, size) for size in sizes),
        key=lambda model: abs(count_parameters(model) - wanted),
    )


def loss_of(model: Translator, source: torch.Tensor, target: torch.Tensor, teacher: bool):
    """The loss of a minibatch; without a teacher the decoder reads what it has just written."""
    if teacher:
        logits = model(source, target[:, :-1])
    else:
        memory, mask, state = model.read(source)
        token, steps = source.new_full((len(source), 1), BEGIN), []
        for _ in range(target.shape[1] - 1):
            z, state, _ = model.decoder(token, memory, mask, state)
            token = z.argmax(dim=-1)
            steps.append(z)
        logits = torch.cat(steps, dim=1)
    return cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PADDING)


def turned(text: str, trial: str) -> str:
    """The text as the encoder reads it; its last word first, if it reads backward."""
    return " ".join(text.split()[::-1]) if TRIALS[trial][0] == "backward" else text


def trained(
    trial: str, data: str, seed: int = 0, epochs: int | None = None
) -> tuple[Translator, History]:
    """A trained translator, and what happened meanwhile.

    Args:
        trial: One of ``TRIALS``.
        data: ``"numbers"`` or ``"sentences"``.
        seed: For the first weights and the order of the pairs.
        epochs: Where to stop; the schedule is always that of all epochs.
    """
    if data == "numbers":
        pairs, hidden, whole, batch = number_words().train, 64, 12, 32
        source = word_vocabulary([text for text, _ in pairs])
        target = bpe([translation for _, translation in pairs], 40)
    else:
        pairs, hidden, whole, batch = sentence_pairs().train, 96, 3, 48
        source, target = (bpe(texts, 600) for texts in zip(*pairs, strict=True))
    torch.manual_seed(seed)
    model = model_of(trial, source, target, hidden)
    encoded = [(source.encode(turned(a, trial)), target.encode(b)) for a, b in pairs]
    batches = SimilarLengths(encoded, batch, torch.Generator().manual_seed(seed))
    optimizer = Adam(model.parameters(), lr=5e-3)
    history = train(
        lambda pair: loss_of(model, *pair, teacher=TRIALS[trial][2]),
        optimizer,
        batches,
        model=model,
        epochs=epochs or whole,
        scheduler=CosineWithWarmup(optimizer, 0, whole * len(batches)),
        max_norm=1.0,
        seed=seed,
        progress=False,
    )
    return model, history


def shares_right(model: Translator, trial: str) -> dict[str, float]:
    """For each number of words the share of test numbers whose name is right, letter by
    letter; from seven words on the names are longer than any in training. And the loss on the
    shorter ones, in nats a token, with a teacher.
    """
    short, long = number_words().test, number_words(words=(7, 11)).test
    written = model.translate([turned(name, trial) for name, _ in short + long])
    right = defaultdict(list)
    for text, (name, wanted) in zip(written, short + long, strict=True):
        right[len(name.split())].append(text == wanted)
    found = {str(n): sum(hits) / len(hits) for n, hits in sorted(right.items())}
    encoded = [
        (model.source.encode(turned(a, trial)), model.target.encode(b)) for a, b in short
    ]
    (whole,) = SimilarLengths(encoded, len(encoded), torch.Generator())
    with torch.no_grad():
        found["loss"] = loss_of(model, *whole, teacher=True).item()
    return {name: round(value, 4) for name, value in found.items()}


def scores(model: Translator) -> dict[str, float]:
    """BLEU on the test sentences of two or three words, four to six, and more; and of all."""
    tokens = word_vocabulary([])

    def parted(text):
        return " ".join(token.strip() for token in tokens.split(text))

    found, test = {}, sentence_pairs().test
    for name, lengths in {
        "2-3": range(2, 4),
        "4-6": range(4, 7),
        "7-12": range(7, 13),
        "all": range(99),
    }.items():
        pairs = [pair for pair in test if len(pair[0].split()) in lengths]
        written = model.translate([text for text, _ in pairs])
        found[name] = bleu(
            [*map(parted, written)], [[parted(wanted) for _, wanted in pairs]]
        ).score
    return {name: round(score, 2) for name, score in found.items()}


def write(target: Path) -> None:
    """Train every network and write what it got right.

    Args:
        target: The file to write; what is in it already is not trained again, so that an
            interrupted run goes on.
    """
    results = {"numbers": {}, "sentences": {}}
    if target.exists():
        results = json.loads(target.read_text(encoding="utf-8"))
    for seed in SEEDS:
        for data, trials in {"numbers": TRIALS, "sentences": SENTENCE_TRIALS}.items():
            for trial in trials:
                runs = results[data].setdefault(trial, [])
                if len(runs) == seed:
                    model, history = trained(trial, data, seed)
                    runs.append(
                        scores(model) if data == "sentences" else shares_right(model, trial)
                    )
                    first = history.loss[: history.steps_per_epoch]
                    runs[-1]["loss of first epoch"] = round(sum(first) / len(first), 4)
                    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("translation_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
