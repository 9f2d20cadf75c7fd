"""Write ``fashion_mnist.npz``: the part of Fashion-MNIST that comes with the companion.

Run ``python companion/data/write_fashion_mnist.py``, with ``--folder`` if the four published
files are in a place that :func:`companion.datasets.fashion_mnist` does not know. Images are
stored as bytes, 28 by 28, and labels as bytes.
"""

import argparse
from pathlib import Path

import numpy as np

from companion.datasets import Splits, fashion_mnist

LICENCE = """\
Fashion-MNIST. Source: https://github.com/zalandoresearch/fashion-mnist

The MIT License (MIT)

Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.
"""  # noqa: E501 (as it was published)
PER_CLASS = Splits(train=1_000, validation=200, test=200)


def write(target: Path, folder: Path | None = None) -> None:
    """Write the first images of each class of the three parts of the full set, and their
    licence.

    Args:
        target: The file to write.
        folder: Where the four published files are, as for
            :func:`companion.datasets.fashion_mnist`.
    """
    arrays = {"licence": np.array(LICENCE)}
    for part, count, (x, y) in zip(
        Splits._fields, PER_CLASS, fashion_mnist(full=True, folder=folder), strict=True
    ):
        first = np.sort(
            np.concatenate([np.flatnonzero(y == label)[:count] for label in range(10)])
        )
        arrays[f"{part}_x"] = (x[first, 0] * 255).round().byte().numpy()  # (images, 28, 28)
        arrays[f"{part}_y"] = y[first].byte().numpy()
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the four published .gz files are")
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("fashion_mnist.npz")
    )
    arguments = parser.parse_args()
    write(arguments.target, arguments.folder)
