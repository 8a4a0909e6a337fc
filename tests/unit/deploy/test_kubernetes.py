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
from triton_rerank_build.cli.main import _parser as builder_parser
from triton_rerank_build.repository.layout import RERANKER

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MODELS = yaml.safe_load((FOLDER / "models" / "kustomization.yaml").read_text())
FILES = [*KUSTOMIZATION["resources"], *(f"models/{name}" for name in MODELS["resources"])]
RESOURCES = {name: yaml.safe_load((FOLDER / name).read_text()) for name in FILES if name != "models"}
CHECKPOINT = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / "models" / "checkpoint.env").read_text(), re.M))
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
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")}
    assert files - {"kustomization.yaml", "models/kustomization.yaml"} == set(RESOURCES)


def kustomized(folder):
    """(kind, name) -> what `kubectl apply -k` applies."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; it brings `kubectl kustomize`")
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    documents = list(yaml.safe_load_all(built.stdout))
    assert all(d["kind"] == "Namespace" or d["metadata"]["namespace"] == "reranker" for d in documents)
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def values_of(tree, key):
    """The values of a key, anywhere in a resource."""
    if isinstance(tree, list):
        return [value for each in tree for value in values_of(each, key)]
    if not isinstance(tree, dict):
        return []
    own = [tree[key]] if key in tree else []
    return own + [value for each in tree.values() for value in values_of(each, key)]


def test_kustomize_builds_it():
    documents = kustomized(FOLDER)
    assert len(documents) == len(RESOURCES) + 1, "the files, and the ConfigMap"
    images = {GATEWAY_COMPOSE["image"], release_of(COMPOSE["image"]), SERVICES["build"]["image"]}
    assert {image for document in documents.values() for image in values_of(document, "image")} == images


def test_one_file_says_what_is_exported_and_served():
    documents = kustomized(FOLDER)
    (config,) = (document for (kind, _), document in documents.items() if kind == "ConfigMap")
    assert config["data"] == CHECKPOINT
    references = {map_["name"] for document in documents.values() for map_ in values_of(document, "configMapRef")}
    assert references == {config["metadata"]["name"]} != {"reranker-checkpoint"}, "the name has a hash of the contents"
    assert ("Job", f"reranker-export-{CHECKPOINT['RERANK_VERSION']}") in documents, "a Job can't be changed"


def test_the_job_fills_the_folder_that_is_served():
    container = RESOURCES["models/export.yaml"]["spec"]["template"]["spec"]["containers"][0]
    arguments = [re.sub(r"\$\((\w+)\)", lambda match: CHECKPOINT[match[1]], argument) for argument in container["args"]]
    options = builder_parser().parse_args(arguments)
    assert (options.checkpoint, options.precision) == (CHECKPOINT["RERANK_CHECKPOINT"], "fp16")
    assert CONTAINER["args"][0] == "--model-repository=/models/$(RERANK_VERSION)"
    assert options.repository == f"/models/{CHECKPOINT['RERANK_VERSION']}"
    assert not options.force, "a folder that is served is never overwritten"
    (waiting,) = POD["spec"]["initContainers"]
    assert RERANKER.manifests[-1].as_posix() in waiting["command"][-1]
    assert waiting["image"] == CONTAINER["image"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert mounts >= {"/models", "/tmp"} | {f"/{path}" for path in re.findall(r"=/(cache)/", dockerfile)}


def test_nobody_connects_to_the_job():
    policy = RESOURCES["models/network.yaml"]["spec"]
    assert (
        policy["podSelector"]["matchLabels"]
        == RESOURCES["models/export.yaml"]["spec"]["template"]["metadata"]["labels"]
    )
    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress"], [])


def test_a_waiting_pod_goes_on_when_the_export_is_complete(tmp_path):
    script = POD["spec"]["initContainers"][0]["command"][-1]
    script = script.replace("/models/$(RERANK_VERSION)", str(tmp_path)).replace("sleep 2", "sleep 0.05")
    manifest = tmp_path / RERANKER.manifests[-1]
    manifest.parent.mkdir(parents=True)
    with subprocess.Popen(["bash", "-c", script]) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        manifest.touch()
        assert waiting.wait(60) == 0


def test_the_same_options_as_with_compose():
    options = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", option) for option in COMPOSE["command"]]
    assert [
        argument.replace("$(RERANK_VERSION)", CHECKPOINT["RERANK_VERSION"]) for argument in CONTAINER["args"]
    ] == options


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
    export = RESOURCES["models/export.yaml"]["spec"]["template"]["spec"]
    assert {volume["name"] for volume in export["volumes"]} == {
        mount["name"] for mount in export["containers"][0]["volumeMounts"]
    }
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == RESOURCES["models/volume.yaml"]["metadata"]["name"]
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
    rights = values_of([RESOURCES["models/export.yaml"], POD["spec"]["initContainers"]], "allowPrivilegeEscalation")
    assert rights == [False, False]
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
        spec["gateway-disruption.yaml"]["selector"]["matchLabels"],
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


@pytest.mark.slow
async def test_the_gateways_probes_are_its_paths():
    """A reranker that is down makes a gateway unready; it does not restart it."""
    client = AsyncRerankClient("127.0.0.1:1")
    async with client, httpx.AsyncClient(transport=httpx.ASGITransport(create_app(client)), base_url="http://g") as web:
        for probe, status in (("readinessProbe", 503), ("livenessProbe", 200)):
            assert (await web.get(GATEWAY_CONTAINER[probe]["httpGet"]["path"])).status_code == status
