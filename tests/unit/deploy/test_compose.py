"""docker-compose.yml against the schema, files, images, and options of the real tritonserver."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from support import ROOT
from support.deployment import entrypoint_options
from triton_rerank.cli.main import _parser as triton_rerank_parser
from triton_rerank_build.cli.main import _parser
from triton_rerank_build.contract import BACKENDS
from triton_rerank_build.late_interaction.repository import complete_late
from triton_rerank_build.repository.layout import complete_from_template, template_repository
from triton_rerank_build.serving import tritonserver
from triton_rerank_build.support.files import CACHE_VARIABLE
from triton_rerank_build.tensorrt.prepare import WORK_FOLDER
from triton_rerank_build.tensorrt.trtexec import SCRIPT_FILE

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
TRITONS = [name for name in SERVICES if name.startswith("triton")]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()

RELEASE = re.search(r"^ARG TRITON_RELEASE=(\S+)$", DOCKERFILE, re.M)[1]
# Options of the images' releases; the file says where they were read.
NEWER_OPTIONS = ROOT / "tests" / "support" / "tritonserver_options.txt"

# Backends of nvcr.io/nvidia/tritonserver that a reranker could name (/opt/tritonserver/backends).
NVIDIA_BACKENDS = {"onnxruntime", "openvino", "python", "pytorch", "tensorrt"}
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
FOLDER = "/models/v1"
"""The folder of the volume that is filled and served."""


def defaults(text):
    """Replace each variable by its default, as Compose does without .env."""
    return VARIABLE.sub(r"\2", str(text))


def command(service):
    return [defaults(argument) for argument in SERVICES[service]["command"]]


def stages():
    """Stage -> (its parent, its lines) of the Dockerfile."""
    found = {}
    for line in DOCKERFILE.splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            lines = found.setdefault(match[2], (match[1], []))[1]
        elif found:
            lines.append(line)
    return found


def lines_of(target):
    """All lines of an image, the parents' first."""
    if target not in stages():
        return []
    parent, lines = stages()[target]
    return lines_of(parent) + lines


def copied_files():
    """Files and folders of the checkout that the images copy."""
    lines = re.findall(r"^COPY (?!--from)((?:\S+ )+)\S+$", DOCKERFILE, re.M)
    return [source for sources in lines for source in sources.split()]


def config_of(model, name):
    """The config that `--model-config-name=name` selects for a model."""
    folder = ROOT / "model_repository" / model
    chosen = folder / "configs" / f"{name}.pbtxt"
    path = chosen if chosen.is_file() else folder / "config.pbtxt"
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def config_name(service):
    names = [argument.partition("=")[2] for argument in command(service) if argument.startswith("--model-config-name")]
    return names[0] if names else ""


def test_it_follows_the_compose_specification():
    subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            ROOT / "docker-compose.yml",
        ],
        check=True,
    )


def test_profiles():
    profiles = {name: set(service["profiles"]) for name, service in SERVICES.items()}
    assert set.union(*profiles.values()) == {"gpu", "tensorrt", "cpu", "monitoring", "loadtest", "gateway"}
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", ()):
            # Compose rejects a profile if a dependency of one of its services is not in it.
            assert profiles[name] <= profiles[needed], f"{name} needs {needed}"


@pytest.mark.parametrize("profile", ["gpu", "tensorrt", "cpu"])
def test_one_server_and_one_build_per_profile(profile):
    running = [name for name, service in SERVICES.items() if profile in service["profiles"]]
    assert len([name for name in running if name.startswith("triton")]) == 1
    assert len([name for name in running if name.startswith("build")]) == 1


