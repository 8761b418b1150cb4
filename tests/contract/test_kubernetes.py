"""The Kubernetes manifests: against the API's schema, kustomize's references, and what Octet's settings ask of them."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
API_VERSION = kubernetes_validate.latest_version()
WITHOUT_SCHEMA = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PodMonitor"}
"""Kinds that KEDA and the Prometheus operator bring: Kubernetes' own schema does not know them."""


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


def manifests() -> list[dict[str, Any]]:
    files = [
        kustomization.parent / name
        for kustomization in KUSTOMIZATIONS
        for name in load(kustomization).get("resources", [])
    ]
    return [manifest for file in files if file.is_file() for manifest in yaml.safe_load_all(file.read_text())]


def title(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def pods() -> list[dict[str, Any]]:
    return [manifest["spec"]["template"]["spec"] for manifest in manifests() if "template" in manifest.get("spec", {})]


def pod(name: str) -> dict[str, Any]:
    return next(spec for spec in pods() if spec["serviceAccountName"] == name)


@pytest.mark.parametrize("manifest", manifests(), ids=title)
def test_a_manifest_fits_the_schema(manifest: dict[str, Any]) -> None:
    if manifest["kind"] in WITHOUT_SCHEMA:
        assert "." in manifest["apiVersion"]
        return
    kubernetes_validate.validate(manifest, API_VERSION, strict=True)


def referenced(kustomization: dict[str, Any]) -> set[str]:
    generators = kustomization.get("configMapGenerator", []) + kustomization.get("secretGenerator", [])
    generated = [name for generator in generators for key in ("envs", "files") for name in generator.get(key, [])]
    return {
        *generated,
        *(name for key in ("resources", "components", "configurations") for name in kustomization.get(key, [])),
    }


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS, ids=lambda file: file.parent.name)
def test_what_a_kustomization_names_exists(kustomization: Path) -> None:
    for name in referenced(load(kustomization)):
        named = kustomization.parent / name
        filled_in_by_the_user = named.with_name(f"{named.name}.example")
        assert named.is_file() or (named / "kustomization.yaml").is_file() or filled_in_by_the_user.is_file(), name


@pytest.mark.parametrize("folder", sorted(file.parent for file in KUSTOMIZATIONS if KUBERNETES in file.parents))
def test_every_manifest_is_named_by_its_kustomization(folder: Path) -> None:
    present = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert present <= referenced(load(folder / "kustomization.yaml"))


@pytest.mark.parametrize("spec", pods(), ids=lambda spec: spec["serviceAccountName"])
def test_a_pod_may_do_as_little_as_possible(spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    for container in spec["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_every_pod_is_probed_for_life() -> None:
    assert all("livenessProbe" in container for spec in pods() for container in spec["containers"])


def test_no_secret_is_in_a_manifest() -> None:
    assert [title(manifest) for manifest in manifests() if manifest["kind"] == "Secret"] == []
    filled_in = re.findall(r"^[^#\n]+=.+$", (KUBERNETES / "example" / "secret.env.example").read_text(), re.MULTILINE)
    assert filled_in == []


def test_the_keys_of_the_secret_are_the_ones_that_pods_read() -> None:
    template = (KUBERNETES / "example" / "secret.env.example").read_text()
    variables = [variable for spec in pods() for container in spec["containers"] for variable in container["env"]]
    read = {variable["valueFrom"]["secretKeyRef"]["key"] for variable in variables if "valueFrom" in variable}
    assert read == set(re.findall(r"^([a-z0-9-]+)=", template, re.MULTILINE))


def test_a_gateway_has_the_time_to_answer_what_it_has_taken() -> None:
    spec = pod("gateway")
    before = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before + Settings().predict_timeout_seconds


def test_a_worker_has_the_time_to_finish_its_job() -> None:
    assert pod("worker")["terminationGracePeriodSeconds"] > Settings().job_timeout_seconds


def test_only_redis_and_the_store_are_open_to_a_worker() -> None:
    policies = [manifest for manifest in manifests() if manifest["kind"] == "NetworkPolicy"]
    labels = {"app.kubernetes.io/name": "worker", "octet/uses-store": "true"}
    selected = {
        policy["metadata"]["name"]
        for policy in policies
        if "egress" in policy["spec"] and policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    }
    assert selected == {"worker", "store", "dns"}
