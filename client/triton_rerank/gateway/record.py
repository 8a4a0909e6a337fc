"""The record of one HTTP request, which everything that serves the request can reach."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from triton_rerank.errors import ClientStateError

_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Record:
    """One request: its id and trace, and what the log and the metrics say of it. No texts."""

    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)
    """`traceparent` and `tracestate` to pass on, where no OpenTelemetry library does."""
    started: float = field(default_factory=time.perf_counter)
    endpoint: str = "other"
    dialect: str = "none"
    documents: int = 0
    tokens: int = 0
    reason: str = ""

    def metadata(self) -> dict[str, str]:
        """GRPC metadata of the requests that this request causes."""
        return {"x-request-id": self.request_id, **self.trace}


_CURRENT: ContextVar[Record] = ContextVar("triton_rerank_gateway_record")


def begin(record: Record) -> None:
    """Make a record the current one of this task and of those that it starts."""
    _CURRENT.set(record)


def current() -> Record:
    """The record of the request that is being served."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise ClientStateError("no request is being served") from None


def metadata() -> dict[str, str]:
    """GRPC metadata of the current request; none outside of one."""
    record = _CURRENT.get(None)
    return {} if record is None else record.metadata()


def request_id_of(given: str | None) -> str:
    """The caller's request id if it is usable, else a new one."""
    return given if given is not None and _USABLE_ID.fullmatch(given) else uuid.uuid4().hex
