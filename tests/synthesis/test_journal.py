import json
import subprocess
import sys
from dataclasses import replace

import pytest
from journal_entries import entry, provenance, reply
from places import HELPERS

from medssr_dist.data.checksums import CRC_KEY
from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import GaveUp
from medssr_dist.synthesis.journal import Journal


def test_entries_survive_reopening_in_any_order(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for index in (4, 0, 2):
            journal.append(provenance(index), reply(f"réponse\u2028{index}"))
        assert journal.read(0) == entry(0, "réponse\u20280")
    with Journal(path) as journal:
        assert len(journal) == 3 and 2 in journal and 1 not in journal
        assert journal.read(4) == entry(4, "réponse\u20284") and journal.first_missing == 1
        journal.append(provenance(1), reply())
        assert journal.first_missing == 3
        with pytest.raises(KeyError):
            journal.read(3)
        assert journal.read(1) == entry(1) and journal.read(2).reply == "réponse\u20282"


def test_a_request_given_up_is_an_outcome_too(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(provenance(0, answered_by=""), GaveUp("refused_by_api", "content filter"))
    seen = []
    with Journal(tmp_path / "journal.jsonl", seen.append) as journal:
        assert 0 in journal and len(journal) == 1
    outcomes = [(entry.reply, entry.gave_up, entry.detail) for entry in seen]
    assert outcomes == [(None, "refused_by_api", "content filter")]
    assert b"sk-not" not in (tmp_path / "journal.jsonl").read_bytes()


def test_why_a_reply_ended_is_kept_and_older_lines_are_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(provenance(0), reply())
        journal.append(provenance(1), replace(reply(), finish_reason="length"))
    lines = path.read_text().splitlines()
    older = json.loads(lines[0])
    del older["finish_reason"], older[CRC_KEY]
    path.write_text(f"{json.dumps(older)}\n{lines[1]}\n")
    with Journal(path) as journal:
        assert [journal.read(index).finish_reason for index in (0, 1)] == ["", "length"]


def test_torn_tail_is_cut_and_the_rest_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(provenance(0), reply())
        journal.append(provenance(1), reply())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with Journal(path) as journal:
        assert 0 in journal and 1 not in journal
        journal.append(provenance(1), reply())
    assert path.read_bytes() == whole


def test_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"oops\n{}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl line 1 is broken; .* remove that line"):
        Journal(path)
    path.write_text('{"reply": "x"}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl line 1: provenance"):
        Journal(path)


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys; from pathlib import Path; from medssr_dist.synthesis.journal import Journal\n"
        "with Journal(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by another run .process {holder.pid} "):
            Journal(path)
        holder.kill()
    with Journal(path) as journal:
        assert len(journal) == 0


def test_a_write_cut_short_leaves_no_half_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from journal_entries import provenance, reply\n"
        "from medssr_dist.synthesis.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Journal(Path(sys.argv[1])) as journal:\n"
        "    journal.append(provenance(0), reply())\n"
        "    limit = Path(sys.argv[1]).stat().st_size + 100\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: journal.append(provenance(1), reply())\n"
        "    except OSError: print('cut')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    journal.append(provenance(2), reply())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), HELPERS], capture_output=True, text=True)
    assert done.stdout == "cut\n", done.stderr
    with Journal(path) as journal:
        assert len(journal) == 2 and journal.read(2) == entry(2)


def test_a_flipped_bit_of_a_paid_reply_is_found(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for index in range(3):
            journal.append(provenance(index), reply())
    whole = path.read_bytes()
    second = len(whole.splitlines(keepends=True)[0])
    for bit in range(8 * second, 16 * second, 7):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"journal\.jsonl line (1|2|3) .*(remove that line|good copy)"):
            Journal(path)


@pytest.mark.parametrize("index", [-1, 10**8, 10**12, 10**30])
def test_a_number_of_a_request_that_cannot_be_is_refused(tmp_path, index):
    """It is a place in memory: -1 would be the last one, and 10^12 would need 8 TB."""
    with Journal(path := tmp_path / "journal.jsonl") as journal:
        journal.append(provenance(0), reply())
    row = json.loads(path.read_text())
    del row[CRC_KEY]
    row["provenance"]["index"] = index
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"journal\.jsonl line 1"):
        Journal(path)
