"""``ruff check`` for the code cells of the chapters, each of which ruff reads as a notebook."""

import subprocess
import sys
from pathlib import Path

import nbformat
from ruff import find_ruff_bin

from execution import read_chapter


def check(path: Path) -> int:
    """What ruff has to say about a chapter is printed; the result is 0 if that is nothing."""
    notebook = path.with_suffix(".ipynb")
    command = [find_ruff_bin(), "check", "--quiet", "--stdin-filename", notebook, "-"]
    return subprocess.run(
        command, input=nbformat.writes(read_chapter(path)), text=True, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(max(map(check, sorted(Path("book").glob("*.md")))))
