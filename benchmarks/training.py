"""Quantization-aware training of ResNet-20: what it brings back, what it costs, and whether two processes do the same.

    python -m benchmarks.training FOLDER [--only NAME ...] [--seeds 3] [--json FILE] [--quick]

FOLDER holds `resnet20.safetensors` and `cifar10.npz` (JPEG copies of CIFAR-10's images). Only its train rows train and
calibrate; its test rows score, answered by the artifact in OpenVINO. A seed picks the rows that calibrate, those held
out, and the order. With FILE every number is written down as it comes, and a later run with the same FILE goes on.
Stages run in their sandbox as a worker runs them, without a service. `--quick` shows that everything runs, and no more.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.domain.recipes import PtqStatic, Qat
from benchmarks.qat import tables
from benchmarks.qat.answers import apart
from benchmarks.qat.crews import measure_crews
from benchmarks.qat.journal import Crewed, Journal, Steps, Taken, asked_of
from benchmarks.qat.runs import Runs, say
from benchmarks.qat.steps import measure_steps
from benchmarks.qat.subject import prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """
    Attributes:
        edges: the first and the last layer keep 8 bits; the title says so.
        rows: recipes by the row's name; the first one rounds to nearest.
    """

    title: str
    rows: Mapping[str, PtqStatic | Qat]
    edges: bool = False


IMAGES: dict[str, Any] = {"flip": True, "crop": 4}
"""How train rows are varied, as the float model's own training did (He et al. 2016, section 4.2)."""

W8A8, DISTILLED = "w8a8", "QAT, distillation"

QUALITY: Mapping[str, Table] = {
    W8A8: Table(
        title="W8A8, trained on unlabelled rows",
        rows={
            "PTQ": PtqStatic(),
            DISTILLED: Qat(epochs=10, **IMAGES),
        },
    ),
    "w4a8": Table(
        title="W4A8",
        edges=True,
        rows={
            "nearest": PtqStatic(weight_bits=4),
            "learned rounding": PtqStatic(weight_bits=4, rounding="adaround"),
            "QAT": Qat(weight_bits=4, loss="cross_entropy", epochs=8, **IMAGES),
            DISTILLED: Qat(weight_bits=4, epochs=8, **IMAGES),
        },
    ),
    "w4a4": Table(
        title="W4A4",
        edges=True,
        rows={
            "nearest": PtqStatic(weight_bits=4, activation_bits=4),
            "learned rounding": PtqStatic(weight_bits=4, activation_bits=4, rounding="adaround"),
            "QAT": Qat(weight_bits=4, activation_bits=4, loss="cross_entropy", epochs=8, **IMAGES),
            DISTILLED: Qat(weight_bits=4, activation_bits=4, epochs=8, **IMAGES),
        },
    ),
    "w2a8": Table(
        title="W2A8",
        edges=True,
        rows={
            "nearest": PtqStatic(weight_bits=2),
            "learned rounding": PtqStatic(weight_bits=2, rounding="adaround"),
            "QAT": Qat(weight_bits=2, loss="cross_entropy", epochs=12, **IMAGES),
            DISTILLED: Qat(weight_bits=2, epochs=12, **IMAGES),
        },
    ),
}
"""What is compared: change a recipe, and its rows are measured again."""

STEPPED = Qat()
"""Whose steps are timed, against those of the float graph."""

CREWED = Qat(steps=100, learning_rate=5e-5, looks=1, held_out=0.02)
"""What one process and two of them train: one look, so that a step's time is that of steps."""

ROUNDS = 60
QUICK_ROUNDS, QUICK_STEPS, QUICK_TEST_ROWS = 3, 12, 500

STEPS, CREWS = "steps", "crews"
NAMES = (*QUALITY, STEPS, CREWS)


