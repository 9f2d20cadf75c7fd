"""The reference: a page for each module of the companion.

A page begins with where its module is taught and with a list of what is in it. The list on the
first page is the package's own, so that a new module is documented as soon as it is there.
"""

from pathlib import Path

import companion

PAGE = """\
# `companion.{0}`

```{{eval-rst}}
.. automodule:: companion.{0}
   :members:
```
"""
# Napoleon takes what stands before the first colon of an attribute's description for its type.
COLON, STAND_IN = ":", "\ue000"


def write_pages(folder: Path) -> None:
    """One page for each module, none for a module that is no more; a page that is right already
    is left alone, so that the site need not be built anew.
    """
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{module}.md": PAGE.format(module) for module in companion.__all__}
    for path in {*folder.iterdir()} - {*pages}:
        path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def begin_page(app, what, name, obj, options, lines):
    if what != "module":
        return
    chapter = name.removeprefix("companion.").replace("_", "-")
    if list(Path(app.srcdir, "book").glob(f"[0-9][0-9]-{chapter}.md")):
        lines += ["", f"Taught in :ref:`ch-{chapter}`."]
    lines += ["", ".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   {member}" for member in obj.__all__]


def hide_colons(app, what, name, obj, options, lines):
    if what in ("attribute", "data", "property"):
        lines[:1] = [line.replace(COLON, STAND_IN) for line in lines[:1]]


def show_colons(app, what, name, obj, options, lines):
    lines[:] = [line.replace(STAND_IN, COLON) for line in lines]


def setup(app):
    write_pages(Path(app.srcdir, "book", "api"))
    app.connect("autodoc-process-docstring", begin_page)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", show_colons, priority=600)  # after it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
