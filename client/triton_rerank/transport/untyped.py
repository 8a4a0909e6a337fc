"""Names for the types of gRPC and tritonclient, which ship no annotations."""

from typing import Any

Channel = Any
Stub = Any
"""Triton's RPCs on a channel, such as `stub.ModelInfer`."""
Rpc = Any
"""A gRPC call in flight."""
Message = Any
"""A protobuf message of Triton's service."""
