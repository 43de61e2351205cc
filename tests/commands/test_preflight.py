"""The checks of `medssr doctor`: Slurm, number of GPUs, devices, storage, time. Nodes: test_preflight_nodes.py."""

import socket
import time
from types import SimpleNamespace

import pytest
from attempt_files import write_timings
from config_builder import write_config
from ledger_writer import fill
from preflight_config import EIGHT_GPUS, eight_gpu_config, outside_slurm  # noqa: F401

from medssr_dist.bench.result_file import write_result
from medssr_dist.commands.doctor import CHECKS, LOGIN, inputs, run_check, software, storage
from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.gpu_count import compare_gpus, fit_partitions
from medssr_dist.commands.doctor.slurm_settings import (
    Partition,
    list_job_hosts,
    parse_partition,
    parse_time,
    read_seconds_left,
)
from medssr_dist.commands.doctor.walltime_check import check_walltime
from medssr_dist.config.load import load_config
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import EXIT_BAD_INPUT
from medssr_dist.launch.attempts import FIRST_ANSWER, Attempt
from medssr_dist.run.directory import open_run

# --- facts from Slurm


def test_slurm_times():
    texts = ["1-02:00:05", "2:00:05", "00:30", "59:59", "UNLIMITED", "NOT_SET", ""]
    assert [parse_time(text) for text in texts] == [93605, 7205, 30, 3599, None, None, None]


def test_partitions():
    assert parse_partition("gpu|16|gpu:h100:8(S:0-1)|2-00:00:00") == Partition("gpu", 16, 8, 172800)
    assert parse_partition("old|4|gpu:4,nvme:1|infinite") == Partition("old", 4, 4, None)
    assert parse_partition("cpu|9|(null)|1:00:00").gpus == 0


def test_hosts_of_the_job(monkeypatch):
    assert len(list_job_hosts()) == 1
    monkeypatch.setenv("MEDSSR_NODES", "n1,n2 n3")
    assert list_job_hosts() == ["n1", "n2", "n3"]


def test_the_time_limit_comes_from_the_job(monkeypatch):
    assert read_seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 3600))
    assert 3000 < read_seconds_left() <= 3600


# --- number of GPUs


@pytest.mark.parametrize(
    ("gpus", "training", "status", "said"),
    [
        ({"n1": 8}, {}, "pass", "voting engines 8, training ranks 6, rollout engines 2: 8 at once; 8 GPUs are there"),
        ({"n1": 8, "n2": 8}, {}, "pass", "(n1 8, n2 8); 8 stay idle"),
        ({"n1": 4, "n2": 2}, {}, "fail", "training.nodes = 1 need 6 each"),
        ({"n1": 6}, {}, "fail", "2 are missing"),
        ({"n1": 8, "n2": 4}, {"nodes": 2}, "fail", "training.nodes = 2 need 6 each"),
        (
            {"n1": 8},
            {"tensor_parallel_size": 16},
            "fail",
            "training.tensor_parallel_size = 16 needs that many on one node",
        ),
        ({"n1": None, "n2": None}, {}, "pass", "as logical GPUs on 2 nodes"),
    ],
)
def test_gpu_arithmetic(gpus, training, status, said):
    result = compare_gpus(eight_gpu_config(training=training), gpus)
    assert result.status == status and said in result.detail, result
    assert bool(result.fix) == (status != "pass")


def test_missing_gpus_may_be_in_a_running_ray_cluster():
    assert compare_gpus(eight_gpu_config(), {"n1": 2}, joins_ray=True).status == "warn"


def test_job_size_gives_the_options_of_sbatch(monkeypatch):
    small, large = Partition("small", 9, 4, None), Partition("large", 2, 8, None)
    assert (
        "sbatch --partition=large --nodes=1 --gpus-per-node=8"
        in fit_partitions(eight_gpu_config(), [small, large]).detail
    )
    result = fit_partitions(eight_gpu_config(), [small])
    assert "small 9 x 4" in result.detail and result.status == "fail"
    assert fit_partitions(eight_gpu_config(), [Partition("cpu", 9, 0, None)]).status == "warn"
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    assert fit_partitions(eight_gpu_config(), []).status == "pass"


# --- devices and limits


def test_driver_lines():
    text = "NVIDIA H100 80GB HBM3, 580.65.06, 3, Default\nNVIDIA A100, SXM, 580.65.06, [N/A], Exclusive_Process\n"
    assert software.parse_driver(text) == [
        ("NVIDIA H100 80GB HBM3", "580.65.06", 3, "Default"),
        ("NVIDIA A100, SXM", "580.65.06", 0, "Exclusive_Process"),
    ]


