"""The addresses that tritonserver listens on."""

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank_build.errors import ServerStartError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listener:
    """One of tritonserver's services.

    Attributes:
        service: "grpc", "http" or "metrics".
        host: IPv4 address or name of an interface of this machine; 0.0.0.0 for all of them.
        port: Port number; 0 for a free one.
    """

    service: str
    host: str
    port: int

    @property
    def local_host(self) -> str:
        """An address of the listener for clients on this machine."""
        return LOOPBACK if self.host == "0.0.0.0" else self.host

    @property
    def url(self) -> str:
        """Address for clients on this machine, "host:port"."""
        return f"{self.local_host}:{self.port}"

    def accepts(self) -> bool:
        """Whether the port is open."""
        with socket.socket() as probe:
            return probe.connect_ex((self.local_host, self.port)) == 0


def with_free_ports(listeners: Sequence[Listener]) -> tuple[Listener, ...]:
    """The same listeners with a free port for each 0.

    Raises:
        ServerStartError: A port is taken, or a host is not an address of this machine.
    """
    # All sockets stay open until the end, so that no free port is chosen twice.
    with contextlib.ExitStack() as stack:
        found = []
        for each in listeners:
            candidate = stack.enter_context(socket.socket())
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((each.host, each.port))
            except (OSError, OverflowError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise ServerStartError(
                    f"{each.service} port {each.port} on {each.host} can't be used ({reason}): stop the server that "
                    f"uses it, or choose another port with --{each.service}-port (0 = a free one)"
                ) from error
            found.append(Listener(each.service, each.host, candidate.getsockname()[1]))
        return tuple(found)
