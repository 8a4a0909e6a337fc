"""FlagEmbedding's FlagReranker over a served model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from triton_rerank.compat.served import Pair, Served, check_ignored, pairs_of

# Where the model runs, how fast, and from where it is loaded: the server decides.
_FLAG_IGNORED = frozenset(
    {"use_bf16", "use_fp8", "compile", "device", "show_progress_bar", "token", "local_files_only"}
)


class FlagReranker(Served):
    """FlagEmbedding's FlagReranker (its arguments, defaults and scores) over a served model.

    Args:
        model_name_or_path: The checkpoint that the server should have.
        use_fp16: Ignored; the precision is chosen when the model is built.
        query_instruction_for_rerank: Put before each query with `query_instruction_format`.
        query_instruction_format: Of the instruction and the query; a literal backslash-n becomes a line break.
        passage_instruction_for_rerank: Put before each passage with `passage_instruction_format`.
        passage_instruction_format: Of the instruction and the passage.
        trust_remote_code: Ignored; no code is loaded here.
        cache_dir: Ignored; nothing is downloaded here.
        devices: Ignored; the server's instance groups say where it runs.
        batch_size: Ignored; the server batches the requests of all callers.
        query_max_length: Tokens of the query; three quarters of `max_length` if None.
        max_length: Tokens of a pair.
        normalize: Whether scores are sigmoid(logit).
        url: The server; see the module.
        ignored: `use_bf16`, `device` and others that change no score.

    Raises:
        TypeError: An argument is unknown and may change scores.
    """

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: str | int | Sequence[str] | Sequence[int] | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        url: str | Sequence[str] | None = None,
        **ignored: object,
    ) -> None:
        check_ignored("FlagReranker", ignored, _FLAG_IGNORED)
        super().__init__(model_name_or_path, url)
        self._query_prefix = (query_instruction_format, query_instruction_for_rerank)
        self._passage_prefix = (passage_instruction_format, passage_instruction_for_rerank)
        self.query_max_length = query_max_length
        self.max_length = max_length
        self.normalize = normalize

    def compute_score(
        self,
        sentence_pairs: Iterable[Pair] | Pair,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        device: str | None = None,
        **ignored: object,
    ) -> list[float]:
        """Scores of pairs, in their order.

        Args:
            sentence_pairs: [query, passage] pairs (a list, an array or a generator), or one of them.
            batch_size: Ignored.
            query_max_length: As in the constructor, for this call.
            max_length: As in the constructor, for this call.
            normalize: As in the constructor, for this call.
            device: Ignored.
            ignored: `show_progress_bar` and others that change no score.

        Returns:
            A list, also for a single pair, as FlagEmbedding does since 1.3.

        Raises:
            TypeError: An argument is unknown and may change scores.
        """
        check_ignored("compute_score", ignored, _FLAG_IGNORED)
        pairs, _ = pairs_of(sentence_pairs)
        instructed = [(_instructed(*self._query_prefix, q), _instructed(*self._passage_prefix, p)) for q, p in pairs]
        return self.score(
            instructed,
            normalize=self.normalize if normalize is None else normalize,
            max_length=self.max_length if max_length is None else max_length,
            query_max_length=self.query_max_length if query_max_length is None else query_max_length,
        )

    def stop_self_pool(self) -> None:
        """Do nothing: FlagEmbedding stops its processes here, and the server is not this program's to stop."""


def _instructed(form: str, instruction: str | None, text: str) -> str:
    return text if instruction is None else form.replace("\\n", "\n").format(instruction, text)
