"""The files for a Ray cluster, for KubeRay and for the image, as far as the installed packages can check them."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from cotd.study.config import load_config

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "pipelines" / "deploy"


def rayjob() -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
    (job,) = [d for d in documents if d["kind"] == "RayJob"]
    return job["spec"]


def test_rays_launcher_accepts_the_cluster() -> None:
    plain = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    prepared = prepare_config(plain)
    validate_config(prepared)
    assert plain["head_node_type"] in prepared["available_node_types"]
    assert prepared["setup_commands"] == [], "Ray's defaults install another Ray"
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]
    (mounted,) = [o for o in plain["docker"]["run_options"] if o.startswith("--volume")]
    assert mounted.split(":")[1] in (FOLDER / "cluster.yaml").read_text().split("storage=")[1]


def test_the_job_is_a_command_of_cotd() -> None:
    spec = rayjob()
    program, command, config, *overrides = shlex.split(spec["entrypoint"])
    assert (program, command) == ("cotd", "sweep")
    (home,) = re.findall(r"^WORKDIR (.+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    study = load_config(REPOSITORY / Path(config).relative_to(home), overrides)
    environment = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    assert environment["env_vars"]["MLFLOW_TRACKING_URI"].startswith("http://")
    for group in (spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert study.storage.startswith(mount["mountPath"]), "results outlive the pods"
        assert mount["name"] in [v["name"] for v in pod["volumes"]]


def test_job_image_and_endpoint_have_the_ray_that_is_pinned() -> None:
    spec = rayjob()["rayClusterSpec"]
    assert spec["rayVersion"] == ray.__version__
    service = (REPOSITORY / "serve" / "deploy" / "rayservice.yaml").read_text()
    images = re.findall(r"image: (\S+)", (FOLDER / "rayjob.yaml").read_text() + service)
    assert set(images) == set(re.findall(r"-t (cotd:\S+) \. ", (FOLDER / "Dockerfile").read_text())[:1])


def test_the_image_uses_files_that_exist() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert "make install" in dockerfile
    assert re.search(r"^install:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    engines = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cpu", *re.findall(r"ENGINE=(\w+)", dockerfile)} <= set(engines)
    rules = [r for r in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if not r.startswith("#")]
    assert rules[0] == "*", "only what is named is copied"
    copied = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {"Makefile", "pyproject.toml", "requirements", "cotd", "pipelines", "serve", "tune_configs"} <= copied


def test_the_image_runs_as_a_user_who_can_write_to_its_folders() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (home,) = re.findall(r"COTD_HOME=(\S+)", dockerfile)
    (owned,) = re.findall(r"chown -R ray:ray (.+)", dockerfile)
    assert {home, "/app/runs"} <= set(owned.split())
    assert dockerfile.rstrip().endswith("USER 1000"), "a number: Kubernetes cannot tell whether a name is root's"
