"""Write ``translation_model.safetensors``: the translator that comes with the companion.

Run ``python companion/data/write_translation_model.py``; it took 22 minutes on one core
of a busy machine. The encoder reads pieces of English words in both directions, the decoder
writes pieces of German ones with additive attention. Both learn from the training part of
:func:`companion.datasets.sentence_pairs`, single words too; how often the loss is measured on
the validation part changes nothing, and the test part stays unread. The numbers are stored in
half precision, and the two vocabularies beside them.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from companion.datasets import sentence_pairs
from companion.optimization import AdamW, CosineWithWarmup
from companion.training import History
from companion.translation import (
    AdditiveAttention,
    Decoder,
    Encoder,
    Translator,
    Vocabulary,
    bpe,
    fit_translator,
)

ABOUT = {
    "what": "made by untrained() in companion/data/write_translation_model.py",
    "licence": "Weights: MIT. Texts that they were learned from, those of Home Assistant: "
    "Apache License 2.0",
}
EPOCHS, BATCH, DROPOUT, RATE = 14, 48, 0.2, 4e-3


def vocabularies() -> tuple[Vocabulary, Vocabulary]:
    """Pieces of English and of German words."""
    english, german = zip(*sentence_pairs(words=(1, 12)).train, strict=True)
    return bpe(english, 1000), bpe(german, 1500)


def untrained(source: Vocabulary, target: Vocabulary) -> Translator:
    """The translator with weights drawn at random."""
    return Translator(
        Encoder(len(source), 128, 192, dropout=DROPOUT),
        Decoder(len(target), 128, 192, 384, AdditiveAttention(192, 384, 192), dropout=DROPOUT),
        source,
        target,
    )


def trained(
    epochs: int = EPOCHS, checkpoint: Path | None = None, progress: bool = False
) -> tuple[Translator, History]:
    """A trained translator, and what happened meanwhile.

    Args:
        epochs: Where to stop; the schedule is always that of all epochs.
        checkpoint: The file to go on from, if it exists, and to write.
        progress: Show a progress bar.
    """
    pairs = sentence_pairs(words=(1, 12))
    torch.manual_seed(0)
    model = untrained(*vocabularies())
    optimizer = AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    scheduler = CosineWithWarmup(optimizer, 100, EPOCHS * -(-len(pairs.train) // BATCH))
    history = fit_translator(
        model,
        optimizer,
        pairs.train,
        epochs=epochs,
        batch_size=BATCH,
        validation=pairs.validation,
        scheduler=scheduler,
        checkpoint=checkpoint,
        progress=progress,
    )
    return model, history


def write(target: Path, checkpoint: Path | None = None) -> None:
    """Train the translator and write its parameters and vocabularies.

    Args:
        target: The file to write.
        checkpoint: The file to go on from, if it exists, and to write.
    """
    model, history = trained(checkpoint=checkpoint)
    print(
        " ".join(f"{loss:.3f}" for loss in history.validation_loss),
        f"{history.seconds[-1]:.0f} s",
    )
    words = [
        [vocabulary.tokens[4:], vocabulary.merges]
        for vocabulary in (model.source, model.target)
    ]
    losses = [round(loss, 4) for loss in history.validation_loss]
    save_file(
        {name: tensor.half() for name, tensor in model.state_dict().items()},
        target,
        metadata=ABOUT
        | {
            "vocabularies": json.dumps(words, ensure_ascii=False),
            "validation_loss": json.dumps(losses),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="the file to go on from, and to write")
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("translation_model.safetensors")
    )
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    write(arguments.target, arguments.checkpoint)
