"""The data sets of the book, and the one way in which it downloads.

A data set is tensors on the CPU: inputs as float32, labels as int64. What a chapter needs by
default comes with the companion or with scikit-learn; the network is asked for nothing but a
full set that is on no disk yet.

Splits are fixed. Train on the first part, choose on the second, and report on the third, which
trains nothing and chooses nothing.
"""

import ast
import gzip
import math
import os
import re
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256 as sha256_of
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from companion.checks import checked

__all__ = [
    "CHARACTERS",
    "DOCSTRING_PACKAGES",
    "FASHION_MNIST_CLASSES",
    "BagsOfWords",
    "Examples",
    "Splits",
    "Texts",
    "blobs",
    "cache_folder",
    "decode",
    "digits",
    "docstrings",
    "download",
    "encode",
    "fashion_mnist",
    "moons",
    "photographs",
    "python_documentation",
    "read_idx",
    "spirals",
]


class Examples(NamedTuple):
    """Inputs, and what is to be said about each of them."""

    x: Shaped[Tensor, "examples ..."]
    """The inputs, one example for each index of the first dimension."""
    y: Shaped[Tensor, "examples ..."]
    """Their labels or targets, in the same order."""


class Splits(NamedTuple):
    """The three fixed parts of a data set. No example is in two of them."""

    train: Examples
    """What a model is fitted to."""
    validation: Examples
    """What settles every choice, such as the learning rate and when to stop."""
    test: Examples
    """What is reported, once, at the end."""


def digits() -> Splits:
    """Handwritten digits, 8 by 8 pixels: 1,085 to train on, 357 to choose on and 355 to test
    on.

    A pixel counts the dark dots in a 4-by-4 block of a finer scan; here it is divided by 16. Of
    every five images of a digit, in the order in which they are stored, three go to training,
    one to validation and one to the test. The thirteen writers are stored one after another, so
    each of them is in all three parts: the test is writer-dependent, as the data set's authors
    call it, and the digits of a stranger would be harder.

    Returns:
        ``x`` of shape (examples, 1, 8, 8), the share of dark dots from 0 to 1, and ``y`` from 0
        to 9.

    Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine
    Learning Repository (1998), https://doi.org/10.24432/C50P49, the 1,797 images of its test
    file as they come with scikit-learn. Licence: CC BY 4.0.
    """
    from sklearn.datasets import load_digits

    stored = load_digits()
    x = torch.from_numpy(stored.images).float()[:, None] / 16  # (1797, 1, 8, 8)
    y = torch.from_numpy(stored.target).long()
    fifth = _rank_in_class(y) % 5
    return Splits(*(Examples(x[part], y[part]) for part in (fifth < 3, fifth == 3, fifth == 4)))


def photographs() -> dict[str, Float[Tensor, "3 height width"]]:
    """Two colour photographs: ``"china"``, a tower above a lake, and ``"flower"``, a dahlia.

    Returns:
        For each name the red, green and blue values from 0 to 1, of shape (3, 427, 640).

    Source: the users danielbuechele (``china``) and vultilion (``flower``) of flickr.com, as
    they come with scikit-learn. Licence: CC BY 2.0.
    """
    from sklearn.datasets import load_sample_images

    stored = load_sample_images()
    return {
        Path(name).stem: torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        / 255
        for name, image in zip(stored.filenames, stored.images, strict=True)
    }


class Texts(NamedTuple):
    """The three fixed parts of a text."""

    train: str
    """What a model is fitted to."""
    validation: str
    """What settles every choice."""
    test: str
    """What is reported, once, at the end."""


# the topics with which the last two parts begin
_VALIDATION_FROM, _TEST_FROM = "try", "typesfunctions"
# characters: a shorter paragraph, such as "Note:", may stand there twice by chance
_REPEATED = 40


