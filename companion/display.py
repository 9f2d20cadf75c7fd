"""Show the companion's own source in a chapter, so that what is read is what is tested."""

import ast
import html
import inspect
import textwrap

from companion.checks import checked

__all__ = ["Source", "show"]

# The site brings colours for pygments' classes in both its themes; JupyterLab has them only as
# variables.
_JUPYTERLAB_COLOURS = {
    ".k, .kn, .ow": "keyword",
    ".kc, .bp": "atom",
    ".o": "operator",
    ".s1, .s2, .sd, .sa, .si": "string",
    ".mi, .mf": "number",
    ".c1": "comment",
    ".nf, .nc, .fm": "def",
    ".nd": "meta",
    ".nb": "builtin",
}


class Source:
    """The source of one or more things of the companion, displayed with colours in a notebook.

    Attributes:
        text: The source code itself.
        files: The files that it comes from, and their tests, from the repository's root.
    """

    def __init__(self, text: str, files: list[str]) -> None:
        self.text = text
        self.files = files

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        code = highlight(self.text, PythonLexer(), HtmlFormatter(nowrap=True))
        links = " · ".join(
            f'<a href="../{file}">{html.escape(file)}</a>' for file in self.files
        )
        rules = "".join(
            f".jp-OutputArea .companion-source :is({classes}) "
            f"{{ color: var(--jp-mirror-editor-{name}-color) }}\n"
            for classes, name in _JUPYTERLAB_COLOURS.items()
        )
        return (
            f'<div class="companion-source">\n<style>\n{rules}</style>\n'
            f'<div class="highlight"><pre tabindex="0">{code}</pre></div>\n'
            '<p style="text-align: right; font-size: 0.8em; margin-top: 0.3em">'
            f"{links}</p>\n</div>"
        )


@checked
def show(*things: object, docstring: bool = False) -> Source:
    """The source of functions, classes or methods of the companion, to be displayed at the end
    of a cell.

    Below the source stand links to the module that it comes from and to that module's tests.

    Args:
        things: What to show, in this order.
        docstring: Show the docstrings too. Left out by default: the page around has just said
            it.

    Returns:
        An object that a notebook displays with colours, and that prints as plain source.

    Raises:
        TypeError: If something is not a function, class or method defined in the companion.
    """
    texts, files = [], []
    for thing in things:
        thing = getattr(thing, "__func__", thing)  # a bound method's function
        thing = inspect.unwrap(thing) if callable(thing) else thing
        module = getattr(thing, "__module__", None) or ""
        if (
            not (inspect.isfunction(thing) or inspect.isclass(thing))
            or module.split(".")[0] != "companion"
        ):
            raise TypeError(
                f"show displays functions, classes and methods of the companion, got {thing!r}"
            )
        text = textwrap.dedent(inspect.getsource(thing))
        texts.append(text if docstring else _without_docstrings(text))
        files.append(f"{module.replace('.', '/')}.py")
        if module.count(".") == 1:  # a script in data/ is tested with the module that it serves
            files.append(f"tests/test_{module.removeprefix('companion.')}.py")
    return Source("\n\n".join(texts).rstrip("\n"), list(dict.fromkeys(files)))


def _without_docstrings(text: str) -> str:
    """The same code without the docstrings of its functions and classes, and the blank line
    after each.
    """
    lines: list[str | None] = list(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if (
            not isinstance(node, ast.FunctionDef | ast.ClassDef)
            or ast.get_docstring(node) is None
        ):
            continue
        # nothing else in the body: without it the code would not be code
        if len(node.body) == 1:
            continue
        first, last = node.body[0].lineno - 1, node.body[0].end_lineno
        if not lines[last].strip():
            last += 1
        lines[first:last] = [None] * (last - first)
    return "\n".join(line for line in lines if line is not None) + "\n"
