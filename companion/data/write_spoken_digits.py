"""Write ``spoken_digits.npz``: the first recordings of each part of the full set of
:func:`companion.datasets.spoken_digits`.

Run ``python companion/data/write_spoken_digits.py``; it takes half a minute where the full set
has to be spoken. eSpeak NG's hiss is random: a new file holds the same words in the same
voices, and other samples.
"""

import argparse
from pathlib import Path

from companion.datasets import Recordings, _write_recordings, spoken_digits

ABOUT = "Strings of digits, spoken by eSpeak NG 1.52, https://github.com/espeak-ng/espeak-ng"
STRINGS = {"train": 378, "validation": 60, "test": 120}  # whole rounds of the voices


def write(target: Path) -> None:
    """Write the file.

    Args:
        target: Where to.
    """
    full = spoken_digits(full=True)._asdict()
    first = {
        part: Recordings(*(field[: STRINGS[part]] for field in recordings))
        for part, recordings in full.items()
    }
    _write_recordings(target, first, ABOUT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("spoken_digits.npz")
    )
    write(parser.parse_args().target)
