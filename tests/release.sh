#!/usr/bin/env bash
# Build wheels and sdists into $1, check their metadata, and install the client into an empty environment of each Python
# that is given after it: tests/release.sh FOLDER python3.10 python3.13 ... With URL=host:port each client ranks there;
# with AUDIT=1 pip-audit looks up what was installed, which needs its database of advisories. A software bill of materials
# in CycloneDX's form is written for each Python.
set -euo pipefail
out=$(mkdir -p "${1:?usage: tests/release.sh FOLDER PYTHON...}" && cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
tools=$out/tools
rm -f "$out"/triton_rerank*.whl "$out"/triton_rerank*.tar.gz # of an earlier run
say() { printf '==> %s\n' "$*"; }

python3 -m venv "$tools"
"$tools/bin/pip" install --quiet build twine cyclonedx-bom pip-audit
for package in client build; do
  say "building $package"
  "$tools/bin/python" -m build --outdir "$out" "$root/$package" >"$out/$package.log" 2>&1 || { tail -20 "$out/$package.log"; exit 1; }
done
"$tools/bin/twine" check --strict "$out"/*.whl "$out"/*.tar.gz

for python in "$@"; do
  version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
  for artefact in "$out"/triton_rerank-*.whl "$out"/triton_rerank-*.tar.gz; do
    environment=$(mktemp -d)
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet "$artefact"
    (
      cd "$environment"
      bin/triton-rerank --version
      bin/python -W error -c 'import triton_rerank; [getattr(triton_rerank, name) for name in triton_rerank.__all__]'
      if [ -n "${URL:-}" ]; then
        printf 'Wash your hands.\nBuy stocks.\n' | bin/triton-rerank rerank --url "$URL" --query flu - >/dev/null
      fi
    )
    "$tools/bin/cyclonedx-py" environment --output-file "$out/triton-rerank-python$version.cdx.json" "$environment/bin/python"
    [ -z "${AUDIT:-}" ] || "$tools/bin/pip-audit" --path "$environment/lib/python${version%.*}/site-packages" --skip-editable
    say "Python $version: ${artefact##*/} is installed${URL:+ and ranks}"
    rm -rf "$environment"
  done
done