class Benchmark:
    """Measures what is asked for and not yet written down."""

    def __init__(self, runs: Runs, journal: Journal, *, seeds: range, quick: bool) -> None:
        self._runs, self._journal, self._seeds, self._quick = runs, journal, seeds, quick
        self._test_rows = runs.subject.test_rows

    def quality(self, name: str) -> dict[str, dict[int, Taken]]:
        """Measure every row of a table with every seed."""
        table = QUALITY[name]
        found: dict[str, dict[int, Taken]] = {row: {} for row in table.rows}
        for seed in self._seeds:
            for row, recipe in table.rows.items():
                edges = self._runs.subject.edges if table.edges else ()
                found[row][seed] = self._taken(f"{name}/{row}/{seed}", replace(recipe, seed=seed, int8_layers=edges))
        return found

    def steps(self) -> Steps:
        """Time steps."""
        rounds, recipe = QUICK_ROUNDS if self._quick else ROUNDS, STEPPED

        def measure() -> Steps:
            start = next(iter(self._runs.starts(recipe).values()))
            subject = self._runs.subject
            return apart(measure_steps, subject.float32, start.path, subject.test, recipe, rounds=rounds)

        return self._journal.taken(STEPS, asked_of(recipe, rounds=rounds), Steps, measure)

    def crews(self) -> dict[int, dict[str, Crewed]]:
        """Train with every crew and every seed."""
        return {
            seed: self._crews(self._shortened(replace(CREWED, seed=seed)), f"{CREWS}/{seed}") for seed in self._seeds
        }

    def _crews(self, recipe: Qat, name: str) -> dict[str, Crewed]:
        asked = asked_of(recipe, test_rows=self._test_rows)
        return self._journal.taken(name, asked, dict[str, Crewed], lambda: measure_crews(self._runs, recipe, name=name))

    def _taken(self, name: str, asked: PtqStatic | Qat) -> Taken:
        recipe = self._shortened(asked) if isinstance(asked, Qat) else asked

        def measure() -> Taken:
            if isinstance(recipe, Qat):
                return self._runs.trained(recipe, name=name)
            return self._runs.quantized(recipe)

        found = self._journal.taken(name, asked_of(recipe, test_rows=self._test_rows), Taken, measure)
        say(f"{name}: {tables.told(found)}")
        return found

    def _shortened(self, recipe: Qat) -> Qat:
        return replace(recipe, steps=QUICK_STEPS, epochs=None, looks=2) if self._quick else recipe


def write(benchmark: Benchmark, only: list[str], *, edges: tuple[str, str]) -> None:
    """Measure and print, table by table."""
    quality: dict[str, dict[str, dict[int, Taken]]] = {}
    for name in [each for each in QUALITY if each in only]:
        table, found = QUALITY[name], benchmark.quality(name)
        quality[table.title] = found
        nearest = next(iter(table.rows))
        title = f"{table.title}, first and last layer ({', '.join(edges)}) at 8 bits" if table.edges else table.title
        if name == W8A8:  # there is nearly nothing that could come back
            print(tables.quality_table(title, found), tables.trained_bars(found[DISTILLED]), sep="\n", flush=True)
        else:
            print(tables.quality_table(title, found, nearest=nearest))
            print(tables.recovery_bar(DISTILLED, found[DISTILLED], found[nearest]), flush=True)
    if quality:
        print(tables.module_table(quality), flush=True)
    if STEPS in only:
        print(tables.steps_table(benchmark.steps(), batch_size=STEPPED.batch_size), flush=True)
    if CREWS in only:
        print(tables.crews_table("Two processes and one, W8A8", benchmark.crews()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where weights and images lie")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="tables to make, all by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--json", type=Path, help="write numbers here as they come, and take over what is there")
    parser.add_argument("--quick", action="store_true", help="few steps and test rows")
    given = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as stages have it, for the processes that answer rows and time steps
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as home:
        subject = prepared(given.folder, home=Path(home), test_rows=QUICK_TEST_ROWS if given.quick else None)
        runs, seeds = Runs(subject), range(given.seeds)
        benchmark = Benchmark(runs, Journal(given.json), seeds=seeds, quick=given.quick)
        print(f"{subject.rows:,} rows train, calibrate or are held out, {subject.test_rows:,} others score.")
        write(benchmark, given.only, edges=subject.edges)
    return 0


if __name__ == "__main__":
    sys.exit(main())
