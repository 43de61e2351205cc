"""Our options against OpenRLHF's source, which is parsed and not imported: names, choices, options that GRPO reads."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import get_args

import pytest
from config_builder import make_config

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.training.backend.options import _FIXED, make_openrlhf_options

# The files that a GRPO run without critic and reward model executes.
READERS = (
    "trainer/ppo_trainer.py",
    "trainer/ray/ppo_actor.py",
    "trainer/ray/launcher.py",
    "trainer/ray/vllm_engine.py",
    "trainer/ppo_utils/experience.py",
    "trainer/ppo_utils/experience_maker.py",
    "trainer/ppo_utils/samples_generator.py",
    "trainer/ppo_utils/replay_buffer.py",
    "trainer/ppo_utils/length_penalty.py",
    "utils/deepspeed/deepspeed.py",
    "utils/loss_utils.py",
    "utils/logging_utils.py",
    "utils/utils.py",
)
NEVER_REACHED = {
    # ppo_trainer.prepare_datasets: prompts come from our PromptLoader
    "data.dataloader_num_workers",
    "data.input_template",
    "data.max_samples",
    "data.prompt_dataset",
    "data.prompt_probs",
    "data.prompt_split",
    "eval.dataset",
    "eval.split",
    # ppo_trainer.evaluate: there is no eval_dataloader
    "eval.n_samples_per_prompt",
    "eval.temperature",
    # RewardModelActor and the critic: GRPO has neither
    "ds.value_head_prefix",
    "reward.normalize_enable",
    "reward.offload",
    "train.colocate_critic_reward",
    # only with ring attention (ring_attn_size > 1)
    "ds.ring_attn_head_stride",
    # only with reward.overlong_buffer_len, train.dynamic_batch_enable, logger.tensorboard_dir, logger.wandb.key
    "reward.overlong_penalty_factor",
    "train.max_tokens_per_gpu",
    "logger.wandb.group",
    "logger.wandb.org",
    "logger.wandb.project",
    "logger.wandb.run_name",
    # read with a default at the top level, where OpenRLHF itself has no such option: the actor's own are used
    "max_norm",
    "optim",
}


@pytest.fixture(scope="module")
def openrlhf() -> Path:
    spec = importlib.util.find_spec("openrlhf")
    if spec is None:
        pytest.skip("openrlhf is not installed")
    return Path(spec.origin).parent


def build_config(**training) -> Config:
    stages = {"stage1": {"max_new_tokens": 99}, "stage2": {"enabled": True, "data": ["d"], "max_new_tokens": 98}}
    return make_config(
        policy={"max_model_len": 777},
        voting={"max_tokens": 16},
        evaluation={"max_tokens": 16},
        training={"ranks_per_node": 2, **stages, **training},
    )


def make_options(stage="stage1", **training) -> dict:
    config = build_config(**training)
    return make_openrlhf_options(config, getattr(config.training, stage), Path("/run/stage"))


def find_declarations(openrlhf: Path) -> dict[str, dict]:
    """Return option -> the constant keyword arguments of its add_argument in train_ppo_ray.py."""
    found = {}
    for node in ast.walk(ast.parse((openrlhf / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            keywords = {}
            for keyword in node.keywords:
                try:
                    keywords[keyword.arg] = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
            found[_flag(node.args[0])] = keywords
    return found


def _flag(node: ast.AST) -> str:
    """Return the option's name; in a loop over (actor, critic) it is written f"--{prefix}.name"."""
    if isinstance(node, ast.JoinedStr):
        return "actor" + node.values[-1].value
    return node.value.removeprefix("--")


