"""Print one table: how long the companion takes, and how long the library that a reader would
otherwise call.
"""

import argparse
from importlib import import_module

from benchmarks.measure import Row, measure

MODULES = (  # in the order of the chapters
    "imports",
    "layers",
    "activations",
    "backpropagation",
    "optimization",
    "training",
    "convolution",
    "recurrence",
    "language_models",
    "lstm",
    "translation",
    "speech",
    "expectation_maximization",
    "mixture_of_experts",
    "semi_supervised",
)

COLUMNS = ("aim ≤", "1 thread", "2 threads", "ours, ms", "theirs, ms", "aim met?")


def main(arguments: list[str] | None = None) -> None:
    """Measure the rows of the modules that are named, or of all, and print the table line by
    line.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "modules",
        nargs="*",
        help=f"which of {', '.join(MODULES)} to measure; all if none is named",
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="how often each pair is timed (20)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(MODULES):
        parser.error(
            f"there are no rows for {', '.join(sorted(unknown))}: choose from "
            f"{', '.join(MODULES)}"
        )
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")

    rows = [
        row
        for module in options.modules or MODULES
        for row in import_module(f"benchmarks.{module}").rows()
    ]
    width = max(len(row.name) for row in rows)
    print(
        "Time of ours / time of theirs (lower is better), the median of",
        options.rounds,
        "rounds; ms at one thread.\n",
    )
    print(_line("", *COLUMNS, width=width))
    print(
        _line("-" * width, *("-" * (len(column) - 1) + ":" for column in COLUMNS), width=width)
    )
    for row in rows:
        print(_line(row.name, *_cells(row, options.rounds), width=width), flush=True)


def _cells(row: Row, rounds: int) -> tuple[str, ...]:
    one, *more = (measure(row, rounds, threads) for threads in row.threads)
    two = f"{more[0].ratio:.2f}" if more else "–"
    aim, verdict = "–", "–"
    if row.aim is not None:
        aim, verdict = f"{row.aim:.2f}", "yes" if one.ratio <= row.aim else "MISSED"
    return (
        aim,
        f"{one.ratio:.2f}",
        two,
        f"{1e3 * one.ours:.3f}",
        f"{1e3 * one.theirs:.3f}",
        verdict,
    )


def _line(name: str, *cells: str, width: int) -> str:
    padded = (cell.rjust(len(column)) for cell, column in zip(cells, COLUMNS, strict=True))
    return f"| {name.ljust(width)} | {' | '.join(padded)} |"


if __name__ == "__main__":
    main()
