"""The packed graph: what its reference shares with it, its attention, and its logits in ragged batches."""

from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from support.packed_attention import standard_attention
from support.tiny_models import FAMILIES, LIMIT, tiny_checkpoint
from triton_rerank_build import ParityError
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.contract import ATTENTION_DOMAIN, ATTENTION_OPERATOR, REFERENCE_DOMAIN
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.networks import classifier_logits
from triton_rerank_build.graphs.onnx import export_onnx
from triton_rerank_build.graphs.reference import attention_by_rows, to_reference
from triton_rerank_build.graphs.rows import template_layout
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.parity.compare import PADDING, Batch, make_batches, reference_logits
from triton_rerank_build.parity.packed import join, joined_batches, prove_packed

LAYERS = 2
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def exported(tiny_exports):
    """Family -> its tiny export at fp16."""
    return lambda family: tiny_exports(family, "fp16")


def load(path):
    return onnx.load(str(path), load_external_data=False)


@every_family
def test_the_reference_differs_in_the_domain_of_the_attention_and_its_definition_alone(exported, family):
    packed = load(exported(family).packed)
    reference = load(exported(family).packed.with_name("model.reference.onnx"))

    attention = [index for index, node in enumerate(packed.graph.node) if node.op_type == ATTENTION_OPERATOR]
    assert len(attention) == LAYERS
    assert len(packed.graph.node) == len(reference.graph.node)
    for index, (node, other) in enumerate(zip(packed.graph.node, reference.graph.node, strict=True)):
        if index in attention:
            assert (node.domain, other.domain) == (ATTENTION_DOMAIN, REFERENCE_DOMAIN)
            other.domain = ATTENTION_DOMAIN
        assert node == other, node.name
    # The function, and the version of its domain; nothing else is left.
    assert [(function.domain, function.name) for function in reference.functions] == [
        (REFERENCE_DOMAIN, ATTENTION_OPERATOR)
    ]
    assert (reference.opset_import.pop().domain, reference.functions.pop().name) == (
        REFERENCE_DOMAIN,
        ATTENTION_OPERATOR,
    )
    assert packed == reference


@every_family
def test_all_graphs_have_one_file_of_weights(exported, family):
    weights = []
    for path in (exported(family).packed, exported(family).graph):
        tensors = {tensor.name: tensor for tensor in load(path).graph.initializer if tensor.external_data}
        weights.append({name: [str(entry) for entry in tensor.external_data] for name, tensor in tensors.items()})
    assert len(weights[0]) > 6 * LAYERS  # all matrices; biases as small as these stand in the graph
    assert weights[0] == weights[1]
    assert exported(family).packed.stat().st_size < 30_000


@every_family
def test_the_attention_has_neither_a_bias_nor_packed_inputs(exported, family):
    # With either, the operator makes a padded copy of query, key and value.
    for node in load(exported(family).packed).graph.node:
        if node.op_type == ATTENTION_OPERATOR:
            assert [bool(name) for name in node.input] == [True, True, True, False, True, True]


def attention_graph(element_type):
    """One attention node, with fp32 or fp16 query, key and value."""
    inputs = [helper.make_tensor_value_info(name, element_type, ["tokens", 24]) for name in ("query", "key", "value")]
    inputs.append(helper.make_tensor_value_info("token_offset", TensorProto.INT32, ["rows", "longest"]))
    inputs.append(helper.make_tensor_value_info("cumulative", TensorProto.INT32, ["borders"]))
    node = helper.make_node(
        ATTENTION_OPERATOR,
        ["query", "key", "value", "", "token_offset", "cumulative"],
        ["attended"],
        domain=ATTENTION_DOMAIN,
        num_heads=3,
    )
    graph = helper.make_graph(
        [node], "attention", inputs, [helper.make_tensor_value_info("attended", element_type, ["tokens", 24])]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ATTENTION_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float16, 2e-3)])
@pytest.mark.parametrize("lengths", [[1], [7], [2, 512], [1, 33, 1, 5], [16] * 64])
def test_both_definitions_of_the_attention_are_pytorchs(dtype, tolerance, lengths):
    rng, tokens = np.random.default_rng(0), sum(lengths)
    states = [rng.standard_normal((tokens, 24)).astype(dtype) for _ in range(3)]
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    feed = dict(zip(("query", "key", "value"), states, strict=True)) | {
        "token_offset": np.zeros((len(lengths), max(lengths)), np.int32),
        "cumulative": borders,
    }
    rows = []
    for start, end in pairwise(borders):
        query, key, value = (
            torch.from_numpy(state[start:end].astype(np.float32)).view(-1, 3, 8).transpose(0, 1) for state in states
        )
        rows.append(functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(-1, 24))
    expected = torch.cat(rows).numpy()

    found = {}
    for name, function in (("by rows", attention_by_rows()), ("standard", standard_attention())):
        model = attention_graph(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        to_reference(model, function)
        found[name] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]
        assert found[name].dtype == dtype
        assert np.abs(found[name] - expected).max() < tolerance, name
    assert np.abs(found["by rows"].astype(np.float32) - found["standard"]).max() < tolerance


@pytest.fixture(scope="module")
def proof(exported):
    """Family -> (batches, PyTorch's logits, the packed graph)."""

    @cache
    def made(family):
        source = resolve_checkpoint(str(exported(family).checkpoint))
        tokenizer, model = load_tokenizer(source), load_model(source)
        batches = make_batches(tokenizer, LIMIT, exported(family).manifest.layout)
        return batches, reference_logits(classifier_logits(model), batches), exported(family).packed

    return made


