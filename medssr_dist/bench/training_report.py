"""The figures of `medssr bench training` as a table and a plot of the phases of a step."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.bench.training import PHASES

_AIMS = (
    ("step, time to stock's", "step_time_ratio", 0.6),
    ("weight sync, time to stock's", "weight_sync_ratio", 0.3),
    ("loss in fp32, largest difference", "loss_max_abs_diff", 1e-5),
)
_COLUMNS = ("step", *PHASES)


def table(figures: dict) -> str:
    """Aims with what was seen, then seconds by variant and phase, each with its share."""
    lines = [f"{'':<34}{'seen':>12}{'aim':>10}"]
    for title, key, aim in _AIMS:
        lines.append(f"{title:<34}{figures[key]:>12.3g}{aim:>10g}  {'met' if figures[key] <= aim else 'NOT MET'}")
    heads = "".join(f"{name.removeprefix('seconds_'):>12}" for name in _COLUMNS)
    lines += ["", f"{'seconds a step':<34}{heads}{'share':>8}"]
    for name, found in figures["variants"].items():
        share = figures["shares"].get(name)
        values = "".join(f"{found[column]:>12.2f}" for column in _COLUMNS)
        lines.append(f"{name:<34}{values}{'' if share is None else f'{share:.2f}':>8}")
    return "\n".join(lines)


def draw(figures: dict, json_path: Path) -> None:
    """Phases of a step, a bar a variant, as PNG beside `json_path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(figures["variants"])[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.5), layout="constrained")
    left = [0.0] * len(names)
    for phase in PHASES:
        widths = [figures["variants"][name][phase] for name in names]
        axes.barh(names, widths, left=left, label=phase.removeprefix("seconds_"))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("seconds a step")
    axes.legend()
    figure.savefig(json_path.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
