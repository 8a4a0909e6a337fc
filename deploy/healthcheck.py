"""Is this reranker working? Exit status 0 when it is: scores a pair over Triton's HTTP port.

Triton's own /v2/health/ready says that models are loaded, before release 26.04 even while the Python process of a
model is dead. This check fails then, and where a process lives and answers nothing. Healthy means that an answer
arrived while the check ran:

- the pair of this check was scored, with a text that no cache holds, so that it reaches every model; or
- it waits or was refused because the queue is full, and the server answered another request meanwhile. A busy server
  stays healthy, because restarting it would make the overload worse. A server with a dead model process also has a full
  queue, but answers nothing.

With `--stop-pid=1` the check ends a server whose model process has died, which Triton does not start again: with
SIGTERM, then with SIGKILL. The container ends with it, and its restart policy starts it again. Docker does not restart
an unhealthy container by itself; Kubernetes does after several failed probes.

Runs in NVIDIA's image as it is: standard library only.
"""

import argparse
import collections.abc
import concurrent.futures
import glob
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

ENSEMBLES = ("reranker", "late_interaction")
FULL_QUEUE = "Exceeds maximum queue size"
BUSY = "no pair was scored"
STUB = "triton_python_b"  # triton_python_backend_stub, as the kernel shortens it
POLL_S = 0.25


def main(arguments: "list[str] | None" = None) -> int:
    """Check once and report a problem on stderr."""
    parser = argparse.ArgumentParser(description="Check a reranker by scoring one pair per ensemble.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Triton's HTTP port (default: %(default)s)")
    parser.add_argument("--model", help=f"default: those of {', '.join(ENSEMBLES)} that are loaded")
    parser.add_argument("--timeout", type=float, default=8.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument(
        "--stop-pid",
        type=int,
        metavar="PID",
        help="end this process or its child if it is the parent of a dead model process",
    )
    args = parser.parse_args(arguments)
    # Triton's answer "Stub process is not healthy" does not decide: it also means a process that is paused.
    server = None if args.stop_pid is None else server_of_dead_process(args.stop_pid)
    if server is not None:
        problem = f"the Python process of a model has died; tritonserver, process {server}, is ended"
        end(server, args.timeout)
    else:
        problem = check(args.url, args.model, args.timeout)
    if problem is not None:
        sys.stderr.write(f"unhealthy: {problem}\n")
    return 0 if problem is None else 1


def check(url: str, model: "str | None", timeout_s: float) -> "str | None":
    """The first problem of `model` or of the loaded ensembles, or None.

    Takes at most `timeout_s` and a second for each of two looks at the statistics.
    """
    models = [model] if model else [name for name in ENSEMBLES if is_loaded(url, name)]
    if not models:
        return f"no answer from {url}, or none of {', '.join(ENSEMBLES)} is loaded"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        problems = list(pool.map(lambda name: check_model(url, name, timeout_s), models))
    return next((problem for problem in problems if problem), None)


def check_model(url: str, model: str, timeout_s: float) -> "str | None":
    """What is wrong with one ensemble, or None."""
    deadline = time.monotonic() + timeout_s
    try:
        before = successes(url, model)
        problem = score(url, model, timeout_s)
        if problem is None or not problem.startswith(BUSY):
            return problem and f"{model}: {problem}"
        while successes(url, model) == before:
            if time.monotonic() > deadline:
                return f"{model}: {problem}, and no other request was answered"
            time.sleep(POLL_S)
    except OSError as error:
        return f"no answer from {url}: {error}"
    return None


def score(url: str, model: str, timeout_s: float) -> "str | None":
    """Score a pair; None if that succeeded. The problem starts with BUSY if a working server may have it."""
    try:
        answer = fetch(f"{url}/v2/models/{model}/infer", timeout_s, pair())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        return f"{BUSY}: the queue is full" if FULL_QUEUE in said else f"status {error.code}: {said}"
    except OSError as error:  # timeouts among them
        return f"{BUSY}: {error}"
    logit = answer["outputs"][0]["data"][0]
    return None if isinstance(logit, float) else f"the logit is {logit!r}"


def pair() -> dict:
    """An inference request whose texts no earlier check has sent: late interaction caches vectors of texts."""
    now = time.time_ns()
    texts = {"query": f"ready? {now}", "document": f"A pair was scored at {now}."}
    inputs = [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in texts.items()]
    return {"inputs": inputs, "outputs": [{"name": "logits"}]}


def is_loaded(url: str, model: str) -> bool:
    """Whether Triton has loaded a model."""
    try:
        with urllib.request.urlopen(f"{url}/v2/models/{model}/ready", timeout=1.0):
            return True
    except OSError:
        return False


def server_of_dead_process(pid: int) -> "int | None":
    """Process id of tritonserver if the Python process of a model has ended, which stays a zombie; None otherwise.

    tritonserver is the process `pid` or, below the init process of a container, its child.
    """
    table = dict(processes())
    for name, state, parent in table.values():
        if (name, state) == (STUB, "Z") and pid in (parent, table.get(parent, ("", "", 0))[2]):
            return parent
    return None


def end(pid: int, patience_s: float) -> None:
    """Terminate a process; kill it if that takes too long: tritonserver may hang at its exit after such a death.

    The kernel protects process 1 of a container from SIGKILL: run tritonserver below an init process.
    """
    deadline = time.monotonic() + patience_s
    os.kill(pid, signal.SIGTERM)
    while dict(processes()).get(pid, ("", "Z", 0))[1] != "Z":
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(POLL_S)


def processes() -> "collections.abc.Iterator[tuple[int, tuple[str, str, int]]]":
    """(process id, (name, state, parent)) of every process."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as file:
                pid, _, rest = file.read().partition(" (")
        except OSError:  # gone meanwhile
            continue
        name, _, fields = rest.rpartition(") ")
        state, parent = fields.split()[:2]
        yield int(pid), (name, state, int(parent))


def successes(url: str, model: str) -> int:
    """Requests that the model has answered since it was loaded."""
    return fetch(f"{url}/v2/models/{model}/stats", 1.0)["model_stats"][0]["inference_stats"]["success"]["count"]


def fetch(url: str, timeout_s: float, message: "dict | None" = None) -> dict:
    """GET, or POST a message; the answer's JSON."""
    data = None if message is None else json.dumps(message).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=timeout_s) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
