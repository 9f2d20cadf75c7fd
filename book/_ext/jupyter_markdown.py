"""A page in plain Jupyter Markdown: what Sphinx has resolved, for any viewer of notebooks.

Only the site knows MyST's roles and directives. Sphinx knows what they stand for: "Fig. 6.1",
the title of a chapter, an author and a year. :class:`Page` walks through a page that Sphinx has
resolved and writes Markdown, LaTeX and a little HTML. What it does not know is an error that
names the file and the line.
"""

import base64
import re
import textwrap
from pathlib import Path
from posixpath import dirname, join, normpath

from docutils import nodes
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node

INVISIBLE = (nodes.comment, nodes.target, nodes.compound, addnodes.toctree, addnodes.index)
HEADINGS = (nodes.section, exercise_enumerable_node, solution_node)
BOXES = {"tip": "#009E73", "warning": "#D55E00", "danger": "#D55E00"}  # seen on black and white
SPECIAL = re.compile(r"[\\`*\[\]<$]|(?<!\w)_|_(?!\w)")
IMAGES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}


def is_reference(docname: str) -> bool:
    """Whether a page is part of the companion's reference, which no notebook is made of."""
    return docname.startswith(("book/a3-api", "book/api/"))


def address(docname: str) -> str:
    """Where a page is, seen from another notebook; for the reference, the source itself."""
    name = docname.rpartition("/")[2]
    if docname.startswith("book/a3-api"):
        return "../companion/__init__.py"
    return f"../companion/{name}.py" if is_reference(docname) else f"{name}.ipynb"


