#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go, with a report:
#
#   tests/gpu/run.sh [STEM]                      with a package index: tests/gpu, then the questions
#   tests/gpu/run.sh --carried FOLDER [STEM]     without one: the questions, for at most ten minutes
#   tests/gpu/run.sh --tiny [...]                the questions on a CPU with a tiny network, to try either
#
# STEM is gpu-report by default. The questions (questions.py) write STEM.md and STEM.json, the tests STEM.txt.
#
# With an index it needs a checkout with `make test`'s environment in .venv (or PYTHON=...), a driver for CUDA 12, and
# some gigabytes for the packages that only this run uses; they go into an environment of their own, .venv-gpu, beside
# it. The TensorRT tests also need trtexec on PATH, as in NVIDIA's TensorRT container; without it they are skipped.
#
# Without an index it needs python3 (or PYTHON=...) with PyTorch for CUDA, transformers, sentence-transformers, onnx and
# onnxscript, and a folder with what that Python lacks, as wheels or .tar.xz archives of site-packages: onnxruntime-gpu
# for the same CUDA as PyTorch, above all. They are unpacked into a temporary folder, before installed packages. For Python 3.12:
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d FOLDER onnxruntime-gpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
carried='' site='' network=v2-m3 provider=cuda
while [[ ${1:-} == -* ]]; do
  case "$1" in
    --tiny) network=tiny provider=cpu; shift ;;
    --carried) carried=$(realpath "${2:?--carried needs a folder}"); shift 2 ;;
    *) echo "unknown option $1: see the head of $0" >&2; exit 2 ;;
  esac
done
stem=$(realpath "${1:-gpu-report}")

ask() { # PYTHON
  PYTHONUNBUFFERED=1 PYTHONPATH="${site:+$site:}$PWD/client:$PWD/build:$PWD/tests" \
    "$1" -m gpu.questions "$stem" --network "$network" --provider "$provider"
}

# ONNX Runtime finds CUDA's libraries, which come with PyTorch, on the library path alone.
add_cuda_libraries() { # PYTHON
  local folders
  folders=$("$1" - <<'PYTHON'
import glob
import importlib.util

found = importlib.util.find_spec("nvidia")
bases = found.submodule_search_locations if found else []
print(":".join(path for base in bases for path in glob.glob(f"{base}/*/lib")))
PYTHON
  )
  export LD_LIBRARY_PATH="${folders:+$folders:}/usr/local/nvidia/lib64:${LD_LIBRARY_PATH:-}"
}

if [ "$provider" = cuda ] && ! nvidia-smi > /dev/null 2>&1; then
  echo "no NVIDIA GPU here: nvidia-smi does not run; --tiny tries the questions on a CPU" >&2
  exit 1
fi
if [ -n "$carried" ]; then
  python=${PYTHON:-python3}
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" tests/gpu/unpack.py "$carried" "$site"
  if [ "$provider" = cuda ]; then add_cuda_libraries "$python"; fi
  ask "$python"
  exit
fi
if [ "$network" = tiny ]; then
  ask "${PYTHON:-.venv/bin/python}"
  exit
fi

python=${PYTHON:-.venv/bin/python}
if [ ! -e .venv-gpu/.installed ]; then
  "$python" -m venv .venv-gpu
  # The CUDA builds of PyTorch and ONNX Runtime.
  .venv-gpu/bin/pip install --quiet "pip>=25.1"
  .venv-gpu/bin/pip install --quiet --group dev -e "./client[eval]" -e "./build[export,finetune,server]" onnxruntime-gpu
  # Both packages own the folder onnxruntime/: the one with CUDA comes last.
  .venv-gpu/bin/pip uninstall --quiet --yes onnxruntime
  .venv-gpu/bin/pip install --quiet --force-reinstall --no-deps onnxruntime-gpu
  touch .venv-gpu/.installed
fi
report=$stem.txt
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
add_cuda_libraries .venv-gpu/bin/python
ask .venv-gpu/bin/python || status=$?
exit "$status"
