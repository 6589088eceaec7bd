"""The manifests in `deploy/kuberay`: no field that Kubernetes or KubeRay does not know, and every part agrees with the others.

With KubeRay's CustomResourceDefinition in the file that RAYCLUSTER_CRD names (`ray.io_rayclusters.yaml` below
`ray-operator/config/crd/bases` of its repository) they are held against that as well: it embeds pods, services, claims and
the rules of policies as Kubernetes takes them.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from deploy_schemas import KINDS
from jsonschema import Draft202012Validator

from modelyard import __version__
from modelyard.app.control import OPEN
from modelyard.cli.edge import assemble
from modelyard.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())
]
# Mappings whose keys are not fields. Labels are known by their '/'.
FREE = {"rayStartParams", "requests", "limits"}
CRD = os.environ.get("RAYCLUSTER_CRD")
with_crd = pytest.mark.skipif(not CRD, reason="RAYCLUSTER_CRD names no file with KubeRay's definition")


def named(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (one for one in MANIFESTS if one["kind"] == kind and name in ("", one["metadata"]["name"]))
    return found


def wrong(manifest: dict[str, Any]) -> list[str]:
    if manifest.get("kind") not in KINDS:
        return ["It is of no kind that is known."]
    return [error.message for error in Draft202012Validator(KINDS[manifest["kind"]]).iter_errors(manifest)]


def of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


PLATFORM, CLUSTER, SERVICE = named("Deployment"), named("RayCluster"), named("Service")
HEAD = CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = CLUSTER["spec"]["workerGroupSpecs"]
PODS = {"platform": PLATFORM["spec"]["template"], "head": HEAD["template"], "workers": WORKERS["template"]}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
each_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def test_everything_in_the_folder_is_applied() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == sorted(p.name for p in FOLDER.glob("*.yaml") if p.name != "kustomization.yaml")
    assert set(KUSTOMIZATION) == {"apiVersion", "kind", "resources"}


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (FOLDER.parent / "README.md").read_text())
    assert targets
    assert not [target for target in targets if not (FOLDER.parent / target).exists()]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=of)
def test_a_manifest_has_fields_that_are_known_and_of_their_type(manifest: dict[str, Any]) -> None:
    assert wrong(manifest) == []
    assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == named("Namespace")["metadata"]["name"]


def misspelt(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The value with one field misspelt, for each field in it."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from (
                (path, [*value[:index], other, *value[index + 1 :]]) for path, other in misspelt(item, f"{where}[{index}]")
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            rest = {name: one for name, one in value.items() if name != key}
            if where.rpartition(".")[2] not in FREE and "/" not in key:
                yield f"{where}.{key}", {**rest, f"{key[:-1]}{key[-1] * 2}": inner}
            yield from ((path, {**rest, key: other}) for path, other in misspelt(inner, f"{where}.{key}"))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=of)
def test_a_field_that_is_misspelt_is_found(manifest: dict[str, Any]) -> None:
    """The control of the test above, for every field of every manifest."""
    tried = list(misspelt(manifest))
    assert len(tried) >= 4
    assert [where for where, other in tried if not wrong(other)] == []


@pytest.mark.parametrize("value", ["2", 2.5, None, True, [2]])
def test_a_value_of_another_type_is_found(value: Any) -> None:
    assert wrong({**PLATFORM, "spec": {**PLATFORM["spec"], "replicas": value}})


# The parts agree.


@each_pod
def test_a_pod_has_what_the_sandbox_takes_and_no_right_more(pod: dict[str, Any]) -> None:
    """bubblewrap as an ordinary user: user namespaces (seccomp, AppArmor), and a /proc of which nothing is hidden, which
    Kubernetes gives only to a pod with a user namespace of its own. What one pod writes another reads: they are one user."""
    spec = pod["spec"]
    profiles = {name: {"type": "Unconfined"} for name in ("seccompProfile", "appArmorProfile")}
    user = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    assert spec["securityContext"] == {**user, **profiles, "fsGroupChangePolicy": "OnRootMismatch"}
    own = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "procMount": "Unmasked"}
    assert [container["securityContext"] for container in spec["containers"]] == [own]
    assert spec["hostUsers"] is False
    assert spec["automountServiceAccountToken"] is False


@each_pod
def test_a_pod_takes_no_settings_from_the_names_of_services(pod: dict[str, Any]) -> None:
    """The service 'modelyard' would be told of as MODELYARD_PORT=tcp://…."""
    assert pod["spec"]["enableServiceLinks"] is False


