"""Each chapter as a notebook with its outputs, to download or, once the book has an address, to
launch elsewhere.
"""

from pathlib import Path
from urllib.parse import quote

import nbformat
from execution import read_executed
from sphinx.errors import ConfigError
from sphinx_thebe import init_thebe_core, update_thebe_context

INSTALL = """\
# Elsewhere than in the book's own environment, the companion has to be installed once.
import importlib.util

if importlib.util.find_spec("companion") is None:
    %pip install --quiet "git+{url}"
"""


def launch_links(url: str, branch: str, pagename: str) -> dict[str, str]:
    """Where Binder and Colab open a chapter of the GitHub repository at ``url``.

    Binder reads the repository as it is. Colab reads only ``.ipynb``: it opens the notebook on
    the branch ``gh-pages``, where the publishing workflow puts the site.
    """
    if not url.startswith("https://github.com/"):
        raise ConfigError(
            f"repository.url in _config.yml must begin with https://github.com/, got {url!r}"
        )
    project = url.removeprefix("https://github.com/").rstrip("/").removesuffix(".git")
    place = quote(f"lab/tree/{pagename}.md", safe="")
    return {
        "Binder": f"https://mybinder.org/v2/gh/{project}/{branch}?urlpath={place}",
        "Colab": f"https://colab.research.google.com/github/{project}/blob/gh-pages/_sources/"
        f"{pagename}.ipynb",
    }


def add_notebook(app, pagename, templatename, context, doctree):
    """Put the executed notebook beside the page's source; the theme then offers it, and the
    launch buttons.
    """
    if "kernelspec" not in app.env.metadata.get(pagename, {}):
        return
    url, branch = (
        app.config.html_theme_options.get(f"repository_{key}") for key in ("url", "branch")
    )
    notebook = read_executed(Path(app.srcdir), Path(app.env.doc2path(pagename)))
    if url:
        notebook.cells.insert(
            0, nbformat.v4.new_code_cell(INSTALL.format(url=url), id="install")
        )
        buttons = [
            {"type": "link", "text": name, "tooltip": f"Launch on {name}", "url": link}
            for name, link in launch_links(url, branch, pagename).items()
        ]
        group = {
            "type": "group",
            "tooltip": "Launch this chapter",
            "icon": "fas fa-rocket",
            "label": "launch-buttons",
        }
        context["header_buttons"].append(group | {"buttons": buttons})
    target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    context["ipynb_source"] = f"{pagename}.ipynb"


def remove_thebe(app, config):
    """Take Thebe out, which Jupyter Book always loads and which would run cells with a script
    from another host.
    """
    for listeners in app.events.listeners.values():
        for listener in [*listeners]:
            if listener.handler in (init_thebe_core, update_thebe_context):
                app.disconnect(listener.id)


def setup(app):
    app.connect("config-inited", remove_thebe)
    app.connect("html-page-context", add_notebook, priority=500)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
