"""HTTP in front of `AsyncRerankClient`, in the request and response formats that RAG tools already use.

`create_app` makes the ASGI application, and `triton-rerank gateway` runs it. The path of a rerank call does not choose
its format: the keys of its body do (see `dialects`).
"""

from triton_rerank.errors import RerankError

try:
    from triton_rerank.gateway.app import create_app
except ModuleNotFoundError as _error:
    if _error.name is None or _error.name.startswith("triton_rerank"):
        raise
    raise RerankError(f'{_error.name} is not installed; run: pip install "triton-rerank[gateway]"') from None

from triton_rerank.gateway.record import metadata
from triton_rerank.gateway.settings import Settings

__all__ = ["Settings", "create_app", "metadata"]
