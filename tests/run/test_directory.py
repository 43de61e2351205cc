"""The run directory: one process at a time, one set of settings, no secrets, no half-written files."""

import os
import stat
import subprocess
import sys

import pytest
from config_builder import write_config

from medssr_dist import __version__
from medssr_dist.config.load import load_config
from medssr_dist.config.removed_keys import REMOVED_KEYS
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.run import directory
from medssr_dist.run.directory import STEP_SECTIONS, find_commit, open_run
from medssr_dist.run.paths import RECORDED_STEPS
from medssr_dist.runtime.fingerprints import fingerprint_model

SECRET = "sk-0123456789-do-not-store"
ENDPOINT = {"base_url": "http://localhost:1/v1", "model": "m", "api_key": "${RUN_DIR_TEST_KEY}"}
INPUTS = {"questions": "aa", "model": "bb"}
HOLD_THE_LOCK = """
import sys
from pathlib import Path
from medssr_dist.config.load import load_config
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.run.directory import open_run
with open_run(Path(sys.argv[1]), load_config(Path(sys.argv[2]))):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def umask_restored():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_DIR_TEST_KEY", SECRET)
    return write_config(
        tmp_path / "config.yaml",
        policy={"model": "embedded:smollm2-135m"},
        synthesis={"accepted": 8, "seeds": ["hpo:seeds"], "endpoints": [ENDPOINT]},
        training={"stage2": {"enabled": True, "data": ["hpo:supervised"]}},
    )


@pytest.fixture
def configured(config_file):
    return lambda *overrides: load_config(config_file, list(overrides))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "run"


def begin(root, config, step="vote", inputs=INPUTS):
    with open_run(root, config) as run:
        run.begin_step(step, config, inputs)
        return run


def refused(root, config, **options) -> str:
    with pytest.raises(InputError) as error:
        begin(root, config, **options)
    return str(error.value)


# --- opening ----------------------------------------------------------------------------------------


def test_a_second_process_is_refused_while_the_first_runs(root, config_file, configured):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(root), str(config_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "open\n"
        before = (root / "manifest.json").read_bytes()
        with pytest.raises(InputError, match="in use by another medssr process"), open_run(root, configured()):
            pass
        assert (root / "manifest.json").read_bytes() == before
    finally:
        holder.kill()
        holder.communicate()
    with open_run(root, configured()) as run:  # the lock of a killed process is free
        assert len(run.read_manifest().attempts) == 2


def test_the_manifest_records_code_and_settings(root, configured):
    with open_run(root, configured()) as run:
        run.begin_step("vote", configured(), INPUTS)
        run.finish_step("vote")
    manifest = read_json(root / "manifest.json")
    (attempt,) = manifest["attempts"]
    assert attempt["commit"] == find_commit()
    assert attempt["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert attempt["versions"]["medssr_dist"] == __version__
    assert attempt["versions"]["torch"]
    assert attempt["host"]
    step = manifest["steps"]["vote"]
    assert step["inputs"] == INPUTS
    assert step["settings"]["voting.samples"] == 16
    assert step["started"] <= step["finished"]
    assert {key.split(".")[0] for key in step["settings"]} == {"policy", "voting", "runtime"}


def test_a_run_of_an_earlier_version_is_resumed(root, configured):
    """It recorded keys that are removed now. Where their value is what training always does, nothing has changed."""
    with open_run(root, configured()) as run:
        run.begin_step("stage1", configured(), INPUTS)
    file = root / "manifest.json"
    manifest = read_json(file)
    settings = manifest["steps"]["stage1"]["settings"]
    settings |= {key: removed.value for key, removed in REMOVED_KEYS.items()}
    write_json(file, manifest)
    with open_run(root, configured()) as run:
        run.begin_step("stage1", configured(), INPUTS)
    settings["training.rollout"] = "openrlhf"
    write_json(file, manifest)
    with pytest.raises(InputError, match="training.rollout: 'openrlhf' -> None"), open_run(root, configured()) as run:
        run.begin_step("stage1", configured(), INPUTS)


@pytest.mark.parametrize(
    ("step", "key", "new"),
    [("stage1", "training.stage1.flat_limit", "0.5"), ("vote", "voting.record_logprobs", "true")],
)
def test_an_option_that_a_run_did_not_know_is_off_in_it(root, configured, step, key, new):
    with open_run(root, configured()) as run:
        run.begin_step(step, configured(), INPUTS)
    file = root / "manifest.json"
    manifest = read_json(file)
    del manifest["steps"][step]["settings"][key]
    write_json(file, manifest)
    with open_run(root, configured()) as run:
        run.begin_step(step, configured(), INPUTS)
    changed = configured(f"{key}={new}")
    with pytest.raises(InputError, match=f"{key}: "), open_run(root, configured()) as run:
        run.begin_step(step, changed, INPUTS)


def test_a_run_with_the_one_corpus_of_earlier_is_resumed(root, configured):
    def with_corpus(limit):
        return configured(f"knowledge={{corpora: [{{name: hpo, limit: {limit}}}]}}")

    with open_run(root, with_corpus(40)) as run:
        run.begin_step("synthesize", with_corpus(40), INPUTS)
    file = root / "manifest.json"
    manifest = read_json(file)
    settings = manifest["steps"]["synthesize"]["settings"]
    for key in ("corpora", "corpora_root", "entities_file", "must_name_entity", "search_depth"):
        del settings[f"knowledge.{key}"]
    corpus = {"path": "hpo:passages", "name": "", "limit": 40}
    settings |= {f"knowledge.corpus.{key}": value for key, value in corpus.items()}
    write_json(file, manifest)
    with open_run(root, with_corpus(40)) as run:
        run.begin_step("synthesize", with_corpus(40), INPUTS)
    with (
        pytest.raises(InputError, match=r"knowledge.corpora: .*'limit': 40.* -> .*'limit': 41"),
        open_run(root, with_corpus(41)),
    ):
        pass


def test_a_run_from_before_there_were_prompts_had_direct(root, configured):
    """Its votes were taken with what is `direct` now: that continues it, and the default of today does not."""
    direct = configured("policy.prompt=direct")
    with open_run(root, direct) as run:
        run.begin_step("vote", direct, INPUTS)
    file = root / "manifest.json"
    manifest = read_json(file)
    settings = manifest["steps"]["vote"]["settings"]
    for key in ("policy.prompt", "policy.system_prompt"):
        del settings[key]
    write_json(file, manifest)
    with open_run(root, direct) as run:
        run.begin_step("vote", direct, INPUTS | {"revision": "0c1d"})
    message = (
        r"began 'vote' with other settings \(policy.prompt: 'direct 1 .*' -> 'reason 1 .*'\); give a new --run-dir"
    )
    with pytest.raises(InputError, match=message), open_run(root, configured()):
        pass


def test_each_opening_is_recorded_with_the_newest_config(root, configured):
    begin(root, configured("voting.buffer=3"))
    begin(root, configured("voting.buffer=4"))
    assert len(read_json(root / "manifest.json")["attempts"]) == 2
    assert read_json(root / "config.resolved.json")["voting"]["buffer"] == 4


def test_the_resolved_config_holds_sections_and_defaults(root, configured):
    begin(root, configured())
    resolved = read_json(root / "config.resolved.json")
    assert set(resolved) == {"policy", "knowledge", "synthesis", "voting", "training", "evaluation", "runtime"}
    assert resolved["evaluation"]["generations"] == 4


def test_no_secret_is_written_anywhere(root, configured):
    config = configured()
    assert config.synthesis.endpoints[0].api_key.get_secret_value() == SECRET
    with open_run(root, config) as run:
        for step in STEP_SECTIONS:
            run.begin_step(step, config, INPUTS)
            run.finish_step(step)
    written = [file.read_bytes() for file in root.rglob("*") if file.is_file()]
    assert len(written) >= 3
    assert all(SECRET.encode() not in content for content in written)
    assert "api_key" not in (root / "manifest.json").read_text()


def test_only_the_owner_can_read_a_run(root, configured):
    begin(root, configured())
    for path in [*root.rglob("*"), root]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path, configured):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another with --run-dir"), open_run(tmp_path / "file", configured()):
        pass
    with pytest.raises(InputError, match="--run-dir"), open_run(tmp_path / "file" / "below", configured()):
        pass


def test_paths(root, configured):
    with open_run(root, configured()) as run:
        assert run.logs.is_dir()
        folders = {run.step(name).folder for name in RECORDED_STEPS}
        assert {str(folder.relative_to(root)) for folder in folders} == {
            "synthesis",
            "voting",
            "evaluation",
            "training/stage1",
            "training/stage2",
        }


# --- steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "override", "needle"),
    [
        ("vote", "voting.samples=8", "voting.samples: 16 -> 8"),
        ("vote", "policy.dtype=float16", "policy.dtype: 'bfloat16' -> 'float16'"),
        ("vote", "runtime.random_seed=1", "runtime.random_seed: 42 -> 1"),
        ("synthesize", "synthesis.alpha=0.25", "synthesis.alpha: 0.5 -> 0.25"),
        ("synthesize", "synthesis.seeds=[other.jsonl]", "other.jsonl"),
        ("synthesize", "knowledge.top_k=5", "knowledge.top_k: 3 -> 5"),
        ("stage1", "training.stage1.learning_rate=0.5", "training.stage1.learning_rate: 1e-06 -> 0.5"),
        ("stage2", "training.stage2.kl_coef=0.5", "training.stage2.kl_coef: 0.001 -> 0.5"),
    ],
)
def test_changed_settings_are_refused_by_key_old_and_new(root, configured, step, override, needle):
    begin(root, configured(), step=step)
    before = read_json(root / "manifest.json")["steps"]
    message = refused(root, configured(override), step=step)
    for part in (needle, f"'{step}'", str(root), "new --run-dir"):
        assert part in message
    assert read_json(root / "manifest.json")["steps"] == before


@pytest.mark.parametrize(
    ("step", "override"),
    [
        ("vote", "voting.engines=2"),
        ("vote", "voting.question_buffer=1"),
        ("vote", "voting.buffer=1"),
        ("vote", "voting.tensor_parallel_size=2"),
        ("vote", "synthesis.alpha=0"),  # another step's
        ("vote", "runtime.mode=stream"),
        ("vote", "evaluation.generations=2"),
        ("synthesize", "synthesis.endpoints.0.concurrency=1"),
        ("synthesize", "synthesis.retry.whole_s=1"),
        ("synthesize", "synthesis.retry.tries=1"),
        ("synthesize", "synthesis.endpoints.0.base_url=http://other/v1"),
        ("synthesize", "synthesis.endpoints.0.api_key=null"),
        (
            "synthesize",
            'synthesis.endpoints=[{base_url: "http://a/v1", model: m}, {base_url: "http://b/v1", model: m}]',
        ),
        ("synthesize", "synthesis.accepted=9"),
        ("synthesize", "synthesis.budget.tokens=1000"),
        ("synthesize", "knowledge.batch_size=1"),
        ("stage1", "training.engines=2"),
        ("stage1", "training.stage2.learning_rate=0.5"),
    ],
)
def test_settings_of_how_a_step_runs_may_change(root, configured, step, override):
    with open_run(root, configured()) as run:
        run.begin_step(step, configured(), INPUTS)
        run.finish_step(step)
    assert begin(root, configured(override), step=step).is_finished(step)


def test_the_free_keys_are_config_keys(configured):
    flat = directory.flatten_settings(directory.dump_config(configured()))
    absent = {"synthesis.prices", "synthesis.judge.endpoints"}  # sections that are empty by default
    for free in set(directory._FREE_KEYS) - absent:
        assert any(directory._is_below(key, (free,)) for key in flat), free


def test_the_steps_sections_are_config_keys(configured):
    flat = directory.flatten_settings(directory.dump_config(configured()))
    for section in {section for sections in STEP_SECTIONS.values() for section in sections}:
        assert any(key == section or key.startswith(section + ".") for key in flat), section


def test_another_model_or_reply_format_is_refused(root, configured):
    with open_run(root, configured()) as run:
        run.begin_step("synthesize", configured(), INPUTS)
    for override, name in (("model=x", "synthesis.models"), ("json_schema=true", "synthesis.json_schema")):
        with pytest.raises(InputError, match=name), open_run(root, configured(f"synthesis.endpoints.0.{override}")):
            pass


def test_a_step_is_reopened_only_before_the_next_begins(root, configured):
    with open_run(root, configured()) as run:
        run.begin_step("synthesize", configured(), INPUTS)
        run.finish_step("synthesize")
        run.reopen_step("synthesize")
        assert not run.is_finished("synthesize")
        run.finish_step("synthesize")
        run.begin_step("vote", configured(), INPUTS)
        with pytest.raises(InputError, match="'vote' was begun"):
            run.reopen_step("synthesize")
        assert run.is_finished("synthesize")


def test_a_follower_is_reopened_too(root, configured):
    with open_run(root, configured()) as run:
        for step in ("synthesize", "vote"):
            run.begin_step(step, configured(), INPUTS)
            run.finish_step(step)
        run.reopen_step("synthesize", followers=("vote",))
        assert not run.is_finished("synthesize") and not run.is_finished("vote")
        run.begin_step("stage1", configured(), INPUTS)
        with pytest.raises(InputError, match="'stage1' was begun"):
            run.reopen_step("synthesize", followers=("vote",))


def test_an_input_that_earlier_versions_did_not_record(root, configured):
    with open_run(root, configured()) as run:
        run.begin_step("synthesize", configured(), INPUTS)
        run.finish_step("synthesize")
        run.begin_step("synthesize", configured(), INPUTS | {"prompt": "dd"})
        assert run.is_finished("synthesize")
        run.begin_step("vote", configured(), INPUTS | {"prompt": "dd"})
        with pytest.raises(InputError, match="prompt: 'dd' -> 'ee'"):
            run.begin_step("vote", configured(), INPUTS | {"prompt": "ee"})


def test_changed_inputs_are_refused(root, configured):
    begin(root, configured())
    message = refused(root, configured(), inputs=INPUTS | {"questions": "cc"})
    assert "questions: 'aa' -> 'cc'" in message
    assert "None -> 'x'" in refused(root, configured(), inputs=INPUTS | {"new": "x"})


def test_a_changed_evaluation_has_to_run_again(root, configured):
    with open_run(root, configured()) as run:
        run.begin_step("evaluate", configured(), INPUTS)
        run.finish_step("evaluate")
    assert begin(root, configured(), step="evaluate").is_finished("evaluate")
    run = begin(root, configured("evaluation.generations=2"), step="evaluate")
    assert not run.is_finished("evaluate")
    assert run.read_manifest().steps["evaluate"].settings["evaluation.generations"] == 2


def test_resuming_a_step_keeps_its_start_time(root, configured, monkeypatch):
    begin(root, configured())
    first = read_json(root / "manifest.json")["steps"]["vote"]
    monkeypatch.setattr(directory, "_timestamp", lambda: "later")
    begin(root, configured())
    assert read_json(root / "manifest.json")["steps"]["vote"] == first


def test_a_step_not_begun_is_not_finished(root, configured):
    with open_run(root, configured()) as run:
        assert not run.is_finished("vote")
        run.begin_step("vote", configured(), INPUTS)
        assert not run.is_finished("vote")
        run.finish_step("vote")
        assert run.is_finished("vote")


# --- crashes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_in", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_manifest(root, configured, monkeypatch, dies_in):
    begin(root, configured())

    def die(*args):
        raise KeyboardInterrupt

    with open_run(root, configured()) as run:
        before = (root / "manifest.json").read_bytes()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, dies_in, die)
            run.finish_step("vote")
        assert (root / "manifest.json").read_bytes() == before
        assert not run.is_finished("vote")
        run.finish_step("vote")
        assert run.is_finished("vote")


def test_the_error_names_a_damaged_manifest(root, configured):
    begin(root, configured())
    (root / "manifest.json").write_text('{"attempts": [')
    assert "manifest.json is not valid JSON" in refused(root, configured())


# --- commit -----------------------------------------------------------------------------------------


@pytest.fixture
def fresh_commit():
    find_commit.cache_clear()
    yield find_commit
    find_commit.cache_clear()


def test_without_git_the_commit_is_the_version(fresh_commit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh_commit() == __version__


def test_outside_a_checkout_the_commit_is_the_version(fresh_commit, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))
    assert fresh_commit() == __version__


def test_a_changed_model_has_another_fingerprint(tmp_path):
    weights = bytearray(2**25)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = fingerprint_model(tmp_path)
    weights[2**24 : 2**24 + 2**18] = b"\1" * 2**18
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert fingerprint_model(tmp_path) != before
