"""A checkpoint of real ZeRO-3 ranks: verified, resumed bit for bit, and converted to other numbers of ranks."""

from __future__ import annotations

import math
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from places import HELPERS
from zero_cases import VOCABULARY, make_batch, save_tiny_llama

from medssr_dist.data.checksums import compute_file_checksum
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths
from medssr_dist.training.weights.checkpoints import Checkpoint, CheckpointKeeper, StoredFile, recover_checkpoint
from medssr_dist.training.weights.rank_state import convert_to_ranks, get_rng_states, restore_rng_states, verify_files


def test_random_numbers_resume():
    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    state = get_rng_states()
    expected = draw()
    restore_rng_states(state)
    assert draw() == expected


@pytest.fixture
def written(tmp_path) -> Path:
    """Return a rank's file, as torch writes it."""
    file = tmp_path / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({"moments": torch.arange(10_000)}, file)
    return file


def test_a_rank_verifies_only_its_own_files(written):
    torch.save({}, written.with_name("zero_pp_rank_11_mp_rank_00_model_states.pt"))
    assert verify_files(written.parent, 1) == {
        written.name: StoredFile(written.stat().st_size, compute_file_checksum(written))
    }


def test_a_flipped_byte_is_found(written):
    data = bytearray(written.read_bytes())
    place = data.find(torch.arange(10_000).numpy().tobytes()[:800]) + 400
    data[place] ^= 1
    written.write_bytes(data)
    with pytest.raises(RuntimeError, match="differs from its checksum"):
        verify_files(written.parent, 1)


def test_a_rank_without_files_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="rank 3 has written no file"):
        verify_files(tmp_path, 3)


def test_failed_conversion_names_both_numbers_of_ranks(tmp_path):
    checkpoint = Checkpoint(step=4, ranks=3, reward=0.0, seconds=1.0, files={})
    assert not convert_to_ranks(tmp_path, checkpoint, 3)
    with pytest.raises(InputError, match="written by 3 ranks, the run has 2, .*ranks_per_node = 3 again"):
        convert_to_ranks(tmp_path, checkpoint, 2)


class Ranks:
    """Starts groups of checkpoint_ranks.py on one stage folder."""

    def __init__(self, folder: Path):
        batch = make_batch(idle=False)
        flat = torch.full(batch["action_mask"].shape, -math.log(VOCABULARY)) * batch["action_mask"]
        batch |= {"action_log_probs": flat, "base_action_log_probs": flat.clone()}
        self.folder, self._runs = folder / "stage", 0
        self._job = {
            "model": str(save_tiny_llama(folder / "model", tied=True)),
            "folder": str(self.folder),
            "batch": batch,
        }

    def run(self, world: int, steps: int, tag: str = "", universal: bool = False) -> list[dict]:
        self._runs += 1
        job = self.folder.parent / f"job{self._runs}"
        torch.save(self._job | {"steps": steps, "tag": tag, "universal": universal}, job)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        script = HELPERS / "checkpoint_ranks.py"
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", script, job, str(rank), str(world), str(port)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        outputs = [rank.communicate(timeout=900)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(output[-3000:] for output in outputs)
        return [torch.load(f"{job}.{rank}", weights_only=False) for rank in range(world)]


def drift(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the root mean square difference of all weights."""
    apart = torch.cat([(weights[name] - weight).flatten() for name, weight in expected.items()])
    return apart.square().mean().sqrt().item()


@pytest.mark.slow
def test_ranks_resume_bit_for_bit_and_in_other_numbers(tmp_path):
    ranks, found = Ranks(tmp_path), []

    def write(folder: Path, tag: str, state: dict) -> list[dict[str, StoredFile]]:
        found.extend(ranks.run(2, steps=2, tag=tag))
        return [each["files"] for each in found]

    checkpoints = ranks.folder / "checkpoints"
    saved = CheckpointKeeper(checkpoints, 1, lambda: 10**6, write).save(2, {}, reward=0.5)
    assert saved.ranks == 2 and len(saved.files) == 4
    assert recover_checkpoint(checkpoints) == saved
    # The reserved space was enough, and not much more.
    assert sum(saved.files.values()) <= sum(each["bytes"] for each in found) < sum(saved.files.values()) + 2**22

    (first, second) = ranks.run(2, steps=1)
    unstopped = found[0]
    assert first["state"]["global_step"] == 2 and first["state"]["left"].tolist() == [0, 1, 2]
    assert first["status"][0] == unstopped["status"][2] != unstopped["status"][1]
    assert all(torch.equal(weight, unstopped["weights"][name]) for name, weight in first["weights"].items())
    assert first["status"][0] == second["status"][0]

    for world in (1, 4):
        assert convert_to_ranks(checkpoints, saved, world)
        other = ranks.run(world, steps=1, universal=True)[0]
        assert other["state"]["global_step"] == 2
        assert other["status"][0]["learning_rate"] == unstopped["status"][2]["learning_rate"]
        assert other["status"][0]["policy_loss"] == pytest.approx(unstopped["status"][2]["policy_loss"], abs=1e-3)
        # AdamW changes weights by about the learning rate in a step; without its moments they would differ by as much.
        assert drift(other["weights"], unstopped["weights"]) < 0.1 * unstopped["status"][2]["learning_rate"], world
        assert recover_checkpoint(checkpoints) == saved
    assert [folder for folder in CheckpointPaths(checkpoints).ranks.iterdir() if folder.is_dir()] == [
        CheckpointPaths(checkpoints).at(saved.step)
    ]
