"""The data sets of the book, and the one way in which it downloads.

A data set is tensors on the CPU: inputs as float32, labels as int64. What a chapter needs by
default comes with the companion or with scikit-learn; the network is asked for nothing but a
full set that is on no disk yet.

Splits are fixed. Train on the first part, choose on the second, and report on the third, which
trains nothing and chooses nothing.
"""

import ast
import ctypes
import gzip
import io
import json
import lzma
import math
import os
import random
import re
import sysconfig
import tarfile
import tempfile
import time
import wave
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from hashlib import sha256 as sha256_of
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from companion.checks import checked

__all__ = [
    "CHARACTERS",
    "DOCSTRING_PACKAGES",
    "FASHION_MNIST_CLASSES",
    "SAMPLE_RATE",
    "BagsOfWords",
    "Examples",
    "Pairs",
    "Recordings",
    "Speech",
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
    "number_words",
    "photographs",
    "python_documentation",
    "read_idx",
    "read_wave",
    "recorded_digits",
    "sentence_pairs",
    "speak",
    "spirals",
    "spoken_digits",
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


class Pairs(NamedTuple):
    """The three fixed parts of a set of texts and their translations. No source text is in two
    of them.
    """

    train: list[tuple[str, str]]
    """What a model is fitted to: pairs of a text and its translation."""
    validation: list[tuple[str, str]]
    """What settles every choice."""
    test: list[tuple[str, str]]
    """What is reported, once, at the end."""


@checked
def number_words(
    source: str = "en", target: str = "de", words: tuple[int, int] = (1, 6)
) -> Pairs:
    """The names of numbers from one to a million in two languages: 5,000 pairs to train on, 500
    to choose on and 1,000 to test on.

    The numbers are different from each other. Of each, the thousands and the rest are drawn
    alike: zero in one of four cases, else with one, two or three digits, which is as likely. It
    is taken if it is new and its name has as many words as wanted. In the name of the source
    language, hyphens and commas are blanks: "two hundred and forty one thousand". The name of
    the target language is as it is written: "zweihunderteinundvierzigtausend".

    Args:
        source: The language to translate from, by its ISO code, such as ``"en"``, ``"es"``,
            ``"fr"`` or ``"nl"``.
        target: The language to translate to.
        words: The fewest and the most words that the name in the source language has. In
            English the longest names have eleven.

    Returns:
        Pairs of names.

    Raises:
        ValueError: If a language is unknown, or there are too few numbers whose name has so
            many words.

    Source: generated by the package num2words, whose authors wrote the rules of each language.
    """
    from num2words import CONVERTER_CLASSES, num2words

    if unknown := {source, target} - CONVERTER_CLASSES.keys():
        raise ValueError(
            f"num2words knows no language {min(unknown)!r}: choose from "
            f"{', '.join(sorted(CONVERTER_CLASSES))}"
        )
    fewest, most = words
    sizes, draws, pairs, seen = (5_000, 500, 1_000), random.Random(11), {}, {0}
    for _ in range(40 * sum(sizes)):
        high, low = (draws.randrange(4) and int(1000 ** draws.random()) for _ in range(2))
        if (number := 1000 * high + low) not in seen:
            seen.add(number)
            name = re.sub("[-, ]+", " ", num2words(number, lang=source))
            if fewest <= name.count(" ") + 1 <= most:
                pairs[number] = name, num2words(number, lang=target)
        if len(pairs) == sum(sizes):
            drawn = list(pairs.values())
            draws.shuffle(drawn)  # small numbers came first
            everything = iter(drawn)
            return Pairs(*([next(everything) for _ in range(size)] for size in sizes))
    raise ValueError(
        f"there are too few numbers whose name in {source!r} has {fewest} to {most} words: "
        f"{sum(sizes)} are needed, got {len(pairs)}; widen words"
    )


@checked
def sentence_pairs(
    target: str = "de", words: tuple[int, int] = (2, 12), file: str | Path | None = None
) -> Pairs:
    """Short English texts and their translation into German or Spanish, made by people: the
    labels, messages and explanations of Home Assistant, a program that runs a house.

    ==================  ======  ==========  =====
    pairs               train   validation  test
    ==================  ======  ==========  =====
    German              16,231  1,105       1,033
    Spanish             16,011  1,109       1,035
    ==================  ======  ==========  =====

    These are the texts of two to twelve words. Texts with placeholders or other marks for
    programs are left out, and so are those that are the same in both languages.

    **Near-duplicates are never in two parts.** Two texts that differ only in digits, capitals
    and punctuation ("Channel 1", "channel 2") go to the same part. So do English texts that
    differ only in a name ("The hostname of your ... device."): in words with a capital, except
    the first, if four words are left without them. And so do all that are linked in this way
    through their translations. Of near-duplicates among the English texts the validation and
    the test have only one, with the translation that occurs most often.

    Args:
        target: ``"de"`` or ``"es"``; of a ``file`` of your own it is not asked.
        words: The fewest and the most words of the source text.
        file: Pairs of your own instead, one a line in UTF-8, source and target parted by a tab.
            They are cut in the proportions 14 : 1 : 1 by the same rule.

    Returns:
        Pairs of texts.

    Raises:
        FileNotFoundError: If ``file`` is not there.
        ValueError: If the language is neither of the two, a line is not a pair, or one of the
            three parts would be empty.

    Source: the files ``components/*/translations`` of Home Assistant 2026.2.3, by its authors
    and translators; ``companion/data/write_sentence_pairs.py`` wrote the stored file. Licence:
    Apache License 2.0, which is in the file.
    """
    if target not in ("de", "es"):
        raise ValueError(f"target must be 'de' or 'es', got {target!r}: or pass a file")
    if file is None:
        stored = (files("companion") / "data" / "sentence_pairs.json.xz").read_bytes()
        parts = json.loads(lzma.decompress(stored))
        column = ("de", "es").index(target) + 1
        rows = [[(row[0], row[column]) for row in parts[part]] for part in Pairs._fields]
    else:
        rows = _cut_apart(_read_pairs(Path(file).expanduser()))
    fewest, most = words
    pairs = Pairs(
        *(
            [
                (text, translation)
                for text, translation in dict.fromkeys(part)
                if translation not in (None, text) and fewest <= len(text.split()) <= most
            ]
            for part in rows
        )
    )
    if not all(pairs):
        raise ValueError(
            f"to train, choose and test on there are {', '.join(str(len(p)) for p in pairs)} "
            f"pairs of {fewest} to {most} words, and none of the three may be empty: widen "
            "words, or pass more pairs"
        )
    return pairs


def _read_pairs(path: Path) -> list[tuple[str, ...]]:
    rows = [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not all(text.strip() for text in row):
            raise ValueError(
                f"line {number} of {path} must be a text, a tab and its translation, got "
                f"{len(row)} columns: {row}"
            )
    return rows


def _cut_apart(rows: Iterable[tuple[str | None, ...]]) -> list[list[tuple[str | None, ...]]]:
    """Three parts of texts with their translations, the most frequent first. Near-duplicates
    are in one part; of those among the source texts the last two parts have the first.
    """
    counts, parent = Counter(rows), {}

    def root(text):
        while (above := parent.setdefault(text, text)) != text:
            text = above
        return text

    for source, *targets in counts:
        for column, target in enumerate(targets):
            if target is not None:
                parent[root((column, _bare(target)))] = root(_without_names(source))
    groups = defaultdict(list)
    for row, _ in counts.most_common():
        groups[root(_without_names(row[0]))].append(row)
    parts = [], [], []
    for group in groups.values():
        name = min(_without_names(source) for source, *_ in group)
        lot = int.from_bytes(sha256_of(name.encode()).digest()[:4], "big") % 16
        if lot < 14:
            parts[0].extend(group)
        else:
            first = {}
            for row in group:
                first.setdefault(_without_names(row[0]), row)
            parts[lot - 13].extend(first.values())
    return list(parts)


def _bare(text: str) -> str:
    """A text without capitals and punctuation, and with the same digits everywhere."""
    return " ".join(re.findall(r"\w+", re.sub(r"\d+", "0", text.casefold())))


def _without_names(text: str) -> str:
    """The same without words that have a capital, from the second on, if four words are left:
    names of products, most of them.
    """
    first, *others = re.findall(r"\w+", text) or [""]
    kept = [first, *(word for word in others if word == word.casefold())]
    return _bare(" ".join(kept) if len(kept) > 3 else text)


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


SAMPLE_RATE = 8_000
"""Samples a second of all speech in the book, the rate of the telephone: it holds frequencies
up to 4,000 Hz.
"""


class Recordings(NamedTuple):
    """Speech, and what is said in it."""

    waves: list[Float[Tensor, " samples"]]
    """The air pressure at :data:`SAMPLE_RATE` moments a second, between -1 and 1."""
    texts: list[str]
    """The words, in small letters with a space between them."""
    voices: list[str]
    """Who speaks."""


class Speech(NamedTuple):
    """The three fixed parts of a collection of recordings. No voice is in two of them."""

    train: Recordings
    """What a model is fitted to."""
    validation: Recordings
    """What settles every choice."""
    test: Recordings
    """What is reported, once, at the end."""


@checked
def speak(
    text: str, voice: str = "en-us", speed: int = 175, pitch: int = 50, gap: int = 0
) -> Float[Tensor, " samples"]:
    """Let the synthesiser eSpeak NG say something.

    Its hiss is drawn anew each time, from random numbers that cannot be seeded: two recordings
    of one text sound the same, but their samples differ.

    Args:
        text: What to say.
        voice: An accent of English, such as ``"en-us"``, ``"en"`` (Great Britain) or
            ``"en-gb-scotland"``, or another language, such as ``"de"``; then, behind a plus
            sign, whose voice it is, such as ``"en-us+linda"``.
        speed: Words a minute, 80 to 450.
        pitch: From 0, low, to 99, high.
        gap: Silence added between words, in hundredths of a second at the usual speed.

    Returns:
        The wave, at :data:`SAMPLE_RATE`, between -1 and 1.

    Raises:
        ImportError: If the package ``espeakng-loader``, which brings eSpeak NG, is not there or
            does not work on this machine; says what else to do.
        ValueError: If the voice is unknown, a number out of range, or nothing was said.

    Source: eSpeak NG, https://github.com/espeak-ng/espeak-ng. Licence of the program:
    GPL-3.0-or-later.
    """
    from scipy.signal import resample_poly

    if not (80 <= speed <= 450 and 0 <= pitch <= 99 and gap >= 0):
        raise ValueError(
            "speed lies between 80 and 450 words a minute, pitch between 0 and 99, and gap is "
            f"not negative, got {speed}, {pitch} and {gap}"
        )
    synthesiser = _synthesiser()
    samples = synthesiser.say(text, voice, speed, pitch, gap)
    if not samples.any():
        raise ValueError(f"nothing was said: give text some words, got {text!r}")
    common = math.gcd(synthesiser.rate, SAMPLE_RATE)
    resampled = resample_poly(
        samples.astype(np.float32) / 2**15, SAMPLE_RATE // common, synthesiser.rate // common
    )
    return torch.from_numpy(resampled).clamp(-1, 1)


_WITHOUT_ESPEAK = """\
Install it with pip install espeakng-loader.
Or leave full=False: the recordings of spoken_digits() that come with the companion need no
synthesiser, and chapter 11 runs with them. Or pass human=True: people's voices, a download."""


@cache
def _synthesiser() -> "_Synthesiser":
    return _Synthesiser()  # eSpeak NG is begun once in a process


class _Synthesiser:
    """eSpeak NG, called as its header espeak-ng/speak_lib.h says."""

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self.library = ctypes.CDLL(espeakng_loader.get_library_path())
            folder = Path(espeakng_loader.get_data_path())
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                "speaking needs eSpeak NG, from the package espeakng-loader, which is not here "
                f"or does not work on this machine ({error}).\n{_WITHOUT_ESPEAK}"
            ) from error
        synchronous, do_not_exit = 2, 0x8000
        self.rate = self.library.espeak_Initialize(
            synchronous, 0, str(folder).encode(), do_not_exit
        )
        if self.rate <= 0:
            raise ImportError(
                f"eSpeak NG cannot read its data in {folder}: it takes no path of more than "
                f"160 bytes, so install it in a folder with a shorter one.\n{_WITHOUT_ESPEAK}"
            )
        self.variants = {path.name for path in (folder / "voices" / "!v").iterdir()}
        self.pieces = []
        self.callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )(self.receive)  # kept, for the library has only its address
        self.library.espeak_SetSynthCallback(self.callback)

    def receive(self, samples, count: int, events) -> int:
        if count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def say(self, text: str, voice: str, speed: int, pitch: int, gap: int) -> np.ndarray:
        """Samples of 16 bits, ``rate`` a second."""
        _, plus, variant = voice.partition("+")
        # an unknown variant is no error to eSpeak, which then speaks in its own voice
        unknown = plus and variant not in self.variants
        if unknown or self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(
                f"eSpeak NG has no voice {voice!r}: give an accent, such as en-us, en or "
                "en-gb-scotland, and perhaps a plus sign and one of "
                f"{', '.join(sorted(self.variants))}"
            )
        for parameter, value in ((1, speed), (3, pitch), (7, gap)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.pieces.clear()
        content, utf8 = text.encode() + b"\0", 1
        self.library.espeak_Synth(
            content, ctypes.c_size_t(len(content)), 0, 0, 0, utf8, None, None
        )
        return np.concatenate([np.empty(0, np.int16), *self.pieces])


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = (
    *("en", "en-us", "en-029", "en-us-nyc", "en-gb-scotland"),
    *("en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)
# The variants of eSpeak NG that are meant to be people, without whisperers and robots; those
# whose names differ in a number alone stand in the same part.
_VARIANTS = (
    (
        *("Alex", "Andrea", "Andy", "AnxiousAndy", "Denis", "Diogo", "Gene", "Gene2"),
        *("Henrique", "Hugo", "Lee", "Marco", "Mario", "Michael", "Mike", "mike2"),
        *("Nguyen", "Reed", "RicishayMax", "RicishayMax2", "RicishayMax3", "adam", "anika"),
        *("announcer", "antonio", "caleb", "ed", "edward", "edward2", "f1", "f2", "f3", "f4"),
        *("f5", "gustave", "iven", "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt"),
        *("klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "m1", "m2", "m3", "m4", "m5"),
        *("m6", "m7", "m8", "marcelo", "michel", "miguel", "pablo", "pedro", "sandro"),
        *("shelby", "travis"),
    ),
    (
        *("Alicia", "Storm", "aunty", "belinda", "benjamin", "ian", "max", "norbert", "paul"),
        *("rob", "robert", "victor"),
    ),
    (
        *("Annie", "Jacky", "boris", "david", "grandma", "grandpa", "linda", "quincy"),
        *("steph", "steph2", "steph3", "zac"),
    ),
)
_STRINGS = (2_400, 240, 240)


@checked
def spoken_digits(
    full: bool = False, human: bool = False, folder: str | Path | None = None
) -> Speech:
    r"""Digits that somebody says: strings of one to five of them, such as "three one four", by
    the synthesiser eSpeak NG; or single ones by people.

    =========  ======  ==========  ====  ==========================================
    .          train   validation  test  voices
    =========  ======  ==========  ====  ==========================================
    default    378     60          120   63, 12 and 12 of a synthesiser
    ``full``   2,400   240         240   the same
    ``human``  1,500   500         500   three people, and one each
    =========  ======  ==========  ====  ==========================================

    A voice is a person's manner, such as ``"linda"``, with one of eight accents; the accents
    are in all three parts, the persons each in one only. The number of digits, the digits,
    accent, speed, pitch and pauses were drawn once and for all.

    A sample has eight bits, on the logarithmic scale of digital telephony (:math:`\mu`-law,
    :math:`\mu = 255`): :math:`x` is rounded where :math:`y` would be,

    .. math:: y = \operatorname{sign}(x) \frac{\log(1 + \mu |x|)}{\log(1 + \mu)} .

    The default recordings come with the companion and need no synthesiser. They are the first
    of each part of the full set, which is spoken when it is first asked for, in half a minute
    at the most, and kept in :func:`cache_folder`. As eSpeak's hiss is random, it is spoken on
    no two machines with the same samples.

    Args:
        full: All strings, spoken by :func:`speak` unless they are in the cache.
        human: The Free Spoken Digit Dataset in its version 1.0.9: five people say each digit
            fifty times. It is read from ``folder``, or from :func:`cache_folder`, into which it
            is downloaded (12 MB) if it is nowhere yet.
        folder: Where the recordings of that set are: ``0_george_0.wav`` and so on.

    Returns:
        The recordings, their words and their voices.

    Raises:
        ConnectionError: If the set of human voices is nowhere and cannot be downloaded; says
            what else to do.
        FileNotFoundError: If there are no such recordings in ``folder``.
        ImportError: If the full set is to be spoken and eSpeak NG is not there.
        ValueError: If a recording is damaged, both ``full`` and ``human`` are asked for, or
            ``folder`` is given without ``human``.

    Source: spoken by eSpeak NG 1.52, https://github.com/espeak-ng/espeak-ng; for the human
    voices Z. Jackson and others, *Free Spoken Digit Dataset*,
    https://github.com/Jakobovski/free-spoken-digit-dataset (2016–2020). Licence of the human
    voices: CC BY-SA 4.0. Of the scale: ITU-T Recommendation G.711 (1988), which approximates it
    by straight lines.
    """
    if full and human:
        raise ValueError("the full set is a synthesiser's: pass full or human, not both")
    if folder is not None and not human:
        raise ValueError(
            f"folder is where human voices are read from: pass human=True with {str(folder)!r}"
        )
    if human:
        return _human_digits(folder)
    if not full:
        with (files("companion") / "data" / "spoken_digits.npz").open("rb") as file:
            return Speech(**_read_recordings(file))
    strings = [list(_strings(part, count)) for part, count in enumerate(_STRINGS)]
    recipe = sha256_of(repr(strings).encode()).hexdigest()[:12]  # another list, another file
    path = cache_folder() / "spoken-digits" / f"espeak-{recipe}.npz"
    try:
        return Speech(**_read_recordings(path))
    except (FileNotFoundError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        spoken = dict(zip(Speech._fields, map(_spoken, strings), strict=True))
        _write_recordings(path, spoken, about="spoken by eSpeak NG")
        return Speech(**_read_recordings(path))


class _Line(NamedTuple):
    """What :func:`speak` is told."""

    text: str
    voice: str
    speed: int
    pitch: int
    gap: int


def _strings(part: int, count: int) -> Iterator[_Line]:
    """The lines of a part; the voices take turns."""
    g = np.random.Generator(np.random.PCG64(part))
    for place in range(count):
        accent = _ACCENTS[g.integers(len(_ACCENTS))]
        text = " ".join(_DIGITS[d] for d in g.integers(10, size=g.integers(1, 6)))
        voice = f"{accent}+{_VARIANTS[part][place % len(_VARIANTS[part])]}"
        yield _Line(text, voice, *map(int, (*g.integers((130, 30), (221, 71)), g.integers(9))))


def _spoken(lines: list[_Line]) -> Recordings:
    from tqdm.auto import tqdm

    waves = [speak(*line) for line in tqdm(lines, desc="eSpeak NG", leave=False)]
    return Recordings(waves, [line.text for line in lines], [line.voice for line in lines])


_MU = 255.0


def _write_recordings(path: Path, parts: dict[str, Recordings], about: str) -> None:
    """A file for :func:`_read_recordings`, a byte a sample, with a note on its source."""
    arrays = {"about": np.array(about)}
    for part, (waves, texts, voices) in parts.items():
        x = torch.cat(waves).double()
        y = x.sign() * (_MU * x.abs()).log1p() / math.log1p(_MU)
        arrays |= {
            f"{part}_waves": (127 * y).round().add(128).byte().numpy(),
            f"{part}_lengths": np.array([len(wave) for wave in waves], np.int32),
            f"{part}_texts": np.array(texts),
            f"{part}_voices": np.array(voices),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        np.savez_compressed(file, **arrays)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)  # in one step


def _read_recordings(file: Any) -> dict[str, Recordings]:
    """The parts of a file that :func:`_write_recordings` wrote."""
    stored, parts = np.load(file, allow_pickle=False), {}
    for name in stored.files:
        if name.endswith("_waves"):
            part = name.removesuffix("_waves")
            y = (torch.from_numpy(stored[name]).double() - 128) / 127
            x = y.sign() * (y.abs() * math.log1p(_MU)).expm1() / _MU
            lengths, texts, voices = (
                stored[f"{part}_{field}"].tolist() for field in ("lengths", "texts", "voices")
            )
            parts[part] = Recordings(list(x.float().split(lengths)), texts, voices)
    return parts


@checked
def recorded_digits() -> Recordings:
    """The ten digits, from "zero" to "nine", each said once by a woman.

    Returns:
        Ten recordings, a byte a sample on the scale of :func:`spoken_digits`.

    Source: Allison Smith, in the sounds of the telephone exchange Asterisk 1.6.1, as they come
    in Debian's package ``asterisk-core-sounds-en-wav``. Licence: CC BY-SA 3.0.
    """
    with (files("companion") / "data" / "recorded_digits.npz").open("rb") as file:
        return _read_recordings(file)["recorded"]


_FSDD_SHA256 = "8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0"
_FSDD_ADDRESSES = (
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",
    "https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/v1.0.9",
)
_FSDD_SPEAKERS = (("jackson", "nicolas", "theo"), ("yweweler",), ("george",))
_FSDD_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")
_WITHOUT_FSDD = """\
Or pass folder= with the folder `recordings` of a copy of that repository.
Or leave human=False: the synthesiser's recordings need no download."""


def _human_digits(folder: str | Path | None) -> Speech:
    """The Free Spoken Digit Dataset, by digits and then by their numbers."""
    if folder is None:
        name = "free-spoken-digits/v1.0.9.tar.gz"
        path = download(name, _FSDD_ADDRESSES, _FSDD_SHA256, advice=_WITHOUT_FSDD)
        with tarfile.open(path) as archive:  # read, and never unpacked
            contents = {
                Path(member.name).name: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and _FSDD_NAME.fullmatch(Path(member.name).name)
            }
    else:
        path = Path(folder).expanduser()
        contents = {
            file.name: file.read_bytes()
            for file in path.glob("*.wav")
            if _FSDD_NAME.fullmatch(file.name)
        }
    parts = [Recordings([], [], []) for _ in _FSDD_SPEAKERS]
    for name in sorted(contents, key=lambda name: [*map(int, re.findall("[0-9]+", name))]):
        digit, speaker, _ = _FSDD_NAME.fullmatch(name).groups()
        for part, speakers in zip(parts, _FSDD_SPEAKERS, strict=True):
            if speaker in speakers:
                part.waves.append(read_wave(contents[name], name))
                part.texts.append(_DIGITS[int(digit)])
                part.voices.append(speaker)
    if not all(part.waves for part in parts):
        raise FileNotFoundError(
            f"{path} lacks recordings of the Free Spoken Digit Dataset: it must hold files "
            f"such as 0_george_0.wav of {', '.join(sum(_FSDD_SPEAKERS, ()))}"
        )
    return Speech(*parts)


@checked
def read_wave(content: bytes, name: str = "this content") -> Float[Tensor, " samples"]:
    """The samples in a WAV file of one channel, of 16 bits, at :data:`SAMPLE_RATE`.

    Args:
        content: The bytes of the file.
        name: What an error calls it.

    Returns:
        The samples, between -1 and 1.

    Raises:
        ValueError: If this is no such file.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            found = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name} is no WAV file ({error}): fetch it again") from error
    if found != (1, 16, SAMPLE_RATE):
        raise ValueError(
            f"{name} must have 1 channel of 16 bits at {SAMPLE_RATE} samples a second, got "
            "{} of {} bits at {}: convert it".format(*found)
        )
    return torch.from_numpy(np.frombuffer(samples, "<i2").astype(np.float32) / 2**15)


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
