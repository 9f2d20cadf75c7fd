"""The notebooks that a reader opens: plain Jupyter Markdown, and never a reader's work lost."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import yaml
from nbconvert import HTMLExporter
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace

from execution import KERNEL_ENVIRONMENT, read_chapter
from notebooks import OURS

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [
    TOC["root"],
    *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]),
]
NAMES = [page.removeprefix("book/") for page in PAGES if not page.startswith("book/a3-api")]
CHAPTERS = [name for name in NAMES if re.match(r"\d\d-", name)]
BUILD = ["build", ".", "-W", "-n", "--keep-going", "-q", "--path-output", "_build/lab"]
BUILD += ["--builder", "custom", "--custom-builder", "notebooks"]


def copy_book(folder):
    """A copy of what the notebooks are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("_config.yml", "_toc.yml", "constraints.txt", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in ("book", "companion"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def build(folder):
    """What ``make lab`` does before it opens JupyterLab."""
    command = [Path(sys.executable).with_name("jupyter-book"), *BUILD]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def read(folder, name):
    return nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A copy of the book with its notebooks."""
    folder = copy_book(tmp_path_factory.mktemp("book"))
    build(folder)
    return folder


def test_the_command_is_the_one_that_make_lab_runs():
    assert f"jupyter-book {' '.join(BUILD)}\n" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


# What is in them


def prose(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_has_no_myst_in_it(made, name):
    notebook = read(made, name)
    nbformat.validate(notebook)
    for text in prose(notebook):
        text = re.sub(r"(`{3,}).*?\n\1", "", text, flags=re.S)
        assert not re.search(r"\{[\w:+-]+\}`|:::|`{3,}\{|^\([\w-]+\)=|\{#", text, re.M), text
        assert not re.search(r"\$\$ *\(eq-|\bpending_xref\b|Project name", text), text


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_is_that_of_the_chapter_in_its_order_and_has_not_run(made, name):
    code = [cell for cell in read(made, name).cells if cell.cell_type == "code"]
    chapter = read_chapter(ROOT / "book" / f"{name}.md")
    wanted = [cell.source for cell in chapter.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == wanted
    assert not any(cell.outputs or cell.execution_count for cell in code)


class Rendered(HTMLParser):
    """What a notebook's HTML defines and refers to."""

    def __init__(self, notebook):
        super().__init__()
        self.anchors, self.links, self.images = set(), [], []
        self.feed(HTMLExporter().from_notebook_node(notebook)[0])

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if tag == "a" and "anchor-link" not in (values.get("class") or ""):
            self.links.append(values.get("href"))
        if tag == "img":
            self.images.append(values.get("src"))


@pytest.fixture(scope="session")
def rendered(made):
    return {name: Rendered(read(made, name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_of_a_notebook_leads_somewhere(rendered, name):
    for link in filter(None, rendered[name].links):
        file, anchor = urldefrag(unquote(link))
        if re.match(r"\w+:", file):
            assert file.startswith("https://"), link
        elif file.endswith(".ipynb") or not file:
            target = file.removesuffix(".ipynb") or name
            assert target in rendered, link
            assert not anchor or anchor in rendered[target].anchors, link
        else:
            assert (ROOT / "notebooks" / file).resolve().exists(), link
    assert all(source.startswith("data:image/") for source in rendered[name].images)


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_equations_and_exercises_have_the_numbers_of_the_site(made, name):
    text = "\n".join(prose(read(made, name)))
    source = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
    chapter = int(name[:2])
    found = {
        "figure": re.findall(r'^<a id="fig-[\w-]+"></a>\*\*Fig. (\S+)\*\* \S', text, re.M),
        "equation": re.findall(r"\\tag\{(\S+)\}\n\$\$$", text, re.M),
        "exercise": re.findall(r"^### Exercise (\S+?)(?:<| )", text, re.M),
        "solution": re.findall(r"^#### Solution to \[Exercise (\S+?)[\]() ]", text, re.M),
    }
    written = {
        "figure": re.findall(r"^ +name: fig-|^:name: fig-", source, re.M),
        "equation": re.findall(r"^\$\$ \(eq-", source, re.M),
        "exercise": re.findall(r"^:::+\{exercise(?:-start)?\}", source, re.M),
        "solution": re.findall(r"^:::+\{solution(?:-start)?\}", source, re.M),
    }
    assert text.startswith("*")
    assert f"\n# {chapter}. " in text
    for kind, numbers in found.items():
        assert numbers == [f"{chapter}.{n}" for n in range(1, len(written[kind]) + 1)], kind


@pytest.mark.parametrize("name", CHAPTERS)
def test_drawing_code_and_solutions_are_folded(made, name):
    for cell in read(made, name).cells:
        if cell.cell_type == "code":
            hidden = "hide-input" in cell.metadata.get("tags", [])
            assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == hidden
            assert ("cellView" in cell.metadata) == hidden
        else:
            solution = re.fullmatch(r"#### Solution to \[.*", cell.source) is not None
            assert cell.metadata.get("jp-MarkdownHeadingCollapsed", False) == solution
            assert "Solution to" not in cell.source.partition("\n")[2]


def test_citations_name_authors_and_year_and_lead_to_the_work(made):
    text = "\n".join(prose(read(made, "06-convolution")))
    assert "([Fukushima, 1980](https://doi.org/10.1007/BF00344251))" in text
    assert re.search(
        r"Dumoulin and Visin \(\[2016\]\(https://arxiv\.org/abs/1603\.07285\)\)", text
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_says_what_this_is_and_how_to_get_the_companion(made, name):
    first = read(made, name).cells[0].source
    assert "Deep Learning and Neural Networks" in first
    assert f"`book/{name}.md`" in first
    assert "pip install" in first


def test_the_first_page_has_a_table_of_contents_that_opens_chapters(made):
    text = "\n".join(prose(read(made, "index")))
    for part in TOC["parts"]:
        assert f"**{part['caption']}**" in text
    for name in CHAPTERS:
        assert re.search(rf"^- \[{int(name[:2])}\. [^\]]+\]\({name}\.ipynb\)$", text, re.M)


# What a reader has written


@pytest.fixture(scope="session")
def again(tmp_path_factory):
    """Another copy of the book, in another place, with its notebooks."""
    folder = copy_book(tmp_path_factory.mktemp("somewhere") / "else")
    build(folder)
    return folder


def test_two_builds_are_the_same_to_the_byte(made, again):
    for name in NAMES:
        path = Path("notebooks", f"{name}.ipynb")
        assert (made / path).read_bytes() == (again / path).read_bytes()


def edit(path, change):
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)
    return path.read_bytes()


def test_a_readers_work_is_never_lost(again):
    folder = again / "notebooks"
    names = (
        "02-layers",
        "03-activations",
        "04-backpropagation",
        "05-optimization",
        "06-convolution",
    )
    written, ran, deleted, untouched, broken = (folder / f"{name}.ipynb" for name in names)
    work = edit(written, lambda cells: cells[1].update(source="my own notes"))
    numbers = nbformat.v4.new_output("stream", text="3.1416")
    code = [cell.cell_type for cell in nbformat.read(ran, 4).cells].index("code")
    results = edit(ran, lambda cells: cells[code].update(outputs=[numbers]))
    old = untouched.read_bytes()
    deleted.unlink()
    broken.write_text("{ half a file", encoding="utf-8")
    own = folder / "mine.ipynb"  # a copy under the reader's own name
    own.write_bytes(old)

    build(again)  # the same version of the book: nothing is new
    assert written.read_bytes() == work
    assert not list(folder.glob("*layers.new*"))
    assert deleted.exists()

    for name in names:  # and a new version
        chapter = again / "book" / f"{name}.md"
        chapter.write_text(
            chapter.read_text(encoding="utf-8") + "\nNew words.\n", encoding="utf-8"
        )
    said = build(again)
    assert written.read_bytes() == work
    assert ran.read_bytes() == results
    assert broken.read_text(encoding="utf-8") == "{ half a file"
    assert "New words." in untouched.read_text(encoding="utf-8")
    assert own.read_bytes() == old
    for path in (written, ran, broken):
        new = path.with_suffix(".new.ipynb")
        assert "New words." in new.read_text(encoding="utf-8")
        assert re.search(rf"{path.name} has your changes and stays as it is.*{new.name}", said)

    work = edit(folder / "02-layers.new.ipynb", lambda cells: cells.pop())  # and yet another
    chapter = again / "book" / "02-layers.md"
    chapter.write_text(
        chapter.read_text(encoding="utf-8") + "\nNewer ones.\n", encoding="utf-8"
    )
    build(again)
    assert (folder / "02-layers.new.ipynb").read_bytes() == work
    assert "Newer ones." in (folder / "02-layers.new1.ipynb").read_text(encoding="utf-8")
    assert list(folder.glob("*.partial")) == []


def test_what_was_made_of_a_chapter_that_is_gone_goes_with_it_unless_it_was_changed(again):
    folder = again / "notebooks"
    for name in ("08-old", "08-changed"):
        notebook = read(again, "a5-glossary")
        notebook.metadata[OURS]["source"] = f"book/{name}.md"
        nbformat.write(notebook, folder / f"{name}.ipynb")
    edit(folder / "08-changed.ipynb", lambda cells: cells[0].update(source="mine"))
    (folder / "a5-glossary.ipynb").unlink()
    build(again)
    assert not (folder / "08-old.ipynb").exists()
    assert (folder / "08-changed.ipynb").exists()
    assert (folder / "a5-glossary.ipynb").exists()


# The forms


INDEX = "# Contents\n\n```{toctree}\n:caption: All\npage\n```\n"


@pytest.fixture
def written(tmp_path):
    """The Markdown cells of a small page."""
    (tmp_path / "book").mkdir()
    extensions = [
        "myst_nb",
        "sphinx_exercise",
        "sphinx_design",
        "sphinxcontrib.bibtex",
        "notebooks",
    ]
    settings = {
        "extensions": extensions,
        "root_doc": "book/index",
        "numfig": True,
        "bibtex_bibfiles": [],
        "myst_enable_extensions": ["colon_fence", "dollarmath", "deflist", "amsmath"],
        "nb_mime_priority_overrides": [("notebooks", "text/plain", 1)],
    }

    def write(text):
        (tmp_path / "book" / "index.md").write_text(INDEX, encoding="utf-8")
        (tmp_path / "book" / "page.md").write_text(f"# Page\n\n{text}\n", encoding="utf-8")
        out = tmp_path / "out"
        with docutils_namespace():
            trees = tmp_path / "trees"
            options = {"confoverrides": settings, "freshenv": True, "status": None}
            app = Sphinx(
                tmp_path, None, out, trees, "notebooks", warning=io.StringIO(), **options
            )
            app.build()
        return read(tmp_path, "page").cells[1:]

    write.folder = tmp_path
    return write


BOX = "border: 1px solid #888; border-left: 6px solid {}; padding: 0 1em"
FORMS = {
    "emphasis": ("*a* **b** `c_d` e_f 2*3 < 7", r"*a* **b** `c_d` e_f 2\*3 \< 7"),
    "a link": ("[text](https://example.org/a_b)", "[text](https://example.org/a_b)"),
    "mathematics": ("so $a_1 = \\$$ is", "so $a_1 = \\$$ is"),
    "a dollar": ("it costs \\$5 and \\$6", "it costs \\$5 and \\$6"),
    "a display": ("$$\na = b\n$$", "$$\na = b\n$$"),
    "lines without an environment": (
        "$$\na &= b \\\\\nc &= d\n$$",
        "$$\n\\begin{aligned}a &= b \\\\\nc &= d\\end{aligned}\n$$",
    ),
    "a list": ("- a\n- b\n  - c\n\n    d", "- a\n- b\n\n  - c\n\n    d"),
    "a numbered list": ("3. a\n4. b", "3. a\n4. b"),
    "code": ("````python\n```\nx\n```\n````", "````python\n```\nx\n```\n````"),
    "a table": (
        "| a | b |\n|---|---|\n| $\\|x\\|$ | `c` |",
        "| a | b |\n| --- | --- |\n| $\\vert x\\vert $ | `c` |",
    ),
    "a table without a head": (
        ":::{list-table}\n* - $\\|x\\|$\n  - a \\| b\n:::",
        "|  |  |\n| --- | --- |\n| $\\Vert x\\Vert $ | a \\| b |",
    ),
    "a definition": (
        "term\n: meaning",
        "<dl>\n<dt>\n\n**term**\n\n</dt>\n<dd>\n\nmeaning\n\n</dd>\n</dl>",
    ),
    "a box": (
        ":::{admonition} Title\n:class: tip\nbody\n:::",
        f'<div style="{BOX.format("#009E73")}">\n\n**Title**\n\nbody\n\n</div>',
    ),
    "a warning": (
        ":::{warning}\nbody\n:::",
        f'<div style="{BOX.format("#D55E00")}">\n\n**Warning**\n\nbody\n\n</div>',
    ),
    "what drops down": (
        ":::{admonition} More\n:class: dropdown\nbody\n:::",
        "<details>\n<summary>More</summary>\n\nbody\n\n</details>",
    ),
    "a quotation": ("> said\n> so", "> said\n> so"),
}


@pytest.mark.parametrize(("text", "wanted"), FORMS.values(), ids=FORMS)
def test_a_form_of_myst_is_written_in_plain_markdown(written, text, wanted):
    (cell,) = written(text)
    assert cell.source == f"# Page\n\n{wanted}"


def test_a_drawing_is_embedded_with_its_caption_under_it(written):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><path stroke="currentColor"/></svg>'
    (written.folder / "book" / "drawing.svg").write_bytes(drawing)
    figure = ":::{figure} drawing.svg\n:name: fig-x\n:alt: a path\n\nCaption.\n:::"
    before, cell = written("{numref}`fig-x`\n\n" + figure)
    assert "[Fig. 1](#fig-x)" in before.source
    data = base64.b64encode(drawing).decode()
    caption = '<a id="fig-x"></a>**Fig. 1** Caption.'
    assert cell.source == f"![a path](data:image/svg+xml;base64,{data})\n\n{caption}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a\n\n:::{versionadded} 1.0\n:::",
            r"page\.md:5: .*no form in a notebook: versionmodified",
        ),
        (
            ":::{exercise}\n:label: ex-a\nDo.\n:::\n\n:::{solution} ex-a\nDone.\n:::\n\nMore.",
            r"page\.md:12: .*folded away with the solution before it: begin a section",
        ),
    ],
)
def test_what_has_no_form_is_an_error_that_names_file_and_line(written, text, words):
    with pytest.raises(ExtensionError, match=words):
        written(text)


# In JupyterLab


@pytest.fixture(scope="session")
def lab(made, tmp_path_factory):
    """JupyterLab as ``make lab`` starts it, but for drawing also what is out of sight."""
    settings = tmp_path_factory.mktemp("jupyter")
    (settings / "labconfig").mkdir()
    (settings / "labconfig" / "default_setting_overrides.json").write_text(
        json.dumps({"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_PATH": os.pathsep.join([str(settings), str(ROOT / ".jupyter")]),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
        "PYTHONPATH": str(ROOT),
        **KERNEL_ENVIRONMENT,
    }
    command = [Path(sys.executable).with_name("jupyter"), "lab", "--allow-root", "--no-browser"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--expose-app-in-browser"]
    with (settings / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=made, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(120):
            with suppress(OSError):
                urllib.request.urlopen(f"{address}api").close()
                break
            time.sleep(0.5)
        else:
            pytest.fail((settings / "log").read_text(encoding="utf-8")[-3000:])
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def opened(browser, lab):
    """Opens a notebook in JupyterLab; all its text is there when the call returns."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})

    def open_notebook(name):
        page.goto(f"{lab}lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
        page.wait_for_selector(".jp-Notebook .jp-MarkdownOutput h1", timeout=120_000)
        page.wait_for_function(
            """() => [...document.querySelectorAll(".jp-Notebook .jp-MarkdownCell")].every(
                cell => cell.classList.contains("jp-mod-rendered")
            ) && !document.querySelector(".jp-Notebook .jp-MarkdownOutput:empty")""",
            timeout=120_000,
        )
        return page

    yield open_notebook
    page.close()


@pytest.mark.parametrize("name", CHAPTERS)
def test_jupyterlab_shows_a_chapter_as_the_site_does(made, opened, name):
    page = opened(name)
    cells = read(made, name).cells
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(cells)
    shown = page.evaluate(
        """() => [...document.querySelectorAll(".jp-Notebook .jp-MarkdownOutput")].map(
            cell => [...cell.querySelectorAll("pre, code, mjx-container")].reduce(
                (text, inner) => text.replace(inner.textContent, ""), cell.textContent
            )
        ).join("\\n")"""
    )
    assert not re.search(r"\{[\w:]+\}|:::|⊙|\]\(|\*\*|<a id|</?(?:div|dl|details)", shown)
    assert page.locator(".jp-Notebook mjx-container").count() > 20
    assert page.locator(".jp-Notebook mjx-merror").count() == 0
    hidden = [c for c in cells if c.metadata.get("jupyter", {}).get("source_hidden")]
    assert page.locator(".jp-CodeCell .jp-InputPlaceholder").count() == len(hidden) > 0
    captions = page.locator(".jp-MarkdownOutput strong").all_text_contents()
    source = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
    figures = len(re.findall(r"^ +name: fig-|^:name: fig-", source, re.M))
    assert sum(text.startswith("Fig. ") for text in captions) == figures > 0


def test_a_solution_opens_with_one_click_and_a_link_leads_to_its_figure(opened):
    page = opened("06-convolution")
    solution = page.locator(".jp-MarkdownCell:has(h4:has-text('Solution to'))").first
    answer = solution.locator("xpath=following-sibling::*[1]")
    assert not answer.is_visible()
    assert page.locator(".jp-MarkdownOutput h2:has-text('Further reading')").is_visible()
    solution.locator(".jp-showHiddenCellsButton").click()
    answer.wait_for(state="visible")
    last = page.locator(".jp-MarkdownOutput a[href='#fig-conv-shift']").last
    last.scroll_into_view_if_needed()
    figure = page.locator("[data-jupyter-id='fig-conv-shift']")
    before = figure.bounding_box()["y"]
    last.click()
    page.wait_for_function(
        """() => {
            const figure = document.querySelector("[data-jupyter-id='fig-conv-shift']");
            const y = figure.getBoundingClientRect().y;
            return y > 0 && y < innerHeight;
        }"""
    )
    assert not 0 < before < 1000


def test_a_chapter_runs_from_its_first_cell_to_its_last(opened):
    page = opened("04-backpropagation")
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel"
    page.wait_for_function(f"{kernel}?.status === 'idle'", timeout=60_000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """() => {
            const cells = window.jupyterapp.shell.currentWidget.content.widgets;
            const code = cells.filter(cell => cell.model.type === "code");
            return code.every(cell => cell.model.executionCount)
                || document.querySelector("[data-mime-type='application/vnd.jupyter.error']");
        }""",
        timeout=300_000,
    )
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator(".jp-Notebook .jp-OutputArea-output img").count() >= 5
