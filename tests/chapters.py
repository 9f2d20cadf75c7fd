"""Chapters as tests: pytest collects ``book/*.md``, one test for each code cell, and nbval runs it.

A cell tagged ``nbval-check-output`` is compared with its recording in ``tests/reference/<chapter>.ipynb``;
``pytest --update-reference`` records it anew. A chapter that passes leaves its outputs for the site to show.
"""

import os
from collections import defaultdict

import nbformat
import pytest
from execution import KERNEL_ENVIRONMENT, read_chapter, store
from nbformat.v4 import new_code_cell, new_notebook
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError, find_metadata_tags

CHECKED = "nbval-check-output"
RECORD = "run `pytest --update-reference {}` and read what changed before you commit it"


def pytest_addoption(parser):
    parser.addoption("--update-reference", action="store_true", help="record the outputs of the checked cells anew")


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".md" and file_path.parent == parent.config.rootpath / "book":
        return Chapter.from_parent(parent, path=file_path)


class ChapterKernel(RunningKernel):
    """nbval's kernel, but numbering its cells as JupyterLab does: only then a trailing semicolon silences a cell."""

    def execute_cell_input(self, cell_input, allow_stdin=None):
        return self.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


class Chapter(IPyNbFile):
    """A chapter; its children are its code cells."""

    def collect(self):
        text = self.path.read_text(encoding="utf-8")
        if "```{code-cell}" not in text:
            return
        if not text.startswith("---\njupytext:"):
            raise self.CollectError(
                f"{self.name} has code cells but no header, so JupyterLab would not open it as a notebook: begin it "
                "with the block from `jupytext:` to the closing `---` that stands at the top of every other chapter"
            )
        self.nb = read_chapter(self.path)
        self.code = [cell for cell in self.nb.cells if cell.cell_type == "code"]
        self.failed_cell = None
        self.passed = 0
        self.reference = self.config.rootpath / "tests" / "reference" / f"{self.path.stem}.ipynb"
        self.recorded = {}
        if self.reference.exists():
            self.recorded = {cell.source: cell.outputs for cell in nbformat.read(self.reference, as_version=4).cells}
        self.update = self.config.getoption("update_reference")
        line = 0
        for number, cell in enumerate(self.code, start=1):
            line = text.index(cell.source, line)
            options = defaultdict(bool, find_metadata_tags(cell.metadata))
            item = ChapterCell.from_parent(self, name=f"Cell {number}", cell_num=number, cell=cell, options=options)
            item.line = text.count("\n", 0, line) + 1
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


class ChapterCell(IPyNbCell):
    """One code cell of a chapter."""

    def setup(self):
        if self.parent.failed_cell is not None:
            pytest.skip(f"cell {self.parent.failed_cell} of this chapter failed before it")

    def runtest(self):
        checked, self.options["check"] = self.options["check"], False
        try:
            super().runtest()  # the cell as it stands has no execution count: nbval runs it and compares nothing
            if checked and not self.test_outputs:
                self.raise_cell_error("The cell is tagged to be checked but shows nothing: print what is to be checked")
            if checked and not self.parent.update:
                self.check_recording()
        except Exception:
            self.parent.failed_cell = self.cell_num
            raise
        self.cell.execution_count = self.cell_num
        self.cell.outputs = self.test_outputs
        self.parent.passed += 1

    def check_recording(self):
        how = RECORD.format(f"book/{self.path.name}")
        if self.cell.source not in self.parent.recorded:
            self.raise_cell_error(f"The cell has no recorded output, or was edited after it was recorded: {how}")
        if not self.compare_outputs(self.test_outputs, self.parent.recorded[self.cell.source]):
            difference = "\n".join(self.comparison_traceback)
            self.raise_cell_error(f"The output is not the recorded one. Mend the cell, or {how}", difference)

    def repr_failure(self, excinfo):
        error = excinfo.value
        if not isinstance(error, NbCellError):
            return super().repr_failure(excinfo)
        where = f"book/{self.path.name}:{self.line}: cell {self.cell_num} of the chapter"
        return "\n\n".join(filter(None, [f"{where}\n{error}", error.source, error.inner_traceback]))

    def reportinfo(self):
        return self.path, self.line - 1, f"{self.path.stem}, cell {self.cell_num}"
