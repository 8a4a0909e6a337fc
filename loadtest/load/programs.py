"""Commands of this project in processes of their own, as users run them, and the processes of a server."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

from triton_rerank_build import EmbeddedServer

TIED = ("setpriv", "--pdeathsig", "TERM")


class Program:
    """A command of this project in a process of its own; ready when it has printed its address.

    Args:
        module: Module with the command's `main`.
        arguments: Of the command.
        wrapper: Programs that start it.
        printed: Pattern of the line with the address, on standard output or standard error.
    """

    def __init__(self, module: str, arguments: Sequence[str], printed: str, wrapper: Sequence[str] = ()) -> None:
        code = f"import sys; from {module} import main; sys.exit(main())"
        self._process = subprocess.Popen(
            [*TIED, *wrapper, sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seen = []
        for line in self._process.stdout or ():
            seen.append(line)
            if found := re.search(printed, line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"{module} did not start:\n{''.join(seen)}")
        # What it prints later goes nowhere, but must be read.
        self._reader = subprocess.Popen(["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it as an operator does; it ends its calls first."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._reader.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def processes(self) -> list[psutil.Process]:
        """Its process and what that has started."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]


class Gateway(Program):
    """`triton-rerank gateway` on a free port.

    Args:
        urls: Of its servers.
        options: More of its options.
    """

    def __init__(self, urls: Sequence[str], *options: str) -> None:
        arguments = ["gateway", "--port", "0", *(f"--url={url}" for url in urls), *options]
        super().__init__("triton_rerank.cli.main", arguments, r"^gateway: http://\S+:(\d+) ")

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def processes_of(server: EmbeddedServer) -> dict[str, psutil.Process]:
    """The processes of a server of this process: "tritonserver", and each Python model's by its name."""
    port = f"--grpc-port={server.grpc_url.rpartition(':')[2]}"
    started = [(process, process.cmdline() or [""]) for process in psutil.Process().children(recursive=True)]
    # The supervisor's command line holds tritonserver's.
    triton = next(process for process, words in started if words[0].endswith("/tritonserver") and port in words)
    found = {"tritonserver": triton}
    for process in triton.children(recursive=True):
        if name := next((word for word in process.cmdline() if word.endswith("_0_0")), None):
            found[name.removesuffix("_0_0")] = process
    return found
