"""sentence-transformers' CrossEncoder over a served model, with the arguments of its releases 3 to 6."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from triton_rerank.compat.served import Pair, Served, check_ignored, pairs_of
from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.relevance import Relevance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Activation = Callable[[Any], Any]

# Where the model runs, how fast, and from where it is loaded: the server decides.
IGNORED = frozenset(
    {
        *("automodel_args", "backend", "batch_size", "cache_dir", "cache_folder", "chunk_size", "classifier_dropout"),
        *(
            "device",
            "keep_in_fp32_modules",
            "local_files_only",
            "model_card_data",
            "model_kwargs",
            "num_workers",
            "pool",
        ),
        *("revision", "show_progress_bar", "token", "trust_remote_code"),
    }
)
_RENAMED = {"activation_fct": "activation_fn", "default_activation_function": "activation_fn", "sentences": "inputs"}

# Positional arguments after the texts: of sentence-transformers 3, of 4 and 5, and of 6.
_ORDERS = (
    ("batch_size", "show_progress_bar", "num_workers", "activation_fn", "apply_softmax"),
    ("batch_size", "show_progress_bar", "activation_fn", "apply_softmax"),
    ("prompt_name", "prompt", "batch_size", "show_progress_bar", "activation_fn", "apply_softmax"),
)
LONGEST_FIRST = 0
"""The `query_max_length` for which the longer of query and document is cut first, as in sentence-transformers."""
_CONVERSIONS = ("convert_to_numpy", "convert_to_tensor")


class CrossEncoder(Served):
    """sentence-transformers' CrossEncoder with one label (its `predict` and `rank`) over a served model.

    Arguments may be given as in releases 3 to 6, with the names and positions of each. Pairs beyond `max_length` are
    cut as there: of query and document the longer loses tokens first.

    Args:
        model_name_or_path: The checkpoint that the server should have.
        num_labels: 1 or None.
        max_length: Tokens of a pair; the server's default if None.
        activation_fn: Function of the logits, a float32 array (or a tensor, if it takes no array). None takes the one
            that the checkpoint's configuration names: Identity for the ms-marco models, for example; else sigmoid.
            As the fourth positional argument, a text is the device, as in release 3.
        url: The server; see the module.
        others: `device`, `cache_folder`, `model_kwargs` and others that change no score are ignored; the names of
            earlier releases (`model_name`, `default_activation_function`) are known.

    Raises:
        TypeError: An argument is unknown and may change scores.
        InvalidRequestError: `num_labels` is not 1.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | str | None = None,
        *,
        url: str | Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        name = others.pop("model_name", model_name_or_path)
        if name is None:
            raise TypeError("CrossEncoder needs model_name_or_path")
        if num_labels not in (None, 1):
            raise InvalidRequestError(f"num_labels is {num_labels}; a served reranker has one label")
        activation = others.pop("default_activation_function", None) or activation_fn
        check_ignored("CrossEncoder", {key for key, value in others.items() if value is not None}, IGNORED)
        super().__init__(name, url)
        self.max_length = max_length
        self.activation_fn: Activation | None = None if isinstance(activation, str) else activation

    def predict(
        self,
        inputs: Iterable[Pair] | Pair | None = None,
        *positional: Any,
        activation_fn: Activation | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """Scores of pairs, in their order.

        Args:
            inputs: (query, document) pairs (a list, an array or a generator), or one of them; `sentences` before 6.
            positional: What releases 3 to 6 take there: `batch_size` second, an activation fourth or fifth.
            activation_fn: As in the constructor, for this call; `activation_fct` in release 3.
            convert_to_numpy: Whether to return an array instead of a list.
            convert_to_tensor: Whether to return a torch tensor.
            others: `batch_size`, `show_progress_bar`, `device` and others that change no score; ignored.

        Returns:
            float32 [num_pairs]; a single float32 for a single pair.

        Raises:
            TypeError: An argument is unknown and may change scores, such as `prompt`.
        """
        given = _named(positional, others)
        inputs = given.pop("inputs", inputs)
        if inputs is None:
            raise TypeError("predict needs inputs, (query, document) pairs")
        convert_to_numpy = given.pop("convert_to_numpy", convert_to_numpy)
        convert_to_tensor = given.pop("convert_to_tensor", convert_to_tensor)
        activation = given.pop("activation_fn", None) or activation_fn
        check_ignored("predict", {key for key, value in given.items() if value is not None}, IGNORED)
        pairs, single = pairs_of(inputs)
        scores = self._activated(self._array(pairs), activation)
        if convert_to_tensor:
            import torch

            tensor = torch.from_numpy(scores)
            return tensor[0] if single else tensor
        if single:
            return scores[0]
        return scores if convert_to_numpy else [float(score) for score in scores]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *positional: Any,
        activation_fn: Activation | None = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Documents by descending score; documents whose scores are equal, by descending logit.

        Args:
            query: The search text.
            documents: Texts.
            top_k: Number of results; all of them if None.
            return_documents: Whether results hold the text.
            positional: As in `predict`.
            activation_fn: As in the constructor, for this call.
            others: As in `predict`.

        Returns:
            {"corpus_id": index in `documents`, "score": float} with "text" if asked for.
        """
        given = _named(positional, others)
        for name in _CONVERSIONS:
            given.pop(name, None)
        activation = given.pop("activation_fn", None) or activation_fn
        check_ignored("rank", {key for key, value in given.items() if value is not None}, IGNORED)
        texts = list(documents)
        logits = self._array([(query, text) for text in texts])
        scores = self._activated(logits, activation)
        order = sorted(range(len(texts)), key=lambda index: (scores[index], logits[index]), reverse=True)
        results: list[dict[str, Any]] = []
        for index in order[:top_k]:
            result = {"corpus_id": index, "score": float(scores[index])}
            results.append({**result, "text": texts[index]} if return_documents else result)
        return results

    def _array(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        import numpy as np

        logits = self.score(pairs, normalize=False, max_length=self.max_length, query_max_length=LONGEST_FIRST)
        return np.asarray(logits, dtype=np.float32)

    def _activated(self, logits: NDArray[np.float32], activation: Activation | None) -> NDArray[np.float32]:
        import numpy as np

        activation, info = activation or self.activation_fn, self.info()
        if activation is None:
            name = (info.activation if info is not None else None) or "Sigmoid"
        else:
            name = type(activation).__name__
        if name == "Identity":
            return logits
        if name == "Sigmoid":
            relevance = Relevance(info.logit_scale if info is not None else None)
            return np.asarray([relevance(float(logit)) for logit in logits], dtype=np.float32)
        if activation is None:
            raise InvalidRequestError(f"the checkpoint names the activation {name}; pass it as activation_fn")
        try:
            return np.asarray(activation(logits), dtype=np.float32)
        except TypeError:
            import torch

            return np.asarray(activation(torch.from_numpy(logits)), dtype=np.float32)


def _named(positional: tuple[Any, ...], others: dict[str, Any]) -> dict[str, Any]:
    """Positional and renamed arguments of releases 3 to 6 under the names of release 6."""
    order: tuple[str, ...]
    if positional and not isinstance(positional[0], int):
        order = _ORDERS[2]
    elif len(positional) > 2 and type(positional[2]) is int:
        order = _ORDERS[0]
    else:
        order = _ORDERS[1]
    order = (*order, *_CONVERSIONS)
    if len(positional) > len(order):
        raise TypeError(f"{len(positional)} positional arguments after the texts; releases 3 to 6 take {len(order)}")
    given = dict(zip(order, positional, strict=False))
    for name, value in others.items():
        given[_RENAMED.get(name, name)] = value
    given.pop("apply_softmax", None)  # of several labels only
    return given
