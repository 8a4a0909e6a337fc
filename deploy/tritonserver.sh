#!/bin/bash
# Entrypoint of the server images: tritonserver, with every API restricted that a caller of a reranker does not need.
#
# A restricted API needs RERANK_ADMIN_KEY in a header: `rerank-admin-key` over HTTP, and the same name with the prefix
# `triton-grpc-protocol-` over gRPC. Without the variable the key is random at each start, which closes these APIs to everyone.
#
# The other APIs stay open. The client needs health, metadata, model-config and inference. The health check and the load test
# read statistics, which contain counts and times of each model, and no texts.
set -euo pipefail

apis=shared-memory,model-repository,trace,logging
key=${RERANK_ADMIN_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
exec tritonserver "--grpc-restricted-protocol=$apis:rerank-admin-key=$key" \
  "--http-restricted-api=$apis:rerank-admin-key=$key" "$@"
