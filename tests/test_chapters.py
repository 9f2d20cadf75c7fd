"""The machinery that runs chapters as tests, itself tested on small chapters in a temporary
folder.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from myst_nb.core.read import read_myst_markdown_notebook

import lint
from execution import cache_folder, read_chapter

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "book" / "02-layers.md").read_text(encoding="utf-8").split("\n---\n")[
    0
] + "\n---\n"


def code(source, tag=None):
    return f"\n```{{code-cell}}\n{f':tags: [{tag}]' if tag else ''}\n{source}\n```\n"


@pytest.fixture
def book(pytester):
    """A temporary book; calling it with a chapter's text runs that chapter, and others that are
    given by name.
    """
    (pytester.path / "book").mkdir()
    (pytester.path / "companion").mkdir()
    (pytester.path / "companion" / "__init__.py").write_text("ANSWER = 41\n", encoding="utf-8")
    (pytester.path / "constraints.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    (pytester.path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n", encoding="utf-8"
    )

    def run(text, *options, **others):
        for name, chapter in {"01-small": text, **others}.items():
            (pytester.path / "book" / f"{name}.md").write_text(chapter, encoding="utf-8")
        plugins = "-p", "tests.chapters", "-p", "tests.workers"
        return pytester.runpytest_inprocess(*plugins, "book", *options)

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


def in_order(name):
    """A chapter that passes only if one kernel runs its cells in order; it writes down when it
    began and which process started that kernel.
    """
    note = f"open('{name}', 'w').write(f'{{time.time()}} {{os.getppid()}}')"
    steps = [f"assert ran == {list(range(n))}\nran.append({n})" for n in range(6)]
    return HEADER + code(f"import os, time\n{note}\nran = []") + "".join(code(s) for s in steps)


def notes(book, *names):
    """When each of these chapters began, and the worker that ran it."""
    return [(book.root / "book" / name).read_text(encoding="utf-8").split() for name in names]


def kept(book):
    return {
        Path(record.uri).stem
        for record in get_cache(cache_folder(book.root)).list_cache_records()
    }


def test_two_workers_run_a_chapter_each_and_keep_the_outputs_of_both(book):
    chapters = {f"0{n}-more": in_order(f"0{n}") for n in range(2, 5)}
    result = book(in_order("01"), "-n2", **chapters)
    result.assert_outcomes(passed=4 * 7)
    (_, first), (_, second) = notes(book, "01", "02")
    assert first != second
    assert kept(book) == {"01-small", *chapters}
    lines = result.outlines
    assert sum("CPU seconds of each chapter" in line for line in lines) == 1
    assert sum(line.endswith("  book/03-more.md") for line in lines) == 1


def test_a_failure_skips_the_rest_of_its_chapter_on_the_same_worker_and_the_site(book):
    (book.root / "tests").mkdir()
    (book.root / "tests" / "test_site.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('page', range(3))\n"
        "def test_page(executed, page):\n    pass\n",
        encoding="utf-8",
    )
    sound, broken = in_order("01"), HEADER + code("1 / 0") + code("x = 1") + code("x = 2")
    result = book(sound, "tests", "-n2", "-rs", **{"02-more": broken})
    result.assert_outcomes(passed=7, failed=1, skipped=2 + 3)
    result.stdout.fnmatch_lines(
        ["SKIPPED [[]3[]] tests/*: the site is *, and 02-more.md failed"]
    )


def test_the_site_waits_for_chapters_that_another_worker_still_runs(book):
    (book.root / "tests").mkdir()
    (book.root / "tests" / "test_site.py").write_text(
        "from pathlib import Path\n"
        "def test_outputs(executed):\n"
        "    assert len(list(Path('_build').rglob('base.ipynb'))) == 2\n",
        encoding="utf-8",
    )
    long = in_order("02").replace("ran = []", "ran = []\ntime.sleep(6)")
    result = book(in_order("01"), "tests", "-n2", **{"02-long": long})
    result.assert_outcomes(passed=7 + 7 + 1)


def test_long_chapters_come_first_then_the_site_then_the_rest(book):
    (book.root / "tests").mkdir()
    for name, count in ("site", 4), ("other", 9):
        (book.root / "tests" / f"test_{name}.py").write_text(
            f"import pytest\n@pytest.mark.parametrize('n', range({count}))\n"
            "def test_it(n):\n    pass\n",
            encoding="utf-8",
        )
    cache = book.root / ".pytest_cache" / "v" / "chapters" / "seconds"
    cache.parent.mkdir(parents=True)
    cache.write_text('{"book/01-small.md": 5, "book/02-long.md": 50}', encoding="utf-8")
    others = {"02-long": in_order("02"), "03-new": in_order("03")}
    result = book(in_order("01"), "tests", "-n1", "-v", **others)
    result.assert_outcomes(passed=3 * 7 + 4 + 9)
    ran = re.findall(r"PASSED (\S+?)::", result.stdout.str())
    assert list(dict.fromkeys(ran))[:3] == [
        f"book/{name}.md" for name in ("03-new", "02-long", "01-small")
    ]
    site = [n for n, file in enumerate(ran) if file == "tests/test_site.py"]
    assert site == list(range(site[0], site[0] + 4))
    assert 21 <= site[0] <= 21 + 3  # a worker knows up to three tests ahead
    assert "book/03-new.md" in cache.read_text(encoding="utf-8")


BURN = "import time\nwhile time.process_time() < 1:\n    pass"


def test_the_table_has_the_kernels_own_time_and_that_of_its_children(book):
    sleep = code("import time\ntime.sleep(1)")
    burn = code(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])")
    again = code(
        "start = time.process_time()\nwhile time.process_time() < start + 1:\n    pass"
    )
    result = book(HEADER + sleep + burn + again)
    result.assert_outcomes(passed=3)
    row = r"^ *(\S+) +(\S+)  (?:book/01-small.md:\d+: 01-small, )?(\S.*)$"
    times = {
        name: (float(seconds), float(cpu))
        for seconds, cpu, name in re.findall(row, result.stdout.str(), re.M)
    }
    for name, least in {"cell 2": 1, "cell 3": 1, "book/01-small.md": 2}.items():
        seconds, cpu = times[name]
        if sys.platform == "linux" or name == "cell 3":  # others tell nothing of children
            assert least - 0.1 <= cpu <= seconds + 0.2
    assert times["book/01-small.md"] == times["in all"] == times["in the mean"]
    seconds, cpu = times["cell 1"]  # with the start of the kernel
    assert seconds >= 1
    assert (
        0 < times["book/01-small.md"][1] - times["cell 2"][1] - times["cell 3"][1] <= cpu + 0.3
    )


def test_many_processes_keep_their_outputs_at_the_same_time(book):
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'book' / '_ext')!r}]\n"
        "from execution import store\n"
        "from nbformat.v4 import new_code_cell, new_notebook\n"
        "from pathlib import Path\n"
        "sys.stdin.read()\n"
        "for n in range(5):\n"
        "    name = f'{sys.argv[1]}-{n}'\n"
        "    cell = new_code_cell(f'print({name!r})', execution_count=1)\n"
        "    store(Path(), Path(name), new_notebook(cells=[cell]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number)], stdin=subprocess.PIPE, cwd=book.root
        )
        for number in range(4)
    ]
    for process in processes:
        process.stdin.close()
    assert [process.wait() for process in processes] == [0] * 4
    assert kept(book) == {f"{number}-{n}" for number in range(4) for n in range(5)}


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