def test_every_mounted_file_and_volume_exists():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = defaults(volume).split(":")[0]
            there = (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
            assert there, f"{name}: {source}"


def test_images_are_pinned():
    images = [defaults(service["image"]) for service in SERVICES.values()]
    images += re.findall(r"^FROM (\S+:\S+)", DOCKERFILE.replace("${TRITON_RELEASE}", RELEASE), re.M)
    assert len(images) > len(SERVICES)
    for image in images:
        # A patch release, or NVIDIA's monthly one; `python:3.11-slim` would change below us.
        assert re.search(r":v?(\d+\.\d+\.\d+|\d\d\.\d\d(-py3)?$)", image), image


def test_triton_and_tensorrt_are_of_one_release_that_has_the_fixes():
    # 25.07 fixed the remote code execution of SECURITY.md; 26.04's readiness is that of the Kubernetes probe.
    assert (26, 5) <= tuple(map(int, RELEASE.split("."))) <= (26, 8), "the range that the Dockerfile states"
    assert "FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS server\n" in DOCKERFILE
    assert defaults(SERVICES["engine"]["image"]) == f"nvcr.io/nvidia/tensorrt:{RELEASE}-py3"
    for service in TRITONS:
        assert defaults(SERVICES[service]["image"]).endswith(f":{RELEASE}")
        assert defaults(SERVICES[service]["build"]["args"]["TRITON_RELEASE"]) == RELEASE


def test_env_example_says_every_variable_and_its_default():
    used = dict(VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    example = (ROOT / ".env.example").read_text()
    said = dict(re.findall(r"^(\w+)=(.*)$", example, re.M))
    assert {
        variable: value or used.get(variable) for variable, value in said.items()
    } == used  # Compose takes empty as unset
    for variable in used:
        assert re.search(rf"^#.*\n(\w+=.*\n)*{variable}=", example, re.M), f"{variable} is not explained"


def test_dockerfile_targets_and_files_exist():
    for name, service in SERVICES.items():
        if build := service.get("build"):
            assert (ROOT / build["dockerfile"]).is_file()
            assert build["target"] in stages(), name
    for source in copied_files():
        assert (ROOT / source).exists(), source


def test_what_the_images_copy_is_not_ignored():
    kept = re.findall(r"^!(\S+)$", (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(), re.M)
    for source in copied_files():
        assert any(source == path or source.startswith(f"{path}/") for path in kept), source


@pytest.fixture(scope="module")
def tritonserver_options():
    """Options in the usage of the local server's tritonserver, release 2.51."""
    installation = tritonserver.find("openvino")
    server = installation.root / "bin" / "tritonserver"
    # The exit status of --help is 1.
    command = [server, "--help"]
    usage = subprocess.run(command, env=installation.environment(), capture_output=True, text=True, check=False)
    options = set(re.findall(r"^\s+(--[a-z0-9-]+)", usage.stdout + usage.stderr, re.M))
    assert len(options) > 50
    return options


@pytest.mark.parametrize("target", ["server", "server-cpu"])
def test_a_server_image_installs_as_root_and_runs_as_another_user(target):
    # Since Python 3.12 Debian's pip needs the variable.
    lines = [line.strip() for line in lines_of(target) if line.startswith(("USER", "RUN", "ENV PIP"))]
    user, ready = "", False
    for line in lines:
        if line.startswith("USER"):
            user = line.split()[1]
        ready |= line == "ENV PIP_BREAK_SYSTEM_PACKAGES=1"
        assert not line.startswith("RUN") or (user == "root" and ready), line
    assert user == "1000"


def newer_options():
    return {line for line in NEWER_OPTIONS.read_text().splitlines() if line.startswith("--")}


def test_newer_releases_have_every_option_of_the_local_server(tritonserver_options):
    assert tritonserver_options <= newer_options()


@pytest.mark.parametrize("service", TRITONS)
def test_tritonserver_knows_every_option(service, tritonserver_options):
    options = {argument.partition("=")[0] for argument in entrypoint_options(command(service))}
    assert {"--grpc-restricted-protocol", "--http-restricted-api"} <= options
    assert options <= tritonserver_options
    assert options <= newer_options()
    assert {"--model-control-mode=none", "--disable-auto-complete-config"} <= set(command(service))
    assert "--trace-config=level=OFF" in command(service)


def test_the_servers_differ_in_their_config_alone():
    def shared(service):
        return [argument for argument in command(service) if not argument.startswith("--model-config-name")]

    assert shared("triton") == shared("triton-tensorrt") == shared("triton-cpu")
    assert [config_name(service) for service in TRITONS] == ["", "tensorrt", "cpu"]


def test_a_server_is_recreated_when_what_it_serves_changes():
    """Compose recreates a service whose own definition changes, not one whose dependency does."""
    for service in TRITONS:
        assert f"--model-repository={FOLDER}" in command(service)
    for build in ("build", "build-cpu"):
        exported = set(re.findall(r"\$\{(\w+):-", " ".join(SERVICES[build]["command"])))
        assert {"RERANK_CHECKPOINT", "RERANK_REVISION", "RERANK_MAX_LENGTH", "RERANK_VERSION"} <= exported
        for service in TRITONS:
            own = " ".join([*SERVICES[service]["command"], *SERVICES[service]["labels"].values()])
            assert exported <= set(re.findall(r"\$\{(\w+):-", own))


def test_requests_in_flight_end_before_the_container_is_killed():
    for service in TRITONS:
        seconds = next(int(a.partition("=")[2]) for a in command(service) if a.startswith("--exit-timeout-secs"))
        assert int(SERVICES[service]["stop_grace_period"].removesuffix("s")) > seconds


@pytest.mark.parametrize("service", TRITONS)
def test_every_backend_is_in_the_image(service):
    target = SERVICES[service]["build"]["target"]
    own = re.findall(r"^COPY \S+ /opt/tritonserver/backends/(\S+)$", "\n".join(lines_of(target)), re.M)
    for name in own:
        assert (BACKENDS / name / "model.py").is_file()
    for model in ("reranker", "tokenizer", "cross_encoder"):
        config = config_of(model, config_name(service))
        backend = config.backend or {"tensorrt_plan": "tensorrt", "ensemble": None}[config.platform]
        assert backend is None or backend in NVIDIA_BACKENDS | set(own), f"{model} needs {backend}"


def imported(*paths):
    """Packages that these files import, without the standard library, numpy, each other and Triton's module."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    names -= {path.stem for path in paths}
    return names - sys.stdlib_module_names - {"numpy", "triton_python_backend_utils"}


def pip_installs(target):
    """Arguments of each `pip install` of an image."""
    text = "\n".join(lines_of(target)).replace("\\\n", " ")
    return re.findall(r"pip3? install(.*?)(?:&&|$)", text, re.M)


@pytest.mark.parametrize("target", ["build", "loadtest", "gateway-environment", "server", "server-cpu"])
def test_packages_of_the_images_are_those_of_constraints_txt(target):
    constraints = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    installs = [arguments for arguments in pip_installs(target) if "uv==" not in arguments]
    assert installs
    for arguments in installs:
        assert re.search(r"--constraint \S*constraints.txt", arguments), arguments
        if "--no-deps" in arguments:  # with dependencies, pip resolves those to the constraints as well
            packages = [a for a in arguments.split() if not a.startswith("-") and "constraints.txt" not in a]
            assert packages
            assert set(packages) <= constraints.keys()
        elif "uv pip" in "\n".join(lines_of(target)):
            assert "--build-constraint constraints.txt" in arguments, arguments


@pytest.mark.parametrize(
    ("target", "model", "needed"),
    [
        ("server", "models/tokenizer/1", {"tokenizers"}),
        ("server", "models/late_scorer/1", {"tokenizers"}),
        ("server-cpu", "models/tokenizer/1", {"tokenizers"}),
        ("server-cpu", "backends/rerank_openvino", {"openvino"}),
        ("server-cpu", "backends/encode_openvino", {"openvino", "cpu_quota"}),  # of rerank_openvino, beside it
    ],
)
def test_every_import_is_installed_in_the_image(target, model, needed, tmp_path):
    complete_from_template(tmp_path / "models", template_repository())
    complete_late(tmp_path / "models")
    shutil.copytree(BACKENDS, tmp_path / "backends")
    installed = set(re.findall(r"(?<=\s)[a-z][a-z_-]+", " ".join(pip_installs(target))))
    assert imported(*(tmp_path / model).glob("*.py")) == needed
    assert needed - {"cpu_quota"} <= installed


def test_the_health_check_needs_nothing_installed():
    assert imported(ROOT / "deploy/healthcheck.py") == set()
    for service in TRITONS:
        program = SERVICES[service]["healthcheck"]["test"][2]
        copied = re.findall(
            r"^COPY (.*deploy/\S+) (\S+/)$", "\n".join(lines_of(SERVICES[service]["build"]["target"])), re.M
        )
        there = {folder + Path(source).name for sources, folder in copied for source in sources.split()}
        assert program in there
        assert json.loads(entrypoint(SERVICES[service]["build"]["target"]))[0] in there


def entrypoint(target):
    return re.findall(r"^ENTRYPOINT (.+)$", "\n".join(lines_of(target)), re.M)[-1]


def test_no_caller_reaches_tritons_http_port_over_the_network_unless_asked_for():
    for service in TRITONS:
        (http,) = [port for port in SERVICES[service]["ports"] if port.endswith(":8000")]
        assert http.startswith("${RERANK_HTTP_BIND:-127.0.0.1}:"), "RERANK_BIND must not open it"


@pytest.mark.parametrize(
    ("bind", "password", "starts"),
    [
        ("127.0.0.1", "admin", True),
        ("127.0.0.2", "admin", True),
        ("::1", "admin", True),
        ("0.0.0.0", "admin", False),
        ("", "admin", False),  # Docker takes it for every address
        ("192.168.1.5", "admin", False),
        ("0.0.0.0", "another", True),
    ],
)
def test_grafanas_default_password_is_refused_beyond_loopback(bind, password, starts):
    grafana = SERVICES["grafana"]
    assert defaults(grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"]) == "admin"
    assert defaults(grafana["environment"]["RERANK_BIND"]) == "127.0.0.1"
    (script,) = grafana["command"]
    assert script.rstrip().endswith("exec /run.sh")
    shell = script.replace("$$", "$").replace("exec /run.sh", "echo started")
    environment = {"RERANK_BIND": bind, "GF_SECURITY_ADMIN_PASSWORD": password}
    done = subprocess.run(
        [*grafana["entrypoint"], shell], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0, done.stdout == "started\n") == (starts, starts)
    assert starts or "set RERANK_GRAFANA_PASSWORD" in done.stderr


def test_grafana_takes_a_changed_password():
    # It stores the first one in its database, so the database must not outlive the container.
    assert "/var/lib/grafana" in SERVICES["grafana"]["tmpfs"]
    assert not [volume for volume in SERVICES["grafana"]["volumes"] if volume.startswith("grafana:")]


def test_the_plan_is_prepared_built_and_proved_in_this_order():
    steps = ["build", "prepare-engine", "engine", "install-engine", "triton-tensorrt"]
    for before, after in pairwise(steps):
        assert SERVICES[after]["depends_on"] == {before: {"condition": "service_completed_successfully"}}
    (shell,) = SERVICES["engine"]["command"]
    assert defaults(shell).startswith(f"cd {FOLDER}; ")
    assert f"bash {WORK_FOLDER}/{SCRIPT_FILE}" in shell
    for service in ("prepare-engine", "install-engine"):
        parsed = _parser().parse_args(command(service))
        assert (parsed.repository, parsed.prepare, parsed.install) == (
            FOLDER,
            service == "prepare-engine",
            service == "install-engine",
        )
    # The script names the timing cache by its path in the image that wrote it.
    assert "cache:/cache" in SERVICES["engine"]["volumes"]
    assert "cache:/cache" in SERVICES["prepare-engine"]["volumes"]
    assert f"{CACHE_VARIABLE}=/cache/" in "\n".join(lines_of("build"))
    assert "useradd --uid " + SERVICES["engine"]["user"] in DOCKERFILE


@pytest.mark.parametrize("service", ["build", "build-cpu"])
def test_our_command_line_takes_the_build_services(service):
    parsed = _parser().parse_args(command(service))
    assert parsed.checkpoint == "BAAI/bge-reranker-v2-m3"
    assert parsed.repository == FOLDER
    assert parsed.precision == {"build": "fp16", "build-cpu": "fp32"}[service]


def test_prometheus_scrapes_the_name_and_port_of_the_servers():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    lookup, gateway = (job["dns_sd_configs"][0] for job in config["scrape_configs"])
    assert [job["job_name"] for job in config["scrape_configs"]] == ["reranker", "gateway"]
    assert gateway["names"] == ["gateway"]
    assert SERVICES["gateway"]["ports"][0].endswith(f":{gateway['port']}")
    for service in TRITONS:
        assert lookup["names"] == SERVICES[service]["networks"]["default"]["aliases"]
        assert any(str(port).endswith(f":{lookup['port']}") for port in SERVICES[service]["ports"])


def test_the_gateway_asks_the_servers_and_takes_its_options():
    service = SERVICES["gateway"]
    assert (
        service["environment"]["TRITON_RERANK_URL"]
        == f"dns:///{SERVICES['triton']['networks']['default']['aliases'][0]}:8001"
    )
    options = triton_rerank_parser().parse_args(["gateway", *command("gateway")])
    assert options.drain == 2
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > options.drain + options.timeout + options.body_timeout
    assert service["ports"] == [f"${{RERANK_BIND:-127.0.0.1}}:${{RERANK_GATEWAY_PORT:-8080}}:{options.port}"]
    assert "TRITON_RERANK_GATEWAY_HOST=0.0.0.0" in "\n".join(lines_of("gateway"))
    assert service["read_only"] is True


def test_the_gateways_image_holds_what_the_extra_needs_and_no_more():
    assert stages()["gateway"][0].startswith("python:")
    (install,) = [line for line in pip_installs("gateway-environment") if "client" in line]
    assert '"./client[gateway]"' in install
    assert json.loads(entrypoint("gateway")) == ["/opt/gateway/bin/triton-rerank", "gateway"]
    assert "USER 1000" in lines_of("gateway")


@pytest.mark.parametrize("running", [True, False])
def test_the_gateways_health_check(running, tmp_path):
    """Its program against a server that is ready, and against none."""
    program, *arguments = SERVICES["gateway"]["healthcheck"]["test"][1:]
    assert program == "/opt/gateway/bin/python"
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        port = server.server_address[1]
        if running:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        code = arguments[-1].replace(":8080", f":{port}")
        done = subprocess.run([sys.executable, *arguments[:-1], code], capture_output=True, check=False)
    assert (done.returncode == 0) is running


class Healthy(BaseHTTPRequestHandler):
    """Answers like a gateway that is ready."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_load_test_asks_the_servers():
    host = SERVICES["loadtest"]["environment"]["LOCUST_HOST"]
    assert host == f"{SERVICES['triton']['networks']['default']['aliases'][0]}:8001"


def test_locust_takes_its_command_line():
    locust = [sys.executable, "-m", "locust", f"--locustfile={ROOT / 'loadtest' / 'locustfile.py'}"]
    subprocess.run([*locust, *command("loadtest"), "--list"], check=True, capture_output=True)
