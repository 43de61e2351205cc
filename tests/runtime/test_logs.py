"""The package's log lines: on stderr, plain or behind their level, and no other package's."""

import logging
import subprocess
import sys

import pytest

from medssr_dist.runtime.logs import set_up_logging

PROGRAM = """
import logging
from tqdm import tqdm
from medssr_dist.runtime.logs import set_up_logging
set_up_logging()
logging.basicConfig()
for _ in tqdm(range(1)):
    logging.getLogger("medssr_dist.voting.vote").info("evaluate base")
    logging.getLogger("medssr_dist.voting.vote").debug("not shown")
    logging.getLogger("another").info("not shown")
    logging.getLogger("medssr_dist.voting.vote").warning("%d votes are lost", 3)
"""


@pytest.fixture
def lines(capsys):
    """What is on stderr after set_up_logging and a call, as lines; stdout must stay empty."""

    def shown(call) -> list[str]:
        set_up_logging()
        call(logging.getLogger("medssr_dist.somewhere"))
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return shown


def test_progress_is_plain_and_a_warning_names_its_level(lines):
    assert lines(lambda logger: logger.info("vote: finished")) == ["vote: finished"]
    assert lines(lambda logger: logger.warning("%d votes are lost", 3)) == ["warning: 3 votes are lost"]
    assert lines(lambda logger: logger.error("no disk")) == ["error: no disk"]


def test_details_are_not_shown(lines):
    assert lines(lambda logger: logger.debug("request 7")) == []


def test_a_second_call_does_not_double_the_lines(lines):
    set_up_logging()
    assert lines(lambda logger: logger.info("once")) == ["once"]


def test_lines_stand_above_a_progress_bar():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert lines == ["evaluate base", "warning: 3 votes are lost"] and done.stdout == ""
