"""deploy/kubernetes: schemas, references between the files, and the server options of docker-compose.yml."""

import re
import shutil
import subprocess

import httpx
import kubernetes_validate
import pytest
import yaml

from support.deployment import ROOT, RULES
from triton_rerank import AsyncRerankClient
from triton_rerank.cli.main import _parser
from triton_rerank.gateway import create_app

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES = {name: yaml.safe_load((FOLDER / name).read_text()) for name in KUSTOMIZATION["resources"]}
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
COMPOSE, GATEWAY_COMPOSE = SERVICES["triton"], SERVICES["gateway"]
POD = RESOURCES["deployment.yaml"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
# Of the Prometheus operator, whose schema is not part of Kubernetes.
CUSTOM = {"podmonitor.yaml", "gateway-podmonitor.yaml"}


@pytest.mark.parametrize("name", sorted(set(RESOURCES) - CUSTOM))
@pytest.mark.parametrize("version", ["1.29", "1.31"])
def test_schema(name, version):
    kubernetes_validate.validate(RESOURCES[name], version, strict=True)


def test_every_file_is_a_resource():
    files = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert files == set(RESOURCES)


def test_kustomize_builds_it():
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; it brings `kubectl kustomize`")
    built = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True, check=True)
    documents = list(yaml.safe_load_all(built.stdout))
    assert len(documents) == len(RESOURCES)
    assert all(d["kind"] == "Namespace" or d["metadata"]["namespace"] == "reranker" for d in documents)
    images = sorted([GATEWAY_COMPOSE["image"], release_of(COMPOSE["image"])])
    assert sorted(re.findall(r"image: (\S+)", built.stdout)) == images


def test_the_same_options_as_with_compose():
    options = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", option) for option in COMPOSE["command"]]
    assert CONTAINER["args"] == options


