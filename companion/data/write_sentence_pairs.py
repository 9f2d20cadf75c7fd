"""Write ``sentence_pairs.json.xz``: the texts of Home Assistant in English, German and Spanish.

Run ``python companion/data/write_sentence_pairs.py``; it asks pip for the published wheel of
Home Assistant 2026.2.3 (51 MB), or reads the one that is named by ``--wheel``. The program
keeps its texts in a file for each language and component, under the same keys, by which a text
finds its translation. Three kinds are left out: texts with placeholders, marks of formatting,
addresses or line breaks, texts without a letter, and those with no translation at all. The
parts are those of :func:`companion.datasets.sentence_pairs`.
"""

import argparse
import json
import lzma
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from companion.datasets import Pairs, _cut_apart

VERSION = "2026.2.3"
SHA256 = "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c"
LANGUAGES = ("en", "de", "es")
SOURCE = f"""\
The texts of Home Assistant {VERSION}, https://www.home-assistant.io/, copyright its authors
and translators, licensed under the Apache License, Version 2.0. Changed: texts were chosen,
blanks between words made one, and pairs cut into three parts by
companion/data/write_sentence_pairs.py.
"""


def fetch(folder: Path) -> Path:
    """Ask pip for the wheel.

    Args:
        folder: Where it goes.

    Returns:
        The file.
    """
    options = ["--no-deps", "--python-version", "3.13.2", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    subprocess.run([*command, f"homeassistant=={VERSION}"], check=True)
    return next(folder.glob("*.whl"))


def leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts in nested dictionaries, each with the keys that lead to it."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield from leaves(branch, (*path, key))
    else:
        yield path, re.sub(" +", " ", tree).strip()


def is_plain(text: str | None) -> bool:
    """Whether this is a text for people, without marks for programs; ``None`` is fine."""
    return text is None or bool(
        re.search(r"[^\W\d_]", text) and not re.search(r"[{}<>\[\]`*_|\\#%\n]|://", text)
    )


def rows_of(wheel: ZipFile) -> list[tuple[str | None, ...]]:
    """Each text in the three languages, as often as it occurs.

    Args:
        wheel: The wheel of Home Assistant.
    """
    texts = defaultdict(dict)
    for name in wheel.namelist():
        if match := re.fullmatch(
            r"homeassistant/components/([^/]+)/translations/(en|de|es)\.json", name
        ):
            component, language = match.groups()
            for path, text in leaves(json.loads(wheel.read(name)), (component,)):
                texts[path][language] = text
    rows = (tuple(found.get(language) for language in LANGUAGES) for found in texts.values())
    return sorted(
        (row for row in rows if row[0] and any(row[1:]) and all(map(is_plain, row))),
        key=lambda row: [text or "" for text in row],
    )


def write(target: Path, wheel: Path) -> None:
    """Write the three parts and the licence.

    Args:
        target: The file to write.
        wheel: The published wheel.
    """
    content = wheel.read_bytes()
    if (found := sha256(content).hexdigest()) != SHA256:
        raise ValueError(f"{wheel} must have the SHA-256 {SHA256}, got {found}")
    with ZipFile(wheel) as opened:
        licence = f"homeassistant-{VERSION}.dist-info/licenses/LICENSE.md"
        about = {"source": SOURCE, "licence": opened.read(licence).decode()}
        parts = dict(zip(Pairs._fields, _cut_apart(rows_of(opened)), strict=True))
    stored = json.dumps(about | parts, ensure_ascii=False, separators=(",", ":"))
    target.write_bytes(lzma.compress(stored.encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="the published wheel, if it is here")
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("sentence_pairs.json.xz")
    )
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        write(arguments.target, arguments.wheel or fetch(Path(folder)))
