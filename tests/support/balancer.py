"""One address for several servers: a gRPC proxy that sends each request to the next of them, as a service mesh does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc


class Balancer(grpc.GenericRpcHandler):
    """`with Balancer(urls) as balancer: balancer.url`. Messages pass unread."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._channels = [grpc.insecure_channel(url) for url in urls]
        self._turns = itertools.cycle(self._channels)
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=(self,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details):
        """Forward a call to the server whose turn it is."""

        def forward(request, context):
            call = next(self._turns).unary_unary(details.method)
            try:
                return call(request, timeout=context.time_remaining())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(forward)

    def __enter__(self) -> Balancer:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(0).wait()
        for channel in self._channels:
            channel.close()
