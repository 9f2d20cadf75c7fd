"""Chapters as tests: pytest collects ``book/*.md``, one test for each code cell, and nbval runs
it.

A cell tagged ``nbval-check-output`` is compared with its recording in
``tests/reference/<chapter>.ipynb``; ``pytest --update-reference`` records it anew. A chapter
that passes leaves its outputs for the site to show.
"""

import os
import re
from collections import Counter, defaultdict
from contextlib import suppress

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError, find_metadata_tags

from execution import KERNEL_ENVIRONMENT, read_chapter, store

CHECKED, RAISES = "nbval-check-output", "raises-exception"
TAGS = {
    CHECKED,
    RAISES,
    "hide-input",
    "remove-input",
    "hide-output",
    "remove-output",
    "hide-cell",
    "remove-cell",
}
CELL = re.compile(r"^[ \t>*+\-\d.)]*(?:`{3,}|~{3,}|:{3,})[ \t]*\{code-cell\}", re.M)
CPU = "CPU seconds"
RECORD = "run `pytest --update-reference {}` and read what changed before you commit it"


def pytest_addoption(parser):
    parser.addoption(
        "--update-reference",
        action="store_true",
        help="record the outputs of the checked cells anew",
    )


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".md" and file_path.parent == parent.config.rootpath / "book":
        return Chapter.from_parent(parent, path=file_path)


class ChapterKernel(RunningKernel):
    """nbval's kernel, but numbering its cells as JupyterLab does: only then a trailing
    semicolon silences a cell.
    """

    def execute_cell_input(self, cell_input, allow_stdin=None):
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    def cpu_seconds(self):
        """User and system time of the kernel so far, and of processes that it waited for."""
        return sum(psutil.Process(self.km.provisioner.pid).cpu_times()[:4])


class Chapter(IPyNbFile):
    """A chapter; its children are its code cells."""

    def collect(self):
        text = self.path.read_text(encoding="utf-8")
        written = len(CELL.findall(text))
        if written == 0:
            return
        if not text.startswith("---\njupytext:"):
            raise self.CollectError(
                f"{self.name} has code cells but no header, so JupyterLab would not open it as "
                "a notebook: begin it with the block from `jupytext:` to the closing `---` "
                "that stands at the top of every other chapter"
            )
        self.nb = read_chapter(self.path)
        self.code = [cell for cell in self.nb.cells if cell.cell_type == "code"]
        if len(self.code) != written:
            raise self.CollectError(
                f"{self.name} has {written} code cells, but only {len(self.code)} of them "
                "would run: write each as "
                "```{code-cell} at the beginning of a line, outside of lists and of other "
                "directives"
            )
        for cell in self.code:
            if unknown := set(cell.metadata.get("tags", [])) - TAGS:
                raise self.CollectError(
                    f"{self.name} has a cell with the unknown tag {unknown.pop()!r}: it has to "
                    f"be one of {sorted(TAGS)}"
                )
        self.failed_cell = None
        self.passed = 0
        self.cpu_seconds = 0.0
        self.update = self.config.getoption("update_reference")
        self.reference = (
            self.config.rootpath / "tests" / "reference" / f"{self.path.stem}.ipynb"
        )
        recorded = (
            nbformat.read(self.reference, as_version=4).cells if self.reference.exists() else []
        )
        self.recorded = dict(
            zip(numbered(recorded), (cell.outputs for cell in recorded), strict=True)
        )
        yield from self.cells(text)

    def cells(self, text):
        start = 0
        for number, (cell, key) in enumerate(
            zip(self.code, numbered(self.code), strict=True), start=1
        ):
            start = text.index(cell.source, start)
            options = defaultdict(bool, find_metadata_tags(cell.metadata))
            item = ChapterCell.from_parent(
                self, name=f"Cell {number}", cell_num=number, cell=cell, options=options
            )
            item.line = text.count("\n", 0, start) + 1
            item.key = key
            yield item

    def setup(self):
        os.environ.update(KERNEL_ENVIRONMENT)
        self.kernel = ChapterKernel(CURRENT_ENV_KERNEL_NAME, cwd=str(self.path.parent))

    def teardown(self):
        if self.kernel is not None and self.kernel.is_alive():
            self.kernel.stop()
        if self.passed == len(self.code):
            store(self.config.rootpath, self.path, self.nb)
            if self.update:
                self.record()

    def record(self):
        """Write the outputs of the checked cells, and nothing else, to the reference."""
        checked = [
            new_code_cell(cell.source, id=f"cell-{number}", outputs=cell.outputs)
            for number, cell in enumerate(self.code, start=1)
            if CHECKED in cell.metadata.get("tags", ())
        ]
        if checked:
            self.reference.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(new_notebook(cells=checked), self.reference)
        else:
            self.reference.unlink(missing_ok=True)


def numbered(cells):
    """A key for each checked cell: its source, and how many checked cells with the same source
    stand before it.
    """
    seen = Counter()
    for cell in cells:
        key = (cell.source, seen[cell.source])
        # cells of a recording have no tags, and all are checked
        if CHECKED in cell.metadata.get("tags", [CHECKED]):
            seen[cell.source] += 1
        yield key


class ChapterCell(IPyNbCell):
    """One code cell of a chapter."""

    def setup(self):
        if self.parent.failed_cell is not None:
            pytest.skip(f"cell {self.parent.failed_cell} of this chapter failed before it")

    def runtest(self):
        checked, self.options["check"] = self.options["check"], False
        try:
            # the cell as it stands has no execution count: nbval runs it and compares nothing
            super().runtest()
            if self.parent.timed_out:  # and the cell caught the interruption
                seconds = self.config.option.nbval_cell_timeout
                self.raise_cell_error(
                    f"Timeout of {seconds:g} seconds exceeded while executing cell"
                )
            if self.options["check_exception"] and not any(
                out.output_type == "error" for out in self.test_outputs
            ):
                self.raise_cell_error(
                    f"The cell is tagged {RAISES}, but raised nothing: drop the tag, or mend "
                    "the cell"
                )
            if checked and not self.test_outputs:
                self.raise_cell_error(
                    "The cell is tagged to be checked but shows nothing: print what is to be "
                    "checked"
                )
            if checked and not self.parent.update:
                self.check_recording()
        except Exception:
            self.parent.failed_cell = self.cell_num
            raise
        finally:
            with suppress(psutil.Error):  # a kernel that died
                before = self.parent.cpu_seconds
                self.parent.cpu_seconds = self.parent.kernel.cpu_seconds()
                self.user_properties.append((CPU, self.parent.cpu_seconds - before))
        self.cell.execution_count = self.cell_num
        self.cell.outputs = self.test_outputs
        self.parent.passed += 1

    def check_recording(self):
        how = RECORD.format(f"book/{self.path.name}")
        if self.key not in self.parent.recorded:
            self.raise_cell_error(
                f"The cell has no recorded output, or was edited after it was recorded: {how}"
            )
        if not self.compare_outputs(self.test_outputs, self.parent.recorded[self.key]):
            difference = "\n".join(self.comparison_traceback)
            self.raise_cell_error(
                f"The output is not the recorded one. Mend the cell, or {how}", difference
            )

    def repr_failure(self, excinfo):
        error = excinfo.value
        if not isinstance(error, NbCellError):
            return super().repr_failure(excinfo)
        where = f"book/{self.path.name}:{self.line}: cell {self.cell_num} of the chapter"
        return "\n\n".join(
            filter(None, [f"{where}\n{error}", error.source, error.inner_traceback])
        )

    def reportinfo(self):
        return self.path, self.line - 1, f"{self.path.stem}, cell {self.cell_num}"
