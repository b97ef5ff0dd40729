"""Dockerfiles and compose, without an engine: linted, and in agreement with the repository."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.source import ROOT
from tests.deploy.tools import DEPLOY, RULES, run, tool
from vtr_server.policy.settings import ServerSettings

DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
COMPOSE = DEPLOY / "compose"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Each instruction and its arguments, comments left out and lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def last(file: Path, word: str) -> str:
    return [rest for found, rest in instructions(file) if found == word][-1]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return loaded


@each
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    assert run(tool("hadolint"), file) == ""


@each
def test_bases_are_pinned(file: Path) -> None:
    text = file.read_text()
    for word, rest in instructions(file):
        if word == "FROM":
            image = rest.split(" AS ")[0]
            for name, value in re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE):
                image = image.replace(f"${{{name}}}", value)
            assert re.search(r":v?\d+\.\d+\.\d+", image), image


@each
def test_it_runs_without_root_and_without_a_shell(file: Path) -> None:
    user = last(file, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), user
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(last(file, word)), list)
    assert json.loads(last(file, "ENTRYPOINT")) == ["vtr", "serve"]
    assert "VTR_HEALTH_URL" in last(file, "HEALTHCHECK")
    assert "ProxyHandler({})" in last(file, "HEALTHCHECK"), (
        "a proxy does not lead to this container"
    )


@each
def test_no_secret_and_nothing_from_the_network_gets_in(file: Path) -> None:
    words = [word for word, _ in instructions(file)]
    assert "ADD" not in words
    assert not re.search(r"(?i)(token|password|secret|api_key)\s*=", file.read_text())


def test_the_context_is_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[2:] for line in lines if line.startswith("!/")}
    copied = set()
    for file in DOCKERFILES:
        for word, rest in instructions(file):
            if word == "COPY" and not rest.startswith("--from"):
                copied |= set(rest.split()[:-1])
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_pins_are_those_of_the_package() -> None:
    """Else an image would serve with another engine than the tests run."""
    (cpu,) = PROJECT["optional-dependencies"]["cpu"]
    torch = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch
    install = (DEPLOY / "docker" / "Dockerfile.cpu").read_text()
    assert f"torch=={torch[1]}+cpu torchvision {cpu}" in install
    (gpu,) = PROJECT["optional-dependencies"]["gpu"]
    version = gpu.removeprefix("vllm==").removesuffix(".*")
    base = (DEPLOY / "docker" / "Dockerfile.cuda").read_text()
    assert f"FROM vllm/vllm-openai:v{version}." in base
    assert "-c /wheels/constraints.txt" in base


def test_compose_follows_its_schema() -> None:
    files = sorted(COMPOSE.glob("compose*.yaml"))
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)


def test_compose_mounts_what_is_there() -> None:
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), (name, volume)
            else:
                assert source in compose()["volumes"], (name, volume)


def test_prometheus_and_the_health_check_use_the_admin_port() -> None:
    settings = ServerSettings.load(COMPOSE / "settings.toml")
    assert settings.admin is not None
    server = compose()["services"]["server"]
    assert server["environment"]["VTR_HEALTH_URL"].endswith(f":{settings.admin.port}/health")
    assert not any(str(settings.admin.port) in port for port in server["ports"])
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"server:{settings.admin.port}"]}]
    assert scrape["job_name"] == "vtr", "rules and dashboard ask for this job"


def test_prometheus_gets_every_rule(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    for file in RULES:
        (tmp_path / "rules" / file.name).write_text(file.read_text())
    (tmp_path / "prometheus.yml").write_text((COMPOSE / "prometheus.yml").read_text())
    said = run(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert f"{len(RULES)} rule files found" in said


def test_stopping_leaves_time_to_drain() -> None:
    command = compose()["services"]["server"]["command"]
    drain = int(command[command.index("--shutdown-timeout") + 1])
    assert int(compose()["services"]["server"]["stop_grace_period"].removesuffix("s")) > drain
