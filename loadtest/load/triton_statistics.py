"""Triton's statistics over gRPC."""

import time

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from load.recording import ModelState


class Statistics:
    """Reads the cumulative totals of every model of one server."""

    def __init__(self, host: str) -> None:
        self._channel = grpc.insecure_channel(host)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def read(self) -> list[ModelState]:
        """Read the current totals.

        Raises:
            grpc.RpcError: The server does not answer.
        """
        answer = self._stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=5)
        now = time.time()
        return [
            ModelState(
                model=stats.name,
                at_s=now,
                requests=stats.inference_stats.success.count,
                failures=stats.inference_stats.fail.count,
                pairs=stats.inference_count,
                executions=stats.execution_count,
                queue_ns=stats.inference_stats.queue.ns,
                compute_ns=stats.inference_stats.compute_infer.ns,
                batches={str(batch.batch_size): batch.compute_infer.count for batch in stats.batch_stats},
            )
            for stats in answer.model_stats
        ]

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def totals(host: str, model: str) -> ModelState:
    """Current totals of one model, over a new connection."""
    statistics = Statistics(host)
    try:
        return next(state for state in statistics.read() if state.model == model)
    finally:
        statistics.close()
