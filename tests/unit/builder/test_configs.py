"""The committed config files agree: every arrow joins equal tensors, and every limit is the same."""

import re
from itertools import pairwise

import onnx
import pytest
from tritonclient.grpc import model_config_pb2

from support import ROOT
from support.configs import assert_arrows_join_equals, read_config
from triton_rerank.transport.messages import DEFAULT_PRIORITY
from triton_rerank_build.contract import PACKED_INPUT_NAMES
from triton_rerank_build.graphs.memory import V2_M3, batch_bytes, most_tokens, padded_batch_bytes, weight_bytes

REPOSITORY = ROOT / "model_repository"
CROSS_ENCODERS = ["config.pbtxt", "configs/cpu.pbtxt", "configs/tensorrt.pbtxt"]


def read(name):
    return read_config(REPOSITORY / name)


@pytest.fixture(scope="module")
def reranker():
    return read("reranker/config.pbtxt")


@pytest.fixture(scope="module")
def tokenizer():
    return read("tokenizer/config.pbtxt")


@pytest.fixture(scope="module", params=CROSS_ENCODERS)
def cross_encoder(request):
    return read(f"cross_encoder/{request.param}")


def test_folders_and_names_agree():
    for path in REPOSITORY.rglob("*.pbtxt"):
        assert read(path).name == path.relative_to(REPOSITORY).parts[0], path


def test_every_arrow_joins_equal_names_types_and_dims(reranker, tokenizer, cross_encoder):
    steps = {"tokenizer": tokenizer, "cross_encoder": cross_encoder}
    assert [step.model_name for step in reranker.ensemble_scheduling.step] == list(steps)
    assert_arrows_join_equals(reranker, steps)


def test_every_max_batch_size_agrees(reranker, tokenizer, cross_encoder):
    assert reranker.max_batch_size == tokenizer.max_batch_size == cross_encoder.max_batch_size


@pytest.mark.parametrize("name", CROSS_ENCODERS[1:])
def test_runtimes_differ_only_where_they_may(name):
    may_differ = {
        "backend",
        "platform",
        "default_model_filename",
        "instance_group",
        "parameters",
        "optimization",
        "dynamic_batching",
        "model_warmup",
        "batch_input",
    }
    configs = [read(f"cross_encoder/{path}") for path in (CROSS_ENCODERS[0], name)]
    for config in configs:
        for field in may_differ:
            config.ClearField(field)
        for tensor in config.input:
            tensor.ClearField("allow_ragged_batch")
    assert configs[0] == configs[1]


def test_what_drops_padding_takes_requests_of_any_length_together():
    # A plan takes padded rows: Triton joins only requests of equal padded length.
    for path in CROSS_ENCODERS:
        config = read(f"cross_encoder/{path}")
        assert {tensor.allow_ragged_batch for tensor in config.input} == {config.platform != "tensorrt_plan"}


def test_the_packed_graph_gets_its_inputs(tiny_exports):
    config = read("cross_encoder/config.pbtxt")
    (row_length,) = config.batch_input
    assert list(row_length.source_input) == ["input_ids"]
    assert row_length.kind == row_length.BATCH_ITEM_SHAPE
    types = {item.name: item.data_type for item in config.input} | {row_length.target_name[0]: row_length.data_type}
    graph = onnx.load(tiny_exports("xlm-roberta", "fp16").packed, load_external_data=False).graph
    assert list(types) == [value.name for value in graph.input] == list(PACKED_INPUT_NAMES)
    assert set(types.values()) == {config.input[0].data_type} == {model_config_pb2.TYPE_INT32}


def test_instances_are_said_and_batching_is_on(tokenizer, cross_encoder):
    for config in (tokenizer, cross_encoder):
        # With a queue policy, Triton's batcher idles beside one instance of ONNX Runtime.
        assert [group.count for group in config.instance_group] == [2 if config.backend == "onnxruntime" else 1]
        assert config.HasField("dynamic_batching")


def test_the_queue_that_grows_has_priorities_a_limit_and_drops_what_nobody_waits_for():
    gpu, tensorrt = (
        read(f"cross_encoder/{path}").dynamic_batching for path in ("config.pbtxt", "configs/tensorrt.pbtxt")
    )
    assert gpu == tensorrt
    batching = gpu
    assert (batching.priority_levels, batching.default_priority_level) == (6, 2 * DEFAULT_PRIORITY)
    begun = batching.priority_queue_policy
    assert set(begun) == {1, 3, 5}  # the default policy holds for calls that wait to begin
    for policy in (batching.default_queue_policy, *begun.values()):
        assert policy.allow_timeout_override
        assert policy.timeout_action == policy.REJECT
        assert 1e6 < policy.default_timeout_microseconds < 60e6  # a request's own timeout can only shorten this one
    # What a call sends at once, of as many calls as may begin together.
    assert all(policy.max_queue_size >= 16 * 16 for policy in begun.values())


