"""The built site, as a reader's browser sees it. It is built from the outputs that the chapters
left when they ran.
"""

import io
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest
import yaml
from PIL import Image
from sphinx.errors import ConfigError

import companion
from notebooks import launch_links
from reference import write_pages

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [
    TOC["root"],
    *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]),
]
CHAPTERS = [page for page in PAGES if re.match(r"book/\d\d-", page)]
REFERENCE = [f"book/api/{module}" for module in companion.__all__]

# What axe-core reports about the theme rather than about the book, each with the reason why it
# stays. A rule, and a piece of the HTML in which it is accepted.
ACCEPTED = {
    # the theme's sidebar with the table of contents is no landmark
    "region": 'class="sidebar-primary-item"',
    # the arrow with which its table of contents opens a page's parts has no name
    "summary-name": "<summary>",
    # docutils marks the entries of a bibliography with a role
    "aria-allowed-role": 'role="doc-biblioentry"',
    "aria-deprecated-role": 'role="doc-biblioentry"',  # that ARIA has since withdrawn
    "aria-required-children": 'class="citation-list"',
}


@pytest.fixture(scope="session")
def site(executed):
    """The folder of the built site."""
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        str(ROOT),
        "-W",
        "-n",
        "--keep-going",
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-5000:] + built.stderr[-5000:]
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Visit:
    """A page opened in a browser, and everything that went wrong on the way."""

    def __init__(self, browser, address, page, theme="light", width=1400):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme
        )
        self.page = self.context.new_page()
        self.troubles = []
        self.page.on(
            "console",
            lambda message: message.type == "error" and self.troubles.append(message.text),
        )
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on(
            "requestfailed", lambda request: self.troubles.append(f"failed: {request.url}")
        )
        self.page.on(
            "response",
            lambda answer: (
                answer.status >= 400 and self.troubles.append(f"missing: {answer.url}")
            ),
        )
        outside = re.compile(rf"(?!{re.escape(address)}|data:|blob:|about:)")
        self.page.on(
            "request",
            lambda request: (
                outside.match(request.url) and self.troubles.append(f"outside: {request.url}")
            ),
        )
        self.page.goto(urljoin(address, page), wait_until="networkidle")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()


@pytest.mark.parametrize(
    "page", [*PAGES, *REFERENCE, "search", "genindex", "companion/training.py"]
)
@pytest.mark.parametrize(
    ("theme", "width"), [("light", 1400), ("dark", 400)], ids=["light wide", "dark narrow"]
)
def test_a_page_opens_without_errors_outside_requests_or_barriers(
    browser, address, page, theme, width
):
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, address, f"{page}.html", theme, width) as visit:
        assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
        visit.page.wait_for_function(
            "!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"
        )
        assert visit.page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, (
            "the page scrolls sideways"
        )
        assert visit.troubles == []  # before axe, which asks for files on its own
        violations = [
            (violation["id"], node["html"][:200])
            for violation in Axe().run(visit.page).response["violations"]
            for node in violation["nodes"]
            if ACCEPTED.get(violation["id"], "\0") not in node["html"]
        ]
        assert violations == []


def test_the_address_of_the_site_leads_to_the_landing_page(browser, address):
    with Visit(browser, address, "") as visit:
        visit.page.wait_for_url("**/book/index.html")
        assert (
            visit.page.locator("article h1")
            .inner_text()
            .startswith("Deep Learning and Neural Networks")
        )


def test_search_finds_a_word_of_a_chapter(browser, address):
    with Visit(browser, address, "search.html?q=sigmoid") as visit:
        visit.page.wait_for_selector("#search-results li a[href*='03-activations']")
        assert visit.troubles == []


