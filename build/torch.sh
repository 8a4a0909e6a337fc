#!/usr/bin/env bash
# Install PyTorch in the virtual environment $1. TORCH_VERSION: which.
set -euo pipefail

venv=${1:?usage: build/torch.sh FOLDER}
torch=torch==${TORCH_VERSION:-2.13.0}
[ -t 1 ] && quiet=() || quiet=(--quiet)

# PyTorch's build for the Python package index carries gigabytes of CUDA. Where there is no NVIDIA GPU take the CPU
# build: a wheel that pip is configured to find on this machine, else PyTorch's own CPU index, which uv knows.
"$venv/bin/python" -c 'import torch' 2>/dev/null && exit
if "$venv/bin/pip" install --quiet --no-index --no-deps "$torch" 2>/dev/null; then exit; fi
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  "$venv/bin/pip" install "${quiet[@]}" "$torch"
  exit
fi
"$venv/bin/pip" install --quiet uv
if UV_HTTP_TIMEOUT=60 "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend=cpu "$torch"; then
  exit
fi
echo "PyTorch's CPU index can't be reached: taking the build with CUDA, some gigabytes" >&2
"$venv/bin/pip" install "${quiet[@]}" "$torch"
