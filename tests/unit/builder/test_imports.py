"""Starting a server, and reading a manifest, must not import the tools of an export."""

import json
import subprocess
import sys

import pytest

EXPORT = ["torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "huggingface_hub", "tokenizers", "peft"]
OURS = ["checkpoints.hub", "checkpoints.resolve", "graphs.onnx", "parity.compare"]

MANIFEST = {
    "format": 2,
    **dict.fromkeys(("checkpoint", "revision", "family", "precision", "created"), "x"),
    **dict.fromkeys(("max_length", "opset", "ir_version", "exporter"), 80),
    "artefacts": {},
    "tools": {},
    "parity": {"worst_difference": 0, "worst_batch": "x", "tolerance": 0, "num_pairs": 1, "longest": 80},
}


def imported_by(code, names):
    code = f"import sys\n{code}\nprint([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["serving.server", "serving.tritonserver", "late_interaction.repository"])
def test_a_server_starts_without_the_tools_of_an_export(module):
    names = [*EXPORT, *(f"triton_rerank_build.{name}" for name in OURS)]
    assert imported_by(f"import triton_rerank_build.{module}", names) == "[]"


def test_a_manifest_is_read_without_numpy(tmp_path):
    (tmp_path / "cross_encoder/1").mkdir(parents=True)
    (tmp_path / "cross_encoder/1/manifest.json").write_text(json.dumps(MANIFEST))
    code = (
        "from pathlib import Path\nfrom triton_rerank_build.repository.manifest import read_manifest\n"
        f"assert read_manifest(Path({str(tmp_path)!r})).max_length == 80"
    )
    assert imported_by(code, ["numpy", *EXPORT]) == "[]"
