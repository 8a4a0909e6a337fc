"""Memory that runs out on a CPU: a batch is computed in smaller ones, and a row that is too long fails by itself."""

import contextlib
import re
import resource

import psutil
import pytest

from conftest import PATIENT
from support.monitors import triton_process
from support.tiny_models import tiny_checkpoint
from triton_rerank import InferenceError, RerankClient
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.late_interaction.settings import LateOptions

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# A token takes 66 kB in the feed-forward layers of this network: a row of LONG tokens 66 MB, four rows of a short text
# 28 MB. A server has memory for 512 tokens from its start.
WIDE, LONG, MICRO_BATCH = 16_384, 1000, 512
SIZES = {"num_hidden_layers": 2, "intermediate_size": WIDE, "max_position_embeddings": LONG + 80}
SHORT = [f"w{number} " + "a b c d e f g " * (7 + number) for number in range(8)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Both ensembles in fp32."""
    folder = tmp_path_factory.mktemp("memory")
    source = str(tiny_checkpoint(folder / "tiny", "bert", **SIZES))
    repository = folder / "repository"
    export(source, repository=repository, precision="fp32")
    export(source, repository=repository, precision="fp32", late_interaction=LateOptions(query_length=32))
    for config in repository.glob("*_encoder/configs/cpu.pbtxt"):
        text = config.read_text().replace('string_value: "auto"', 'string_value: "f32"').replace(*PATIENT[1:])
        config.write_text(text.replace('string_value: "2048"', f'string_value: "{MICRO_BATCH}"'))
    with EmbeddedServer(repository, log=folder / "server.log") as running:
        yield running


@contextlib.contextmanager
def spare_memory(server, instance, megabytes):
    """Let a model's process have this much more than now: the kernel refuses it more."""
    process = triton_process(server, instance)
    with open(f"/proc/{process.pid}/status") as status:
        data = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    process.rlimit(psutil.RLIMIT_DATA, (1024 * data + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        yield
        assert process.is_running()
    finally:
        process.rlimit(psutil.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def logits_of(response):
    return [result.logit for result in sorted(response, key=lambda result: result.index)]


def test_a_row_beyond_memory_fails_alone_and_a_batch_is_scored_row_by_row(server):
    with RerankClient(server.grpc_url) as client:
        expected = logits_of(client.rerank("a", SHORT))
        assert max(expected) - min(expected) > 0.1
        with spare_memory(server, "cross_encoder_0_0", 20):
            with pytest.raises(InferenceError, match=r"row of 1004 tokens .* pass a smaller max_length"):
                client.rerank("a", ["a " * LONG], max_length=LONG + 32)
            assert logits_of(client.rerank("a", SHORT[:1])) == pytest.approx(expected[:1], abs=1e-3)
        with spare_memory(server, "cross_encoder_0_0", 12):
            assert logits_of(client.rerank("a", SHORT)) == pytest.approx(expected, abs=1e-3)
        assert client.rerank("a", ["a " * LONG], max_length=LONG + 32).usage.num_tokens == LONG + 4
    log = server.log_path.read_text()
    assert "on 1 rows, the longest of 1004 tokens; compiling the graph again" in log
    assert re.search(r"on [2-8] rows, the longest of \d+ tokens; compiling the graph again", log)


def test_late_interaction_encodes_a_batch_beyond_memory_in_halves(server):
    with RerankClient(server.grpc_url, "late_interaction") as client:
        texts = [f"{text} {n}" for text in SHORT for n in range(8)]
        with spare_memory(server, "late_encoder_0_0", 40):
            scarce = logits_of(client.rerank("a", texts))
        assert "compiling the graph again" in server.log_path.read_text().partition("late_encoder: ")[2]
        # With another limit, late interaction computes new vectors.
        assert logits_of(client.rerank("a", texts, max_length=LONG)) == pytest.approx(scarce, abs=1e-3)
