"""deploy/kserve: the fields of KServe's resources, and what they share with deploy/kubernetes."""

import json

import jsonschema
import kubernetes_validate
import pytest
import yaml

from support import ROOT
from unit.deploy.test_kubernetes import CHECKPOINT, CONTAINER, POD, RESOURCES, kustomized

FOLDER = ROOT / "deploy" / "kserve"
RUNTIME, SERVICE = (yaml.safe_load((FOLDER / name).read_text()) for name in ("runtime.yaml", "inferenceservice.yaml"))
FIELDS = json.loads((ROOT / "tests" / "support" / "kserve_fields.json").read_text())
PODS = {"serving.kserve.io/inferenceservice": "reranker"}
"""A label that KServe gives the pods of the InferenceService."""


@pytest.mark.parametrize(
    ("resource", "kind"), [(RUNTIME, "V1alpha1ServingRuntime"), (SERVICE, "V1beta1InferenceService")]
)
def test_every_field_is_one_of_kserves(resource, kind):
    jsonschema.validate(resource, {"$ref": f"#/definitions/{kind}", **FIELDS})
    wrong = {**resource, "spec": {**resource["spec"], "storageUri": "pvc://x"}}
    with pytest.raises(jsonschema.ValidationError, match="storageUri"):
        jsonschema.validate(wrong, {"$ref": f"#/definitions/{kind}", **FIELDS})


def test_the_rest_are_fields_of_a_pod():
    predictor = dict(SERVICE["spec"]["predictor"])
    for field in ("minReplicas", "maxReplicas", "model", "deploymentStrategy"):
        predictor.pop(field)
    containers = {name: RUNTIME["spec"][name] for name in ("containers", "volumes")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {**predictor, **containers}}
    kubernetes_validate.validate(pod, "1.31", strict=True)
    assert predictor == {name: POD["spec"][name] for name in predictor}


def test_triton_runs_as_in_the_deployment():
    (container,) = RUNTIME["spec"]["containers"]
    own = {name: value for name, value in CONTAINER.items() if name != "envFrom"}
    args = ["--model-repository=/mnt/models", *CONTAINER["args"][1:]]
    mounts = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] != "models"]
    assert container == {**own, "name": "kserve-container", "args": args, "volumeMounts": mounts}
    assert RUNTIME["spec"]["volumes"] == [volume for volume in POD["spec"]["volumes"] if volume["name"] != "models"]


def test_the_service_asks_for_the_runtime():
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"] in RUNTIME["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_it_replaces_the_deployment_and_nothing_else():
    base, built = kustomized(ROOT / "deploy" / "kubernetes"), kustomized(FOLDER)
    assert base.keys() - built.keys() == {("Deployment", "reranker"), ("HorizontalPodAutoscaler", "reranker")}
    assert built.keys() - base.keys() == {("ServingRuntime", "triton-rerank"), ("InferenceService", "reranker")}
    changed = {key for key in built.keys() & base.keys() if built[key] != base[key]}
    assert changed == {
        ("Service", "reranker"),
        ("NetworkPolicy", "reranker"),
        ("NetworkPolicy", "gateway"),
        ("PodDisruptionBudget", "reranker"),
        ("PodMonitor", "reranker"),
    }
    for key in changed:
        assert str(PODS) in str(built[key])
        assert str(POD["metadata"]["labels"]) not in str(built[key])
    # The job of the rules and alerts.
    assert PODS[built["PodMonitor", "reranker"]["spec"]["jobLabel"]] == "reranker"


def test_it_serves_the_folder_that_the_job_fills():
    built = kustomized(FOLDER)
    model = built["InferenceService", "reranker"]["spec"]["predictor"]["model"]
    claim = RESOURCES["models/volume.yaml"]["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/{CHECKPOINT['RERANK_VERSION']}"
    server = built["ServingRuntime", "triton-rerank"]["spec"]["containers"][0]
    base = kustomized(ROOT / "deploy" / "kubernetes")["Deployment", "reranker"]["spec"]["template"]["spec"]
    assert server["image"] == base["containers"][0]["image"]
