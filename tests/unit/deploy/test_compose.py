"""docker-compose.yml, held against everything it names: schema, files, images, options of the real tritonserver."""

import ast
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from support import ROOT
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

# Backends of nvcr.io/nvidia/tritonserver:24.10-py3 that a reranker could name (/opt/tritonserver/backends).
NVIDIA_BACKENDS = {"onnxruntime", "openvino", "python", "pytorch", "tensorrt"}
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def defaults(text):
    """Text as Compose reads it where .env says nothing."""
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
    """All lines that make an image, its parents' first."""
    if target not in stages():
        return []
    parent, lines = stages()[target]
    return lines_of(parent) + lines


def config_of(model, name):
    """A model's config as `--model-config-name=name` chooses it."""
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
    assert set.union(*profiles.values()) == {"gpu", "tensorrt", "cpu", "monitoring", "loadtest"}
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", ()):
            # Compose refuses a profile in which a service's dependency is not switched on.
            assert profiles[name] <= profiles[needed], f"{name} needs {needed}"


@pytest.mark.parametrize("profile", ["gpu", "tensorrt", "cpu"])
def test_one_server_and_one_build_per_profile(profile):
    running = [name for name, service in SERVICES.items() if profile in service["profiles"]]
    assert len([name for name in running if name.startswith("triton")]) == 1
    assert len([name for name in running if name.startswith("build")]) == 1


def test_every_mounted_file_and_volume_exists():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            there = (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
            assert there, f"{name}: {source}"


def test_images_are_pinned():
    images = [service["image"] for service in SERVICES.values()] + re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.M)
    assert len(images) > len(SERVICES)
    for image in images:
        assert re.search(r":v?\d[\w.-]+$", image), image


def test_triton_and_tensorrt_are_of_one_release():
    release = re.search(r"tritonserver:(\d+\.\d+)-py3", DOCKERFILE)[1]
    assert release == "24.10", "the laptop server, nvidia-pytriton 0.7.0, is of release 24.10"
    assert SERVICES["engine"]["image"].endswith(f"tensorrt:{release}-py3")


def test_env_example_says_every_variable_and_its_default():
    used = dict(VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    example = (ROOT / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.M)) == used
    for variable in used:
        assert re.search(rf"^#.*\n(\w+=.*\n)*{variable}=", example, re.M), f"{variable} is not explained"


def test_dockerfile_targets_and_files_exist():
    for name, service in SERVICES.items():
        if build := service.get("build"):
            assert (ROOT / build["dockerfile"]).is_file()
            assert build["target"] in stages(), name
    for sources in re.findall(r"^COPY ((?:\S+ )+)\S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_what_the_images_copy_is_not_ignored():
    kept = re.findall(r"^!(\S+)$", (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(), re.M)
    for sources in re.findall(r"^COPY ((?:\S+ )+)\S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert any(source == path or source.startswith(f"{path}/") for path in kept), source


@pytest.fixture(scope="module")
def tritonserver_options():
    """The options that the real tritonserver, of the containers' release, lists in its usage."""
    installation = tritonserver.find("openvino")
    server = installation.root / "bin" / "tritonserver"
    # Its status is 1 although it was asked to.
    command = [server, "--help"]
    usage = subprocess.run(command, env=installation.environment(), capture_output=True, text=True, check=False)
    options = set(re.findall(r"^\s+(--[a-z0-9-]+)", usage.stdout + usage.stderr, re.M))
    assert len(options) > 50
    return options


@pytest.mark.parametrize("service", TRITONS)
def test_tritonserver_knows_every_option(service, tritonserver_options):
    options = {argument.partition("=")[0] for argument in command(service)}
    assert options <= tritonserver_options
    assert {"--model-control-mode=none", "--disable-auto-complete-config"} <= set(command(service))
    assert "--trace-config=level=OFF" in command(service)


def test_the_servers_differ_in_their_config_alone():
    def shared(service):
        return [argument for argument in command(service) if not argument.startswith("--model-config-name")]

    assert shared("triton") == shared("triton-tensorrt") == shared("triton-cpu")
    assert [config_name(service) for service in TRITONS] == ["", "tensorrt", "cpu"]


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
    """Packages that these files need beyond Python, numpy, each other and what Triton gives them."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    names -= {path.stem for path in paths}
    return names - sys.stdlib_module_names - {"numpy", "triton_python_backend_utils"}


@pytest.mark.parametrize(
    ("target", "model", "needed"),
    [
        ("server", "models/tokenizer/1", {"tokenizers"}),
        ("server", "models/late_tokenizer/1", {"tokenizers"}),
        ("server", "models/late_scorer/1", set()),
        ("server-cpu", "models/tokenizer/1", {"tokenizers"}),
        ("server-cpu", "backends/rerank_openvino", {"openvino"}),
        ("server-cpu", "backends/encode_openvino", {"openvino", "cpu_quota"}),  # of rerank_openvino, beside it
    ],
)
def test_every_import_is_installed_in_the_image(target, model, needed, tmp_path):
    complete_from_template(tmp_path / "models", template_repository())
    complete_late(tmp_path / "models")
    shutil.copytree(BACKENDS, tmp_path / "backends")
    installed = set(re.findall(r"([a-z_-]+)==[\d.]+", "\n".join(lines_of(target))))
    assert imported(*(tmp_path / model).glob("*.py")) == needed
    assert needed - {"cpu_quota"} <= installed


def test_the_health_check_needs_nothing_installed():
    assert imported(ROOT / "deploy/healthcheck.py") == set()
    for service in TRITONS:
        program = SERVICES[service]["healthcheck"]["test"][2]
        assert f"COPY deploy/healthcheck.py {program}" in "\n".join(lines_of(SERVICES[service]["build"]["target"]))


def test_the_plan_is_prepared_built_and_proved_in_this_order():
    steps = ["build", "prepare-engine", "engine", "install-engine", "triton-tensorrt"]
    for before, after in pairwise(steps):
        assert SERVICES[after]["depends_on"] == {before: {"condition": "service_completed_successfully"}}
    (shell,) = SERVICES["engine"]["command"]
    assert f"bash /models/{WORK_FOLDER}/{SCRIPT_FILE}" in shell
    for service in ("prepare-engine", "install-engine"):
        parsed = _parser().parse_args(command(service))
        assert (parsed.repository, parsed.prepare, parsed.install) == (
            "/models",
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
    assert parsed.repository == "/models"
    assert parsed.precision == {"build": "fp16", "build-cpu": "fp32"}[service]


def test_prometheus_scrapes_the_name_and_port_of_the_servers():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    lookup = config["scrape_configs"][0]["dns_sd_configs"][0]
    for service in TRITONS:
        assert lookup["names"] == SERVICES[service]["networks"]["default"]["aliases"]
        assert any(str(port).endswith(f":{lookup['port']}") for port in SERVICES[service]["ports"])


def test_the_load_test_asks_the_servers():
    host = SERVICES["loadtest"]["environment"]["LOCUST_HOST"]
    assert host == f"{SERVICES['triton']['networks']['default']['aliases'][0]}:8001"


def test_locust_takes_its_command_line():
    locust = [sys.executable, "-m", "locust", f"--locustfile={ROOT / 'loadtest' / 'locustfile.py'}"]
    subprocess.run([*locust, *command("loadtest"), "--list"], check=True, capture_output=True)
