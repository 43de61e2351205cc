"""The table, the aims and the figure of `medssr bench method`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssr_dist.bench.aims import Aim
from medssr_dist.bench.method.arms import BASE, SHUFFLED, TWO_STAGE
from medssr_dist.bench.method.method_figures import (
    ALL,
    COMMON,
    RARE,
    SETS,
    MethodDifference,
    MethodFigures,
    MethodScore,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 32


def format_method_table(figures: MethodFigures) -> str:
    """Return the table of accuracies, then that of differences, in percent."""
    seeds = ", ".join(map(str, figures.seeds))
    lines = [
        f"seeds {seeds}; {figures.questions:,} questions x {figures.generations} generations a seed; "
        f"{figures.steps} GRPO steps of {figures.samples} samples in every arm",
        "",
        f"{'accuracy, %':<{_WIDTH}}" + "".join(f"{on:<22}" for on in SETS),
    ]
    for arm in figures.arms.values():
        lines.append(f"{arm.title:<{_WIDTH}}" + "".join(f"{_format_score(arm.scores[on]):<22}" for on in SETS))
    for title, rows in (
        ("arm - base", {arm.title: arm.to_base for arm in figures.arms.values()}),
        ("two stages - arm", {arm.title: arm.two_stage_ahead for arm in figures.arms.values()}),
        ("stage 1 only - control", {arm.title: arm.stage1_ahead for arm in figures.arms.values()}),
    ):
        if not any(rows.values()):
            continue
        lines += ["", f"{title + ', points':<{_WIDTH}}" + "".join(f"{on:<26}" for on in SETS)]
        for name, found in rows.items():
            if found:
                lines.append(f"{name:<{_WIDTH}}" + "".join(f"{_format_difference(found[on]):<26}" for on in SETS))
    for alpha in figures.alphas:
        share = alpha.requests
        verdict = "within" if alpha.is_within else "OUTSIDE"
        bounds = f"{share.share:.3f} ({share.low:.3f} to {share.high:.3f})"
        lines.append(f"alpha {alpha.asked:g}: achieved {bounds}, {verdict}")
    if figures.quick:
        lines.append("--quick: one seed and fewer questions; not figures to report")
    return "\n".join(lines)


def _format_score(score: MethodScore) -> str:
    low, high = score.interval
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _format_difference(found: MethodDifference) -> str:
    test = found.test
    return f"{100 * test.difference:+.1f} ({100 * test.low:+.1f} to {100 * test.high:+.1f})"


def list_aims(figures: MethodFigures) -> tuple[Aim[MethodFigures], ...]:
    """Return what should come out, of the arms that have run: two stages above base, shuffled labels, each ablation."""
    aims = []
    for on in (ALL, COMMON, RARE):
        for name, title in ((TWO_STAGE, "base"), (SHUFFLED, "shuffled")):
            if {name, TWO_STAGE} <= figures.arms.keys():
                aims.append(_make_aim(f"two stages - {title}, {on}: lower bound", name, on, is_interval=True))
    for name, arm in figures.arms.items():
        if arm.two_stage_ahead and name != SHUFFLED:
            aims.append(_make_aim(f"two stages - {arm.title}", name, ALL, is_interval=False))
    return tuple(aims)


def _make_aim(title: str, name: str, on: str, is_interval: bool) -> Aim[MethodFigures]:
    def read(figures: MethodFigures) -> tuple[float]:
        arm = figures.arms[name]
        found = (arm.to_base if name == TWO_STAGE else arm.two_stage_ahead) or {}
        test = found[on].test
        return (round(100 * (test.low if is_interval else test.difference), 2),)

    return Aim(title, "> 0", read, lambda value: value > 0)


def draw_method_plot(figures: MethodFigures, path: Path) -> None:
    """Draw accuracies by arm, and the precision of the labels by threshold, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_arms(left, figures)
    _draw_precision(right, figures)
    figure.savefig(path, dpi=120)


def _draw_arms(axes: Axes, figures: MethodFigures) -> None:
    arms = list(figures.arms.values())
    for shift, on, colour in ((-0.15, COMMON, "tab:blue"), (0.15, RARE, "tab:red")):
        scores = [arm.scores[on] for arm in arms]
        middle = [100 * score.accuracy for score in scores]
        ends = [[100 * abs(score.accuracy - score.interval[end]) for score in scores] for end in (0, 1)]
        places = [place + shift for place in range(len(arms))]
        axes.errorbar(middle, places, xerr=ends, fmt="o", color=colour, capsize=3, label=f"{on} diseases")
        for place, score in zip(places, scores, strict=True):
            axes.plot([100 * value for value in score.by_seed], [place] * len(score.by_seed), "|", color=colour)
        axes.axvline(100 * figures.arms[BASE].scores[on].accuracy, color=colour, linewidth=0.7, linestyle=":")
    axes.set_yticks(range(len(arms)), [arm.title for arm in arms])
    axes.invert_yaxis()
    axes.set(
        xlabel="accuracy, % (bars: 95% interval over questions; ticks: each seed; dotted: base)",
        title=f"{len(figures.seeds)} seed(s) x {figures.questions:,} questions x {figures.generations} generations",
    )
    axes.legend()


def _draw_precision(axes: Axes, figures: MethodFigures) -> None:
    points: list[Any] = [point for point in figures.precision if point.precision]
    thresholds = [point.threshold for point in points]
    right = [100 * point.precision.least for point in points]
    axes.plot(thresholds, right, "o-", label="right labels, of the kept ones")
    low, high = ([100 * getattr(point.precision, end) for point in points] for end in ("low", "high"))
    axes.fill_between(thresholds, low, high, alpha=0.2)
    axes.plot(thresholds, [100 * (point.kept_share.least or 0) for point in points], "s--", label="kept questions")
    axes.axhline(25, color="black", linewidth=0.7, linestyle=":", label="chance with four options")
    axes.set(xlabel="threshold", ylabel="%", ylim=(0, 100), title=f"pseudo-labels of seed {figures.seeds[0]}")
    axes.legend()
