"""Packages and their folders; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup

DATA = {
    "medssr_dist.bench.answers": ["*.jsonl"],
    "medssr_dist.data": ["prompts/*.yaml"],
    "medssr_dist.knowledge": ["data/*"],
    "medssr_dist.synthesis": ["*.yaml"],
}
setup(
    packages=[*find_packages(include=["medssr_dist", "medssr_dist.*"]), "medssr_dist.kernels", "medssr_dist.launch"],
    package_data=DATA,
    package_dir={"medssr_dist.kernels": "kernels", "medssr_dist.launch": "launch"},
)