@checked
def python_documentation(file: str | Path | None = None) -> Texts:
    """The reference manual of Python, as the interpreter's own ``help()`` shows it: English,
    code and grammar.

    Its topics, in alphabetical order, make a text of some 376,000 characters: about 297,000 to
    train on, 39,000 to choose on and 41,000 to test on. The parts are cut between topics, at
    the same ones in every version of Python; the numbers are those of Python 3.11. The second
    part has half as many more in 3.13, most of them in tables.

    **Nothing is repeated.** The manual prints many paragraphs under more than one topic: a
    fifth of its 465,000 characters has stood there before, and nearly all of the topic
    ``with``, for one, stands in ``compound`` too. A model would be tested on what it was
    trained on. A paragraph of 40 characters or more that has occurred before is therefore left
    out.

    Args:
        file: Another text in UTF-8, to be cut in the proportions 8 : 1 : 1 between paragraphs
            instead. It is prepared in the same way.

    Returns:
        The three parts. :func:`encode` turns them into numbers.

    Raises:
        FileNotFoundError: If ``file`` is not there.
        ValueError: If one of the three parts would be empty.

    Source: the module ``pydoc_data.topics`` of CPython's standard library. Licence: PSF License
    Agreement, version 2.
    """
    if file is None:
        from pydoc_data.topics import topics

        pieces = _new_paragraphs((name, text) for name, text in sorted(topics.items()))
        parts = [(name >= _VALIDATION_FROM) + (name >= _TEST_FROM) for name, _ in pieces]
    else:
        pieces = _new_paragraphs([("", Path(file).expanduser().read_text(encoding="utf-8"))])
        lengths = torch.tensor([len(paragraph) for _, paragraph in pieces], dtype=torch.float64)
        # the share of the text that stands before each
        before = (lengths.cumsum(0) - lengths) / lengths.sum()
        parts = [int(share >= 0.8) + int(share >= 0.9) for share in before]
    texts = Texts(
        *(
            "".join(text for part, (_, text) in zip(parts, pieces, strict=True) if part == k)
            for k in range(3)
        )
    )
    if not all(texts):
        raise ValueError(
            f"{file} cannot be cut into three parts, its paragraphs are too few or too long: "
            f"separate paragraphs by empty lines, or pass a longer text (of {len(pieces)} "
            "different paragraphs no part may be left empty)"
        )
    return texts


