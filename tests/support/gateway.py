"""A gateway as users run it: the command `triton-rerank gateway` in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import deque

import psutil

from support import CLIENT_COMMAND


class GatewayProcess:
    """`with GatewayProcess("localhost:8001", "--max-body", "1") as gateway: gateway.url`."""

    def __init__(self, upstream: str, *options: str, env: dict[str, str] | None = None):
        self.command = [*CLIENT_COMMAND, "gateway", "--url", upstream, "--port", "0", *options]
        self.env = {**os.environ, **(env or {})}
        self.log: deque[str] = deque(maxlen=10_000)
        self._listening = threading.Event()

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.env, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(120), "\n".join(self.log)
        assert self.process.poll() is None, "\n".join(self.log)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stderr.close()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            if found := re.match(r"gateway: (https?)://\S+:(\d+) ", line):
                self.port = int(found[2])
                self.url = f"{found[1]}://127.0.0.1:{self.port}"
                self._listening.set()
        self._listening.set()  # ended

    def memory(self):
        """Bytes of the process that are in memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def connect(self):
        """A plain connection, for requests that no HTTP library sends."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def ask(gateway, data: bytes):
    """Send bytes on a connection of their own and read until the gateway closes it."""
    with gateway.connect() as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection):
    received = bytearray()
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return bytes(received)


def post(path: str, body: object, *headers: str) -> bytes:
    """The bytes of a POST after which the gateway closes the connection."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def status_of(response: bytes) -> int:
    """The status of a response; 0 if there is none."""
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.1 ") else 0


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)
    return found