def test_on_a_cpu_the_backend_has_them_so_that_tritons_batcher_never_sleeps():
    config = read("cross_encoder/configs/cpu.pbtxt")
    assert not config.dynamic_batching.ListFields()
    values = {name: value.string_value for name, value in config.parameters.items()}
    assert values["priority_levels"] == "6"
    assert 0 < float(values["max_wait_s"]) < float(values["queue_timeout_s"]) <= 60


def test_the_tokenizer_has_none_of_them_so_that_its_batcher_prepares_ahead(tokenizer):
    assert not tokenizer.dynamic_batching.ListFields()


def test_ready_means_warm(cross_encoder):
    # rerank_openvino warms itself, and refuses rows without a token, which is all that warm-up data can be.
    assert bool(cross_encoder.model_warmup) == (cross_encoder.backend != "rerank_openvino")
    for sample in cross_encoder.model_warmup:
        assert {name: (value.data_type, len(value.dims)) for name, value in sample.inputs.items()} == {
            item.name: (item.data_type, len(item.dims)) for item in cross_encoder.input
        }


def test_buckets_are_fine_and_reach_the_longest_checkpoint(tokenizer):
    buckets = [int(bucket) for bucket in tokenizer.parameters["buckets"].string_value.split()]
    assert buckets == sorted(set(buckets))
    assert buckets[:8] == list(range(16, 129, 16))
    assert buckets[-1] == 8192
    assert all(after <= 1.5 * before for before, after in pairwise(buckets[2:]))


def test_every_value_is_explained():
    for path in REPOSITORY.rglob("*.pbtxt"):
        text = path.read_text()
        assert text.startswith("#"), f"{path} opens with a sentence to its reader"
        for number, line in enumerate(text.splitlines(), 1):
            key = line.split("#")[0].strip()
            if key.startswith(("max_batch_size", "instance_group", "max_queue_size", "timeout_action")):
                block = "\n".join(text.splitlines()[max(0, number - 5) : number])
                assert "#" in block, f"{path}:{number} says no reason"


# What the comments say of memory, for bge-reranker-v2-m3 at fp16: (file, in its words, bytes).
WEIGHTS = weight_bytes(V2_M3)
STATED = [
    ("config.pbtxt", "3.1 GB for 65,536 tokens", WEIGHTS + batch_bytes(V2_M3, 65_536)),
    ("config.pbtxt", "17.2 GB for the most tokens of a batch", WEIGHTS + batch_bytes(V2_M3, most_tokens(4096))),
    ("configs/tensorrt.pbtxt", "28.2 GB with one", WEIGHTS + padded_batch_bytes(V2_M3, 128, 1024)),
    ("configs/tensorrt.pbtxt", "55.4 GB with two", WEIGHTS + 2 * padded_batch_bytes(V2_M3, 128, 1024)),
]


@pytest.mark.parametrize(("name", "words", "num_bytes"), STATED)
def test_the_worst_case_of_a_merged_batch_stands_beside_the_limit(name, words, num_bytes):
    # One line, without the marks of the comment.
    text = " ".join((REPOSITORY / "cross_encoder" / name).read_text().replace("\n#", " ").split())
    assert words in text
    stated = float(words.split(" GB")[0])
    assert round(num_bytes / 1e9, 1 if stated < 100 else 0) == stated


def test_no_batch_of_the_packed_graph_has_elements_beyond_int32():
    # 64 rows of 8,192 tokens have 2^31 in the widest tensor, one too many.
    assert [most_tokens(4096) // rows for rows in (128, 64, 63)] == [4095, 8191, 8322]
    assert most_tokens(4096) * 4096 < 2**31 <= (most_tokens(4096) + 1) * 4096


def test_the_table_of_the_builders_readme():
    readme = (REPOSITORY.parent / "build" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.M)
    assert [int(row[0]) for row in rows] == [128, 48, 16, 1]
    for rows_of_batch, *stated in rows:
        tokens = [int(rows_of_batch) * length for length in (180, 512, 2048, 8192)]
        computed = [(WEIGHTS + batch_bytes(V2_M3, min(number, most_tokens(4096)))) / 1e9 for number in tokens]
        assert [round(number, 1) for number in computed] == list(map(float, stated))
