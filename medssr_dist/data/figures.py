"""How pictures are drawn: one palette, one name for each policy, a title with what is shown, files that appear whole.

A bar or a point may carry a link. In a PNG it has no effect; in the report of a run (`report/`), a click on it lists
the questions that it counts.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from medssr_dist.data.jsonl import raise_if_disk_full

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which readers with any colour vision can tell apart.
BLUE, SKY, GREEN, ORANGE, RED, GREY = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#999999"
POLICY_COLOURS = {"base": GREY, "stage1": SKY, "stage2": BLUE}
_POLICY_NAMES = {"base": "base model", "stage1": "after stage 1", "stage2": "after stage 2"}
_NOTE_COLUMNS = 70
_INK = "#444444"
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def name_policy(name: str) -> str:
    """Return a policy of a run in words; other names, as of models that are compared, stay as they are."""
    return _POLICY_NAMES.get(name, name)


def title_panel(axes: Axes, title: str, note: str) -> None:
    """Write what a panel shows above it, and below that, in small letters, n and what bars and lines mean."""
    lines = textwrap.wrap(note, _NOTE_COLUMNS)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8 + 11 * len(lines))
    annotation = axes.annotate(
        "\n".join(lines),
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=_INK,
        va="bottom",
        linespacing=1.15,
    )
    annotation.set_in_layout(False)  # the title has made room for it


def write_in_bars(axes: Axes, bars: BarContainer, texts: list[str], colour: str | None) -> None:
    """Write a text at the foot of each vertical bar."""
    ink = "white" if colour == BLUE else "black"
    for bar, text in zip(bars.patches, texts, strict=True):
        axes.annotate(
            text,
            (bar.get_x() + bar.get_width() / 2, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=ink,
        )


def say_nothing_to_show(axes: Axes, title: str, reason: str) -> None:
    """Leave a panel empty and say why, for example "this step has not run"."""
    axes.text(0.5, 0.5, reason, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xticks=[], yticks=[])


def make_link(view: str, **filters: object) -> str:
    """Return the address, within a report, of the entries of `view` that pass all filters.

    Example: make_link("questions", kind="rare", kept=1) == "#questions?kind=rare&kept=1"
    """
    chosen = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in filters.items())
    return f"#{view}?{chosen}" if chosen else f"#{view}"


def add_links(artists: Sequence[Artist], links: Sequence[str]) -> None:
    """Give each bar or point its link."""
    for artist, link in zip(artists, links, strict=True):
        artist.set_url(link)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; readers see the old file or the new one. Raises InputError where the disk is full."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        FigureCanvasAgg(figure).print_png(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, path)
        raise


def render_svg(figure: Figure) -> str:
    """Return a figure as an <svg> element for an HTML page: text as text, links kept, the same for the same figure."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medssr"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=_NO_METADATA)
    text = buffer.getvalue().replace(' target="_blank"', "")  # the links lead to places of the same page
    text = re.sub(r'<g id="[a-z0-9]+(?:_[a-z0-9]+)*_\d+">', "<g>", text[text.index("<svg") :])  # not unique in a page
    return re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
