"""The machinery that runs chapters as tests, itself tested on small chapters in a temporary
folder.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import lint
import nbformat
import pytest
from execution import cache_folder, read_chapter
from jupyter_cache import get_cache
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from myst_nb.core.read import read_myst_markdown_notebook

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "book" / "02-layers.md").read_text(encoding="utf-8").split("\n---\n")[
    0
] + "\n---\n"


def code(source, tag=None):
    return f"\n```{{code-cell}}\n{f':tags: [{tag}]' if tag else ''}\n{source}\n```\n"


@pytest.fixture
def book(pytester):
    """A temporary book; calling it with a chapter's text runs that chapter."""
    (pytester.path / "book").mkdir()
    (pytester.path / "companion").mkdir()
    (pytester.path / "companion" / "__init__.py").write_text("ANSWER = 41\n", encoding="utf-8")
    (pytester.path / "constraints.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    (pytester.path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n", encoding="utf-8"
    )

    def run(text, *options):
        (pytester.path / "book" / "01-small.md").write_text(text, encoding="utf-8")
        return pytester.runpytest_inprocess("-p", "tests.chapters", "book", *options)

    run.root = pytester.path
    return run


def test_a_sound_chapter_passes_one_test_for_each_code_cell(book):
    result = book(HEADER + code("x = 2") + "\nSome words.\n" + code("assert x == 2"), "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*01-small.md::Cell 1 PASSED*", "*01-small.md::Cell 2 PASSED*"]
    )


def test_a_cell_that_raises_fails_with_chapter_cell_and_traceback_and_its_followers_are_skipped(
    book,
):
    result = book(HEADER + code("x = 0") + code("1 / x") + code("x + 1"))
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["book/01-small.md:19: cell 2 of the chapter", "*ZeroDivisionError*"]
    )


def test_a_checked_cell_without_a_recording_fails(book):
    result = book(HEADER + code("print(1)", "nbval-check-output"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*no recorded output*pytest --update-reference book/01-small.md*"]
    )


def test_a_recorded_output_is_compared(book):
    chapter = (
        HEADER
        + code("from pathlib import Path")
        + code("print(Path('number').read_text())", "nbval-check-output")
    )
    (book.root / "book" / "number").write_text("1", encoding="utf-8")
    book(chapter, "--update-reference").assert_outcomes(passed=2)
    book(chapter).assert_outcomes(passed=2)
    (book.root / "book" / "number").write_text("2", encoding="utf-8")
    result = book(chapter)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*not the recorded one*--update-reference*", "*'1\\n' == '2\\n'*"]
    )


def test_a_checked_cell_edited_after_its_recording_fails(book):
    book(HEADER + code("print(1)", "nbval-check-output"), "--update-reference").assert_outcomes(
        passed=1
    )
    result = book(HEADER + code("print(2 - 1)", "nbval-check-output"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*was edited after it was recorded*"])


def test_a_checked_cell_that_shows_nothing_fails(book):
    result = book(HEADER + code("x = 1", "nbval-check-output"), "--update-reference")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*shows nothing: print what is to be checked*"])


def test_only_checked_cells_are_recorded(book):
    chapter = HEADER + code("print('free')") + code("print('checked')", "nbval-check-output")
    book(chapter, "--update-reference").assert_outcomes(passed=2)
    reference = book.root / "tests" / "reference" / "01-small.ipynb"
    assert [cell.source for cell in nbformat.read(reference, as_version=4).cells] == [
        "print('checked')"
    ]
    before = reference.read_bytes()
    book(chapter, "--update-reference")
    assert reference.read_bytes() == before
    book(HEADER + code("print('free')"), "--update-reference").assert_outcomes(passed=1)
    assert not reference.exists()


def test_a_chapter_that_fails_records_nothing(book):
    chapter = HEADER + code("print('checked')", "nbval-check-output") + code("1 / 0")
    book(chapter, "--update-reference").assert_outcomes(passed=1, failed=1)
    assert not (book.root / "tests" / "reference").exists()
    assert not (book.root / "_build").exists()


def test_a_cell_that_runs_too_long_fails(book):
    endless = code("import time\nfor _ in range(600):\n    time.sleep(0.1)")
    result = book(HEADER + endless + code("x = 1"), "--nbval-cell-timeout=1")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["book/01-small.md:*: cell 1 of the chapter", "*imeout of 1 seconds exceeded*"]
    )


def test_a_cell_that_catches_its_interruption_has_run_too_long_all_the_same(book):
    deaf = code("import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass")
    result = book(HEADER + deaf, "--nbval-cell-timeout=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*imeout of 1 seconds exceeded*"])


def test_a_cell_that_should_raise_has_to(book):
    book(HEADER + code("1 / 0", "raises-exception")).assert_outcomes(passed=1)
    result = book(HEADER + code("1 / 1", "raises-exception"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*tagged raises-exception, but raised nothing: drop the tag*"])


def test_two_checked_cells_with_the_same_source_have_each_their_recording(book):
    again = code("n = globals().get('n', 0) + 1\nprint(n)", "nbval-check-output")
    book(HEADER + again + again, "--update-reference").assert_outcomes(passed=2)
    book(HEADER + again + again).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "hidden",
    [
        "- ```{code-cell}\n  1 / 0\n  ```\n",
        "````{note}\n```{code-cell}\n1 / 0\n```\n````\n",
        "``` {code-cell}\n1 / 0\n```\n",
    ],
)
def test_a_cell_that_would_never_run_fails(book, hidden):
    result = book(HEADER + code("x = 1") + "\n" + hidden)
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        ["*01-small.md has * code cells, but only * of them would run: write each as*"]
    )