def test_a_solution_opens_on_a_click(browser, address):
    with Visit(browser, address, f"{CHAPTERS[0]}.html") as visit:
        solution = visit.page.locator("div.solution").first
        inside = solution.locator(".section, section").first
        assert not inside.is_visible()
        solution.locator("summary, button.toggle-button").first.click()
        assert inside.is_visible()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_files_number_on_its_title_figures_and_equations(site, chapter):
    text = (site / f"{chapter}.html").read_text(encoding="utf-8")
    number = int(chapter.removeprefix("book/")[:2])
    assert re.search(rf'<h1><span class="section-number">{number}\. ', text)
    assert f'<span class="caption-number">Fig. {number}.1 </span>' in text
    assert f'<span class="eqno">({number}.1)' in text


@pytest.mark.parametrize("module", companion.__all__)
def test_a_module_has_a_page_that_begins_with_a_list_of_what_is_in_it(site, module):
    page = (site / "book" / "api" / f"{module}.html").read_text(encoding="utf-8")
    _, listed = page.split("autosummary", 1)
    listed, described = listed.split('<dl class="py ', 1)
    for member in getattr(companion, module).__all__:
        assert f'href="#companion.{module}.{member}"' in listed
        assert f'id="companion.{module}.{member}"' in described
    first = (site / "book" / "a3-api.html").read_text(encoding="utf-8")
    assert f'href="api/{module}.html#module-companion.{module}"' in first
    assert f'href="api/{module}.html"' in first.split("<article")[0], "not in the sidebar"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_and_the_page_of_its_module_link_to_each_other(site, chapter):
    name = chapter.split("-", 1)[1]
    module = name.replace("-", "_")
    page = (site / f"{chapter}.html").read_text(encoding="utf-8")
    assert f'It builds</strong> <a class="reference internal" href="api/{module}.html' in page
    page = (site / "book" / "api" / f"{module}.html").read_text(encoding="utf-8")
    assert re.search(rf'Taught in <a [^>]*href="../{chapter[5:]}.html#ch-{name}"', page)


def test_the_description_of_an_attribute_may_contain_a_colon(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("book/api/*")}
    assert not any(re.search(r'class="field-\w+">Type<', page) for page in pages.values())
    described = re.sub(r"<[^>]*>", "", pages["datasets"].split('id="companion.datasets.CH')[1])
    assert "The alphabet of encode(): the end of a line, the 95 characters" in described


