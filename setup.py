"""What pyproject.toml cannot say: a wheel holds the folder `configs/` as `grpo_pl/configs/`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["grpo_pl*"]), "grpo_pl.configs"],
    package_dir={"grpo_pl.configs": "configs"},
)
