"""Every model.py loads with only the files of a laid-out repository, without this project's packages."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from triton_rerank_build.contract import BACKENDS, TOKENIZER
from triton_rerank_build.late_interaction.repository import SCORER, TEMPLATES, complete_late
from triton_rerank_build.repository.layout import RERANKER, complete_from_template, template_repository

OWN_BACKENDS = [Path("backends") / path.parent.name for path in sorted(BACKENDS.glob("*/model.py"))]
MODELS = [TOKENIZER, SCORER, *OWN_BACKENDS]

# Imports a model as Triton's stub does: the stub appends the folder of a backend to sys.path and imports "model", or it
# appends the folders of a model's version and of the model and imports "1.model". `-I -S` leaves out site-packages, in
# which an editable install has a hook. The script appends it as a plain folder, for numpy and the runtimes, and refuses
# this project's packages in any folder.
STUB = """
import importlib, pathlib, sys, types

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("triton_rerank", "triton_rerank_build"):
            raise ModuleNotFoundError(f"{name} is not installed in the container")

site_packages, folder = sys.argv[1], pathlib.Path(sys.argv[2])
sys.meta_path.insert(0, Refuse())
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
sys.path += [site_packages, str(folder)]
if folder.name == "1":
    sys.path.append(str(folder.parent))
model = importlib.import_module("1.model" if folder.name == "1" else "model")
assert {"initialize", "execute"} <= set(vars(model.TritonPythonModel))
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]  # OpenVINO imports in a thread
print(*sorted(pathlib.Path(file).name for file in files if file and pathlib.Path(file).parent == folder))
"""


@pytest.fixture
def laid_out(tmp_path):
    """The committed files of both ensembles, and the backends, outside the checkout."""
    complete_from_template(tmp_path, template_repository())
    complete_late(tmp_path)
    shutil.copytree(BACKENDS, tmp_path / "backends", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def load(folder):
    """Load the model.py of `folder` in a process of its own, which prints the names of the folder's loaded files."""
    command = [sys.executable, "-I", "-S", "-c", STUB, sysconfig.get_path("purelib"), str(folder)]
    return subprocess.run(command, cwd=folder.parents[1], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_model_loads_by_itself(laid_out, model):
    loaded = load(laid_out / model)
    assert loaded.returncode == 0, loaded.stderr
    # No file is copied in vain.
    assert set(loaded.stdout.split()) == {path.name for path in (laid_out / model).glob("*.py")}


@pytest.mark.parametrize(
    ("model", "helper"),
    [
        (TOKENIZER, "text_pairs"),
        (TOKENIZER, "text_layout"),
        (SCORER, "text_pairs"),
        (SCORER, "micro_batch_cuts"),
        (Path("backends/rerank_openvino"), "micro_batch_cuts"),
        (Path("backends/rerank_openvino"), "cpu_quota"),
    ],
    ids=str,
)
def test_a_model_needs_the_file_beside_it(laid_out, model, helper):
    (laid_out / model / f"{helper}.py").unlink()
    assert f"No module named '{helper}'" in load(laid_out / model).stderr


@pytest.mark.parametrize("backend", ["encode_openvino", "onnxruntime"])
def test_a_backend_needs_the_file_of_its_neighbour(laid_out, backend):
    (laid_out / "backends/rerank_openvino/cpu_quota.py").unlink()
    assert "No module named 'cpu_quota'" in load(laid_out / "backends" / backend).stderr


def test_a_module_that_models_share_has_one_source_file():
    committed = [
        *(path for model in RERANKER.models for path in (template_repository() / model / "1").glob("*.py")),
        *TEMPLATES.glob("*/1/*.py"),
        *BACKENDS.glob("*/*.py"),
    ]
    names = sorted(path.name for path in committed if path.name != "model.py")
    assert names == sorted({*names, "cpu_quota.py", "micro_batch_cuts.py", "text_layout.py", "text_pairs.py"})
