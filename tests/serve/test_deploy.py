"""The files for `serve deploy` and KubeRay, as Ray reads them: its schema, its import, its call of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call_builder
from ray.serve.schema import ServeDeploySchema

from serve.settings import Settings, token_sha256
from tests.serve.conftest import TOKEN

FOLDER = Path(__file__).parents[2] / "serve" / "deploy"


def serve_config() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "serve.yaml").read_text())


def manifests() -> dict[str, Any]:
    return {d["kind"]: d for d in yaml.safe_load_all((FOLDER / "rayservice.yaml").read_text())}


def rayservice() -> dict[str, Any]:
    return manifests()["RayService"]


def kuberay_config() -> dict[str, Any]:
    return yaml.safe_load(rayservice()["spec"]["serveConfigV2"])


@pytest.mark.parametrize("config", [serve_config, kuberay_config])
def test_ray_takes_the_config_and_builds_its_application(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_SERVE_TOKEN", TOKEN)
    deploy = ServeDeploySchema.model_validate(config())
    (application,) = deploy.applications
    built = call_builder(import_attr(application.import_path), application.args)
    bound = built._bound_deployment
    (settings,) = bound.init_args
    assert isinstance(settings, Settings)
    assert settings.student == "models:/cotd-student@champion"
    assert settings.token_sha256 == token_sha256(TOKEN)
    (deployment,) = application.deployments
    assert deployment.name == bound.name, "Serve refuses options for an unknown deployment"
    assert deployment.ray_actor_options.num_cpus == settings.threads
    scaling = deployment.autoscaling_config
    scaling = scaling if isinstance(scaling, dict) else scaling.model_dump()
    assert scaling["target_ongoing_requests"] * 2 <= settings.max_batch <= bound.max_ongoing_requests


def test_it_listens_on_this_machine_only() -> None:
    assert ServeDeploySchema.model_validate(serve_config()).http_options.host == "127.0.0.1"


def test_an_unknown_setting_is_refused() -> None:
    (application,) = ServeDeploySchema.model_validate(serve_config()).applications
    with pytest.raises(ValidationError, match="polling_seconds"):
        call_builder(import_attr(application.import_path), {**application.args, "polling_seconds": 3})


def test_pods_have_the_ray_that_is_pinned_and_the_token() -> None:
    cluster = rayservice()["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"][0]["name"] == "COTD_SERVE_TOKEN"
        assert "secretKeyRef" in container["env"][0]["valueFrom"]


def test_pods_have_no_more_rights_than_they_need() -> None:
    cluster = rayservice()["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}, "else anyone who reaches Ray can run code"
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        selected = manifests()["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert selected.items() <= group["template"]["metadata"]["labels"].items()
    assert manifests()["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > 60


def test_no_folder_that_others_could_make_first() -> None:
    for name in ("serve.yaml", "rayservice.yaml"):
        assert "/tmp" not in (FOLDER / name).read_text()
