"""The wheel also holds `tune_configs/`, as `cotd/tune_configs`: pyproject.toml cannot both find packages and map a folder."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cotd*", "pipelines*", "serve*"]), "cotd.tune_configs"],
    package_dir={"cotd.tune_configs": "tune_configs"},
)
