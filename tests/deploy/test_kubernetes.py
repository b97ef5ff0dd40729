"""Every overlay, rendered: valid by Kubernetes' schemas, and its parts fit each other and the server."""

from __future__ import annotations

import functools
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.test_docker import DOCKERFILES, last
from tests.deploy.test_prometheus import our_metrics
from tests.deploy.tools import DEPLOY, run, tool
from vtr_server.policy.settings import ServerSettings
from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.schedules import ModelGeometry, Schedule

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
SCHEMA = "1.32"
FOREIGN = {"PodMonitor"}
"""Kinds that the cluster gets from elsewhere; Kubernetes has no schema of them."""

Manifest = dict[str, Any]
GIB = 2**30
each = pytest.mark.parametrize("overlay", OVERLAYS)


@functools.cache
def rendered(folder: Path) -> dict[str, Manifest]:
    """Kind -> manifest of a kustomization; every kind is there once, but for more ConfigMaps, which
    have their names as well."""
    found = list(yaml.safe_load_all(run(tool("kubectl"), "kustomize", folder)))
    by_kind = {}
    for manifest in found:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        extra = kind == "ConfigMap" and not name.startswith("vtr-settings")
        by_kind[f"{kind} {name}" if extra else kind] = manifest
    assert len(by_kind) == len(found)
    return by_kind


def render(overlay: str) -> dict[str, Manifest]:
    return rendered(FOLDER / "overlays" / overlay)


