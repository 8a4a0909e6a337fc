#!/usr/bin/env bash
# Unpack Debian's package of Prometheus into folder $1 for the monitoring tests, unless `prometheus` and `promtool` are
# installed. The package is not installed: that would start a daemon, and needs root.
set -euo pipefail

folder=${1:?usage: tests/prometheus.sh FOLDER}
has() { command -v "$1" >/dev/null; }
if [ -x "$folder/usr/bin/promtool" ] || { has prometheus && has promtool; }; then exit; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download() { (cd "$work" && apt-get --quiet=2 -o APT::Sandbox::User=root download prometheus); }
# A fresh container has no package lists yet.
if has apt-get && has dpkg-deb && { download || { apt-get --quiet=2 update && download; }; } >&2; then
  dpkg-deb --extract "$work"/prometheus_*.deb "$work/unpacked"
  mkdir -p "$folder" && cp --recursive "$work/unpacked/." "$folder"
else
  echo "prometheus can't be downloaded: the tests that need it are skipped; on Debian: apt-get install prometheus" >&2
fi
