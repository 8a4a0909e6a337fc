"""Make late_golden.json: ids and scores of the tiny ColBERT checkpoint by pylate, an implementation of its own.

pylate needs another torch than this project's, so it has an environment of its own; the file says which versions ran:

    pip install pylate safetensors tokenizers && python tests/support/late_golden.py
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from pylate import models

from support.tiny_late import DOCUMENT_LENGTH, DOCUMENTS, QUERIES, QUERY_LENGTH, tiny_colbert


def main() -> None:
    """Write the file beside this one."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(tiny_colbert(Path(folder) / "tiny"))
        model = models.ColBERT(checkpoint, query_length=QUERY_LENGTH, document_length=DOCUMENT_LENGTH, device="cpu")
        queries = [torch.as_tensor(rows) for rows in model.encode(list(QUERIES), is_query=True)]
        documents = [torch.as_tensor(rows) for rows in model.encode(list(DOCUMENTS), is_query=False)]
        scores = [[float((query @ document.T).max(dim=1).values.sum()) for document in documents] for query in queries]
        ids = {
            "queries": [model.tokenize([text], is_query=True)["input_ids"][0].tolist() for text in QUERIES],
            "documents": [model.tokenize([text], is_query=False)["input_ids"][0].tolist() for text in DOCUMENTS],
        }
        counts = {"queries": [len(rows) for rows in queries], "documents": [len(rows) for rows in documents]}
    tools = {name: version(name) for name in ("pylate", "sentence-transformers", "transformers", "torch", "tokenizers")}
    golden = {"made_with": tools, "ids": ids, "num_vectors": counts, "scores": scores}
    Path(__file__).with_name("late_golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
