"""Callers of both kinds, and what became of their calls."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.chaos.model import TOLERANCE, Model
from benchmarks.chaos.stage import Stage
from load.http import GatewayClient
from load.workload import Search
from triton_rerank import RequestTimeoutError, RerankClient, RerankError, ServerOverloadedError, ServerUnavailableError

TIMEOUT_S = 30.0
LATE_S = 2.0
"""A call that takes this much longer than its timeout has hung."""
PAIRS_PER_REQUEST = 8
"""Fewer than a call's documents, so that the requests of one call may go to several servers."""


class Answer(NamedTuple):
    """Scores of the documents, and the version of the model that the answer names, if it does."""

    scores: Mapping[int, float]
    version: str | None = None


Ask = Callable[[Search], Answer]


class Call(NamedTuple):
    """One finished call."""

    way: str
    """client, gateway, or the name of an event that made it."""
    start_s: float
    """Seconds since the start of the run."""
    seconds: float
    outcome: str
    """Empty if its answer is right; else wrong, overload, down, timeout, hung, or failed."""
    detail: str = ""


class Callers:
    """Callers that call at random moments, until they are stopped.

    Args:
        stage: What they call.
        searches: What they search for.
        callers: Number of callers of each kind.
        calls_per_s: Calls of all callers together.
    """

    def __init__(self, stage: Stage, searches: Sequence[Search], callers: int, calls_per_s: float) -> None:
        self.calls: list[Call] = []
        self.started = time.monotonic()
        self._stage, self._searches = stage, searches
        self._pause_s = 2 * callers / calls_per_s
        self._stopped = threading.Event()
        self._client = RerankClient(stage.urls, timeout=TIMEOUT_S, pairs_per_request=PAIRS_PER_REQUEST)
        gateway = GatewayClient(
            f"http://127.0.0.1:{stage.gateway.port}", timeout=TIMEOUT_S + LATE_S, connections=callers
        )
        ways: dict[str, Ask] = {
            "client": lambda search: logits(self._client, search),
            "gateway": lambda search: Answer(gateway.scores(search.query, search.documents)),
        }
        self._threads = [
            threading.Thread(target=self._work, args=(way, ask, number), daemon=True)
            for number in range(callers)
            for way, ask in ways.items()
        ]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def call(self, way: str, ask: Ask, index: int) -> Call:
        """Make a call, compare its answer, and record both."""
        served, start_s = set(self._stage.serving), self.now_s()
        try:
            answer = ask(self._searches[index])
        except RerankError as error:
            outcome, detail = kind_of(error), str(error)
        else:
            models = served | self._stage.serving
            if answer.version is not None:
                models &= {self._stage.versions.get(answer.version, -1)}
            right = [self._stage.models[model].logits[index] for model in models]
            outcome, detail = judge(answer.scores, right, relevance=way == "gateway")
        seconds = self.now_s() - start_s
        if seconds > TIMEOUT_S + LATE_S:
            outcome = "hung"
        done = Call(way, start_s, seconds, outcome, detail)
        self.calls.append(done)
        return done

    def _work(self, way: str, ask: Ask, number: int) -> None:
        chance = random.Random(f"{way} {number}")
        while not self._stopped.wait(chance.expovariate(1 / self._pause_s)):
            self.call(way, ask, chance.randrange(len(self._searches)))


def logits(client: RerankClient, search: Search) -> Answer:
    """The logits of a search's documents."""
    response = client.rerank(search.query, search.documents)
    return Answer({result.index: result.logit for result in response}, response.model_version)


def judge(scores: Mapping[int, float], right: Iterable[Sequence[float]], *, relevance: bool) -> tuple[str, str]:
    """Compare an answer with the logits of each model that may have computed it.

    Args:
        scores: The answer.
        right: The logits of each model.
        relevance: Whether the answer has relevance scores instead of logits.

    Returns:
        Outcome and detail of the call.
    """
    off = []
    for expected in right:
        values = [1 / (1 + math.exp(-logit)) for logit in expected] if relevance else expected
        if len(scores) == len(values):
            off.append(max(abs(scores[index] - value) for index, value in enumerate(values)))
    if off and min(off) <= TOLERANCE:
        return "", ""
    return "wrong", f"off by {min(off, default=float('nan')):.3g}, {len(scores)} scores"


def kind_of(error: RerankError) -> str:
    """The outcome of a call that ended in an error."""
    if isinstance(error, ServerOverloadedError):
        return "overload"
    if isinstance(error, ServerUnavailableError):
        return "down"
    return "timeout" if isinstance(error, RequestTimeoutError) else "failed"


def tell_models_apart(models: Sequence[Model]) -> None:
    """Refuse models whose answers could be taken for each other's."""
    for first, second in pairwise(models):
        for one, other in zip(first.logits, second.logits, strict=True):
            if max(abs(a - b) for a, b in zip(one, other, strict=True)) < 100 * TOLERANCE:
                raise SystemExit(f"{first.name} and {second.name} score a search alike")