def test_caches_that_cannot_be_written_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_check(CHECKS["caches"], eight_gpu_config(), tmp_path).status == "pass"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file" / "triton"))
    assert run_check(CHECKS["caches"], eight_gpu_config(), tmp_path).status == "warn"  # nothing is compiled on CPU
    monkeypatch.setattr("medssr_dist.runtime.device.on_gpu", lambda: True)
    result = run_check(CHECKS["caches"], eight_gpu_config(), tmp_path)
    assert result.status == "fail" and "TRITON_HOME" in result.detail and "XDG_CACHE_HOME" in result.fix


def test_infiniband_without_its_library_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "_INFINIBAND", tmp_path)
    assert run_check(CHECKS["fabric"], eight_gpu_config(), tmp_path).detail == "no InfiniBand on this node"
    (tmp_path / "mlx5_0").mkdir()

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(software.ctypes, "CDLL", absent)
    result = run_check(CHECKS["fabric"], eight_gpu_config(), tmp_path)
    assert result.status == "fail" and "NCCL would use TCP: libibverbs.so.1" in result.detail


def test_gpus_of_slurm_that_torch_cannot_see_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setattr("medssr_dist.runtime.device.on_gpu", lambda: False)
    result = run_check(CHECKS["devices"], eight_gpu_config(), tmp_path)
    assert result.status == "fail" and "Slurm gave 4 to this node" in result.detail and "--nv" in result.fix
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    asked = eight_gpu_config(training={"attention": "flash_attention_2"})
    assert "flash attention needs CUDA" in run_check(CHECKS["devices"], asked, tmp_path).detail


@pytest.mark.parametrize(
    ("dtype", "able", "status"),
    [
        ("bfloat16", {"avx2": True, "avx512_bf16": False}, "warn"),
        ("bfloat16", {"avx512_bf16": True}, "pass"),
        ("bfloat16", {"architecture": "aarch64", "bf16": True}, "pass"),
        ("float16", {"avx512_bf16": True}, "warn"),
        ("float32", {}, "pass"),
    ],
)
def test_a_cpu_without_instructions_for_the_dtype_is_a_warning(monkeypatch, tmp_path, dtype, able, status):
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    asked = eight_gpu_config(policy={"dtype": dtype}, training={"attention": "sdpa"})
    result = run_check(CHECKS["devices"], asked, tmp_path)
    assert (result.status, result.fix) == (status, "" if status == "pass" else "set policy.dtype=float32")