class Page:
    """The cells of one page, as they are written.

    Attributes:
        cells: The cells.
        folded: The headings among them under which everything is to be folded away.
    """

    def __init__(self, app, docname: str, code: dict[int, list[NotebookNode]]):
        self.app, self.docname, self.code = app, docname, code
        places = app.env.domains["std"].anonlabels.values()
        self.labels = {anchor for page, anchor in places if page == docname}
        self.cells: list[NotebookNode] = []
        self.folded: list[NotebookNode] = []
        self.text: list[str] = []  # of the cell that is being written, block by block

    # Cells

    def write(self, children, level: int = 1) -> None:
        """Write blocks in their order; a heading among them is of that level."""
        before = None
        for node in children:
            if isinstance(node, INVISIBLE):
                continue
            if isinstance(before, solution_node) and not isinstance(node, HEADINGS):
                self.fail(
                    node, "would be folded away with the solution before it: begin a section"
                )
            before = node
            if isinstance(node, nodes.section):
                self.heading(node, level, self.chapter() if level == 1 else "")
                self.write(node[1:], level + 1)
            elif isinstance(node, exercise_enumerable_node):
                self.heading(node, level, self.number("exercise", node))
                self.write(node[1].children, level + 1)
            elif isinstance(node, solution_node):
                self.heading(node, level + 1)
                self.end_cell()
                self.folded.append(self.cells[-1])
                self.write(node[1].children, level + 2)
            elif node.get("nb_element") == "cell_code":
                self.end_cell()
                self.cells += self.code.pop(node["cell_index"])
                self.text += map(self.caption, node.findall(nodes.figure))
            elif isinstance(node, nodes.figure):  # a picture's data are no text to edit
                self.end_cell()
                self.text.append(self.block(node))
                self.end_cell()
            elif isinstance(node, nodes.container | addnodes.glossary):
                self.write(node.children, level)
            else:
                self.text.append(self.block(node))

    def heading(self, node, level: int, number: str = "") -> None:
        """Begin a cell with a heading."""
        self.end_cell()
        title = f"{number} {self.inline(node[0]).strip()}".strip()
        self.text.append(f"{'#' * level} {title}{self.anchors(node)}")

    def end_cell(self) -> None:
        """Make a cell of the blocks that were written since the last one."""
        if self.text:
            self.cells.append(new_markdown_cell("\n\n".join(self.text)))
        self.text = []

    # Blocks

    def block(self, node) -> str:
        """One block in Markdown, without a blank line at either end."""
        return self.written("block", node)

    def blocks(self, children) -> str:
        """Blocks, with a blank line between each and the next."""
        return "\n\n".join(
            self.block(node) for node in children if not isinstance(node, INVISIBLE)
        )

    def block_paragraph(self, node):
        return self.inline(node).strip()

    def block_literal_block(self, node):
        runs = map(len, re.findall("`{3,}", node.astext()))
        fence = "`" * max(3, 1 + max(runs, default=0))
        return f"{fence}{node.get('language', '')}\n{node.astext().rstrip()}\n{fence}"

    def block_math_block(self, node):
        text = node.astext().strip()
        if r"\\" in text and r"\begin" not in text:
            text = rf"\begin{{aligned}}{text}\end{{aligned}}"
        if node.get("label"):
            numbers = self.app.env.toc_fignumbers[self.docname]["displaymath"][node["ids"][0]]
            text += rf" \tag{{{'.'.join(map(str, numbers))}}}"
        return f"{self.anchors(node)}\n$$\n{text}\n$$".lstrip("\n")

    def block_bullet_list(self, node):
        return "\n".join(self.item("- ", item) for item in node)

    def block_enumerated_list(self, node):
        return "\n".join(
            self.item(f"{n}. ", item) for n, item in enumerate(node, node.get("start", 1))
        )

    def item(self, mark, node):
        return mark + textwrap.indent(self.blocks(node), " " * len(mark)).lstrip()

    def block_definition_list(self, node):
        parts = []
        for *terms, definition in node:
            parts += [
                f"<dt>{self.anchors(t)}\n\n**{self.inline(t).strip()}**\n\n</dt>" for t in terms
            ]
            parts.append(f"<dd>\n\n{self.blocks(definition)}\n\n</dd>")
        return "\n".join(["<dl>", *parts, "</dl>"])

    def block_table(self, node):
        rows = [[self.entry(entry) for entry in row] for row in node.findall(nodes.row)]
        if not any(node.findall(nodes.thead)):
            rows.insert(0, [""] * len(rows[0]))
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def entry(self, node):
        """A table's cell in one line; a bar in a formula would be taken for the cell's end."""
        text = " ".join(self.blocks(node).split())
        text = re.sub(
            r"\$[^$]+\$", lambda m: m[0].replace(r"\|", r"\Vert ").replace("|", r"\vert "), text
        )
        return text.replace("|", r"\|")

    def block_admonition(self, node):
        title, *rest = node
        return self.box(node["classes"], self.inline(title), rest)

    def block_note(self, node):
        kind = type(node).__name__
        return self.box([kind, *node["classes"]], kind.capitalize(), node.children)

    block_tip = block_warning = block_important = block_danger = block_hint = block_note

    def box(self, classes, title, children):
        """A box with a coloured edge; where HTML is dropped, a title and what follows it."""
        if "dropdown" in classes:
            head, foot = f"<details>\n<summary>{title}</summary>", "</details>"
        else:
            colour = next((BOXES[kind] for kind in classes if kind in BOXES), "#0072B2")
            style = f"border: 1px solid #888; border-left: 6px solid {colour}; padding: 0 1em"
            head, foot = f'<div style="{style}">\n\n**{title}**', "</div>"
        return f"{head}\n\n{self.blocks(children)}\n\n{foot}"

    def block_block_quote(self, node):
        return textwrap.indent(self.blocks(node), "> ", lambda line: True)

    def block_figure(self, node):
        return "\n\n".join([self.blocks(node.findall(nodes.image)), self.caption(node)])

    def block_image(self, node):
        path = Path(self.app.srcdir, node.get("candidates", {}).get("*", node["uri"]))
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![{node.get('alt', '')}](data:{IMAGES[path.suffix]};base64,{data})"

    def caption(self, node) -> str:
        """What stands under a figure: its number and its caption."""
        parts = (
            [f"{self.anchors(node)}**{self.number('figure', node)}**"] if node["ids"] else []
        )
        parts += map(self.inline, node.findall(nodes.caption))
        return " ".join(parts)

    def block_citation(self, node):
        _, *paragraphs = node
        return f"- {self.anchors(node)}{self.blocks(paragraphs)}"

    def block_transition(self, node):
        return "---"

    # Inside a line

    def inline(self, node) -> str:
        """The children of a node, in one line of Markdown or several."""
        return "".join(
            self.written("inline", child) for child in node if not isinstance(child, INVISIBLE)
        )

    def inline_text(self, node):
        return SPECIAL.sub(r"\\\g<0>", node.astext())

    def inline_inline(self, node):
        return self.inline(node)

    def inline_emphasis(self, node):
        return f"*{self.inline(node)}*"

    def inline_strong(self, node):
        return f"**{self.inline(node)}**"

    def inline_literal(self, node):
        fence = "``" if "`" in node.astext() else "`"
        return f"{fence}{node.astext()}{fence}"

    def inline_math(self, node):
        return f"${' '.join(node.astext().split())}$"

    def inline_reference(self, node):
        text = self.inline(node)
        return f"{' ' * text.startswith(' ')}[{text.strip()}]({self.link(node)})"

    inline_number_reference = inline_reference
    block_passthroughtextelement = inline_strong  # the title of a card

    def inline_image(self, node):
        return self.block_image(node)

    def inline_raw(self, node):
        return node.astext()

    # Where things are

    def link(self, node) -> str:
        """Where a link leads: into this notebook, to another, to a cited work, or outside."""
        uri = node.get("refuri") or f"#{node['refid']}"
        if not node.get("internal"):
            return uri
        path, _, anchor = uri.partition("#")
        page = (
            normpath(join(dirname(self.docname), path.rpartition(".")[0]))
            if path
            else self.docname
        )
        if work := self.work(page, anchor):
            return work
        place = "" if page == self.docname else address(page)
        return f"{place}#{anchor}" if anchor and not is_reference(page) else place

    def work(self, page: str, anchor: str) -> str | None:
        """Where a cited work can be read."""
        for citation in self.app.env.get_domain("cite").citations:
            if citation.citation_id == anchor and citation.bibliography_key.docname == page:
                fields = citation.entry.fields
                if "doi" in fields:
                    return f"https://doi.org/{fields['doi']}"
                if "eprint" in fields:
                    return f"https://arxiv.org/abs/{fields['eprint']}"
                return fields.get("url")
        return None

    def anchors(self, node) -> str:
        """Where a link to this node leads."""
        if isinstance(node, solution_node):
            return ""
        named = self.labels | {
            name for name in node["ids"] if name.startswith(("equation-", "term-", "id"))
        }
        return "".join(f'<a id="{name}"></a>' for name in node["ids"] if name in named)

    def number(self, kind: str, node) -> str:
        """A thing's name and number, as in "Fig. 6.1"."""
        numbers = self.app.env.toc_fignumbers[self.docname][kind][node["ids"][0]]
        return self.app.config.numfig_format[kind] % ".".join(map(str, numbers))

    def chapter(self) -> str:
        number = self.app.env.toc_secnumbers.get(self.docname, {}).get("")
        return f"{number[0]}." if number else ""

    def written(self, form: str, node) -> str:
        """A node in the form that is meant for its kind."""
        write = getattr(self, f"{form}_{type(node).__name__.lower()}", None)
        if write is None:
            self.fail(
                node,
                f"has no form in a notebook: {type(node).__name__}, {node.astext()[:60]!r}",
            )
        return write(node)

    def fail(self, node, what: str):
        while node.line is None and node.parent is not None:
            node = node.parent
        raise ExtensionError(
            f"{self.app.env.doc2path(self.docname)}:{node.line or '?'}: {what}"
        )
