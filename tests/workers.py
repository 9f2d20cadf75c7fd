"""How the tests are shared out among the workers of pytest-xdist, and what the chapters took.

A chapter is one kernel, so its cells run on one worker, one after the other. The longest
chapters begin. Once none is running, the site can be built from what they left; until then, and
beside it, every other test runs wherever there is room.
"""

import math
import os
from collections import defaultdict
from itertools import islice, takewhile
from pathlib import Path

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from execution import is_kept
from tests.chapters import CPU, ChapterCell

SITE = "tests/test_site.py"
TOGETHER = (SITE, "tests/test_notebooks.py")  # what is built once serves all tests of the file
LAST_TIME = "chapters/seconds"  # in pytest's cache


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have their own worker
        config.pluginmanager.register(Worker(config), "worker")
    else:
        config.pluginmanager.register(Clock(config), "clock")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)


def file_of(nodeid):
    return nodeid.partition("::")[0]


def is_chapter(file):
    return file.endswith(".md")


def last_time(config):
    """The CPU seconds that each chapter took when it ran the last time, if it ever did."""
    return config.cache.get(LAST_TIME, {}) if hasattr(config, "cache") else {}


class Scheduler(LoadScopeScheduling):
    """Hands out a chapter, all tests of a built book, or any other single test at a time."""

    def __init__(self, config, log):
        super().__init__(config, log)
        self.seconds = last_time(config)

    def _split_scope(self, nodeid):
        file = file_of(nodeid)
        return file if is_chapter(file) or file in TOGETHER else nodeid

    def _assign_work_unit(self, node):
        # xdist sorts by size: chapters and the site stand before the thousands of single tests
        large = len(list(takewhile(lambda unit: "::" not in unit, self.workqueue)))
        best = min(islice(self.workqueue, large + 1), key=self.rank)
        self.workqueue.move_to_end(best, last=False)
        super()._assign_work_unit(node)

    def rank(self, unit):
        """The least is next; a chapter that was never timed might be the longest."""
        if is_chapter(unit):
            return 0, -self.seconds.get(unit, math.inf)
        if unit == SITE:
            return 3 if self.chapters_are_running() else 1, 0
        return 2, 0

    def chapters_are_running(self):
        return any(
            is_chapter(unit) and not all(done.values())
            for units in self.assigned_work.values()
            for unit, done in units.items()
        )


class Worker:
    """Tells the other workers, by holding a lock, that chapters may still run here."""

    def __init__(self, config):
        self.folder = Path(config.option.basetemp).parent
        self.count = config.workerinput["workercount"]
        self.lock = self.lock_of(config.workerinput["workerid"])
        self.lock.acquire()

    def lock_of(self, worker):
        return FileLock(self.folder / f"{worker}.lock")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if not isinstance(item, ChapterCell):  # chapters are handed out before everything else
            self.lock.release()

    def pytest_sessionfinish(self):
        self.lock.release()

    def wait_for_the_others(self):
        for number in range(self.count):
            with self.lock_of(f"gw{number}"):
                pass


@pytest.fixture(scope="session")
def executed(request):
    """The chapters of this run have left their outputs; if one has failed, there is no site to
    look at.
    """
    if worker := request.config.pluginmanager.getplugin("worker"):
        worker.wait_for_the_others()
    cells = [item for item in request.session.items if isinstance(item, ChapterCell)]
    for path in dict.fromkeys(cell.path for cell in cells):
        if not is_kept(request.config.rootpath, path):
            pytest.skip(
                f"the site is built from what the chapters print, and {path.name} failed"
            )


class Clock:
    """Adds up what the cells took, and says it at the end."""

    def __init__(self, config):
        self.config = config
        self.chapters = defaultdict(lambda: (0.0, 0.0))  # with the kernel's start and end
        self.cells = {}

    def pytest_runtest_logreport(self, report):
        if not is_chapter(chapter := file_of(report.nodeid)):
            return
        cpu = dict(report.user_properties).get(CPU, 0.0) if report.when == "call" else 0.0
        seconds, before = self.chapters[chapter]
        self.chapters[chapter] = seconds + report.duration, before + cpu
        if report.when == "call":
            _, line, name = report.location
            self.cells[f"{chapter}:{line + 1}: {name}"] = report.duration, cpu

    def pytest_terminal_summary(self, terminalreporter):
        if not self.chapters:
            return
        times = self.chapters.values()
        total = tuple(map(sum, zip(*times, strict=True)))
        mean = tuple(amount / len(times) for amount in total)
        slowest = sorted(self.cells.items(), key=lambda cell: cell[1], reverse=True)[:10]
        for title, rows in {
            "seconds, CPU seconds of each chapter": [
                *sorted(self.chapters.items()),
                ("in the mean", mean),
                ("in all", total),
            ],
            "seconds, CPU seconds of the slowest cells": slowest,
        }.items():
            terminalreporter.section(title)
            for name, (seconds, cpu) in rows:
                terminalreporter.write_line(f"{seconds:9.1f} {cpu:9.1f}  {name}")
        if hasattr(self.config, "cache"):
            took = {chapter: cpu for chapter, (_, cpu) in self.chapters.items()}
            self.config.cache.set(LAST_TIME, last_time(self.config) | took)
