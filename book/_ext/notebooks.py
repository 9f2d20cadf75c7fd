"""Notebooks that any viewer reads, made from the chapters.

``make lab`` writes them into ``notebooks/``, where nothing has been run and what a reader has
changed is never touched. The site offers the same notebooks, with outputs, to download and,
once the book has an address, to launch elsewhere.
"""

import json
from collections import Counter
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx import addnodes
from sphinx.builders import Builder
from sphinx.errors import ConfigError
from sphinx.util import logging
from sphinx_thebe import init_thebe_core, update_thebe_context

from execution import keep, read_chapter, read_executed
from jupyter_markdown import Page, address, is_reference
from numbering import chapter_number

LOGGER = logging.getLogger(__name__)
OURS = "deep_learning_book"  # what we write into a notebook's metadata
INSTALL = """\
# Elsewhere than in the book's own environment, the companion has to be installed once.
import importlib.util

if importlib.util.find_spec("companion") is None:
    %pip install --quiet "deep-learning-companion[chapters] @ git+{url}"
"""
HIDE_SOURCE = {"hide-input", "remove-input", "hide-cell", "remove-cell"}
HIDE_OUTPUT = {"hide-output", "remove-output", "hide-cell", "remove-cell"}


# A notebook


def make_notebook(app, docname: str, doctree, chapter: NotebookNode) -> NotebookNode:
    """A page as a notebook.

    Args:
        app: The Sphinx application.
        docname: The name of the page.
        doctree: The page as Sphinx has resolved it.
        chapter: The page as its author wrote it, with outputs or without.
    """
    page = Page(app, docname, code_cells(app.env.doc2path(docname), chapter))
    page.write(doctree.children)
    page.end_cell()
    title, *rest = page.cells
    cells = [*opening(app, docname), title, *contents(app, docname), *rest]
    seen = Counter()
    for cell in cells:
        written = f"{cell.cell_type}\0{cell.source}"
        cell.id = sha256(f"{written}\0{seen[written]}".encode()).hexdigest()[:12]
        seen[written] += 1
    for heading in page.folded:  # for JupyterLab, and for Colab, which has ids of its own
        heading.metadata.update({"jp-MarkdownHeadingCollapsed": True, "id": heading.id})
    return new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
            "colab": {"collapsed_sections": [heading.id for heading in page.folded]},
            OURS: {"source": f"{docname}.md", "made": digest(cells)},
        },
    )


def digest(cells: list[NotebookNode]) -> str:
    """A name for all that somebody may have written or computed in a notebook."""
    parts = [[cell.cell_type, cell.source, cell.get("outputs", [])] for cell in cells]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_cells(path: str, chapter: NotebookNode) -> dict[int, list[NotebookNode]]:
    """A chapter's code by the place of a cell that Sphinx shows; a removed one goes before."""
    text = Path(path).read_text(encoding="utf-8")
    code = iter(cell for cell in chapter.cells if cell.cell_type == "code")
    found, before = {}, []
    for place, cell in enumerate(read_myst_markdown_notebook(text).cells):
        if cell.cell_type == "code":
            before.append(code_cell(next(code)))
            if "remove-cell" not in cell.metadata.get("tags", ()):
                found[place], before = before, []
    return found


def code_cell(cell: NotebookNode) -> NotebookNode:
    """A code cell, folded as its tags say, in the words of JupyterLab and of Colab."""
    tags = set(cell.metadata.get("tags", ()))
    metadata = {"tags": sorted(tags)} if tags else {}
    hidden = {"source_hidden": HIDE_SOURCE & tags, "outputs_hidden": HIDE_OUTPUT & tags}
    if any(hidden.values()):
        metadata["jupyter"] = {name: True for name, why in hidden.items() if why}
    if HIDE_SOURCE & tags:
        metadata["cellView"] = "form"
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    for output in cell.outputs:
        if alt and "image/png" in output.get("data", {}):
            output.metadata["image/png"] = {"alt": alt}
    return new_code_cell(
        cell.source,
        metadata=metadata,
        outputs=cell.outputs,
        execution_count=cell.execution_count,
    )


def opening(app, docname: str) -> list[NotebookNode]:
    """What a notebook is, where it comes from, and how to get the companion."""
    url = app.config.html_theme_options.get("repository_url")
    title, first = app.config.html_title, app.config.root_doc
    book = title if docname == first else f"[{title}]({address(first)})"
    how = (
        "the next cell installs it"
        if url
        else "install it from a copy of the book with `pip install .[chapters]`"
    )
    text = (
        f"*A page of the book {book}, made from `{docname}.md`. Run it and change it: what you "
        "change is kept when the book is updated. The code needs the package `companion`. "
        f"`make lab` has it; elsewhere, as on Colab or Kaggle, {how}.*"
    )
    cells = [new_markdown_cell(text)]
    if url:
        cells.append(new_code_cell(INSTALL.format(url=url)))
    return cells


def contents(app, docname: str) -> list[NotebookNode]:
    """The chapters, part by part, on the first page."""
    if docname != app.config.root_doc:
        return []
    lines = ["## Contents"]
    for part in app.env.get_doctree(docname).findall(addnodes.toctree):
        lines.append(f"\n**{part['caption']}**\n")
        for _, page in part["entries"]:
            number = chapter_number(page)
            title = app.env.titles[page].astext()
            lines.append(f"- [{number}. {title}]({address(page)})")
    return [new_markdown_cell("\n".join(lines))]


