"""Write ``recorded_digits.npz``: the ten digits, said by a woman.

Run ``python companion/data/write_recorded_digits.py`` where Debian's package
``asterisk-core-sounds-en-wav`` is installed, or with ``--folder``, the folder of the ten files
``0.wav`` to ``9.wav``.
"""

import argparse
from pathlib import Path

from companion.datasets import _DIGITS, Recordings, _write_recordings, read_wave

FOLDER = Path("/usr/share/asterisk/sounds/en_US_f_Allison/digits")
ABOUT = (
    "The digits of Asterisk's core sounds in English, 1.6.1. Copyright 2003-2010, Allison "
    "Smith (http://www.theivrvoice.com); financial contributions by Digium, Inc. "
    "(http://www.digium.com). Licence: Creative Commons Attribution-ShareAlike 3.0, "
    "https://creativecommons.org/licenses/by-sa/3.0/. Changed: a byte a sample."
)


def write(target: Path, folder: Path = FOLDER) -> None:
    """Write the file.

    Args:
        target: Where to.
        folder: Where the recordings are.
    """
    names = [f"{digit}.wav" for digit in range(10)]
    waves = [read_wave((folder / name).read_bytes(), name) for name in names]
    recorded = Recordings(waves, list(_DIGITS), ["Allison Smith"] * 10)
    _write_recordings(target, {"recorded": recorded}, ABOUT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("recorded_digits.npz")
    )
    arguments = parser.parse_args()
    write(arguments.target, arguments.folder)
