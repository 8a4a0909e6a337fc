"""The deployment files as the tests read them."""

import json
import re

import yaml

from support import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "reranker.json"

# Metrics that Triton exports only with a GPU, and those that Prometheus generates.
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
PROMETHEUS_METRICS = {"up", "ALERTS"}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads(DASHBOARD.read_text())


def queries():
    """(panel's title, expression) of the dashboard; the variable stands for all servers."""
    return [
        (panel["title"], target["expr"].replace("$instance", ".*"))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def server_options():
    """tritonserver's options in docker-compose.yml, without those that name paths in the container."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    options = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", option) for option in services["triton"]["command"]]
    return tuple(o for o in options if not o.startswith(("--model-repository", "--disable-auto-complete-config")))