def list_names(node: ast.AST) -> list[str]:
    """`self.args.actor.adam` -> ["self", "args", "actor", "adam"]; [] for other expressions."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def make_option_name(parts: list[str]) -> str:
    """Return the dotted name below `args`; '' if there is none."""
    return ".".join(parts[parts.index("args") + 1 :]) if "args" in parts else ""


def find_options_read(file: Path) -> set[str]:
    """Return the dotted names of args.x.y, self.args.x.y, strategy.args.x.y and getattr(args.x, "y") in `file`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner and not node.attr.startswith("__"):
            found.add(make_option_name(list_names(node)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner = list_names(node.args[0])
            if "args" in owner and isinstance(node.args[1], ast.Constant):
                found.add(make_option_name([*owner, node.args[1].value]))
    return found - {""}


def is_set(name: str, ours: set[str]) -> bool:
    """Return whether `name` is one of our options, or a section that contains some."""
    return name in ours or any(option.startswith(name + ".") for option in ours)


def test_every_name_is_an_option_of_openrlhf(openrlhf):
    assert set(make_options()) - set(find_declarations(openrlhf)) == set()


def test_every_value_is_one_of_openrlhfs_choices(openrlhf):
    declarations = find_declarations(openrlhf)
    limited = {name: declarations[name]["choices"] for name in make_options() if declarations[name].get("choices")}
    assert len(limited) >= 5
    for name, choices in limited.items():
        assert make_options()[name] in choices or make_options()[name] == declarations[name].get("default"), name


def test_switches_are_booleans(openrlhf):
    switches = {
        name for name, keywords in find_declarations(openrlhf).items() if keywords.get("action") == "store_true"
    }
    ours = make_options()
    assert {name for name in switches & set(ours) if not isinstance(ours[name], bool)} == set()


def test_every_option_that_grpo_reads_is_set(openrlhf):
    ours = set(make_options())
    read = {name: file for file in READERS for name in find_options_read(openrlhf / file)}
    assert len(read) > 80  # otherwise the parsing is broken
    missing = {name: file for name, file in read.items() if not is_set(name, ours) and name not in NEVER_REACHED}
    assert missing == {}


def test_the_list_of_never_reached_options_is_exact(openrlhf):
    read = set().union(*(find_options_read(openrlhf / file) for file in READERS))
    assert read >= NEVER_REACHED
    assert {name for name in NEVER_REACHED if is_set(name, set(make_options()))} == set()


def test_every_option_that_is_set_is_read(openrlhf):
    here = Path(importlib.util.find_spec("medssr_dist").origin).parent
    files = [openrlhf / file for file in READERS]
    files += [file for folder in ("training", "bench/training") for file in sorted((here / folder).rglob("*.py"))]
    read = set().union(*map(find_options_read, files))
    sections = tuple(name + "." for name in read if "." in name)  # `vars(args.actor.adam)` reads the whole section
    assert {name for name in make_options() if name not in read and not name.startswith(sections)} == set()


def test_no_option_is_also_a_section():
    names = set(make_options())
    sections = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    assert names & sections == set()


def test_fixed_options_are_those_of_grpo_without_critic():
    assert (_FIXED["train.max_epochs"], _FIXED["train.num_episodes"], _FIXED["ds.zero_stage"]) == (1, 1, 3)
    assert _FIXED["logger.wandb.key"] is _FIXED["logger.tensorboard_dir"] is None and _FIXED["ckpt.load_enable"]
    assert _FIXED["algo.dynamic_filtering_enable"] is _FIXED["train.async_enable"] is False


def test_grpo_is_the_default():
    found = make_options()
    assert (found["algo.advantage.estimator"], found["actor.policy_loss_type"]) == ("group_norm", "ppo")
    assert (found["algo.kl.use_loss"], found["algo.kl.estimator"], found["actor.dual_clip"]) == (True, "k3", None)
    assert (found["actor.loss_agg_mode"], found["algo.advantage.is_correction_level"]) == ("token-mean", "off")


def test_no_fixed_option_is_also_set_by_the_config():
    """So neither hides the other."""
    set_by_config = set(make_options()) - set(_FIXED)
    assert len(set_by_config) + len(_FIXED) == len(make_options())
    assert all(make_options()[name] == value for name, value in _FIXED.items())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"learning_rate": 3e-5}, {"actor.adam.lr": 3e-5}),
        ({"lr_scheduler": "linear"}, {"actor.lr_scheduler": "linear"}),
        ({"warmup_ratio": 0.5}, {"actor.lr_warmup_ratio": 0.5}),
        ({"max_grad_norm": 0.25}, {"actor.max_norm": 0.25}),
        ({"kl_coef": 0.5}, {"algo.kl.init_coef": 0.5}),
        ({"clip_low": 0.1, "clip_high": 0.3}, {"actor.eps_clip": 0.1, "actor.eps_clip_low_high": (0.1, 0.3)}),
        ({"advantage": "mean_only"}, {"algo.advantage.estimator": "dr_grpo"}),
        ({"advantage": "rloo"}, {"algo.advantage.estimator": "rloo"}),
        ({"ratio": "sequence"}, {"actor.policy_loss_type": "gspo"}),
        ({"aggregation": "sequence_mean"}, {"actor.loss_agg_mode": "seq-mean-token-mean"}),
        ({"dual_clip": 3.0}, {"actor.dual_clip": 3.0}),
        ({"entropy_coef": 0.01}, {"actor.entropy_coef": 0.01}),
        ({"kl_estimator": "k2"}, {"algo.kl.estimator": "k2"}),
        ({"kl_in": "reward"}, {"algo.kl.use_loss": False}),
        ({"kl_unbiased": True}, {"algo.kl.unbiased_gradient": True}),
        ({"importance": "sequence"}, {"algo.advantage.is_correction_level": "seq"}),
        (
            {"importance": "token", "importance_mode": "clip", "importance_low": 0.1, "importance_high": 2.0},
            {
                "algo.advantage.is_correction_level": "token",
                "algo.advantage.is_correction_mode": "clip",
                "algo.advantage.is_correction_threshold": [0.1, 2.0],
            },
        ),
        (
            {"importance": "token", "importance_gate": "tv", "importance_low": 0.0},
            {
                "algo.advantage.is_correction_level": "token",
                "algo.advantage.is_correction_gating": "tv",
                "algo.advantage.is_correction_threshold": [0.0, 5.0],
            },
        ),
        ({"updates_per_rollout": 4}, {"train.batch_size": 128}),
        ({"temperature": 0.7}, {"rollout.temperature": 0.7}),
        ({"max_new_tokens": 12}, {"rollout.max_new_tokens": 12}),
        ({"micro_batch_size": 4}, {"train.micro_batch_size": 4, "rollout.micro_batch_size": 4}),
        (
            {"prompts_per_step": 6, "samples_per_prompt": 3},
            {
                "rollout.batch_size": 6,
                "rollout.vllm_generate_batch_size": 6,
                "rollout.n_samples_per_prompt": 3,
                "train.batch_size": 18,  # one optimizer step per rollout: exactly on-policy
            },
        ),
    ],
)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_values_follow_the_stage(stage, setting, expected):
    base = {"max_new_tokens": 90, "data": ["d"]} if stage == "stage2" else {"max_new_tokens": 90}
    changed, unchanged = make_options(stage, **{stage: base | setting}), make_options(stage, **{stage: base})
    assert {name: changed[name] for name in expected} == expected
    assert {name for name in changed if changed[name] != unchanged[name]} == set(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"gradient_checkpointing": True}, {"actor.gradient_checkpointing_enable": True}),
        ({"offload_optimizer": True}, {"ds.adam_offload": True}),
        ({"offload_reference": True}, {"ref.offload": True}),
        ({"lora_rank": 8, "lora_alpha": 16}, {"ds.lora.rank": 8, "ds.lora.alpha": 16}),
        ({"attention": "sdpa"}, {"ds.attn_implementation": "sdpa"}),
        ({"engines": 3}, {"vllm.num_engines": 3}),
        ({"tensor_parallel_size": 2}, {"vllm.tensor_parallel_size": 2}),
        ({"colocate_reference": False}, {"train.colocate_actor_ref": False}),
        ({"ranks_per_node": 4}, {"actor.num_gpus_per_node": 4}),
        ({"nodes": 2}, {"actor.num_nodes": 2}),
        ({"nodes": 2, "ranks_per_node": 4, "hpz": True}, {"ds.zpg": 4}),
        ({"deterministic": True}, {"train.full_determinism_enable": True}),
    ],
)
def test_values_follow_the_training_section(setting, expected):
    changed = make_options(**setting)
    assert {name: changed[name] for name in expected} == expected
    assert all(make_options()[name] != value for name, value in expected.items())


def test_values_follow_the_rest_of_the_config():
    found = make_options()
    assert found["data.max_len"] == 777
    assert found["train.seed"] == 42
    assert found["ds.param_dtype"] == "bf16"
    assert Path(found["ckpt.path"]) == Path("/run/stage/checkpoints")
    assert Path(found["ckpt.output_dir"]) == Path("/run/stage/hf.partial")
    for dtype, name in (("float16", "fp16"), ("float32", "fp32")):
        other = build_config().model_copy(update={"policy": build_config().policy.model_copy(update={"dtype": dtype})})
        assert make_openrlhf_options(other, other.training.stage1, Path("f"))["ds.param_dtype"] == name


def test_every_scheduler_exists_in_transformers(openrlhf):
    """OpenRLHF passes the name to transformers' get_scheduler."""
    tree = ast.parse((openrlhf.parent / "transformers" / "trainer_utils.py").read_text(encoding="utf-8"))
    (kinds,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "SchedulerType")
    known = {node.value.value for node in kinds.body if isinstance(node, ast.Assign)}
    assert set(get_args(Stage.model_fields["lr_scheduler"].annotation)) <= known
