"""report.html: what it holds, that nothing in it comes from outside, and in a browser the way to the votes."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from browser import Browser, find_browser
from finished_run import DANGEROUS, write_run

from medssr_dist import cli
from medssr_dist.report.report_facts import build_cost_table, list_training_notes
from medssr_dist.report.write_report import MAX_BYTES, write_report
from medssr_dist.summary.closing_table import build_summary
from medssr_dist.training.stage_job import StageSummary

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    found = write_run(tmp_path_factory.mktemp("run"))
    write_report(found.root)
    return found


@pytest.fixture
def page(run):
    browser = Browser()
    browser.open(f"file://{run.report}")
    yield browser
    browser.close()


def test_the_page_is_one_file_without_addresses(run):
    text = run.report.read_text(encoding="utf-8")
    assert run.report.stat().st_mode & 0o777 == 0o600
    own = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)  # names of XML, which nothing fetches
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w{2,}/", own) == []
    assert not re.search(r"<(link|iframe|img|object|embed)\b", own)
    assert re.findall(r'<script type="([^"]*)"', text).count("application/json") == 1
    assert "_blank" not in text and text.count("<script>") == 1 and "default-src 'none'" in text


def test_texts_of_the_run_are_never_markup(run):
    text = run.report.read_text(encoding="utf-8")
    assert DANGEROUS not in text and "window.hacked" not in text


def test_figures_say_n_and_what_bars_mean(run):
    text = run.report.read_text(encoding="utf-8")
    for words in ("From requests to kept labels", "Kept labels that are right", "Mean reward in training", "n = 9;"):
        assert words in text
    assert text.count("95% interval") > 3 and "#questions?kept=1" in text and "#rollouts?stage=stage1" in text


def test_notes_name_the_published_one_of_equal_policies(run):
    summary = build_summary(run.root)
    held_out = {0: 0.4, 10: 0.5, 20: 0.5, 30: 0.45}
    stage = StageSummary(8, 0, "", 60.0, 30, [0.5], 512, accuracy_by_step=held_out, published_step=20)
    steps = summary.steps.model_copy(update={"stage1": stage})
    notes = list_training_notes(summary.model_copy(update={"steps": steps}))
    assert "published: the policy after step 20; best held-out accuracy 0.500 after step 20" in notes[0]


@pytest.mark.parametrize(("unpriced", "shown"), [((), "3.46"), (("gpt-x",), "unknown (no price of gpt-x)")])
def test_cost_is_that_of_the_summary(tmp_path, unpriced, shown):
    found = write_run(tmp_path / "run")
    summary = build_summary(found.root)
    synthesis = summary.steps.synthesize.model_copy(update={"usd": 3.456, "unpriced": unpriced})
    steps = summary.steps.model_copy(update={"synthesize": synthesis})
    table = build_cost_table(found, summary.model_copy(update={"steps": steps}))
    assert table.rows[0][-1] == shown
    assert ("cost unknown" in table.note) == bool(unpriced)


@pytest.mark.parametrize("missing", ["evaluation/scores.json", "voting/summary.json", "training/stage1/summary.json"])
def test_a_step_that_has_not_run_is_said(tmp_path, missing):
    found = write_run(tmp_path / "run")
    (found.root / missing).unlink()
    assert write_report(found.root).exists()
    text = found.report.read_text(encoding="utf-8")
    assert ("has not finished" in text) or ("No training stage has finished" in text)


def test_an_empty_run_has_a_report(tmp_path):
    found = write_run(tmp_path / "run")
    for folder in ("synthesis", "voting", "training", "evaluation"):
        for file in sorted((found.root / folder).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    assert "No question has been written yet" in write_report(found.root).read_text(encoding="utf-8")


def test_the_command_names_the_file_or_the_fault(run, tmp_path, capsys):
    assert cli.main(["report", str(run.root)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    damaged = write_run(tmp_path / "damaged")
    damaged.voting.labels.write_text('{"not": "a label"}\n')
    assert cli.main(["report", str(damaged.root)]) == 2
    assert "labeled.jsonl" in capsys.readouterr().err


@needs_browser
@pytest.mark.slow
def test_from_a_figure_to_raw_votes_in_three_clicks(run, page):
    page.click('#figure-funnel a[*|href="#questions?kept=1"]')
    page.wait("document.querySelectorAll('#content a.row').length > 3")
    page.click("#content a.row")
    page.wait("document.querySelectorAll('#content .vote').length >= 8")
    assert "The answer is" in page.read("document.querySelector('#content').textContent")
    file = page.read("document.querySelector('#vote-file').getAttribute('href')")
    assert (run.root / file).exists()
    assert page.errors == [] and all(url.startswith(("file:", "about:")) for url in page.requests)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "link", "expected"),
    [
        ("reasons", "#rejected", ".row"),
        ("alpha", "#questions?kind=rare", "a.row"),
        ("rewards", "#rollouts?stage=stage1", ".row"),
        ("scores", "#answers?set=set", "a.row"),
        ("letters", "#questions?kept=1", "a.row"),
        ("votes", "#questions?taken=8", "a.row"),
    ],
)
def test_each_figure_leads_to_what_it_counts(page, figure, link, expected):
    page.click(f'#figure-{figure} a[*|href^="{link}"]')
    page.wait(f"location.hash.startsWith({link!r})")
    page.wait(f"document.querySelectorAll('#content {expected}').length > 0")
    assert page.errors == []


@needs_browser
@pytest.mark.slow
def test_search_finds_texts_and_no_text_runs(page):
    page.read("location.hash = '#questions'")
    page.wait("document.querySelectorAll('#content a.row').length === 8")
    page.read("document.getElementById('search').value = 'onerror'")
    page.read("document.getElementById('search').dispatchEvent(new Event('input'))")
    page.wait("document.querySelectorAll('#content a.row').length === 1")
    page.click("#content a.row")
    page.wait("document.querySelectorAll('#content .vote').length >= 8")
    assert "onerror" in page.read("document.querySelector('#content').textContent")
    page.read("location.hash = '#rejected'")
    page.wait("document.querySelector('#content .row .text')")
    assert page.read("window.hacked") is None and page.read("document.querySelectorAll('#content img').length") == 0
    assert page.errors == []


@needs_browser
@pytest.mark.slow
def test_the_screenshot_shows_the_page(page, tmp_path):
    file = Path(os.environ.get("MEDSSR_SCREENSHOTS", tmp_path)) / "report.png"
    page.take_picture(file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 30_000


@needs_browser
@pytest.mark.slow
def test_43_000_questions_fit_in_20_mb(tmp_path):
    found = write_run(tmp_path / "run", count=43_000, words=60, votes=16, vote_words=20)
    start = time.monotonic()
    size = write_report(found.root).stat().st_size
    print(f"{size:,} bytes in {time.monotonic() - start:.0f} s")
    assert 5_000_000 < size <= MAX_BYTES
    browser = Browser()
    try:
        browser.open(f"file://{found.report}#questions?kept=1")
        browser.wait("document.querySelectorAll('#content a.row').length === 50")
        browser.click("#content a.row")
        browser.wait("document.querySelectorAll('#content .vote').length >= 16")
        assert "43,000" not in browser.read("document.querySelector('#count').textContent")
    finally:
        browser.close()


def test_large_texts_are_left_out_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr("medssr_dist.report.write_report.MAX_BYTES", 2_000_000 + 9_000)
    found = write_run(tmp_path / "run", count=300, words=60)
    text = write_report(found.root).read_text(encoding="utf-8")
    kinds = json.loads(re.search(r'id="meta">(.*?)</script>', text)[1])["kinds"]
    assert kinds["wordings"]["of"] == 300 and kinds["wordings"]["rows"] < 300
    assert '"voteFiles": {"0": "voting/votes/00000.jsonl' in text and kinds["votes"]["rows"] == 0
