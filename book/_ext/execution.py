"""One execution for the tests and for the site.

The tests run every chapter and leave its outputs in a jupyter-cache; the site is built from
that cache. Jupyter-cache recognises a chapter by its code alone, so the cache's folder is named
after everything else that an output depends on: the companion, the pinned packages and Python.
Change one of them and the folder is another, empty one.
"""

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

import jupytext
from filelock import FileLock
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbformat import NotebookNode

# A progress bar would leave its last line in the page; threads that wait by spinning would slow
# whatever else runs.
KERNEL_ENVIRONMENT = {"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "passive"}


def read_chapter(path: Path) -> NotebookNode:
    """The notebook that JupyterLab shows for a chapter."""
    return jupytext.read(path, fmt={"extension": ".md", "format_name": "myst"})


def fingerprint(root: Path) -> str:
    """A name for what a chapter's outputs depend on besides the chapter."""
    digest = hashlib.sha256(sys.version.encode())
    for path in [root / "constraints.txt", *sorted((root / "companion").rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder(root: Path) -> Path:
    """Where the outputs that go with the present companion are kept."""
    return root / "_build" / "executed" / fingerprint(root)


def store(root: Path, path: Path, notebook: NotebookNode) -> None:
    """Keep the outputs of an executed chapter for the site."""
    folder = cache_folder(root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # chapters are run by several processes
        keep(folder, path, notebook)


def keep(folder: Path, path: Path, notebook: NotebookNode) -> None:
    """Keep a chapter's outputs in a cache; all its cells are numbered as if they had run."""
    get_cache(folder).cache_notebook_bundle(CacheBundleIn(notebook, str(path)), overwrite=True)


def is_kept(root: Path, path: Path) -> bool:
    """Whether there are outputs that go with a chapter as it stands."""
    with suppress(KeyError):
        get_cache(cache_folder(root)).match_cache_notebook(read_chapter(path))
        return True
    return False


def read_executed(root: Path, path: Path) -> NotebookNode:
    """A chapter with the outputs that are kept for it; without any, if there are none."""
    notebook = read_chapter(path)
    with suppress(KeyError):
        _, notebook = get_cache(cache_folder(root)).merge_match_into_notebook(notebook)
    return notebook


def setup(app):
    """Let Sphinx read the cache that the tests have filled; it executes what is not in it."""

    def use_cache(app, config):
        os.environ.update(KERNEL_ENVIRONMENT)
        config.nb_execution_cache_path = str(cache_folder(Path(app.srcdir)))

    app.connect("config-inited", use_cache, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
