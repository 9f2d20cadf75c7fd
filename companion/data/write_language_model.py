"""Write ``language_model.safetensors``: the language model that comes with the companion.

Run ``python companion/data/write_language_model.py``; it takes five to ten minutes on one core.
The model has two layers of 256 LSTM units and reads the characters of
:func:`companion.datasets.python_documentation`. It learns from the training part; its settings
were chosen on the validation part, and the test part stays unread. The numbers are stored in
half precision.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from companion.datasets import CHARACTERS, encode, python_documentation
from companion.language_models import LanguageModel, fit_truncated
from companion.lstm import LSTM
from companion.optimization import AdamW, CosineWithWarmup

ABOUT = {
    "what": "LanguageModel(97, LSTM(64, 256, num_layers=2, dropout=0.2), dropout=0.2) "
    "of companion.language_models",
    "text": "the topics of the Python documentation, module pydoc_data.topics of CPython",
    "licence": "Weights: MIT. Text that they were learned from: "
    "PSF License Agreement, version 2",
}
EPOCHS, BATCH, TIME = 14, 32, 64


def write(target: Path) -> None:
    """Train the model and write its parameters.

    Args:
        target: The file to write.
    """
    torch.manual_seed(0)
    train, validation, _ = map(encode, python_documentation())
    lstm = LSTM(64, 256, num_layers=2, dropout=0.2)
    for layer in range(2):  # keep what is in the cells, to begin with
        getattr(lstm, f"bias_hh_l{layer}").data.chunk(4)[1].fill_(1.0)
    model = LanguageModel(len(CHARACTERS), lstm, dropout=0.2)
    optimizer = AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    steps = EPOCHS * ((len(train) - 1) // BATCH // TIME)
    scheduler = CosineWithWarmup(optimizer, 50, steps)
    history = fit_truncated(
        model,
        optimizer,
        train,
        epochs=EPOCHS,
        batch_size=BATCH,
        time=TIME,
        validation=validation,
        scheduler=scheduler,
    )
    print(
        " ".join(f"{bits:.3f}" for bits in history.validation_metric),
        f"{history.seconds[-1]:.0f} s",
    )
    save_file(
        {name: tensor.half() for name, tensor in model.state_dict().items()},
        target,
        metadata=ABOUT,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("language_model.safetensors")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