def pod(overlay: str) -> Manifest:
    spec: Manifest = render(overlay)["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(overlay: str) -> Manifest:
    (only,) = pod(overlay)["containers"]
    found: Manifest = only
    return found


def flag(overlay: str, name: str) -> str:
    """The value of a flag, as ``--name value`` or ``--name=value``."""
    words = " ".join(container(overlay)["args"]).replace("=", " ").split()
    return words[words.index(name) + 1]


@each
def test_manifests_follow_the_schemas(overlay: str) -> None:
    for kind, manifest in render(overlay).items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(manifest, SCHEMA, strict=True)


def test_the_schemas_would_see_a_mistake() -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x"},
        "spec": {"prots": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, SCHEMA, strict=True)


@each
def test_selectors_find_the_pods(overlay: str) -> None:
    found = render(overlay)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [found["Service"]["spec"]["selector"]]
    selectors += [
        found[kind]["spec"]["selector"]["matchLabels"]
        for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")
        if kind in found
    ]
    selectors.append(found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


@each
def test_ports_are_those_of_the_server(overlay: str) -> None:
    found = render(overlay)
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    (exposed,) = found["Service"]["spec"]["ports"]
    assert exposed["targetPort"] == "http", "the admin port stays inside"
    assert ports["http"] == 8000, "vLLM's default: no --port is given"
    if "PodMonitor" in found:
        (endpoint,) = found["PodMonitor"]["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
        job = found["PodMonitor"]["spec"]["jobLabel"]
        pod_labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert pod_labels[job] == "vtr", "rules and dashboard ask for this job"


@each
def test_settings_load_and_open_the_admin_port(overlay: str, tmp_path: Path) -> None:
    config = render(overlay)["ConfigMap"]
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    assert volumes["settings"]["configMap"]["name"] == config["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    given = Path(flag(overlay, "--settings"))
    assert str(given.parent) == mounts["settings"]
    (tmp_path / given.name).write_text(config["data"][given.name])
    settings = ServerSettings.load(tmp_path / given.name)
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert settings.admin is not None
    assert (settings.admin.host, settings.admin.port) == ("0.0.0.0", ports["admin"])


def test_the_cpu_pod_has_memory_for_what_its_limits_let_in(tmp_path: Path) -> None:
    """Bodies, as much again for images fetched for them, images being decoded, and vLLM's own."""
    (tmp_path / "settings.toml").write_text(render("cpu")["ConfigMap"]["data"]["settings.toml"])
    limits = ServerSettings.load(tmp_path / "settings.toml").limits
    held = (limits.in_flight + limits.uploads) * 2 * limits.body_bytes + 12 * limits.decoded_pixels
    cache = 2 * float(flag("cpu", "--mm-processor-cache-gb")) * GIB  # in both processes
    memory = container("cpu")["resources"]["limits"]["memory"]
    assert held + cache + 4 * GIB <= int(memory.removesuffix("Gi")) * GIB


@each
def test_probes_hit_routes_of_the_admin_port(overlay: str) -> None:
    from vtr_server.gate.scopes import is_for_admin_port, needed_scope

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container(overlay)[probe]["httpGet"]
        assert get["port"] == "admin"
        assert is_for_admin_port(get["path"])
        assert needed_scope(get["path"]) == "open", "a probe has no key"


@each
def test_stopping_leaves_time_to_drain(overlay: str) -> None:
    drain = int(flag(overlay, "--shutdown-timeout"))
    hook = int(container(overlay)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod(overlay)["terminationGracePeriodSeconds"] >= hook + drain + 10


@each
def test_pods_run_without_rights(overlay: str) -> None:
    security = pod(overlay)["securityContext"]
    assert security["runAsNonRoot"]
    users = {last(file, "USER").split(":")[0] for file in DOCKERFILES}
    assert users == {str(security["runAsUser"])}
    assert not pod(overlay)["automountServiceAccountToken"]
    own = container(overlay)["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    names = {volume["name"] for volume in pod(overlay)["volumes"]}
    assert {mount["name"] for mount in container(overlay)["volumeMounts"]} == names


@each
def test_the_autoscaler_follows_our_queue(overlay: str) -> None:
    found = render(overlay)
    if "HorizontalPodAutoscaler" not in found:
        assert found["Deployment"]["spec"]["replicas"] == 1
        return
    assert "PodMonitor" in found
    assert "replicas" not in found["Deployment"]["spec"], "an apply would set it back"
    spec = found["HorizontalPodAutoscaler"]["spec"]
    target = found["Deployment"]
    assert spec["scaleTargetRef"]["name"] == target["metadata"]["name"]
    (metric,) = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in our_metrics()
    adapter = yaml.safe_load((FOLDER / "components/autoscaling/adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert re.match(r"\w+", rule["seriesQuery"])[0] == name  # type: ignore[index]
    bound = tomllib.loads((FOLDER / "base" / "settings.toml").read_text())["limits"]["in_flight"]
    assert int(metric["pods"]["target"]["averageValue"]) < bound, "429 would come first"


@pytest.mark.parametrize("overlay", ["data-parallel", "tensor-parallel"])
def test_parallel_pods_have_a_gpu_for_each_rank(overlay: str) -> None:
    resources = container(overlay)["resources"]
    size = flag(overlay, f"--{overlay}-size")
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == size


@each
def test_the_network_reaches_the_main_port_and_prometheus_the_admin_port(overlay: str) -> None:
    policy = render(overlay)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"], "models and images are fetched"
    everybody = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert everybody == [[{"port": "http"}]]
    inside = [rule for rule in policy["ingress"] if "from" in rule]
    assert len(inside) == ("PodMonitor" in render(overlay))
    for rule in inside:
        assert rule["ports"] == [{"port": "admin"}]
        (peer,) = rule["from"]
        assert peer["namespaceSelector"]["matchLabels"]
        assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}


@each
def test_a_rollout_does_not_wait_for_a_gpu_that_nobody_has(overlay: str) -> None:
    spec = render(overlay)["Deployment"]["spec"]
    rolling = spec["strategy"]["rollingUpdate"]
    on_gpus = "nvidia.com/gpu" in container(overlay)["resources"]["limits"]
    expected = {"maxSurge": 0, "maxUnavailable": 1} if on_gpus else None
    assert rolling == (expected or {"maxSurge": 1, "maxUnavailable": 0})
    probe = container(overlay)["startupProbe"]
    assert spec["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def with_component(overlay: str, component: str, folder: Path) -> dict[str, Manifest]:
    """An overlay of a user's, made in ``folder``: one of ours and a component."""
    up = os.path.relpath(FOLDER, folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{up}/overlays/{overlay}"],
        "components": [f"{up}/components/{component}"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    found = rendered(folder)
    kubernetes_validate.validate(found["Deployment"], SCHEMA, strict=True)
    return found


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_schedules_have_a_place(overlay: str, tmp_path: Path) -> None:
    found = with_component(overlay, "schedules", tmp_path)
    spec = found["Deployment"]["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    (given,) = [word.split("=")[1] for word in server["args"] if word.startswith("--schedules=")]
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes[mounts[given]]["configMap"] == {"name": "vtr-schedules"}, "no hash: files change"
    for name, text in found["ConfigMap vtr-schedules"]["data"].items():
        (tmp_path / name).write_text(text)
        config = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
        Schedule.load(tmp_path / name).check_fits(ModelGeometry.from_config(config))


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_keys_take_the_place_of_the_settings(overlay: str, tmp_path: Path) -> None:
    found = with_component(overlay, "keys", tmp_path)
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    (settings,) = [volume for volume in volumes if volume["name"] == "settings"]
    assert settings == {
        "name": "settings",
        "secret": {"secretName": found["Secret"]["metadata"]["name"]},
    }
    assert found["Secret"]["metadata"]["name"] == "vtr-settings-with-keys", "no hash: keys change"
    example = ServerSettings.load(FOLDER / "components" / "keys" / "settings.example.toml")
    base = ServerSettings.load(FOLDER / "base" / "settings.toml")
    assert example.keys
    assert example.model_copy(update={"keys": ()}) == base, "keys are all that it adds"
