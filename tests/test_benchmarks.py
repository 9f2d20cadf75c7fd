from importlib import import_module
from itertools import groupby

import pytest
from torch.testing import assert_close

from benchmarks.__main__ import MODULES, main
from benchmarks.measure import Row, measure


@pytest.mark.parametrize("module", MODULES)
def test_both_sides_of_every_row_compute_the_same(module):
    rows = list(import_module(f"benchmarks.{module}").rows())
    assert rows
    for row in rows:
        assert row.aim is None or row.aim > 0
        if module != "imports":  # nothing is computed there
            assert_close(
                row.ours(),
                row.theirs(),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m, row=row: f"{row.name}: {m}",
            )


def test_measure_alternates_and_tells_the_slower_from_the_faster():
    turns = []

    def work(name, size):
        turns.append(name)
        return sum(range(size))

    result = measure(
        Row("row", lambda: work("ours", 1_000_000), lambda: work("theirs", 50_000), aim=1.0),
        rounds=3,
    )
    assert result.ratio > 3
    assert result.ours > 3 * result.theirs
    warm_up, rounds = ["ours", "theirs"], ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [name for name, _ in groupby(turns)] == [
        name for name, _ in groupby(warm_up + rounds)
    ]


def test_the_table_marks_a_missed_aim(monkeypatch, capsys):
    def rows():
        yield Row("slow", lambda: sum(range(100_000)), lambda: None, aim=1.0)
        yield Row("fast", lambda: None, lambda: sum(range(100_000)), aim=1.0, threads=(1,))

    monkeypatch.setattr(import_module("benchmarks.layers"), "rows", rows)
    main(["layers", "--rounds", "1"])
    slow, fast = capsys.readouterr().out.splitlines()[-2:]
    assert slow.startswith("| slow |")
    assert slow.endswith("|   MISSED |")
    assert "–" in fast
    assert fast.endswith("|      yes |")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layer"], "there are no rows for layer: choose from"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err
