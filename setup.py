"""Packages and their folders; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup

DATA = {
    "medssr_dist.bench": ["*.yaml"],
    "medssr_dist.bench.answers": ["*.jsonl"],
    "medssr_dist.bench.guard": ["*.yaml"],
    "medssr_dist.bench.method": ["*.yaml"],
    "medssr_dist.data": ["prompts/*.yaml"],
    "medssr_dist.knowledge": ["data/*"],
    "medssr_dist.mini_policy": ["medssr-mini/*"],
    "medssr_dist.report": ["*.jinja", "*.css", "*.js"],
    "medssr_dist.synthesis": ["*.yaml"],
    "medssr_dist.config": ["*.yaml"],
    "medssr_dist.configs": ["*.yaml", "*/*.yaml"],
    "medssr_dist.launch": ["*.sh", "env.d/*", "containers/*"],
    "medssr_dist.slurm": ["*.sh"],
}
# Folders beside medssr_dist/ that an installed package has inside.
BESIDE = ("configs", "kernels", "launch", "slurm")
setup(
    packages=[*find_packages(include=["medssr_dist", "medssr_dist.*"]), *(f"medssr_dist.{name}" for name in BESIDE)],
    package_data=DATA,
    package_dir={f"medssr_dist.{name}": name for name in BESIDE},
)
