"""Is this reranker working? Exit status 0 when it is: scores a real pair over Triton's HTTP port.

Triton's own /v2/health/ready says that models are loaded, also while the tokenizer's process is dead. This check
fails then. It does not fail under load: a full queue, or a queue so long that the pair is not reached in time while
others are being scored, is a busy server, and restarting a busy server makes an overload worse.

Docker restarts a container that ends, not one that is unhealthy. With `--stop-pid=1` the check therefore ends a server
whose Python process has died: Triton 2.51 does not start that process again by itself.

Runs in NVIDIA's image as it is: standard library only.
"""

import argparse
import json
import os
import signal
import sys
import urllib.error
import urllib.request

PAIR = {
    "inputs": [
        {"name": "query", "shape": [1, 1], "datatype": "BYTES", "data": ["ready?"]},
        {"name": "document", "shape": [1, 1], "datatype": "BYTES", "data": ["One real pair was scored."]},
    ],
    "outputs": [{"name": "logits"}],
}
FULL_QUEUE = "Exceeds maximum queue size"
DEAD_PROCESS = "Stub process"


def main(arguments: "list[str] | None" = None) -> int:
    """Check once and say why, if the answer is no."""
    parser = argparse.ArgumentParser(description="Check a reranker by scoring one pair.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Triton's HTTP port (default: %(default)s)")
    parser.add_argument("--model", default="reranker", help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=8.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--stop-pid", type=int, metavar="PID", help="process to end when a Python model has died")
    args = parser.parse_args(arguments)
    problem = check(args.url, args.model, args.timeout)
    if problem is not None:
        sys.stderr.write(f"unhealthy: {problem}\n")
        if args.stop_pid is not None and DEAD_PROCESS in problem:
            os.kill(args.stop_pid, signal.SIGTERM)
    return 0 if problem is None else 1


def check(url: str, model: str, timeout_s: float) -> "str | None":
    """What is wrong, or None. May take `timeout_s` and a second for each of two looks at the statistics."""
    try:
        before = successes(url, model)
    except OSError as error:
        return f"no answer from {url}: {error}"
    try:
        answer = fetch(f"{url}/v2/models/{model}/infer", timeout_s, PAIR)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        return None if FULL_QUEUE in said else f"status {error.code}: {said}"
    except OSError as error:  # timeouts among them
        try:
            busy = successes(url, model) > before
        except OSError as gone:
            return f"no answer from {url}: {gone}"
        return None if busy else f"no pair was scored in {timeout_s:g} s, this one or another ({error})"
    logit = answer["outputs"][0]["data"][0]
    return None if isinstance(logit, float) else f"the logit is {logit!r}"


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