def _new_paragraphs(texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The paragraphs of named texts, each with its text's name, without long ones that have
    occurred before.
    """
    seen, kept = set(), []
    for name, text in texts:
        for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
            if len(paragraph) < _REPEATED or paragraph not in seen:
                seen.add(paragraph)
                kept.append((name, f"{paragraph}\n\n"))
    return kept


class BagsOfWords(NamedTuple):
    """The three fixed parts of a set of texts, as counts of words. The order of the words in a
    text is forgotten.
    """

    train: Examples
    """What a model is fitted to."""
    validation: Examples
    """What settles every choice."""
    test: Examples
    """What is reported, once, at the end."""
    words: tuple[str, ...]
    """The words that are counted, one for each column of ``x``, in alphabetical order."""


DOCSTRING_PACKAGES = (
    "asyncio",
    "decimal",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "turtle",
    "unittest",
    "xml",
)
"""The names of the ten labels of :func:`docstrings`, in their order."""

# words; what is shorter, such as "Return self.", could stand anywhere
_SHORTEST = 5
# the share of all words of two docstrings that both have, from which they are relatives
_ALIKE = 0.5


@checked
def docstrings(library: str | Path | None = None) -> BagsOfWords:
    """The docstrings of Python's standard library, as counts of their words, labelled by the
    package or module that they come from.

    The ten that are labels have the most docstrings among those that every installation of
    Python 3.11 and later has on every platform. Their source is read, not imported: modules,
    classes and functions, without tests; ``decimal`` is what it is called in Python,
    ``_pydecimal.py``. A word is two or more letters from a to z in a row, in lower case;
    docstrings of fewer than five words are left out. In Python 3.11 there are 2,155: 1,434 to
    train on, 245 to choose on and 476 to test on, and 2,201 words; the rarest label is that of
    134, the most frequent of 304. Versions 3.12 to 3.14 differ by a few in a hundred.

    **Nothing is repeated, and relatives stay together.** What has the same set of words as a
    docstring before it is left out. Where two share half of their words or more (a method and
    its twin, the copy in a subclass), both are in the same part, and so are their relatives in
    turn. Which part that is follows from a checksum of the words: about seven in ten train, one
    in ten validates and two in ten test, and a docstring is in the same part in every version
    of Python that has it with the same relatives.

    Args:
        library: The folder of the standard library to read; that of the running Python by
            default.

    Returns:
        ``x`` of shape (examples, words), how often each word occurs, for words that occur in at
        least two training docstrings; ``y`` from 0 to 9, named by :data:`DOCSTRING_PACKAGES`;
        and the words.

    Raises:
        FileNotFoundError: If the source of one of the packages is not there.
        ValueError: If one of the three parts would be empty.

    Source: CPython's standard library. Licence: PSF License Agreement, version 2.
    """
    folder = Path(sysconfig.get_path("stdlib") if library is None else library).expanduser()
    bags = {}  # of each set of words, the first docstring that has it
    for label, package in enumerate(DOCSTRING_PACKAGES):
        for words in _docstrings_of(folder, package):
            if len(words) >= _SHORTEST:
                bags.setdefault(frozenset(words), (Counter(words), label))
    documents = list(bags.values())
    tenth = _family(list(bags)) % 10
    part = (tenth >= 7).long() + (tenth >= 8).long()
    if part.bincount(minlength=3).min() == 0:
        raise ValueError(
            f"{folder} has {len(documents)} different docstrings of {_SHORTEST} words or more, "
            "too few for three parts: pass library= with the folder Lib of CPython's source"
        )
    seen = Counter(
        word for (bag, _), p in zip(documents, part, strict=True) if p == 0 for word in bag
    )
    vocabulary = tuple(sorted(word for word, times in seen.items() if times >= 2))
    place = {word: column for column, word in enumerate(vocabulary)}
    entries = [
        (row, place[word], times)
        for row, (bag, _) in enumerate(documents)
        for word, times in bag.items()
        if word in place
    ]
    rows, columns, times = torch.tensor(entries).T
    x = torch.zeros(len(documents), len(vocabulary))
    x[rows, columns] = times.float()
    y = torch.tensor([label for _, label in documents])
    return BagsOfWords(*(Examples(x[part == p], y[part == p]) for p in range(3)), vocabulary)


def _docstrings_of(folder: Path, package: str) -> Iterator[list[str]]:
    """The words of each docstring in a package or a module."""
    name = {"decimal": "_pydecimal"}.get(package, package)
    sources = sorted((folder / name).rglob("*.py"), key=Path.as_posix)
    for source in sources or [folder / f"{name}.py"]:
        if not source.is_file():
            raise FileNotFoundError(
                f"{source} is not there: docstrings are read from the source of the standard "
                "library, which this Python lacks; pass library= with the folder Lib of "
                "CPython's source"
            )
        if "test" in source.relative_to(folder).parts:
            continue
        for node in ast.walk(ast.parse(source.read_bytes())):
            if isinstance(node, _WITH_DOCSTRING):
                yield re.findall("[a-z]{2,}", (ast.get_docstring(node) or "").lower())


_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _family(bags: Sequence[frozenset[str]]) -> Int64[Tensor, " bags"]:
    """A checksum for each set of words, the same for relatives and for theirs in turn."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    place = {word: column for column, word in enumerate(sorted(frozenset().union(*bags)))}
    rows = [row for row, bag in enumerate(bags) for _ in bag]
    columns = [place[word] for bag in bags for word in bag]
    has = csr_array((np.ones(len(rows)), (rows, columns)))
    both = (has @ has.T).toarray()  # words, (bags, bags)
    either = both.diagonal()[:, None] + both.diagonal() - both
    _, family = connected_components(both >= _ALIKE * either)
    checksums = np.array([zlib.crc32(" ".join(sorted(bag)).encode()) for bag in bags])
    lowest = np.full(family.max() + 1, 2**32)
    np.minimum.at(lowest, family, checksums)
    return torch.from_numpy(lowest[family])


CHARACTERS = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""The alphabet of :func:`encode`: the end of a line, the 95 characters of printable ASCII, and
one for all others.
"""


@checked
def encode(text: str) -> Int64[Tensor, " characters"]:
    """A text as numbers: the place of each of its characters in :data:`CHARACTERS`.

    Args:
        text: Any text. Characters that the alphabet lacks, such as curly quotes, all become the
            last one.

    Returns:
        One number for each character, 0 to 96.
    """
    place = {character: number for number, character in enumerate(CHARACTERS)}
    return torch.tensor(
        [place.get(character, len(CHARACTERS) - 1) for character in text], dtype=torch.int64
    )


@checked
def decode(tokens: Int64[Tensor, " characters"]) -> str:
    """The text that :func:`encode` turned into these numbers.

    Args:
        tokens: One number for each character.

    Returns:
        The text, with U+FFFD for each character that the alphabet lacks.

    Raises:
        ValueError: If a number is not a place in :data:`CHARACTERS`.
    """
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < len(CHARACTERS):
        raise ValueError(
            f"a character's number lies between 0 and {len(CHARACTERS) - 1}, got "
            f"{tokens.min()} to {tokens.max()}"
        )
    return "".join(CHARACTERS[number] for number in tokens.tolist())


@checked
def moons(n: int = 200, noise: float = 0.1, seed: int = 0) -> Examples:
    r"""Two half circles that reach into each other; the second is the first, turned by half a
    turn.

    .. math::
        x = (\cos \theta, \sin \theta) \text{ for } y = 0, \qquad
        x = (1 - \cos \theta, \tfrac12 - \sin \theta) \text{ for } y = 1, \qquad \theta \sim
        U[0, \pi)

    Points are drawn independently and the classes take turns: another seed gives a fresh test
    set, and any stretch of points is a balanced sample.

    Args:
        n: Number of points.
        noise: Standard deviation of the Gaussian noise on each coordinate; the circles have
            radius 1.
        seed: The same seed gives the same points.

    Returns:
        ``x`` of shape (n, 2), and ``y``, 0 or 1.

    Raises:
        ValueError: If ``n`` is below two, or if ``noise`` is negative or not finite.

    Source: generated, in the shape of scikit-learn's ``make_moons``.
    """

    def place(u: Tensor, label: Tensor) -> Tensor:
        side = 1 - 2 * label
        return side[:, None] * _on_circle(math.pi * u) + torch.stack([label, label / 2], dim=1)

    return _sample(n, 2, noise, seed, place)


@checked
def spirals(
    n: int = 200, classes: int = 2, turns: float = 1.5, noise: float = 0.03, seed: int = 0
) -> Examples:
    r"""Arms that wind around each other: whatever tells them apart has to wind along with them.

    .. math::
        x = r\,(\cos \theta, \sin \theta), \qquad
        \theta = 2\pi \left(\text{turns} \cdot r + \frac{y}{\text{classes}}\right), \qquad
        r^2 \sim U[0.01, 1)

    Points are drawn independently and the classes take turns: another seed gives a fresh test
    set, and any stretch of points is a balanced sample.

    Args:
        n: Number of points.
        classes: Number of arms.
        turns: Turns that an arm makes for each unit of radius. Neighbouring arms are ``1 /
            (turns * classes)`` apart along a radius.
        noise: Standard deviation of the Gaussian noise on each coordinate.
        seed: The same seed gives the same points.

    Returns:
        ``x`` of shape (n, 2), and ``y`` from 0 to ``classes - 1``.

    Raises:
        ValueError: If there is no class or there are fewer points than classes, if ``noise`` is
            negative, or if ``noise`` or ``turns`` is not finite.

    Source: generated, after K. J. Lang and M. J. Witbrock, *Learning to Tell Two Spirals
    Apart*, Proceedings of the 1988 Connectionist Models Summer School (1988).
    """

    def place(u: Tensor, label: Tensor) -> Tensor:
        # uniform in r², so that the long outer turns are not sparse
        radius = (0.01 + 0.99 * u).sqrt()
        return radius[:, None] * _on_circle(math.tau * (turns * radius + label / classes))

    return _sample(n, classes, noise, seed, place)


@checked
def blobs(n: int = 300, classes: int = 3, noise: float = 0.3, seed: int = 0) -> Examples:
    r"""Round clouds whose centres are spaced evenly on the unit circle.

    .. math::
        x \sim \mathcal N\big((\cos \theta, \sin \theta),\ \text{noise}^2 I\big), \qquad
        \theta = \frac{2\pi y}{\text{classes}}

    Points are drawn independently and the classes take turns: another seed gives a fresh test
    set, and any stretch of points is a balanced sample.

    Args:
        n: Number of points.
        classes: Number of clouds.
        noise: Standard deviation of a cloud along each coordinate.
        seed: The same seed gives the same points.

    Returns:
        ``x`` of shape (n, 2), and ``y`` from 0 to ``classes - 1``.

    Raises:
        ValueError: If there is no class or there are fewer points than classes, or if ``noise``
            is negative or not finite.

    Source: generated.
    """
    return _sample(
        n, classes, noise, seed, lambda _, label: _on_circle(math.tau * label / classes)
    )


def _sample(
    n: int, classes: int, noise: float, seed: int, place: Callable[[Tensor, Tensor], Tensor]
) -> Examples:
    """Noisy points around ``place(u, label)``, with u uniform on [0, 1) and the labels 0, 1,
    ... again and again.
    """
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    if n < classes:
        raise ValueError(f"n must be at least {classes}, one point for each class, got {n}")
    if noise < 0:
        raise ValueError(f"noise is a standard deviation: it must not be negative, got {noise}")
    g = torch.Generator().manual_seed(seed)
    # whatever torch's defaults have been set to
    like = {"generator": g, "device": g.device, "dtype": torch.float32}
    y = torch.arange(n, device=g.device) % classes
    x = place(torch.rand(n, **like), y.float()) + noise * torch.randn(n, 2, **like)
    return Examples(x, y)


def _on_circle(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _rank_in_class(y: Int64[Tensor, " examples"]) -> Int64[Tensor, " examples"]:
    """How many earlier examples have the same label: 0 for the first of each class."""
    return torch.nn.functional.one_hot(y).cumsum(0).gather(1, y[:, None])[:, 0] - 1


FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The names of the ten labels of :func:`fashion_mnist`, in their order."""

_FASHION_MNIST_FILES = {  # name: SHA-256 of the published file, and of what is compressed in it
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_FASHION_MNIST_MIRRORS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@checked
def fashion_mnist(full: bool = False, folder: str | Path | None = None) -> Splits:
    """Pictures of clothes, shoes and bags in grey, 28 by 28 pixels, in ten classes of equal
    size.

    ==========  ======  ==========  ======
    images      train   validation  test
    ==========  ======  ==========  ======
    default     10,000  2,000       2,000
    ``full``    55,000  5,000       10,000
    ==========  ======  ==========  ======

    In the full set, the first 5,500 published training images of each class are for training
    and the last 500 for validation; the test images are the published ones. The default set
    comes with the companion: of each class, the first 1,000, 200 and 200 images of these three
    parts. A model that was trained on the default set has therefore never seen a validation or
    test image of the full one.

    Args:
        full: All 70,000 images. They are read from ``folder``, or from where Debian's package
            ``dataset-fashion-mnist`` puts them, or from :func:`cache_folder`, into which they
            are downloaded (31 MB) if they are nowhere yet.
        folder: Where the four published files are: ``train-images-idx3-ubyte.gz`` and so on.

    Returns:
        ``x`` of shape (examples, 1, 28, 28), from 0 for the background to 1, and ``y`` from 0
        to 9, named by :data:`FASHION_MNIST_CLASSES`.

    Raises:
        ConnectionError: If the files are nowhere and cannot be downloaded; says what else to
            do.
        FileNotFoundError: If one of the four files is not in ``folder``.
        ValueError: If a file is damaged or holds something else, or if ``folder`` is given
            without ``full``.

    Source: H. Xiao, K. Rasul and R. Vollgraf, *Fashion-MNIST: a Novel Image Dataset for
    Benchmarking Machine Learning Algorithms*, arXiv:1708.07747 (2017). Licence: MIT, Zalando
    SE.
    """
    if full:
        train_x, train_y, test_x, test_y = _published_fashion_mnist(folder)
        early = _rank_in_class(train_y.long()) < 5_500
        parts = [
            (train_x[early], train_y[early]),
            (train_x[~early], train_y[~early]),
            (test_x, test_y),
        ]
    elif folder is None:
        with (files("companion") / "data" / "fashion_mnist.npz").open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            parts = [
                [torch.from_numpy(stored[f"{part}_{name}"]) for name in Examples._fields]
                for part in Splits._fields
            ]
    else:
        raise ValueError(
            "folder is where the full set is read from: pass full=True with "
            f"folder={str(folder)!r}"
        )
    return Splits(*(Examples(x[:, None].float() / 255, y.long()) for x, y in parts))


def _published_fashion_mnist(folder: str | Path | None) -> list[UInt8[Tensor, "..."]]:
    """Training images and labels, test images and labels, as they were published."""
    if folder is None and all(
        (_DEBIAN_FOLDER / name).is_file() for name in _FASHION_MNIST_FILES
    ):
        folder = _DEBIAN_FOLDER
    arrays = []
    for name, (packed_sha256, content_sha256) in _FASHION_MNIST_FILES.items():
        if folder is None:
            urls = [mirror + name for mirror in _FASHION_MNIST_MIRRORS]
            path = download(
                f"fashion-mnist/{name}", urls, packed_sha256, advice=_WITHOUT_DOWNLOAD
            )
        else:
            path = Path(folder).expanduser() / name
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is not there: folder must hold {', '.join(_FASHION_MNIST_FILES)}"
                )
        arrays.append(read_idx(_unpack(path, content_sha256), name))
    return arrays


_WITHOUT_DOWNLOAD = """\
Or install Debian's package dataset-fashion-mnist, or pass folder= with a folder that holds the
four published files.
Or leave full=False: that part of Fashion-MNIST needs no download."""


def _unpack(path: Path, sha256: str) -> bytes:
    """What is compressed in ``path``, checked: gzip files of the same content may differ in
    their headers.
    """
    packed = path.read_bytes()
    try:
        content = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and fetch it again"
        ) from error
    if (found := sha256_of(content).hexdigest()) != sha256:
        raise ValueError(
            f"{path} does not hold what was published under that name, which other data sets "
            f"use too: the SHA-256 of its content must be {sha256}, got {found}. Fetch it "
            "again, or pass another folder"
        )
    return content


