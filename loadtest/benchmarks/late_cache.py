"""Known documents before and after a change: `PYTHONPATH=loadtest python -m benchmarks.late_cache --before COMMIT`.

Two servers of the same late-interaction checkpoint (random weights, 128 dimensions, the demo reranker's tokenizer) run
at once: one with the models of this checkout, one with those of an earlier commit of the release 0.1.0's layout, taken
from git. Both rank the same 1,000 documents of 180 tokens, whose vectors are cached, in turn, each time with a new
query. The ratios of these turns are reproducible on a shared machine; seconds are not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient

from benchmarks.late_stages import stages
from load.workload import generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.checkpoints.demo import demo_late_checkpoint
from triton_rerank_build.late_interaction.repository import LATE
from triton_rerank_build.support.files import cache_folder

HIDDEN, DIM, QUERY_LENGTH, DOCUMENT_LENGTH = 64, 128, 32, 180
MODELS = "build/triton_rerank_build/late_interaction/models"
SHARED = (
    ("model_repository/tokenizer/1/text_pairs.py", "late_tokenizer/1"),
    ("build/triton_rerank_build/serving/backends/rerank_openvino/micro_batch_cuts.py", "late_scorer/1"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="f40c552", help="commit to compare with (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=1000, help="documents of a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="calls to each server (default: %(default)s)")
    options = parser.parse_args()
    after = repository()
    with tempfile.TemporaryDirectory() as folder:
        before = earlier(options.before, after, Path(folder) / "repository")
        with EmbeddedServer(before) as old, EmbeddedServer(after) as new:
            compare((old, new), options)
        stages(before, after, num_documents=options.documents)


def repository() -> Path:
    """The checkpoint, exported with the models of this checkout, in the cache folder."""
    folder = cache_folder() / "bench-late-cache"
    print(f"preparing {folder} ...", file=sys.stderr)
    if not (folder / "checkpoint/model.safetensors").is_file():
        make_checkpoint(folder / "checkpoint")
    for committed in (*folder.rglob("*.py"), *folder.rglob("*.pbtxt")):
        committed.unlink()
    export(str(folder / "checkpoint"), repository=folder / "repository", force=True)
    return folder / "repository"


def make_checkpoint(folder: Path) -> None:
    """Write an XLM-R of one layer with random weights, and ColBERT's metadata and projection."""
    import torch
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder.mkdir(parents=True, exist_ok=True)
    source = demo_late_checkpoint()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = json.loads((source / "config.json").read_text()) | {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 2 * HIDDEN,
        "architectures": ["HF_ColBERT"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    marks = {"query_token_id": "<unk>", "doc_token_id": "<unk>", "mask_punctuation": False, "dim": DIM}
    lengths = {"query_maxlen": QUERY_LENGTH, "doc_maxlen": DOCUMENT_LENGTH}
    (folder / "artifact.metadata").write_text(json.dumps(marks | lengths))
    torch.manual_seed(7)
    model = XLMRobertaModel(XLMRobertaConfig(**config), add_pooling_layer=False)
    weights = {f"roberta.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["linear.weight"] = torch.randn(DIM, HIDDEN)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def earlier(commit: str, current: Path, target: Path) -> Path:
    """The same artefacts in the layout of release 0.1.0, with the models of `commit`."""
    archive = subprocess.run(
        ["git", "archive", commit, MODELS, *(path for path, _ in SHARED)], capture_output=True, check=False
    )
    if archive.returncode:
        sys.exit(f"git archive {commit}: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        (Path(folder) / MODELS).rename(target)
        for path, model in SHARED:
            (target / model / Path(path).name).write_bytes((Path(folder) / path).read_bytes())
    for source in current.glob("*/1/*"):
        if source.suffix not in {".onnx", ".data", ".json"}:
            continue
        path = target / source.relative_to(current)
        if source.name == "tokenizer.json":
            path = target / "late_tokenizer/1/tokenizer.json"
        if source.name == "manifest.json":
            moved = source.read_text().replace("late_scorer/1/tokenizer.json", "late_tokenizer/1/tokenizer.json")
            path.write_text(moved)
        else:
            path.symlink_to(source)
    manifest = (target / LATE.manifests[-1]).read_text()
    (target / "late_tokenizer/1/manifest.json").write_text(manifest)
    return target


def compare(servers: tuple[EmbeddedServer, EmbeddedServer], options: argparse.Namespace) -> None:
    """Call both servers in turn, and print the medians and the line for scripts."""
    documents = long_documents(options.documents)
    clients = [RerankClient(server.grpc_url, LATE.ensemble, timeout=None) for server in servers]
    first = [timed(client, "first", documents) for client in clients]
    difference = float(np.abs(logits(clients[0], documents) - logits(clients[1], documents)).max())
    before = [statistics_of(server) for server in servers]
    seconds = [[timed(client, f"query {turn}", documents) for client in clients] for turn in range(options.rounds)]
    after = [statistics_of(server) for server in servers]
    busy = [beside_bulk(client, documents, turn) for turn in range(3) for client in clients]
    old_s, new_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    for name, first_s, known_s, start, end, beside in zip(
        ("before", "after"), first, (old_s, new_s), before, after, (busy[::2], busy[1::2]), strict=True
    ):
        spent = ", ".join(f"{model} {(end[model] - start[model]) / options.rounds:.0f}" for model in sorted(end))
        print(
            f"{name}: {len(documents)} documents {first_s * 1e3:.0f} ms the first time, {known_s * 1e3:.0f} ms known, "
            f"100 known {statistics.median(beside) * 1e3:.0f} ms beside a call of new ones; ms in Triton's models, "
            f"summed over a call's requests: {spent}"
        )
    ratio = statistics.median(new / old for old, new in seconds)
    beside = statistics.median(new / old for old, new in zip(busy[::2], busy[1::2], strict=True))
    print(
        f"RESULT documents={len(documents)} time_ratio={ratio:.3f} time_ratio_beside_bulk={beside:.3f} "
        f"first_ratio={first[1] / first[0]:.2f} before_ms={old_s * 1e3:.0f} after_ms={new_s * 1e3:.0f} "
        f"worst_difference={difference:.2g}"
    )


def long_documents(count: int) -> list[str]:
    """Documents of at least 180 tokens, nearly all of them."""
    texts = [text for search in islice(generated(count, seed=2), 3) for text in search.documents]
    return [" ".join(texts[3 * index : 3 * index + 3]) for index in range(count)]


def timed(client: RerankClient, query: str, documents: list[str]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    client.rerank(query, documents)
    return time.perf_counter() - start


def logits(client: RerankClient, documents: list[str]) -> np.ndarray:
    """Logits in the order of `documents`."""
    return np.array(client.score([("why is the sky blue?", text) for text in documents], normalize=False))


def beside_bulk(client: RerankClient, documents: list[str], turn: int) -> float:
    """Seconds of a call of known documents with a new query, while another caller's new documents are encoded."""
    new = [f"{turn} {time.monotonic_ns()} {text}" for text in documents]
    bulk = threading.Thread(target=client.rerank, args=["bulk", new])
    bulk.start()
    time.sleep(0.1)
    seconds = timed(client, f"beside {turn} {time.monotonic_ns()}", documents[:100])
    bulk.join()
    return seconds


def statistics_of(server: EmbeddedServer) -> dict[str, float]:
    """Milliseconds of computation so far, by model."""
    with InferenceServerClient(server.grpc_url) as client:
        models = client.get_inference_statistics().model_stats
    return {model.name: model.inference_stats.compute_infer.ns / 1e6 for model in models}


if __name__ == "__main__":
    main()
