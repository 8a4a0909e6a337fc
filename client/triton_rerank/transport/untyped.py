"""Names for what gRPC and tritonclient hand over. They ship no types of their own."""

from typing import Any

Channel = Any
Stub = Any
"""Triton's procedures on a channel, such as `stub.ModelInfer`."""
Rpc = Any
"""A call under way."""
Message = Any
"""A protobuf message of Triton's service."""
