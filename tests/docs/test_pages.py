"""The pages of docs/: their messages are those of the code, their links lead somewhere, the picture is the script's."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read_texts_of_the_code():
    """Return all texts in the code, one in a line; values that are filled in are {}."""
    texts = [(ROOT / "launch" / "install.sh").read_text()]
    for file in [*(ROOT / "medssr_dist").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_of_troubleshooting_are_in_the_code():
    code = read_texts_of_the_code()
    rows = re.findall(r"^\| (`.+?`) \| ", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    for row in rows:
        parts = [part.strip(" '\"()") for part in row.strip("`").split("...")]
        missing = [part for part in parts if len(part) > 3 and part not in code]
        assert not missing, (row, missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link.partition("#")[0]).exists()]


def test_pages_are_in_the_site_and_tutorials_in_the_readme():
    named = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if f": {page}\n" not in named]
    readme = (ROOT / "README.md").read_text()
    assert not [page for page in pages if page.startswith("tutorials/") and f"docs/{page}" not in readme]


def test_the_picture_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures" / "pipeline.py"))["draw"]()
    assert (ROOT / "docs" / "pictures" / "pipeline.svg").read_text() == drawn