def test_the_instructions_of_the_cpu_are_named(monkeypatch, tmp_path):
    able = {"cpu_name": "x", "amx_tile": True, "avx2": True, "avx512_bf16": False, "l2_cache_size": 1, "fma3": True}
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    asked = eight_gpu_config(training={"attention": "sdpa"}, policy={"dtype": "float32"})
    assert run_check(CHECKS["devices"], asked, tmp_path).detail.endswith(" cores; amx_tile, avx2")
    write_result(tmp_path / "bench.json", {})
    assert read_json(tmp_path / "bench.json")["machine"]["instruction_sets"] == ["amx_tile", "avx2"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert run_check(CHECKS["devices"], asked, tmp_path).detail.endswith("; amx_tile, avx2; ONEDNN_MAX_CPU_ISA=AVX2")
    write_result(tmp_path / "bench.json", {})
    assert read_json(tmp_path / "bench.json")["machine"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_an_import_that_fails_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(software, "_IMPORTED", ("json", "broken_library"))
    result = run_check(software.check_imports, eight_gpu_config(), tmp_path)
    assert result.status == "fail"
    assert result.detail == "cannot import broken_library: ImportError: libcuda.so.1: cannot open shared object file"


def test_limits_name_the_ulimit_to_raise(monkeypatch, tmp_path):
    small = {software.resource.RLIMIT_NOFILE: (1024, 4096), software.resource.RLIMIT_NPROC: (512, 512)}
    monkeypatch.setattr(software.resource, "getrlimit", lambda kind: small.get(kind, (-1, -1)))
    result = run_check(CHECKS["limits"], eight_gpu_config(), tmp_path)
    assert (result.status, result.fix) == ("warn", "ulimit -n 65536; ulimit -u 65536")
    small[software.resource.RLIMIT_NOFILE] = (256, 4096)
    assert run_check(CHECKS["limits"], eight_gpu_config(), tmp_path).status == "fail"


# --- storage


def test_disk_leaves_nothing_and_few_inodes_fail(monkeypatch, tmp_path):
    assert "32 files written" in run_check(CHECKS["disk"], eight_gpu_config(), tmp_path / "run").detail
    assert list(tmp_path.iterdir()) == []
    room = SimpleNamespace(f_files=10**6, f_favail=9, f_bavail=10**9, f_blocks=10**9, f_bfree=10**9, f_frsize=512)
    monkeypatch.setattr(storage.os, "statvfs", lambda path: room)
    result = run_check(CHECKS["disk"], eight_gpu_config(), tmp_path / "run")
    assert result.status == "fail" and "9 inodes free" in result.detail


@pytest.mark.parametrize(("mode", "status"), [(0o700, "pass"), (0o750, "warn"), (0o770, "fail"), (0o777, "fail")])
def test_a_run_directory_open_to_other_users(tmp_path, mode, status):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(mode)
    result = run_check(CHECKS["private"], eight_gpu_config(), run)
    assert result.status == status and (status == "pass" or result.fix == f"chmod 700 {run}")


def test_scratch_that_is_missing_fails_and_a_long_path_warns(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSSR_SCRATCH", str(tmp_path / "absent"))
    assert "cannot write in" in run_check(CHECKS["temp"], eight_gpu_config(), tmp_path).detail
    long = tmp_path / ("long" * 12)
    long.mkdir()
    monkeypatch.setenv("MEDSSR_SCRATCH", str(long))
    result = run_check(CHECKS["temp"], eight_gpu_config(), tmp_path)
    assert result.status == "warn" and "characters long" in result.detail and "MEDSSR_SCRATCH" in result.fix


def test_clock_differences_warn_and_fail():
    assert [storage.judge_clock(apart, "x").status for apart in (0.1, 5.0, 100.0)] == ["pass", "warn", "fail"]


# --- endpoints


def test_endpoint_behind_a_proxy_and_after_synthesis(monkeypatch, tmp_path):
    far = eight_gpu_config(synthesis={"endpoints": [{"base_url": "https://api.invalid/v1", "model": "m"}]})
    assert run_check(inputs.check_endpoints, far, tmp_path).status == "fail"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert "(proxy for api.invalid) answers" in run_check(inputs.check_endpoints, far, tmp_path).detail
    assert run_check(inputs.check_endpoints, far, tmp_path).status == "fail"
    with open_run(tmp_path / "run", far) as run:
        run.begin_step("synthesize", far, {})
        run.finish_step("synthesize")
    assert run_check(inputs.check_endpoints, far, tmp_path / "run") == CheckResult(
        "pass", "the questions are already written"
    )


# --- time


@pytest.fixture
def voted(tmp_path):
    """A run that has labels of 10 of 40 questions after 100 s, with one attempt that took 30 s to start."""
    settings = eight_gpu_config()
    with open_run(tmp_path / "run", settings) as run:
        for step in ("synthesize", "vote"):
            run.begin_step(step, settings, {})
        run.finish_step("synthesize")
    fill(run.voting.folder, questions=10)
    write_json(run.clock_file, {"synthesize": 5.0, "vote": 100.0})
    write_timings(Attempt.begin(run.root), {"Ray on every node": 20.0, FIRST_ANSWER: 30.0})
    return run.root


def test_time_is_unknown_without_measured_rates(tmp_path):
    result = check_walltime(eight_gpu_config(), tmp_path / "run")
    assert result.status == "pass" and "unknown for synthesize, vote, stage1" in result.detail


@pytest.mark.parametrize(
    ("left", "status", "said"),
    [(7200, "pass", "vote about 5 min"), (180, "warn", "about 2 attempts"), (35, "fail", "no attempt would get past")],
)
def test_time_against_the_limit(voted, monkeypatch, left, status, said):
    monkeypatch.setattr("medssr_dist.commands.doctor.walltime_check.read_seconds_left", lambda: left)
    result = check_walltime(eight_gpu_config(), voted)
    assert result.status == status and said in result.detail + result.fix, result
    assert "unknown for stage1" in result.detail


def test_rates_of_an_earlier_run(voted, tmp_path):
    detail = check_walltime(eight_gpu_config(), tmp_path / "new", rates_from=voted).detail
    assert "vote about 7 min" in detail and "unknown for synthesize, stage1" in detail


# --- the command


def test_options_of_medssr_doctor(medssr, tmp_path):
    file = write_config(tmp_path / "config.yaml", **EIGHT_GPUS)
    assert load_config(file) == eight_gpu_config()
    there = ["doctor", "--config", file, "--run-dir", tmp_path / "run"]
    assert medssr(*there, "--login", "--dry-run").stdout.split("\n  ")[1:] == [
        *list(LOGIN)[:-1],
        f"{list(LOGIN)[-1]}\n",
    ]
    only_questions = medssr(*there, "--step", "synthesize", "--dry-run").stdout.split()
    assert "endpoints" in only_questions and not {"devices", "gpus", "model"} & set(only_questions)
    only_votes = medssr(*there, "--step", "vote", "--dry-run").stdout.split()
    assert {"devices", "gpus", "model"} <= set(only_votes) and "endpoints" not in only_votes
    refused = medssr(*there, "--node", check=False)
    assert refused.returncode == EXIT_BAD_INPUT and "needs --out DIR" in refused.stderr
    refused = medssr(*there, "--gather", tmp_path / "nothing", check=False)
    assert refused.returncode == EXIT_BAD_INPUT and "holds no report" in refused.stderr
