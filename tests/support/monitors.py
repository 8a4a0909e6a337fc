"""Monitoring in the tests: a server's metrics, and a real Prometheus with this project's rules."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import psutil
import pytest
import yaml

from support.deployment import RULES


def program(name):
    """The path of `prometheus` or `promtool`. Without it the test is skipped; in CI it fails."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed; run `make test`, or on Debian and Ubuntu: apt-get install prometheus"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


def triton_process(server, name):
    """The process of this server whose command line holds `name`."""
    mine = psutil.Process(server._supervisor.pid).children(recursive=True)
    return next(process for process in mine if any(name in part for part in process.cmdline()))


def cache_metrics(server):
    """Triton's lines about late interaction's cache: {"hits_total/document": 3, ...}."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = re.findall(r"^late_interaction_cache_(\w+)\{(.*)\} (\S+)$", answer.read().decode(), re.M)
    kinds = [(name, re.search('kind="(\\w+)"', labels), float(value)) for name, labels, value in lines]
    return {f"{name}/{kind.group(1)}" if kind else name: value for name, kind, value in kinds}


def wait_until(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"the condition did not become true within {timeout_s} s"
        time.sleep(0.2)
    return result


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def unsupervised(server):
    """As in a container, where no supervisor restarts tritonserver."""
    supervisor = psutil.Process(server._supervisor.pid)
    supervisor.suspend()
    try:
        yield
    finally:
        supervisor.resume()


def scrape(server):
    """(name, labels, value) of every series."""
    text = urllib.request.urlopen(server.metrics_url).read().decode()
    return [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
        for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M)
    ]


def counter(server, name, **labels):
    return next(value for other, its, value in scrape(server) if other == name and labels.items() <= its.items())


def quicker_rules(factor=6):
    """This project's rules with every range and every `for` a sixth as long, since scrapes come every second here."""

    def shorter(span):
        return f"{span[1]}{int(span[2]) * {'s': 1, 'm': 60}[span[3]] // factor}s"

    return re.sub(r"(\[|for: )(\d+)([sm])\b", shorter, RULES.read_text())


class Prometheus:
    """A real Prometheus with this project's rules, scraping one server every second."""

    def __init__(self, folder, server):
        executable = program("prometheus")
        target = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "reranker", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "rules.yml").write_text(quicker_rules())
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.command = [
            executable,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def query(self, expression):
        """The result of an instant query; empty while Prometheus starts."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with contextlib.suppress(ConnectionError, urllib.error.URLError), urllib.request.urlopen(url) as response:
            return json.load(response)["data"]["result"]
        return []
