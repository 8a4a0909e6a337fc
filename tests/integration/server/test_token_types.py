"""Special tokens as text, and token types: served logits against transformers' tokenizer and model."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import COMMITTED, lay_out
from support import quick_server, raw
from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank import RerankClient
from triton_rerank.compat import CrossEncoder
from triton_rerank_build import export, verify
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.contract import TOKENIZER_FILE
from triton_rerank_build.graphs import cross_encoder
from triton_rerank_build.graphs.onnx import write_graph
from triton_rerank_build.graphs.tokenizer import load_tokenizer, save_tokenizer
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.repository.install import install, measure, staging
from triton_rerank_build.repository.manifest import Manifest

PLAIN = [("why is the sky blue?", "The sky is blue."), ("fresh bread", "a loaf stays soft"), ("a", "b c d e f g")]
SPECIAL = ["[SEP]", "[MASK]", "[PAD]", "[CLS]", "</s>", "<s>", "<pad>", "<mask>"]
PAIRS = [
    *PLAIN,
    *((f"a {token} question", "an answer of some length") for token in SPECIAL),
    *((token, "an answer") for token in SPECIAL),
    *(("a question", f"{token} an {token} answer {token}") for token in SPECIAL),
    *((f"{token} first {token}", f"second {token} third") for token in SPECIAL),
]
# By precision, the largest difference of a logit, and of the score that is its sigmoid.
TOLERANCE = {"fp32": (1e-4, 1e-5), "fp16": (2e-2, 5e-3)}
# cross_encoder/config.pbtxt as release 0.1.0 had it.
DENSE = [
    ("cross_encoder/config.pbtxt", f"dims: [ -1 ]  allow_ragged_batch: true }}{comma}", f"dims: [ -1 ] }}{comma}")
    for comma in (",  #", "   #")
]
DENSE.append(("cross_encoder/config.pbtxt", "\nbatch_input [", "\n# batch_input ["))
FP32 = ("cross_encoder/configs/cpu.pbtxt", 'string_value: "auto"', 'string_value: "f32"')


def transformers_logits(checkpoint, pairs):
    """[num_pairs], one by one."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        return np.array([model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs])


def logits_and_tokens(server, pairs):
    with RerankClient(server.grpc_url) as client:
        logits = client.score(pairs, normalize=False)
    return np.array(logits), raw.tokenize(server.grpc_url, pairs)


def served_logits(repository, folder, pairs, runtime="openvino", *edits):
    with quick_server(lay_out(folder, repository, FP32, *edits), runtime=runtime) as server:
        return logits_and_tokens(server, pairs)


@pytest.fixture(
    scope="module",
    params=[
        ("bert", "bert", "fp32", "openvino"),
        ("bert", "bert", "fp16", "onnxruntime"),
        ("roberta", "roberta", "fp32", "openvino"),
        ("xlm-roberta", "xlm-roberta", "fp16", "openvino"),
        # As in cross-encoder/msmarco-MiniLM-L6-en-de-v1: two types in the network, none from the tokenizer.
        ("bert", "xlm-roberta", "fp32", "openvino"),
    ],
    ids="-".join,
)
def tiny(request, tiny_exports, tmp_path_factory):
    """A checkpoint of each family, its manifest, and a server of it."""
    family, tokenizer_of, precision, runtime = request.param
    folder = tmp_path_factory.mktemp("tiny")
    if family == tokenizer_of:
        made = tiny_exports(family, precision)
        checkpoint, repository, manifest = made.checkpoint, made.repository, made.manifest
    else:
        repository = folder / "exported"
        checkpoint = tiny_checkpoint(folder / "tiny", family, tokenizer_of=tokenizer_of)
        manifest = export(str(checkpoint), repository=repository, precision=precision)
    assert manifest.token_types == (tokenizer_of == "bert")
    with quick_server(lay_out(folder / "served", repository, FP32), runtime=runtime) as server:
        yield checkpoint, manifest, server


def test_served_logits_are_those_of_transformers_whatever_the_texts_hold(tiny):
    checkpoint, manifest, server = tiny
    served, tokens = logits_and_tokens(server, PAIRS)

    expected = transformers_logits(checkpoint, PAIRS)
    assert expected.std() > 0.05  # the oracle has something to tell apart
    assert np.abs(served - expected).max() < TOLERANCE[manifest.precision][0]
    reference = AutoTokenizer.from_pretrained(checkpoint)
    for row, pair in enumerate(PAIRS):
        encoded = reference(*pair)
        length = len(encoded["input_ids"])
        assert tokens["input_ids"][row, :length].tolist() == encoded["input_ids"]
        types = encoded.get("token_type_ids", [0] * length) if manifest.token_types else [0] * length
        assert tokens["attention_mask"][row].tolist() == [1 + kind for kind in types] + [0] * (
            tokens["attention_mask"].shape[1] - length
        )


