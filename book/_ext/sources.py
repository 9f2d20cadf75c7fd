"""A page of highlighted source for each file of the companion and each of its test files.

In JupyterLab a chapter's link to ``../companion/layers.py`` opens that file; on the site it
opens the file's page.
"""

import re
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

LINK = re.compile(r'href="((?:\.\./)*(?:companion(?:/data)?|tests)/\w+\.py)"')


def source_pages(app):
    root = Path(app.srcdir)
    patterns = ("companion/*.py", "companion/data/*.py", "tests/test_*.py")
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        name = path.relative_to(root).as_posix()
        code = highlight(
            path.read_text(encoding="utf-8"), PythonLexer(), HtmlFormatter(nowrap=True)
        )
        body = f'<h1>{name}</h1>\n<div class="highlight"><pre tabindex="0">{code}</pre></div>'
        yield name, {"title": name, "body": body}, "page.html"


def link_to_pages(app, pagename, templatename, context, doctree):
    if doctree is not None:
        context["body"] = LINK.sub(r'href="\1.html"', context["body"])


def setup(app):
    app.connect("html-collect-pages", source_pages)
    app.connect("html-page-context", link_to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
