"""What is kept of Ray's temporary folder: logs without secrets, as far as the disk has room."""

from __future__ import annotations

import pytest

from medssr_dist import secret_registry
from medssr_dist.runtime.temp_dir import open_ray_temp_dir
from medssr_dist.secret_registry import register_secret

SECRET = "key-that-a-worker-prints"


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Return a function that writes Ray's logs (name -> content) in a run, and returns what is kept of them."""
    for name, value in (("_variables", {}), ("_forms", ()), ("_encoded", ())):
        monkeypatch.setattr(secret_registry, name, value)

    def keep(logs: dict[str, bytes]) -> dict[str, bytes]:
        with open_ray_temp_dir(tmp_path / "logs", tmp_path) as folder:
            place = folder / "session_2026" / "logs"
            place.mkdir(parents=True)
            for name, content in logs.items():
                (place / name).write_bytes(content)
        assert not folder.exists()
        return {file.name: file.read_bytes() for file in (tmp_path / "logs").glob("*")}

    return keep


def test_a_secret_in_a_log_of_a_worker_is_scrubbed(keep):
    register_secret(SECRET)
    long = b"x" * 3_000_000
    kept = keep({"worker-1.err": f"ValueError: {SECRET}\n".encode() + long, "raylet.out": b"", "other.log": b"y"})
    assert kept == {"worker-1.err": b"ValueError: ***\n" + long}


def test_a_log_that_cannot_be_kept_hides_no_other_error(keep, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.err").symlink_to("/dev/full")
    (tmp_path / "logs" / "worker-2.err").mkdir()
    with pytest.raises(ZeroDivisionError), open_ray_temp_dir(tmp_path / "logs", tmp_path) as folder:
        place = folder / "session_2026" / "logs"
        place.mkdir(parents=True)
        for number in (1, 2, 3):
            (place / f"worker-{number}.err").write_bytes(b"text\n")
        raise ZeroDivisionError
    assert (tmp_path / "logs" / "worker-3.err").read_bytes() == b"text\n" and not folder.exists()
