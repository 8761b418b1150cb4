"""What was measured as markdown: means of the seeds, with the smallest and the largest. Every number is computed."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from app.domain.reports import Difference
from benchmarks.qat.arithmetic import Spread, accuracy, came_back, float_accuracy, mean_difference, spread
from benchmarks.qat.crews import ALONE
from benchmarks.qat.journal import Crewed, Steps, Taken, TrainedFacts

DROP_POINTS, AGREEMENT, SECONDS = 0.1, 0.985, 300.0
RECOVERED = 0.8
MODULE_SAME = 0.995

PLAIN = "two, none"

_CREW_COLUMNS = (
    "crew",
    "step",
    f"over {PLAIN}",
    f"over {ALONE}",
    "bytes a step",
    "of plain",
    "agreement with float32",
    f"agreement with {ALONE}",
    "numbers apart, at most",
    "integers equal",
    "best step",
)

Key = TypeVar("Key")
Value = TypeVar("Value")

BySeed = Mapping[int, Taken]
Rows = Mapping[str, BySeed]


def quality_table(title: str, rows: Rows, *, nearest: str | None = None) -> str:
    """Write accuracy, agreement and what came back of what the row `nearest` lost."""
    head = (
        "| row | accuracy | from float32, points (95 %) | agreement | came back | starts | training | best step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| float32 | {_percent(spread([float_accuracy(each.pairs) for each in _first(rows).values()]))} | | | | | | |",
    )
    lines = [_quality_row(name, taken, rows[nearest] if nearest else {}) for name, taken in rows.items()]
    return "\n".join(["", f"## {title}", "", _runs(_first(rows)), "", *head, *lines])


def _quality_row(name: str, taken: BySeed, nearest: BySeed) -> str:
    runs = list(taken.values())
    change = mean_difference([each.pairs for each in runs])
    facts = [each.trained for each in runs if each.trained is not None]
    return (
        f"| {name} | {_percent(spread([accuracy(each.pairs) for each in runs]))} | {_points(change)} "
        f"| {_percent(spread([each.agreement for each in runs]))} | {_percent(_back(taken, nearest), digits=0)} "
        f"| {_seconds(spread([each.start_seconds for each in runs]))} "
        f"| {_seconds(spread([each.seconds for each in runs])) if facts else ''} "
        f"| {', '.join(f'{each.best_step} of {each.steps}' for each in facts)} |"
    )


def trained_bars(taken: BySeed) -> str:
    """Say whether 8-bit training is as close to float32, and as quick, as was asked."""
    runs = list(taken.values())
    drop = -100 * mean_difference([each.pairs for each in runs]).value
    agreement = sum(each.agreement for each in runs) / len(runs)
    seconds = max(each.start_seconds + each.seconds for each in runs)
    return "\n".join(
        (
            "",
            f"- at most {DROP_POINTS} points below float32: {drop:+.2f} lost, {_met(drop <= DROP_POINTS)}",
            f"- agreement of {AGREEMENT:.1%}: {agreement:.2%}, {_met(agreement >= AGREEMENT)}",
            f"- at most {SECONDS:.0f} s, starts included: {seconds:.0f} s at most, {_met(seconds <= SECONDS)}",
        )
    )


def recovery_bar(name: str, taken: BySeed, nearest: BySeed) -> str:
    """Say whether as much came back as was asked."""
    back = _back(taken, nearest)
    if back is None:
        return f"\n- {name}: nothing was lost that could come back"
    return (
        f"\n- {RECOVERED:.0%} of what nearest lost: {back.mean:.0%} came back with {name}, "
        f"{_met(back.mean >= RECOVERED)}"
    )


def module_table(tables: Mapping[str, Rows]) -> str:
    """Write how often the artifact in the engine answers like the fake-quantized module."""
    lines, least = [], 1.0
    for table, rows in tables.items():
        for name, taken in rows.items():
            facts = [each.trained for each in taken.values() if each.trained is not None]
            if facts:
                least = min(least, *(each.module_same for each in facts))
                lines.append(f"| {table}, {name} {_module_cells(facts)}")
    if not lines:
        return ""
    return "\n".join(
        (
            "",
            "## The artifact in OpenVINO and the fake-quantized module in torch",
            "",
            "| row | test rows answered alike | held-out rows answered alike, by the stage |",
            "| --- | ---: | ---: |",
            *lines,
            "",
            f"- {MODULE_SAME:.1%} of the rows: {least:.2%} at least, {_met(least >= MODULE_SAME)}",
        )
    )


def _module_cells(facts: Sequence[TrainedFacts]) -> str:
    stage = spread([each.checked_same / each.checked for each in facts if each.checked])
    return f"| {_percent(spread([each.module_same for each in facts]))} | {_percent(stage)} |"


def steps_table(steps: Steps, *, batch_size: int) -> str:
    """Write what fake quantization costs a step."""
    lines = (
        f"| {name} | {each.mean:.2f} ({each.least:.2f} to {each.most:.2f}) |" for name, each in steps.ratios.items()
    )
    return "\n".join(
        (
            "",
            f"## A step of {batch_size} rows over a step of the float graph ({steps.float_seconds * 1000:.0f} ms)",
            "",
            "Median of the ratios of steps taken in turn, 5th to 95th percentile; the same loop and batch.",
            "",
            "| trained | ratio |",
            "| --- | ---: |",
            *lines,
        )
    )


def crews_table(title: str, seeds: Mapping[int, Mapping[str, Crewed]]) -> str:
    """Write what every crew costs, and how near its model is to that of one process."""
    lines = [_crew_row(name, [crews[name] for crews in seeds.values()], seeds) for name in _first(seeds)]
    return "\n".join(
        (
            "",
            f"## {title}",
            "",
            _runs(seeds),
            "Numbers are compared after the last step, as shares of the largest of their tensor; integers and answers",
            "are those of the artifact.",
            "",
            f"| {' | '.join(_CREW_COLUMNS)} |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *lines,
        )
    )


def _crew_row(name: str, runs: Sequence[Crewed], seeds: Mapping[int, Mapping[str, Crewed]]) -> str:
    def over(other: str) -> str:
        others = [crews[other].step_seconds for crews in seeds.values()]
        return _ratio(spread([run.step_seconds / each for run, each in zip(runs, others, strict=True)]))

    return (
        f"| {name} | {_milliseconds(spread([each.step_seconds for each in runs]))} | {over(PLAIN)} | {over(ALONE)} "
        f"| {_wire_bytes(runs)} | {_wire_share(runs)} "
        f"| {_percent(spread([each.agreement for each in runs]))} | {_percent(spread([each.same for each in runs]))} "
        f"| {max(each.apart for each in runs):.1e} | {_percent(spread([each.equal for each in runs]))} "
        f"| {', '.join(str(each.best_step) for each in runs)} |"
    )


def _wire_bytes(runs: Sequence[Crewed]) -> str:
    values = [each.sent_bytes for each in runs if each.sent_bytes is not None]
    return f"{sum(values) / len(values):,.0f}" if values else ""


def _wire_share(runs: Sequence[Crewed]) -> str:
    shares = [each.sent_bytes / each.plain_bytes for each in runs if each.sent_bytes and each.plain_bytes]
    return f"{sum(shares) / len(shares):.1%}" if shares else ""


def _back(taken: BySeed, nearest: BySeed) -> Spread | None:
    shares = [
        came_back(
            accuracy(each.pairs),
            nearest=accuracy(nearest[seed].pairs),
            float32=float_accuracy(each.pairs),
        )
        for seed, each in taken.items()
        if seed in nearest
    ]
    return spread([share for share in shares if share is not None])


def _runs(seeds: Mapping[int, Value]) -> str:
    return f"Seeds {', '.join(map(str, seeds))}: mean (smallest to largest)."


def _first(rows: Mapping[Key, Value]) -> Value:
    return next(iter(rows.values()))


def _percent(found: Spread | None, *, digits: int = 2) -> str:
    if found is None:
        return "-"
    mean, least, most = (f"{100 * each:.{digits}f}" for each in (found.mean, found.least, found.most))
    return f"{mean} % ({least} to {most})"


def _points(change: Difference) -> str:
    return f"{100 * change.value:+.2f} ({100 * change.low:+.2f} to {100 * change.high:+.2f})"


def _seconds(found: Spread | None) -> str:
    return "-" if found is None else f"{found.mean:.0f} s ({found.least:.0f} to {found.most:.0f})"


def _milliseconds(found: Spread | None) -> str:
    return "-" if found is None else f"{1000 * found.mean:.0f} ms"


def _ratio(found: Spread | None) -> str:
    return "-" if found is None else f"{found.mean:.2f} ({found.least:.2f} to {found.most:.2f})"


def _met(reached: bool) -> str:  # noqa: FBT001 - it is the subject
    return "met" if reached else "**missed**"


def told(taken: Taken) -> str:
    """Say what one artifact does, in a line."""
    change = 100 * mean_difference([taken.pairs]).value
    return f"{accuracy(taken.pairs):.2%} right ({change:+.2f} points), {taken.agreement:.2%} as float32"
