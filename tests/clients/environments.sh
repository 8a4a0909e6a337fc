#!/usr/bin/env bash
# Make the virtual environments of `make test-clients` in the folder $1, one for each file in requirements/. An environment
# is kept as long as its file does not change.
set -euo pipefail

folder=${1:?usage: environments.sh FOLDER}
requirements=$(dirname "$0")/requirements
mkdir -p "$folder"
for file in "$requirements"/*.txt; do
  venv=$folder/$(basename "$file" .txt)
  if ! cmp --silent "$file" "$venv/installed.txt"; then
    echo "installing $(basename "$file" .txt)" >&2
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$file"
    cp "$file" "$venv/installed.txt"
  fi
done
