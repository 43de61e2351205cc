"""Draw docs/pictures/pipeline.svg, the picture of the pipeline: python docs/pictures/pipeline.py

The picture is text and boxes alone, so that a change of it is readable in a diff. `tests/docs/test_site.py` draws it
again and compares.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT, BOX, TALL, GAP = 1060, 300, 200, 96, 60  # pixels
TOP, LEFT = 130, 40
STEPS = [
    ("1 synthesize", ["a chat API writes", "new questions"], "questions"),
    ("2 vote", ["the policy answers each", "K times; the majority", "is the label"], "kept labels"),
    ("3 train", ["GRPO, stage 1: labels", "GRPO, stage 2: answers", "by people"], "two policies"),
    ("4 evaluate", ["base, stage 1, stage 2", "on benchmarks"], ""),
]
INPUTS = [(0, "seeds, rare diseases, passages"), (2, "questions with answers by people"), (3, "benchmarks")]
NOTE = "Steps 1, 2 and stage 1 of step 3 run at the same time; each follows the one before"
RUNS_ON = ["async client", "vLLM on Ray", "DeepSpeed, vLLM, Triton", "vLLM on Ray"]
FILES = ["synthesis/questions.jsonl", "voting/labeled.jsonl", "training/stage1, stage2", "evaluation/scores.json"]
STYLE = (
    "text{font:14px sans-serif;fill:#1b2733;text-anchor:middle}.name{font-size:17px;font-weight:bold}"
    ".small{font-size:12.5px;fill:#51606e}.box{fill:#e8f0fa;stroke:#2b6cb0;stroke-width:1.5}"
    ".arrow{stroke:#2b6cb0;stroke-width:2;fill:none;marker-end:url(#head)}"
)


def draw() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Questions are synthesized, labelled by vote, used for training in two stages, and evaluated</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="#2b6cb0"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for place, (name, lines, result) in enumerate(STEPS):
        left = LEFT + place * (BOX + GAP)
        parts += _draw_step(left, name, lines) + _draw_below(left, RUNS_ON[place], FILES[place])
        if result:
            right, middle = left + BOX, TOP + TALL // 2
            parts.append(f'<path class="arrow" d="M{right} {middle}H{right + GAP - 2}"/>')
            parts.append(_text(right + GAP // 2, TOP - 10, result, "small"))
    for place, text in INPUTS:
        middle = LEFT + place * (BOX + GAP) + BOX // 2
        parts.append(_text(middle, TOP - 62, text, "small"))
        parts.append(f'<path class="arrow" d="M{middle} {TOP - 52}V{TOP - 3}"/>')
    parts.append(_text(WIDTH // 2, 32, NOTE))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_step(left: int, name: str, lines: list[str]) -> list[str]:
    middle = left + BOX // 2
    box = f'<rect class="box" x="{left}" y="{TOP}" width="{BOX}" height="{TALL}" rx="8"/>'
    texts = [_text(middle, TOP + 48 + 18 * row, line) for row, line in enumerate(lines)]
    return [box, _text(middle, TOP + 25, name, "name"), *texts]


def _draw_below(left: int, program: str, file: str) -> list[str]:
    middle, base = left + BOX // 2, TOP + TALL
    lines = [f"runs on: {program}", f"writes: {file}"]
    return [_text(middle, base + 28 + 22 * row, line, "small") for row, line in enumerate(lines)]


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text{mark} x="{x}" y="{y}">{escape(text)}</text>'


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
