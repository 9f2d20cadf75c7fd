"""Importing the whole companion against importing torch, each in a fresh process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import companion
from benchmarks.measure import Row

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """One row; the start of Python counts on both sides."""
    modules = [
        "companion",
        *(f"companion.{module.name}" for module in iter_modules(companion.__path__)),
    ]
    yield Row(
        "import of all modules against import torch",
        lambda: _fresh_process(f"import {', '.join(modules)}"),
        lambda: _fresh_process("import torch"),
        aim=1.2,
        threads=(1,),
    )


def _fresh_process(code: str) -> None:
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(companion.__file__).parents[1]
    )