# The folder in which a reader works


class NotebookBuilder(Builder):
    """Writes ``notebooks/``, where nothing has been run."""

    name = format = "notebooks"
    epilog = "The notebooks are in notebooks/."

    def init(self):
        self.folder = Path(self.srcdir, "notebooks")

    def get_outdated_docs(self):
        writers = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
        for docname in self.env.found_docs:
            path = self.folder / address(docname)
            source = Path(self.env.doc2path(docname)).stat().st_mtime
            if not path.exists() or path.stat().st_mtime < max(source, writers):
                yield docname

    def get_target_uri(self, docname, typ=None):
        return f"{docname}.ipynb"

    def prepare_writing(self, docnames):
        self.folder.mkdir(exist_ok=True)

    def write_doc(self, docname, doctree):
        if not is_reference(docname):
            chapter = read_chapter(Path(self.env.doc2path(docname)))
            put(
                make_notebook(self.app, docname, doctree, chapter),
                self.folder / address(docname),
            )

    def finish(self):
        """Take away what was made of a chapter that is no more, if nobody has changed it."""
        for path in self.folder.glob("*.ipynb"):
            made, now, source = whose(path)
            gone = source and not Path(self.srcdir, source).exists()
            if gone and made == now and path.name == f"{Path(source).stem}.ipynb":
                path.unlink()


def put(notebook: NotebookNode, path: Path) -> Path:
    """Write a notebook to its place, or beside what a reader has made of it.

    Returns:
        Where the notebook is, or what a reader has made of this very version.
    """
    others = (path.with_suffix(f".new{n or ''}.ipynb") for n in count())
    for place in chain([path], others):
        made, now, _ = whose(place) if place.exists() else (None, None, None)
        if made == notebook.metadata[OURS]["made"]:
            return place
        if made == now:
            break
    partial = place.with_suffix(".partial")
    partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    partial.replace(place)
    if place != path:
        print(f"{path} has your changes and stays as it is; the book's new version is {place}")
    return place


def whose(path: Path) -> tuple[str | None, str | None, str | None]:
    """What was made, what is there now, and the source; a file that is not ours differs."""
    try:
        notebook = nbformat.read(path, as_version=4)
        ours = notebook.metadata.get(OURS, {})
        return ours.get("made"), digest(notebook.cells), ours.get("source")
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, ValueError, KeyError):
        return None, "unreadable", None


def run_nothing(app):
    """Give Sphinx a cache in which each figure has an output, and so has a number."""
    if app.builder.name != NotebookBuilder.name:
        return
    folder = Path(app.outdir).parent / "unexecuted"
    for path in Path(app.srcdir, "book").glob("*.md"):
        chapter = read_chapter(path)
        code = [cell for cell in chapter.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, start=1):
            cell.execution_count = number
            if "figure" in cell.metadata.get("mystnb", {}):
                cell.outputs = [new_output("display_data", {"text/plain": ""})]
        if code:
            keep(folder, path, chapter)
    app.env.mystnb_config = app.env.mystnb_config.copy(execution_cache_path=str(folder))


# The site


def launch_links(url: str, branch: str, pagename: str) -> dict[str, str]:
    """Where Binder and Colab open a chapter of the GitHub repository at ``url``.

    Binder makes the notebooks as ``make lab`` does. Colab opens that of the branch
    ``gh-pages``, where the publishing workflow puts the site.
    """
    if not url.startswith("https://github.com/"):
        raise ConfigError(
            f"repository.url in _config.yml must begin with https://github.com/, got {url!r}"
        )
    project = url.removeprefix("https://github.com/").rstrip("/").removesuffix(".git")
    binder = quote(f"lab/tree/notebooks/{address(pagename)}", safe="")
    colab = f"{project}/blob/gh-pages/_sources/{pagename}.ipynb"
    return {
        "Binder": f"https://mybinder.org/v2/gh/{project}/{branch}?urlpath={binder}",
        "Colab": f"https://colab.research.google.com/github/{colab}",
    }


def add_notebook(app, pagename, templatename, context, doctree):
    """Put the notebook beside the page's source; the theme then offers it."""
    if "kernelspec" not in app.env.metadata.get(pagename, {}):
        return
    chapter = read_executed(Path(app.srcdir), Path(app.env.doc2path(pagename)))
    target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(make_notebook(app, pagename, doctree, chapter), target)
    context["ipynb_source"] = f"{pagename}.ipynb"
    options = app.config.html_theme_options
    if url := options.get("repository_url"):
        links = launch_links(url, options.get("repository_branch"), pagename)
        buttons = [
            {"type": "link", "text": name, "tooltip": f"Launch on {name}", "url": link}
            for name, link in links.items()
        ]
        group = {
            "type": "group",
            "tooltip": "Launch this chapter",
            "icon": "fas fa-rocket",
            "label": "launch-buttons",
        }
        context["header_buttons"].append(group | {"buttons": buttons})


def remove_thebe(app, config):
    """Take Thebe out, which Jupyter Book loads and which would run a script of another host."""
    for listeners in app.events.listeners.values():
        for listener in [*listeners]:
            if listener.handler in (init_thebe_core, update_thebe_context):
                app.disconnect(listener.id)


def setup(app):
    app.add_builder(NotebookBuilder)
    app.connect("config-inited", remove_thebe)
    app.connect("builder-inited", run_nothing, priority=900)  # MyST-NB has read its settings
    app.connect("html-page-context", add_notebook, priority=500)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
