"""What a client knows of the served model, and when it must ask again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence

from triton_rerank.errors import InvalidRequestError, ModelNotFoundError
from triton_rerank.ranking.batching import Limits
from triton_rerank.ranking.relevance import Relevance
from triton_rerank.transport.connection import Message
from triton_rerank.transport.responses import drops_padding, model_info, read_json
from triton_rerank.types import ModelInfo

_LONGEST_AGE_S = 2.0
"""How long a configuration is used before the client asks again: less than a restart of Triton takes."""

_OUTPUTS = {"logits", "num_tokens", "truncated"}

_PADDED_PAIRS = 32
"""Pairs in one request where the server pads them to the longest: small requests of similar length waste little."""


class ServedModel:
    """Configuration and description of one model, as the server last reported them. Shared by threads.

    A redeploy may change them. A restart takes longer than `_LONGEST_AGE_S`, so after a reconnect the
    configuration is always asked for again, also if no call noticed the restart.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.config: Message = None
        self.steps: Sequence[Message] = ()
        """Configurations of an ensemble's models, in the order of `responses.model_info`."""
        self._steps_are_stale = True
        self._info: ModelInfo | None = None
        self._config_at = self._info_at = -math.inf
        self._info_is_stale = True
        self._lock = threading.Lock()

    def must_ask(self, failed_at: float) -> bool:
        """Whether the caller has to ask for the configuration. Other threads then use the one that is known.

        Args:
            failed_at: When a server was last found unreachable.
        """
        now = time.monotonic()
        with self._lock:
            failed = failed_at >= self._config_at
            if self.config is not None and not failed and now - self._config_at < _LONGEST_AGE_S:
                return False
            self._outdate_if(failed)
            self._config_at = now
            return True

    def adopt(self, config: Message) -> None:
        """Store a configuration.

        Raises:
            InvalidRequestError: The model is not a reranker.
        """
        outputs = {str(output.name) for output in config.output}
        if outputs and not outputs.issuperset(_OUTPUTS):
            raise InvalidRequestError(
                f"model {self.name!r} is not a reranker: its outputs are {', '.join(sorted(outputs))}; "
                "pass the name of an ensemble, such as reranker"
            )
        self._outdate_if(config != self.config)
        self.config = config

    def refused(self, error: InvalidRequestError) -> bool:
        """Whether a refusal may come from a configuration that the server no longer has; it is asked for again."""
        if "batch-size must be <=" not in str(error):
            return False
        self._config_at = -math.inf
        return True

    @property
    def must_ask_steps(self) -> bool:
        """Whether the caller has to ask for the configurations of the ensemble's models."""
        return self._steps_are_stale

    def adopt_steps(self, configs: Sequence[Message]) -> None:
        """Store the configurations of the ensemble's models; none if it is not an ensemble."""
        self.steps, self._steps_are_stale = configs, False

    @property
    def must_describe(self) -> bool:
        """Whether the caller has to ask for the description."""
        return self._info is None or self._info_is_stale

    def describe(self, about: Message) -> None:
        """Store the server's description: the tokenizer's answer to `messages.info_request`."""
        said, scale = read_json(about, "model_info"), Relevance.of(self.config).logit_scale
        self._info = model_info(self.name, said, self.config.max_batch_size, self.steps, scale)
        self._info_at, self._info_is_stale = time.monotonic(), False

    def outdate(self) -> None:
        """Have the description asked for again if it is old."""
        self._outdate_if(time.monotonic() - self._info_at > _LONGEST_AGE_S)

    def _outdate_if(self, old: bool) -> None:
        self._info_is_stale |= old
        self._steps_are_stale |= old

    @property
    def info(self) -> ModelInfo:
        """The description, once it was asked for."""
        if self._info is None:
            raise RuntimeError("the model's description was read before the server was asked for it")
        return self._info

    def limits(self, pairs_per_request: int | None) -> Limits:
        """Limits of requests, as far as they are known.

        Args:
            pairs_per_request: The most that the caller wants; None for as many as the server computes well.
        """
        rows = max(1, self.config.max_batch_size)
        if pairs_per_request is not None:
            rows = min(rows, pairs_per_request)
        elif not drops_padding(self.steps):
            rows = min(rows, _PADDED_PAIRS)
        if self._info is None or self._info.default_max_length is None:
            return Limits(rows)
        return Limits(rows, self._info.default_max_length)

    def check(self, parameters: Mapping[str, int | str]) -> None:
        """Refuse what the server would ignore: a priority that it does not have, an instruction to no such model."""
        if "instruction" in parameters and self.info.instruction is None:
            raise InvalidRequestError(f"model {self.name!r} takes no instruction; pass None")
        priority = parameters.get("priority")
        if not isinstance(priority, int):
            return
        levels = self.info.priority_levels
        if levels is None:
            raise InvalidRequestError(f"priority is {priority}, but model {self.name!r} has no priorities; pass None")
        if priority > levels:
            raise InvalidRequestError(f"priority is {priority}; pass 1 (first) to {levels}, or None")


def name_models(error: ModelNotFoundError, index: Message) -> ModelNotFoundError:
    """`error` with the names of the models that the server has.

    Args:
        error: The server's answer.
        index: RepositoryIndexResponse; None if the server does not show it.
    """
    if index is None:
        return error
    names = ", ".join(sorted({model.name for model in index.models})) or "none"
    return ModelNotFoundError(f"{error}; the server has: {names}")