def test_the_pages_of_the_reference_follow_the_package(tmp_path):
    pages = [tmp_path / f"{module}.md" for module in companion.__all__]
    (tmp_path / "gone.md").write_text("a module that is no more", encoding="utf-8")
    pages[0].write_text("what it said before", encoding="utf-8")
    write_pages(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(pages)
    assert ".. automodule:: companion.activations\n" in pages[0].read_text(encoding="utf-8")
    before = [page.stat().st_mtime_ns for page in pages]
    write_pages(tmp_path)
    assert [page.stat().st_mtime_ns for page in pages] == before


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_can_be_downloaded_as_a_notebook_with_its_outputs(site, chapter):
    page = (site / f"{chapter}.html").read_text(encoding="utf-8")
    assert f'href="../_sources/{chapter}.ipynb"' in page
    notebook = nbformat.read(site / "_sources" / f"{chapter}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) > 5
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert not any(
        output.get("name") == "stderr" for cell in code for output in cell.outputs
    ), "litter on the page"


class Links(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src") and value]


def test_every_link_inside_the_site_leads_somewhere(site):
    broken = []
    for page in set(site.rglob("*.html")) - set((site / "_static").rglob("*")):
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            path = unquote(urldefrag(link).url.split("?")[0])
            if path and not re.match(r"\w+:|//", path) and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_launch_buttons_wait_for_the_address_of_the_repository(site, tmp_path):
    assert "launch-buttons" not in (site / f"{CHAPTERS[0]}.html").read_text(encoding="utf-8")
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "book" / "02-layers.md", tmp_path / "book" / "02-layers.md")
    header = (ROOT / "book" / "02-layers.md").read_text(encoding="utf-8").split("\n---\n")[0]
    (tmp_path / "book" / "02-layers.md").write_text(
        f"{header}\n---\n\n# Layers\n\n```{{code-cell}}\n1 + 1\n```\n"
    )
    configuration = [
        f"import sys; sys.path[:0] = [{str(ROOT / 'book' / '_ext')!r}]",
        "extensions = ['myst_nb', 'sphinx_book_theme', 'notebooks']",  # in Jupyter Book's order
        "nb_execution_mode = 'off'",
        "root_doc = 'book/02-layers'",
        "html_theme = 'sphinx_book_theme'",
        (
            "html_theme_options = "
            "{'repository_url': 'https://github.com/someone/book', 'repository_branch': 'next'}"
        ),
    ]
    (tmp_path / "conf.py").write_text("\n".join(configuration), encoding="utf-8")
    output = tmp_path / "_build" / "html"
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", str(tmp_path), str(output)], check=True
    )
    page = (output / "book" / "02-layers.html").read_text(encoding="utf-8")
    assert all(
        link in page
        for link in launch_links(
            "https://github.com/someone/book", "next", "book/02-layers"
        ).values()
    )
    notebook = nbformat.read(output / "_sources" / "book" / "02-layers.ipynb", as_version=4)
    assert "the next cell installs it" in notebook.cells[0].source
    assert "git+https://github.com/someone/book" in notebook.cells[1].source


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_has_the_ground_of_the_page_and_ink_that_stands_out_from_it(
    browser, address, theme
):
    with Visit(browser, address, f"{CHAPTERS[0]}.html", theme) as visit:
        figure = visit.page.locator("div.cell_output img").first
        style = "image => [getComputedStyle(image).filter, getComputedStyle(image).background]"
        filters, ground = figure.evaluate(style)
        assert filters == "none"
        assert ground.startswith("rgba(0, 0, 0, 0)")
        # the darkest or lightest pixel is the ink of the theme
        picture = Image.open(io.BytesIO(figure.screenshot())).convert("L")
        assert picture.getextrema()[theme == "dark"] == pytest.approx(
            {"light": 77, "dark": 184}[theme], abs=8
        )


def test_a_link_to_report_an_error_waits_for_the_address_of_the_repository(site, tmp_path):
    for page in PAGES:
        assert "Report an error on this page" not in (site / f"{page}.html").read_text("utf-8")
    (tmp_path / "index.rst").write_text("A page\n======\n", encoding="utf-8")
    configuration = [
        f"import sys; sys.path[:0] = [{str(ROOT / 'book' / '_ext')!r}]",
        "extensions = ['sphinx_book_theme', 'errata']",
        "html_theme = 'sphinx_book_theme'",
        "html_theme_options = {'repository_url': 'https://github.com/someone/book.git'}",
    ]
    (tmp_path / "conf.py").write_text("\n".join(configuration), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", str(tmp_path), str(tmp_path / "html")]
    subprocess.run(command, check=True)
    page = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/someone/book/issues/new?title=Error+in+index"' in page
    assert "Report an error on this page" in page


@pytest.mark.parametrize(
    "url", ["https://github.com/a/b", "https://github.com/a/b/", "https://github.com/a/b.git"]
)
def test_launch_links_name_the_chapter_in_the_repository(url):
    assert launch_links(url, "main", "book/06-convolution") == {
        "Binder": "https://mybinder.org/v2/gh/a/b/main?urlpath=lab%2Ftree%2Fnotebooks%2F06-convolution.ipynb",
        "Colab": "https://colab.research.google.com/github/a/b/blob/gh-pages/_sources/book/06-convolution.ipynb",
    }


def test_an_address_that_launch_buttons_cannot_use_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"must begin with https://github\.com/, got 'https://example\.org/a/b'",
    ):
        launch_links("https://example.org/a/b", "main", "book/06-convolution")
