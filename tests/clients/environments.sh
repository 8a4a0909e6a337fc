#!/usr/bin/env bash
# Make the virtual environments of `make test-clients` in the folder $1, one for each file in requirements/. The files name
# every package, so that a release of one can't break the tests. An environment is kept until its file changes.
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
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$file"
    cp "$file" "$venv/installed.txt"
  fi
done
