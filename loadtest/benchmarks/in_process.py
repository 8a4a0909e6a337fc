"""Reference without a server: tokenize, split into micro-batches, run the artefact in OpenVINO."""

import json
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

from triton_rerank_build.parity.compare import INT8_PROPERTIES
from triton_rerank_build.repository.layout import padded_graph
from triton_rerank_build.serving.backends.rerank_openvino.micro_batch_cuts import cut_by_cost, padded_length

BUDGETS = (1024, 2048, 4096)  # tokens per micro-batch; callers choose the fastest on this machine


class InProcessReranker:
    """Reranker in this process, on all cores.

    Args:
        repository: Model repository with installed artefacts.
        precision: OpenVINO's inference precision, "bf16" or "f32"; bf16 where the processor has units for it if None.
    """

    def __init__(self, repository: Path, precision: str | None = None) -> None:
        core = openvino.Core()
        if precision is None:
            precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        properties = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        properties |= INT8_PROPERTIES
        path = padded_graph(repository / "cross_encoder/1").resolve()
        self.infer_request = core.compile_model(path, "CPU", properties).create_infer_request()
        self.tokenizer = Tokenizer.from_file(str(repository / "tokenizer/1/tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        manifest = json.loads((repository / "cross_encoder/1/manifest.json").read_text())
        self.max_length = min(512, manifest["max_length"])
        self.budget = BUDGETS[1]

    def score(self, query: str, documents: list[str]) -> np.ndarray:
        """Logits in the order of `documents`: [num_pairs] float32."""
        rows = self.encode(query, documents)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        logits = np.empty(len(rows), np.float32)
        widths = [padded_length(len(rows[index]), self.max_length) for index in order]
        for start, end in cut_by_cost(widths, self.budget):
            indices = order[start:end]
            lengths = np.array([len(rows[index]) for index in indices])
            mask = np.arange(widths[start]) < lengths[:, None]
            ids = np.zeros(mask.shape, np.int32)
            ids[mask] = np.concatenate([rows[index] for index in indices])
            feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
            logits[indices] = self.infer_request.infer(feeds, share_inputs=True)["logits"][:, 0]
        return logits

    def encode(self, query: str, documents: list[str]) -> list[list[int]]:
        """Token ids of each pair: `<s> query </s></s> document </s>`, the document truncated to fit."""
        query_ids, *document_ids = (
            encoding.ids for encoding in self.tokenizer.encode_batch_fast([query, *documents], add_special_tokens=False)
        )
        head = [0, *query_ids[: self.max_length * 3 // 4], 2, 2]
        return [[*head, *ids[: self.max_length - len(head) - 1], 2] for ids in document_ids]
