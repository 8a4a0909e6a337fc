#!/usr/bin/env bash
# Make the virtual environment $1 with everything that demo, tests and lint need.
# PYTHON: the interpreter; TORCH_VERSION: the PyTorch to install.
set -euo pipefail

venv=${1:?usage: build/venv.sh FOLDER}
[ -t 1 ] && quiet=() || quiet=(--quiet)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# nvidia-pytriton has stubs up to 3.13 and numpy 1.26 wheels up to 3.12; this project starts at 3.10.
fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

choose_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 python}; do
    if fits "$candidate"; then echo "$candidate"; return; fi
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not Python 3.10 to 3.12" >&2
  else
    echo "error: Python 3.10, 3.11 or 3.12 is needed, and none was found; install one (Debian: apt-get install" \
      "python3 python3-venv libpython3-dev) or name it: make PYTHON=/path/to/python3.11" >&2
  fi
  return 1
}

python=$(choose_python)
if [ -x "$venv/bin/python" ] && ! fits "$venv/bin/python"; then rm -rf "$venv"; fi
if [ ! -x "$venv/bin/pip" ]; then
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || {
    echo "error: $python can't make a virtual environment; on Debian: apt-get install python3-venv" >&2
    exit 1
  }
fi
say "installing PyTorch"
"$(dirname "$0")/torch.sh" "$venv"
# The exact versions of the last green run, so that a release of a dependency can't break a fresh checkout. They hold for
# the Python that they were tested on; `make upgrade` writes them anew.
minor=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints=$venv/constraints.txt
"$venv/bin/pip" freeze | grep '^torch==' >"$constraints" # as installed above, whatever newer release there is
if [ -z "${UPGRADE:-}" ] && [ "$(head -n 1 constraints.txt)" = "# Python $minor" ]; then
  cat constraints.txt >>"$constraints"
fi
say "installing triton-rerank, triton-rerank-build and what they need"
"$venv/bin/pip" install --quiet 'pip>=25.1'
"$venv/bin/pip" install "${quiet[@]}" --constraint "$constraints" ${UPGRADE:+--upgrade --upgrade-strategy eager} \
  --group dev --editable './client[bulk,eval,gateway,haystack,langchain,llama-index,ray]' --editable './build[export,finetune,server]'
if [ -n "${UPGRADE:-}" ]; then
  # PyTorch is left out: torch.sh installs the build that the machine needs.
  { echo "# Python $minor"; "$venv/bin/pip" freeze --exclude-editable | grep -vE '^(torch|triton|nvidia-.*-cu[0-9]+)[ =]'; } \
    >constraints.txt
  say "wrote constraints.txt; run make test, then commit it"
fi