@every_family
def test_what_the_proof_covers(proof, family):
    batches, expected, path = proof(family)
    joined = {batch.name: [batches[index] for index in batch.requests] for batch in joined_batches(batches)}
    lengths = {request.input_ids.shape[1] for request in joined["all lengths"]}
    assert {1, 2, 33, LIMIT} <= lengths
    assert PADDING in {request.name for request in joined["all lengths"]}
    texts = joined["all texts, a request each"]
    assert len(texts) > 20
    (pad_id,) = next(batch for batch in batches if batch.name == PADDING).input_ids[0]
    inside_texts = [request.input_ids[request.attention_mask > 0] for request in texts]
    assert any((tokens == pad_id).any() for tokens in inside_texts)
    assert prove_packed(path, batches, expected, "fp16").num_pairs > len(texts) + len(lengths)


@every_family
def test_logits_are_those_of_transformers_whatever_else_is_in_the_batch(exported, family):
    made = exported(family)
    model = AutoModelForSequenceClassification.from_pretrained(made.checkpoint).eval()
    session = onnxruntime.InferenceSession(made.packed.with_name("model.reference.onnx"))
    rng, pad_id, types = np.random.default_rng(1), model.config.pad_token_id, family == "bert"
    requests, expected = [], []
    for lengths in ([3], [LIMIT, 17], [2, 2, 2], [64], [33, 1]):
        ids = np.full((len(lengths), max(lengths) + 5), pad_id, np.int32)
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            # Every token there is, padding inside the text too; half of it of the second type.
            ids[row, :length] = rng.integers(0, 200, length)
            mask[row, :length] = 1 + (np.arange(length) >= length // 2) * types
            with torch.inference_mode():
                tokens, kinds = torch.tensor(ids[row : row + 1, :length]).long(), torch.tensor(mask[row, :length] > 1)
                logits = model(tokens, torch.ones_like(tokens), kinds.long()[None] if types else None).logits
            expected.append(logits.numpy())
        requests.append(Batch("a request", ids, mask))
    warm_up = Batch("zeros", np.zeros((8, 16), np.int32), np.zeros((8, 16), np.int32))

    feed = join([*requests[:2], warm_up, *requests[2:]])
    logits = session.run(None, feed)[0]

    rows = [row for row in range(len(logits)) if not 3 <= row < 11]
    assert np.abs(logits[rows] - np.concatenate(expected)).max() < 1e-2
    assert np.isfinite(logits).all()
    # Beside others or alone, a request has the same logits.
    alone = np.concatenate([session.run(None, join([request]))[0] for request in requests])
    assert np.abs(logits[rows] - alone).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.1.wide.weight", lambda weight: weight * 1.2),
        ("embeddings.position.weight", lambda table: np.roll(table, 1, axis=0)),
        ("out.bias", lambda bias: np.full_like(bias, np.nan)),
    ],
)
def test_a_graph_with_another_weight_is_refused(proof, tmp_path, name, change):
    batches, expected, path = proof("xlm-roberta")
    model = onnx.load(str(path.with_name("model.reference.onnx")))
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, str(tmp_path / "model.reference.onnx"))
    with pytest.raises(ParityError, match=r"logits differ from PyTorch by .*, tolerance 0\.02"):
        prove_packed(tmp_path / "model.onnx", batches, expected, "fp16")


def test_a_graph_that_mixes_rows_is_refused(proof, tmp_path):
    batches, expected, path = proof("xlm-roberta")
    model = onnx.load(str(path.with_name("model.reference.onnx")))
    # Each row attends to the tokens of those before it too: key and value begin at the first token of the batch.
    (loop,) = [node for node in model.functions[0].node if node.op_type == "Loop"]
    for node in loop.attribute[0].g.node:
        if node.op_type == "Slice" and node.output[0] in ("key_row", "value_row"):
            node.input[1] = "zero"
    onnx.save(model, str(tmp_path / "model.reference.onnx"))
    with pytest.raises(ParityError, match="logits differ from PyTorch by"):
        prove_packed(tmp_path / "model.onnx", batches, expected, "fp16")


@pytest.mark.slow
def test_a_wide_network_shares_its_matrices_and_keeps_vectors_of_its_own(tmp_path):
    # As wide as a published one: vectors of 32 numbers are too small for onnx_ir to write them into a file of weights.
    checkpoint = tiny_checkpoint(
        tmp_path / "wide", "xlm-roberta", hidden_size=384, num_hidden_layers=1, initializer_range=0.05
    )
    source, graphs = resolve_checkpoint(str(checkpoint)), tmp_path / "graphs"
    graphs.mkdir()
    tokenizer, model = load_tokenizer(source), load_model(source)
    batches = make_batches(tokenizer, LIMIT, template_layout(tokenizer, model.config.pad_token_id, token_types=False))
    expected = reference_logits(classifier_logits(model), batches)
    graph = RerankGraph(model, dtype=torch.float16, token_types=False).eval()
    path = export_onnx(graph, graphs, precision="fp16", max_length=LIMIT)

    assert prove_packed(path, batches, expected, "fp16").worst_difference < 2e-2
    packed, padded = (
        {each.name: each for each in load(file).graph.initializer} for file in (path, graphs / "model.padded.onnx")
    )
    for name, tensor in packed.items():
        if len(tensor.dims) > 1 and tensor.dims[1] > 1:
            assert tensor.external_data == padded[name].external_data
    assert path.stat().st_size < 50_000
