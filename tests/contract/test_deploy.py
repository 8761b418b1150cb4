"""The images and the compose file: against the compose schema, Octet's settings and what a careful operator expects."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = DEPLOY / "Dockerfile"
TEXTS = [
    COMPOSE,
    ROOT / "docs" / "deployment.md",
    *sorted(file for file in DEPLOY.rglob("*") if file.is_file() and file.suffix != ".json"),
]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]

every_text = pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def instructions(keyword: str, *, target: str | None = None) -> list[str]:
    """Return the arguments of every such instruction of the Dockerfile, or of one stage."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    stages = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)
    wanted = [stage for stage in stages if target is None or stage.split("\n")[0].endswith(f" AS {target}")]
    return [argument for stage in wanted for argument in re.findall(rf"^{keyword} (.*)$", stage, re.MULTILINE)]


def test_the_compose_file_fits_the_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@every_text
def test_every_variable_is_one_that_octet_reads(file: Path) -> None:
    known = {f"OCTET_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"\bOCTET_[A-Z0-9_]+", file.read_text())) <= known


@every_text
def test_no_host_is_named_but_the_services_own(file: Path) -> None:
    hosts = set(re.findall(r"\w+://(?:[^/\s\"'@]*@)?([\w.-]+)", file.read_text()))
    assert hosts <= {"127.0.0.1", *SERVICES, "octet"}


@every_text
def test_every_image_is_pinned(file: Path) -> None:
    images = re.findall(r"^\s*(?:image:|FROM) ([^\s#]+)", file.read_text(), re.MULTILINE)
    ours = {"base", "octet-gateway", "octet-worker"}
    unpinned = [image for image in images if ":" not in image or image.endswith(":latest")]
    assert set(unpinned) <= ours


@every_service
def test_a_service_may_do_as_little_as_possible(service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]


@every_service
def test_a_port_is_open_to_this_machine_only(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@every_service
def test_a_file_that_is_mounted_exists(service: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("./")]
    assert all((ROOT / path).exists() for path in mounted)


def test_a_service_waits_until_what_it_needs_is_healthy() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            once = SERVICES[needed].get("restart") == "no"
            assert how["condition"] == ("service_completed_successfully" if once else "service_healthy")
            assert once or "healthcheck" in SERVICES[needed]


def test_no_secret_has_a_default() -> None:
    used = re.findall(r"\$\{(\w*(?:PASSWORD|KEY)\w*)([^}]*)\}", COMPOSE.read_text())
    assert {name for name, _ in used} == {
        "REDIS_PASSWORD",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
        "GRAFANA_ADMIN_PASSWORD",
    }
    assert all(form.startswith(":?") for _, form in used)


def test_the_example_of_the_variables_is_complete() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / "compose.env.example").read_text(), re.MULTILINE))
    assert used == offered


def test_redis_keeps_its_append_only_file() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]


def test_a_worker_reaches_nothing_outside() -> None:
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    assert all(networks[name]["internal"] for name in SERVICES["worker"]["networks"])


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_an_image_starts_its_role_without_root(role: str) -> None:
    assert instructions("ENTRYPOINT", target=role) == [f'["octet", "{role}"]']
    assert instructions("USER", target=role) == ["10001:10001"]
    assert len(instructions("HEALTHCHECK", target=role)) == 1
    assert instructions("VOLUME", target=role) == ['["/data"]']


def test_every_dependency_of_an_image_is_constrained() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert installs
    assert all("--no-cache-dir" in line for line in installs)
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_gateways_image_is_built_without_torch() -> None:
    lines = "\n".join(instructions("RUN", target="gateway") + instructions("RUN", target="base"))
    assert "torch" not in lines
    assert '".[grpc,tracing,runner]"' in lines


def test_the_workers_image_installs_torch_before_what_needs_it() -> None:
    installs = [line for line in instructions("RUN", target="worker") if "pip install" in line]
    assert installs[0].endswith(" torch")
    assert '".[worker]"' in installs[1]
