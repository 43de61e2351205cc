"""A killed run finds the newest checkpoint that every rank has finished, and nothing torn beside it."""

import pytest

from medssr_dist.training.checkpoints import drop_torn, mark_whole


@pytest.fixture
def ranks(tmp_path):
    folder = tmp_path / "_actor"
    folder.mkdir()
    return folder


def save(ranks, step):
    (ranks / f"global_step{step}").mkdir()
    (ranks / f"global_step{step}" / "shard").write_text("x")
    (ranks / "latest").write_text(f"global_step{step}")


def found(ranks):
    return sorted(folder.name for folder in ranks.iterdir() if folder.is_dir()), (ranks / "latest").read_text()


def test_before_the_first_step_there_is_nothing_to_drop(tmp_path):
    drop_torn(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


def test_whole_checkpoints_stay(tmp_path, ranks):
    for step in (9, 10):
        save(ranks, step)
        mark_whole(tmp_path, step)
    drop_torn(tmp_path)
    assert found(ranks) == (["global_step10", "global_step9"], "global_step10")


def test_killed_in_the_first_save_starts_from_nothing(tmp_path, ranks):
    (ranks / "global_step1").mkdir()
    drop_torn(tmp_path)
    assert not ranks.exists()


@pytest.mark.parametrize("latest", ["global_step9", "global_step10", ""])
def test_killed_in_a_later_save_goes_back_to_the_whole_one(tmp_path, ranks, latest):
    save(ranks, 9)
    mark_whole(tmp_path, 9)
    save(ranks, 10)
    (ranks / "latest").write_text(latest)
    drop_torn(tmp_path)
    assert found(ranks) == (["global_step9"], "global_step9")
