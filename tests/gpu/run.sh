#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go, with a report: tests/gpu/run.sh [report file, default gpu-report.txt]
#
# Needs a checkout with `make test`'s environment in .venv (or PYTHON=...), a driver for CUDA 12, and some gigabytes for
# the packages that only this run uses; they go into an environment of their own, .venv-gpu, beside it. The TensorRT
# tests also need trtexec on PATH, as in NVIDIA's TensorRT container; without it they are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
report=$(realpath "${1:-gpu-report.txt}")
python=${PYTHON:-.venv/bin/python}

if ! nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader > /dev/null 2>&1; then
  echo "no NVIDIA GPU here: nvidia-smi does not run" >&2
  exit 1
fi
if [ ! -e .venv-gpu/.installed ]; then
  "$python" -m venv .venv-gpu
  # The CUDA builds of PyTorch and ONNX Runtime.
  .venv-gpu/bin/pip install --quiet "pip>=25.1"
  .venv-gpu/bin/pip install --quiet --group dev -e "./client[eval]" -e "./build[export,server]" onnxruntime-gpu
  # Both packages own the folder onnxruntime/: the one with CUDA comes last.
  .venv-gpu/bin/pip uninstall --quiet --yes onnxruntime
  .venv-gpu/bin/pip install --quiet --force-reinstall --no-deps onnxruntime-gpu
  touch .venv-gpu/.installed
fi

{
  date --utc
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  .venv-gpu/bin/python -c "import onnxruntime, torch; print('torch', torch.__version__, 'onnxruntime', onnxruntime.__version__)"
  command -v trtexec || echo "trtexec is not on PATH: the TensorRT tests are skipped"
} | tee "$report"
status=0
.venv-gpu/bin/python -m pytest tests/gpu -ra --junitxml="$report.xml" 2>&1 | tee -a "$report" || status=$?
# The figures that the tests recorded, one per line.
.venv-gpu/bin/python - "$report.xml" <<'PYTHON' | tee -a "$report"
import sys
import xml.etree.ElementTree as ElementTree

for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    for figure in case.iter("property"):
        print(f"{case.get('name')}: {figure.get('name')} = {figure.get('value')}")
PYTHON
exit "$status"
