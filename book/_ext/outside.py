"""References to other projects' documentation, without asking another host for its index while
the site is built.

A name is looked up by importing it: one that does not exist is still a broken reference.
"""

import importlib

from docutils import nodes

PAGES = {
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
    "torch.utils.data.": "https://docs.pytorch.org/docs/stable/data.html#{}",
    "torch._C.Generator": "https://docs.pytorch.org/docs/stable/generated/torch.Generator.html",
    "torch.": "https://docs.pytorch.org/docs/stable/generated/{}.html",
    "jaxtyping.": "https://docs.kidger.site/jaxtyping/api/array/",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html#{}",
    "collections.abc.": "https://docs.python.org/3/library/collections.abc.html#{}",
    "matplotlib.axes.Axes": "https://matplotlib.org/stable/api/axes_api.html",
    "matplotlib.figure.Figure": "https://matplotlib.org/stable/api/figure_api.html",
}
# As annotations name them.
SHORT = {
    "Tensor": "torch.Tensor",
    "Axes": "matplotlib.axes.Axes",
    "Figure": "matplotlib.figure.Figure",
}


def exists(name: str) -> bool:
    """Whether a dotted name can be imported."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


def resolve(app, env, node, content):
    name = SHORT.get(node.get("reftarget"), node.get("reftarget"))
    page = next((page for start, page in PAGES.items() if name.startswith(start)), None)
    if node.get("refdomain") != "py" or page is None or not exists(name):
        return None
    return nodes.reference(
        "", "", content, internal=False, refuri=page.format(name), reftitle=name
    )


def setup(app):
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