def test_every_selector_finds_the_pods():
    labels = POD["metadata"]["labels"]
    spec = {name: resource["spec"] for name, resource in RESOURCES.items() if "spec" in resource}
    selectors = [
        spec["deployment.yaml"]["selector"]["matchLabels"],
        POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        spec["service.yaml"]["selector"],
        spec["disruption.yaml"]["selector"]["matchLabels"],
        spec["network.yaml"]["podSelector"]["matchLabels"],
        spec["podmonitor.yaml"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_every_port_has_its_name():
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    for port in RESOURCES["service.yaml"]["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    allowed = [p["port"] for rule in RESOURCES["network.yaml"]["spec"]["ingress"] for p in rule["ports"]]
    assert set(allowed) == {"grpc", "metrics"}, "callers must not reach Triton's HTTP port: SECURITY.md"
    assert {port["name"] for port in RESOURCES["service.yaml"]["spec"]["ports"]} == {"grpc", "metrics"}
    assert RESOURCES["podmonitor.yaml"]["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_clients_find_every_pod_themselves():
    assert RESOURCES["service.yaml"]["spec"]["clusterIP"] == "None"


def test_the_rules_job_is_the_pod_monitors():
    label = RESOURCES["podmonitor.yaml"]["spec"]["jobLabel"]
    assert f'job="{POD["metadata"]["labels"][label]}"' in RULES.read_text()


def test_mounts_have_volumes_and_the_claim_exists():
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == RESOURCES["volume.yaml"]["metadata"]["name"]
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def test_the_pod_ends_after_its_requests():
    exit_timeout = next(int(a.partition("=")[2]) for a in CONTAINER["args"] if a.startswith("--exit-timeout-secs"))
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > exit_timeout + pause


def release_of(text):
    """The text with the default release."""
    return text.replace("${RERANK_TRITON_RELEASE:-26.08}", "26.08")


def test_the_image_is_of_the_release_of_compose():
    (image,) = [image for image in KUSTOMIZATION["images"] if image["name"] == CONTAINER["image"]]
    assert f"{image['name']}:{image['newTag']}" == release_of(COMPOSE["image"])


def test_readiness_is_tritons_own():
    # Since release 26.04 it says no for a dead Python process. The local server's release says yes
    # (tests/integration/server/test_monitoring.py), so this can't be tried here.
    assert CONTAINER["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe"])
def test_probes_score_a_pair_and_have_time_for_it(probe):
    command = CONTAINER[probe]["exec"]["command"]
    assert command[:2] == COMPOSE["healthcheck"]["test"][1:3]
    own_timeout = float(command[2].partition("=")[2])
    # Two reads of the statistics, at most a second each, and the start of Python.
    assert CONTAINER[probe]["timeoutSeconds"] > own_timeout + 2
    # The check runs in the process namespace of tritonserver: process 1 in a pod, its child in Docker (`init`).
    assert ("--stop-pid=1" in command) == (probe == "livenessProbe")
    assert "--stop-pid=1" in COMPOSE["healthcheck"]["test"]
    assert COMPOSE["init"] is True
    assert COMPOSE["restart"] == "unless-stopped"


def test_it_runs_without_rights():
    assert RESOURCES["namespace.yaml"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_autoscaler_reads_metrics_that_its_comment_defines():
    text = (FOLDER / "autoscaler.yaml").read_text()
    spec = RESOURCES["autoscaler.yaml"]["spec"]
    assert spec["scaleTargetRef"]["name"] == RESOURCES["deployment.yaml"]["metadata"]["name"]
    for metric in spec["metrics"]:
        assert f"as: {metric['pods']['metric']['name']} }}" in text


GATEWAY = RESOURCES["gateway.yaml"]["spec"]["template"]
GATEWAY_CONTAINER = GATEWAY["spec"]["containers"][0]


def test_every_selector_finds_the_gateways_pods():
    labels = GATEWAY["metadata"]["labels"]
    spec = {name: resource["spec"] for name, resource in RESOURCES.items() if name.startswith("gateway")}
    selectors = [
        spec["gateway.yaml"]["selector"]["matchLabels"],
        GATEWAY["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        spec["gateway-service.yaml"]["selector"],
        spec["gateway-network.yaml"]["podSelector"]["matchLabels"],
        spec["gateway-podmonitor.yaml"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert spec["gateway-autoscaler.yaml"]["scaleTargetRef"]["name"] == RESOURCES["gateway.yaml"]["metadata"]["name"]
    assert f'job="{labels[spec["gateway-podmonitor.yaml"]["jobLabel"]]}"' in RULES.read_text()


def test_the_gateway_reaches_the_reranker_and_nothing_else():
    options = _parser().parse_args(["gateway", *GATEWAY_CONTAINER["args"]])
    service = RESOURCES["service.yaml"]
    grpc = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc")
    assert options.url == [f"dns:///{service['metadata']['name']}:{grpc}"]
    admitted = RESOURCES["network.yaml"]["spec"]["ingress"][0]["from"]
    assert {"podSelector": {"matchLabels": {"reranker-client": "true"}}} in admitted
    assert GATEWAY["metadata"]["labels"]["reranker-client"] == "true"
    to_reranker, to_dns = RESOURCES["gateway-network.yaml"]["spec"]["egress"]
    assert to_reranker["to"] == [{"podSelector": {"matchLabels": POD["metadata"]["labels"]}}]
    assert [port["port"] for port in to_reranker["ports"]] == [grpc]
    assert {port["port"] for port in to_dns["ports"]} == {53}


def test_the_gateways_image_is_that_of_compose():
    (image,) = [image for image in KUSTOMIZATION["images"] if image["name"] == GATEWAY_CONTAINER["image"]]
    assert f"{image['name']}:{image['newTag']}" == GATEWAY_COMPOSE["image"]


def test_the_gateway_ends_after_its_calls():
    options = _parser().parse_args(["gateway", *GATEWAY_CONTAINER["args"]])
    longest = options.drain + options.timeout + options.body_timeout
    assert GATEWAY["spec"]["terminationGracePeriodSeconds"] > longest
    assert options.port == GATEWAY_CONTAINER["ports"][0]["containerPort"]


def test_the_gateway_runs_without_rights():
    assert GATEWAY["spec"]["securityContext"]["runAsNonRoot"] is True
    assert GATEWAY["spec"]["automountServiceAccountToken"] is False
    assert GATEWAY_CONTAINER["securityContext"] == CONTAINER["securityContext"]


async def test_the_gateways_probes_are_its_paths():
    """A reranker that is down makes a gateway unready; it does not restart it."""
    client = AsyncRerankClient("127.0.0.1:1")
    async with client, httpx.AsyncClient(transport=httpx.ASGITransport(create_app(client)), base_url="http://g") as web:
        for probe, status in (("readinessProbe", 503), ("livenessProbe", 200)):
            assert (await web.get(GATEWAY_CONTAINER[probe]["httpGet"]["path"])).status_code == status