def test_a_cell_fenced_by_tildes_runs_too(book):
    book(HEADER + "\n~~~{code-cell}\n1 / 0\n~~~\n").assert_outcomes(failed=1)


def test_an_unknown_tag_fails(book):
    result = book(HEADER + code("print(1)", "nbval-check-ouput"))
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*unknown tag 'nbval-check-ouput': it has to be one of*"])


def test_a_chapter_with_code_but_no_header_fails(book):
    result = book("# No header\n" + code("x = 1"))
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*01-small.md has code cells but no header*begin it*"])


def test_a_page_without_code_needs_no_header(book):
    assert book("# Words only\n").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_trailing_semicolon_silences_a_cell_and_progress_bars_leave_nothing(book):
    bar = "from tqdm import tqdm\nsum(tqdm(range(3)));"
    book(HEADER + code(bar)).assert_outcomes(passed=1)
    (cached,) = (book.root / "_build").rglob("base.ipynb")
    assert nbformat.read(cached, as_version=4).cells[0].outputs == []


def test_lint_reads_the_code_cells_and_names_chapter_and_rule(tmp_path, capfd):
    chapter = tmp_path / "01-small.md"
    chapter.write_text(HEADER + "\nimport os\n" + code("x = 1"), encoding="utf-8")
    assert lint.check(chapter) == 0
    assert capfd.readouterr().out == ""
    chapter.write_text(HEADER + code("x = 1") + code("import os\n"), encoding="utf-8")
    assert lint.check(chapter) == 1
    assert re.search(r"F401 .*os.*\n.*01-small\.ipynb:cell 2:1:8", capfd.readouterr().out)


SHOW_ANSWER = (
    HEADER
    + "\n# Small\n"
    + code("import companion\n\nprint('the answer is', companion.ANSWER)")
)


def built_page(root):
    """The text of the chapter's page after a build of the site from the cache."""
    configuration = "\n".join(
        [
            f"import sys; sys.path[:0] = [{str(ROOT / 'book' / '_ext')!r}]",
            "extensions = ['myst_nb', 'execution']",
            "nb_execution_mode = 'cache'",
            "nb_execution_raise_on_error = True",
            "root_doc = 'book/01-small'",
            "exclude_patterns = ['_build']",
        ]
    )
    (root / "conf.py").write_text(configuration, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-E",
        str(root),
        str(root / "_build" / "html"),
    ]
    subprocess.run(
        command, check=True, env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(root)}
    )
    return (root / "_build" / "html" / "book" / "01-small.html").read_text(encoding="utf-8")


def test_the_site_shows_what_the_tests_ran_until_the_companion_changes(book, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(book.root))
    book(SHOW_ANSWER).assert_outcomes(passed=1)
    (cached,) = (book.root / "_build").rglob("base.ipynb")
    cached.write_text(
        cached.read_text(encoding="utf-8").replace("the answer is 41", "from the cache"),
        encoding="utf-8",
    )
    assert "from the cache" in built_page(book.root)
    (book.root / "companion" / "__init__.py").write_text("ANSWER = 42\n", encoding="utf-8")
    page = built_page(book.root)
    assert "from the cache" not in page
    assert "the answer is 42" in page


@pytest.mark.parametrize(
    "changed", ["companion/__init__.py", "companion/data/new.bin", "constraints.txt"]
)
def test_the_cache_moves_with_everything_that_an_output_depends_on(book, changed):
    before = cache_folder(book.root)
    assert cache_folder(book.root) == before
    path = book.root / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text("# something else\n", encoding="utf-8")
    assert cache_folder(book.root) != before


CHAPTERS = [
    path
    for path in sorted((ROOT / "book").glob("*.md"))
    if "{code-cell}" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_jupytext_and_the_site_read_the_same_chapter(path):
    site = read_myst_markdown_notebook(path.read_text(encoding="utf-8"))
    cache = get_cache(cache_folder(ROOT))
    assert (
        cache.create_hashed_notebook(read_chapter(path))[1]
        == cache.create_hashed_notebook(site)[1]
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_saving_a_chapter_in_jupyterlab_changes_nothing(path, tmp_path):
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "jupytext.toml", tmp_path)
    shutil.copy(path, tmp_path / "book")
    contents = build_sync_jupytext_contents_manager_class(LargeFileManager)(
        root_dir=str(tmp_path)
    )
    notebook = contents.get(f"book/{path.name}", type="notebook", content=True)["content"]
    # the kernel tells these
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    notebook["metadata"]["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    contents.save(
        {"type": "notebook", "format": "json", "content": notebook}, f"book/{path.name}"
    )
    assert (tmp_path / "book" / path.name).read_text(encoding="utf-8") == path.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "reference").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_recorded_cell_still_stands_in_its_chapter(path):
    chapter = {cell.source for cell in read_chapter(ROOT / "book" / f"{path.stem}.md").cells}
    assert {cell.source for cell in nbformat.read(path, as_version=4).cells} <= chapter