def test_cross_encoder_cuts_pairs_as_sentence_transformers_does(tiny):
    from sentence_transformers import CrossEncoder as Original  # slow to import

    checkpoint, manifest, server = tiny
    words = ["why", "is", "the", "sky", "blue", "and", "bread", "stays", "soft?"]
    lengths = [1, 5, 9, 10, 11, 12, 40, 90]
    texts = [" ".join(words[n % len(words)] for n in range(length)) for length in lengths]
    pairs = [(query, document) for query in texts for document in texts]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for max_length in (24, 25):  # the odd token of the room belongs to the longer text
        original = Original(str(checkpoint), max_length=max_length, device="cpu")
        served = CrossEncoder(str(checkpoint), max_length=max_length, url=server.grpc_url)
        expected = original.predict(pairs, batch_size=1)
        assert np.abs(served.predict(pairs) - expected).max() < TOLERANCE[manifest.precision][1]
        served.close()
        tokens = raw.tokenize(server.grpc_url, pairs, max_length=max_length, query_max_length=0)
        for row, pair in enumerate(pairs):
            ids = tokenizer(*pair, truncation="longest_first", max_length=max_length)["input_ids"]
            assert tokens["input_ids"][row, : tokens["num_tokens"][row, 0]].tolist() == ids
            assert tokens["truncated"][row, 0] == (len(ids) < len(tokenizer(*pair)["input_ids"]))


class TypesFromFirstSeparator(cross_encoder.Embeddings):
    """The embeddings of release 0.1.0: tokens after the first separator are of type 1."""

    def forward(self, input_ids, attention_mask):
        separators = input_ids.eq(self.separator_id).to(torch.int32)
        after_first = (torch.cumsum(separators, dim=1, dtype=torch.int32) - separators > 0).to(torch.int32)
        types = functional.embedding(after_first * attention_mask, self.types)
        return self.norm((self.word(input_ids) + types + self.position(self.positions(input_ids))).float())


@pytest.fixture(scope="module")
def release_0_1_0(tiny_exports, tmp_path_factory):
    """A BERT checkpoint, and the repository that holds its graph and manifest of release 0.1.0. Read only."""
    made = tiny_exports("bert", "fp32")
    repository = shutil.copytree(made.repository, tmp_path_factory.mktemp("release") / "installed")
    source = resolve_checkpoint(str(made.checkpoint))
    tokenizer, model = load_tokenizer(source), load_model(source)
    graph = cross_encoder.RerankGraph(model, dtype=torch.float32, token_types=True).eval()
    graph.embeddings.__class__ = TypesFromFirstSeparator
    graph.embeddings.separator_id = tokenizer.token_to_id("[SEP]")
    with staging(repository, 1) as staged:
        write_graph(graph, staged / "model.onnx", max_length=LIMIT, output_name="logits")
        save_tokenizer(tokenizer, staged / TOKENIZER_FILE, max_length=LIMIT, pad_id=model.config.pad_token_id)
        content = json.loads(made.manifest.to_json()) | {"exporter": "a digest of the source"}
        del content["token_types"]
        artefacts = {name: vars(artefact) for name, artefact in measure(staged).items()}
        install(staged, repository, Manifest.from_json(json.dumps(content | {"artefacts": artefacts})))
    for path in repository.glob("*/1/manifest.json"):
        content = json.loads(path.read_text())
        del content["token_types"], content["layout"]
        path.write_text(json.dumps(content))
    return made.checkpoint, repository


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_repository_of_release_0_1_0_stays_valid_and_keeps_its_scores(release_0_1_0, tmp_path, runtime):
    checkpoint, repository = release_0_1_0
    assert not verify(repository).token_types

    served, tokens = served_logits(repository, tmp_path / "served", PLAIN, runtime, *DENSE)

    assert tokens["attention_mask"].max() == 1
    assert np.abs(served - transformers_logits(checkpoint, PLAIN)).max() < 1e-4


def test_export_replaces_a_repository_of_release_0_1_0_and_its_code_but_no_edited_configuration(
    release_0_1_0, tmp_path
):
    checkpoint, installed = release_0_1_0
    repository = shutil.copytree(installed, tmp_path / "installed")
    code, config = repository / "tokenizer/1/model.py", repository / "cross_encoder/configs/cpu.pbtxt"
    code.write_text("# of release 0.1.0")
    config.write_text(config.read_text() + "# my own line\n")

    assert export(str(checkpoint), repository=repository).token_types

    assert code.read_bytes() == (COMMITTED / "tokenizer/1/model.py").read_bytes()
    assert config.read_text().endswith("# my own line\n")