@checked
def read_idx(content: bytes, name: str = "this content") -> UInt8[Tensor, "..."]:
    """The array in an IDX file of unsigned bytes, the format of MNIST and its relatives.

    Such a file opens with two zero bytes, the code of its type (8 for unsigned bytes) and the
    number of dimensions. The size of each dimension follows in four bytes, the most significant
    first, and then the values, the last dimension running fastest.

    Args:
        content: The bytes of the file, decompressed.
        name: What an error calls it.

    Returns:
        The array, in the shape that the file gives.

    Raises:
        ValueError: If this is not an IDX file of unsigned bytes, or is shorter or longer than
            its header promises.

    Source: the format is described with Y. LeCun, C. Cortes and C. J. C. Burges, *The MNIST
    Database of Handwritten Digits* (1998).
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        hint = ": decompress it first" if content[:2] == b"\x1f\x8b" else ""
        raise ValueError(
            f"{name} is no IDX file: it must open with 00 00, got "
            f"{content[:4].hex(' ') or 'nothing'}{hint}"
        )
    kind, dimensions = content[2], content[3]
    if kind != 8:
        raise ValueError(
            f"{name} is an IDX file of type {kind}: only type 8, unsigned bytes, can be read"
        )
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{name} must have {start} bytes of header and {math.prod(shape)} of values, for "
            f"the shape {shape}, got {len(content)} in all: it was cut off or changed, so "
            "fetch it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def cache_folder() -> Path:
    """The folder into which :func:`download` puts files.

    The environment variable ``COMPANION_DATA`` names it. Without that it is
    ``deep-learning-companion`` in the place that the operating system has for caches, such as
    ``~/.cache`` on Linux.

    Returns:
        The folder, which need not exist yet.
    """
    import pooch

    return Path(
        os.environ.get("COMPANION_DATA") or pooch.os_cache("deep-learning-companion")
    ).expanduser()


_SLOWEST = 10_000  # bytes a second


@checked
def download(
    name: str,
    urls: Sequence[str],
    sha256: str,
    *,
    timeout: float = 20.0,
    progress: bool = True,
    advice: str = "",
) -> Path:
    """A file from the cache, or else from the first address that serves it whole.

    A file in the cache is used if its SHA-256 is right. One that arrives gets its name only
    after its SHA-256 has been checked, in one step, and nothing stays behind of one that fails.
    A server is given up, and the next address tried, if it is silent for ``timeout`` seconds or
    falls that far behind 10 kB a second.

    Args:
        name: What the file is called in :func:`cache_folder`; may have folders in it, as in
            ``"fashion-mnist/images.gz"``.
        urls: Addresses of the same file, the best one first.
        sha256: What the file's SHA-256 must be, in hexadecimal digits.
        timeout: Patience with each server, in seconds.
        progress: Whether to draw a progress bar.
        advice: What else a reader can do: the end of the error that says that nothing worked.

    Returns:
        Where the file is.

    Raises:
        ConnectionError: If no address gave the file; says why each of them did not, and where
            to put a copy of the file.
        ValueError: If ``urls`` is empty or a single string, or if ``sha256`` cannot be one.
    """
    import pooch
    from urllib3.exceptions import HTTPError

    if not urls:
        raise ValueError(f"urls must be a list of at least one address, got {urls!r}")
    if timeout <= 0:
        raise ValueError(f"timeout is a number of seconds above 0, got {timeout}")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits in lower case, got {sha256!r}")
    fetch = partial(_fetch, title=Path(name).name, timeout=timeout, progress=progress)
    failures = ""
    for url in urls:
        try:
            return Path(pooch.retrieve(url, sha256, name, cache_folder(), downloader=fetch))
        except (OSError, ValueError, HTTPError) as error:
            failures += f"\n- {url}: {error}"
    raise ConnectionError(
        f"could not download {name}:{failures}\nGo online and try again, or put a copy of the "
        f"file at {cache_folder() / name} (the environment variable COMPANION_DATA chooses "
        f"another folder).\n{advice}".rstrip()
    )


def _fetch(
    url: str, path: str, _: object, *, title: str, timeout: float, progress: bool
) -> None:
    """Write what ``url`` serves to ``path``, called as pooch calls its downloaders."""
    import requests
    from tqdm.auto import tqdm

    Path(path).chmod(0o644)  # pooch's temporary file is private, and a cache may be shared
    start = time.monotonic()
    request = requests.get(
        url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}
    )
    with request as response, Path(path).open("wb") as file:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(
            desc=title, total=size, unit="B", unit_scale=True, disable=not progress
        ) as bar:
            # read() would wait for all of it, however slowly it drips
            while block := response.raw.read1(2**16):
                bar.update(file.write(block))
                if time.monotonic() - start > timeout + file.tell() / _SLOWEST:
                    raise TimeoutError(f"slower than {_SLOWEST // 1000} kB a second")