@each_pod
def test_what_a_pod_mounts_is_there(pod: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]} == set(volumes)
    claims = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "emptyDir" not in volume} <= claims


def test_every_pod_has_the_image_of_this_version_and_tells_nobody_of_its_use() -> None:
    assert {container["image"] for container in CONTAINERS.values()} == {f"modelyard:{__version__}"}
    assert all({"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"] for container in CONTAINERS.values())


def test_ray_is_the_version_that_is_pinned_and_shows_no_dashboard() -> None:
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert HEAD["rayStartParams"]["include-dashboard"] == "false"
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_ray_ends_nothing_when_memory_is_short() -> None:
    """Its monitor would take the actor that holds everything on its node; `up` switches it off for the platform's own."""
    assert all({"name": "RAY_memory_monitor_refresh_ms", "value": "0"} in CONTAINERS[one]["env"] for one in ("head", "workers"))


def test_ray_nodes_are_asked_at_ports_they_listen_on() -> None:
    assert CONTAINERS["head"]["ports"] == [{"name": "gcs-server", "containerPort": 6379}]
    assert {CONTAINERS["head"][probe]["tcpSocket"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {6379}
    manager = int(WORKERS["rayStartParams"]["node-manager-port"])
    assert {CONTAINERS["workers"][probe]["tcpSocket"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {manager}
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]


def test_the_platform_is_started_as_the_command_line_takes_it() -> None:
    arguments = CONTAINERS["platform"]["args"]
    options = {p.opts[0] for p in typer.main.get_command(assemble()).commands[arguments[0]].params}  # type: ignore[attr-defined]
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert set(given) <= options
    assert given["--cluster"] == f"{CLUSTER['metadata']['name']}-head-svc:6379"
    (port,) = CONTAINERS["platform"]["ports"]
    assert (port["name"], port["containerPort"]) == ("http", int(given["--port"]))
    assert [(one["port"], one["targetPort"]) for one in SERVICE["spec"]["ports"]] == [(port["containerPort"], port["name"])]
    policy = named("NetworkPolicy", "callers")["spec"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]


def test_the_platforms_settings_are_settings() -> None:
    values = {one["name"]: one.get("value", "") for one in CONTAINERS["platform"]["env"]}
    ours = {name.removeprefix("MODELYARD_").lower(): value for name, value in values.items() if name.startswith("MODELYARD_")}
    settings = Settings(**{**ours, "hosts": json.loads(ours["hosts"])})
    assert settings.sandbox == "require"
    service, space = SERVICE["metadata"]["name"], SERVICE["metadata"]["namespace"]
    ends = ("", f".{space}", f".{space}.svc", f".{space}.svc.cluster.local")
    assert settings.hosts == tuple(f"{service}{end}" for end in ends)


def test_the_platform_shares_with_the_nodes_what_the_executor_needs_and_nothing_else() -> None:
    """The database, the store and keys are the platform's alone; the copies of artefacts are only read elsewhere."""
    settings = Settings(data=Path("/data"))
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in PODS["platform"]["spec"]["volumes"] if "emptyDir" not in v
    }
    own = {mount["mountPath"]: mount for mount in CONTAINERS["platform"]["volumeMounts"] if mount["name"] in claims}
    assert set(own) == {str(settings.data), str(settings.jobs), str(settings.cache)}
    assert named("PersistentVolumeClaim", claims[own["/data"]["name"]])["spec"]["accessModes"] == ["ReadWriteOnce"]
    theirs = {mount["mountPath"]: mount for mount in CONTAINERS["workers"]["volumeMounts"] if mount["name"] != "temporary"}
    assert set(theirs) == {str(settings.jobs), str(settings.cache)}
    for path, mount in theirs.items():
        assert mount.get("readOnly", False) is (path == str(settings.cache))
        assert mount["subPath"] == own[path]["subPath"]
        assert named("PersistentVolumeClaim", claims[own[path]["name"]])["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_platform_has_the_clusters_token() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    env = {one["name"]: one for one in CONTAINERS["platform"]["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": CLUSTER["metadata"]["name"], "key": "auth_token"}


def test_probes_ask_what_answers_without_a_key() -> None:
    probes = [CONTAINERS["platform"][name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [probe["path"] for probe in probes] == ["/readyz", "/healthz", "/readyz"]
    assert {probe["path"] for probe in probes} <= OPEN


def test_selectors_find_the_pods_they_are_for() -> None:
    labels = {name: pod["metadata"]["labels"].items() for name, pod in PODS.items()}
    found = {
        of(one): {name for name, has in labels.items() if wanted.items() <= has}
        for one, wanted in [
            (PLATFORM, PLATFORM["spec"]["selector"]["matchLabels"]),
            (SERVICE, SERVICE["spec"]["selector"]),
            *((one, one["spec"]["podSelector"].get("matchLabels", {})) for one in MANIFESTS if one["kind"] == "NetworkPolicy"),
        ]
    }
    assert found == {
        "Deployment/modelyard": {"platform"},
        "Service/modelyard": {"platform"},
        "NetworkPolicy/nothing": set(PODS),
        "NetworkPolicy/cluster": set(PODS),
        "NetworkPolicy/callers": {"platform"},
    }


def test_there_is_one_platform_at_a_time() -> None:
    assert (PLATFORM["spec"]["replicas"], PLATFORM["spec"]["strategy"]) == (1, {"type": "Recreate"})


# Against the operator's own definition.


def close(schema: Any) -> Any:
    """The schema, with fields that it does not name refused, as the API server prunes and `kubectl` refuses them."""
    if isinstance(schema, list):
        return [close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: close(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def definition() -> dict[str, Any]:
    told = yaml.load(Path(CRD or "").read_text(), Loader=yaml.CSafeLoader)
    (version,) = (one for one in told["spec"]["versions"] if one["name"] == "v1")
    return close(version["schema"]["openAPIV3Schema"])


def official() -> dict[str, tuple[Any, dict[str, Any]]]:
    """What of the manifests the definition has a schema for: the cluster, the platform's pod, the service and the claims."""
    whole = definition()
    whole["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which a definition leaves out
    head = whole["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    pod = head["template"]["properties"]["spec"]
    claim = pod["properties"]["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]
    found = {
        "cluster": (CLUSTER, whole),
        "platform's pod": (PODS["platform"]["spec"], pod),
        "service": (SERVICE["spec"], head["headService"]["properties"]["spec"]),
    }
    for one in MANIFESTS:
        if one["kind"] == "PersistentVolumeClaim":
            found[one["metadata"]["name"]] = (one["spec"], claim["spec"])
    policy = whole["properties"]["spec"]["properties"].get("networkPolicy", {}).get("properties", {}).get("head")
    for one in MANIFESTS if policy else []:
        if one["kind"] == "NetworkPolicy":
            rules = {f"{way}Rules": one["spec"][way] for way in ("ingress", "egress") if way in one["spec"]}
            found[f"rules of {one['metadata']['name']}"] = (rules, policy)
    return found


@with_crd
def test_kuberays_own_definition_takes_them() -> None:
    for name, (value, schema) in official().items():
        assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == [], name


@with_crd
def test_kuberays_own_definition_takes_no_misspelt_field_either() -> None:
    for name, (value, schema) in official().items():
        valid = Draft202012Validator(schema).is_valid
        taken = [where for where, other in misspelt(value) if valid(other)]
        assert [where for where in taken if not where.startswith(".metadata")] == [], name
