"""The deployment files as the tests read them."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

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


def entrypoint_options(options, admin_key=None):
    """What deploy/tritonserver.sh starts tritonserver with: its own options, then `options`."""
    environment = {name: value for name, value in os.environ.items() if name != "RERANK_ADMIN_KEY"}
    if admin_key is not None:
        environment["RERANK_ADMIN_KEY"] = admin_key
    with tempfile.TemporaryDirectory() as folder:
        tritonserver = Path(folder) / "tritonserver"
        tritonserver.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        tritonserver.chmod(0o755)
        environment["PATH"] = f"{folder}:{environment['PATH']}"
        command = [ROOT / "deploy" / "tritonserver.sh", *options]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return tuple(output.splitlines())


def server_options(admin_key=None):
    """tritonserver's options in a container of docker-compose.yml, without those that name a path in the container."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    options = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", option) for option in services["triton"]["command"]]
    skipped = ("--model-repository", "--disable-auto-complete-config")
    return entrypoint_options([option for option in options if not option.startswith(skipped)], admin_key)
