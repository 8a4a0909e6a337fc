"""Export of late-interaction checkpoints, compared with pylate's ids and transformers' vectors; refusals."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from tokenizers import Tokenizer

from support import ROOT
from support.tiny_late import DIM, DOCUMENT_LENGTH, DOCUMENTS, POSITIONS, QUERIES, QUERY_LENGTH, tiny_colbert
from support.tiny_models import LIMIT
from triton_rerank_build import ParityError, RepositoryError, UnsupportedModelError, export
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.cli.main import main
from triton_rerank_build.late_interaction.export import compare_vectors
from triton_rerank_build.late_interaction.model import load_encoder, make_batches, reference_vectors
from triton_rerank_build.late_interaction.repository import LateManifest, verify_late
from triton_rerank_build.late_interaction.settings import make_row
from triton_rerank_build.parity.compare import graph_logits
from triton_rerank_build.repository.layout import RERANKER
from triton_rerank_build.serving.ensembles import installed_ensembles, load_arguments

GOLDEN = json.loads((ROOT / "tests/support/late_golden.json").read_text())


@pytest.fixture
def checkpoint(tmp_path):
    """A ColBERT checkpoint to spoil."""
    return tiny_colbert(tmp_path / "tiny")


def test_the_manifest_says_how_texts_are_read(colbert_repository):
    manifest = verify_late(colbert_repository)
    query, document = manifest.settings.query, manifest.settings.document
    assert (query.max_length, document.max_length, manifest.settings.dim) == (QUERY_LENGTH, DOCUMENT_LENGTH, DIM)
    assert len(manifest.settings.unscored_ids) == 32
    assert query.fill_id is not None
    assert document.fill_id is None
    assert LateManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(("kind", "texts"), [("queries", QUERIES), ("documents", DOCUMENTS)])
def test_ids_are_pylates(colbert_repository, kind, texts):
    settings = verify_late(colbert_repository).settings
    tokenizer = Tokenizer.from_file(str(colbert_repository / "late_scorer/1/tokenizer.json"))
    side = settings.query if kind == "queries" else settings.document
    assert [make_row(tokenizer, side, text)[0] for text in texts] == GOLDEN["ids"][kind]


def test_the_graph_has_the_shape_that_the_config_promises(colbert_repository):
    graph = onnx.load(colbert_repository / "late_encoder/1/model.onnx", load_external_data=False).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input_ids", "attention_mask", "vectors"]
    session = onnxruntime.InferenceSession(colbert_repository / "late_encoder/1/model.onnx")
    for rows, length in ((1, 1), (3, 7), (2, DOCUMENT_LENGTH)):
        ones = np.ones((rows, length), np.int32)
        (vectors,) = session.run(None, {"input_ids": ones, "attention_mask": ones})
        assert vectors.shape == (rows, length * DIM)
        assert np.linalg.norm(vectors.reshape(rows, length, DIM), axis=2) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_any_encoder_is_taken_and_its_options_are_kept(encoder_repository):
    manifest = verify_late(encoder_repository)
    assert 1e-5 < manifest.parity.worst_difference < 1e-2  # fp16, and no more
    assert (manifest.precision, manifest.max_length) == ("fp16", LIMIT)
    query, document = manifest.settings.query, manifest.settings.document
    assert (query.prefix, query.max_length, document.prefix) == ("query: ", 40, "passage: ")
    assert not query.special_scored
    assert not (encoder_repository / "reranker").exists()


def test_the_same_again_does_nothing_and_another_needs_force(colbert_repository, tmp_path):
    checkpoint = colbert_repository.parent / "tiny"
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    before = (repository / "late_encoder/1/manifest.json").stat().st_mtime_ns
    export(str(checkpoint), repository=repository)
    assert (repository / "late_encoder/1/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(RepositoryError, match=r"48 tokens.*use --force"):
        export(str(checkpoint), repository=repository, max_length=64)


def test_an_installation_of_an_earlier_release_gets_the_modules_that_its_models_share(colbert_repository, tmp_path):
    checkpoint = colbert_repository.parent / "tiny"
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    shared = [repository / "late_scorer/1/text_pairs.py", repository / "late_scorer/1/micro_batch_cuts.py"]
    before = [path.read_bytes() for path in shared]
    for path in shared:
        path.unlink()
    manifest = verify_late(repository)
    assert export(str(checkpoint), repository=repository) == manifest == verify_late(repository)
    assert [path.read_bytes() for path in shared] == before


def test_a_vector_that_differs_is_told(colbert_repository):
    source = resolve_checkpoint(str(colbert_repository.parent / "tiny"))
    tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    batches = make_batches(tokenizer, verify_late(colbert_repository).settings)
    expected = reference_vectors(*load_encoder(source), batches)
    found = graph_logits(colbert_repository / "late_encoder/1/model.onnx", batches)
    assert compare_vectors(batches, expected, found, "fp32").worst_difference < 1e-5
    for wrong in (found[-1] + 2e-4, found[-1] * np.nan, found[-1][:, :-1]):
        with pytest.raises(ParityError, match="48 tokens: vectors"):
            compare_vectors(batches, expected, [*found[:-1], wrong], "fp32")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"similarity": "l2"}, "similarity 'l2'"),
        ({"doc_maxlen": POSITIONS + 1}, f"{POSITIONS + 1} tokens of a document are out of range"),
        ({"query_token_id": "[unused9]"}, "no token '\\[unused9\\]'"),
    ],
)
def test_metadata_that_cannot_be_served(tmp_path, change, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        export(str(tiny_colbert(tmp_path / "tiny", **change)), repository=tmp_path / "repository")
    assert not (tmp_path / "repository/late_interaction").exists()


@pytest.mark.parametrize(("missing", "reason"), [("linear.weight", "has no linear.weight"), ("query", "lacks")])
def test_weights_that_are_missing(checkpoint, tmp_path, missing, reason):
    path = checkpoint / "model.safetensors"
    kept = {name: value for name, value in safetensors.numpy.load_file(path).items() if missing not in name}
    safetensors.numpy.save_file(kept, path, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=reason):
        export(str(checkpoint), repository=tmp_path / "repository")


def test_what_changed_is_found(colbert_repository, tmp_path, capsys):
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    assert main(["verify", "--repository", str(repository)]) == 0
    assert "for late interaction" in capsys.readouterr().out
    with (repository / "late_scorer/1/manifest.json").open("a") as file:
        file.write(" ")
    assert main(["verify", "--repository", str(repository)]) == 1
    assert "late_scorer/1/manifest.json differs" in capsys.readouterr().err


def test_models_without_their_files_are_left_out(colbert_repository, demo_repository, tmp_path):
    both = shutil.copytree(colbert_repository, tmp_path / "both")
    shutil.copytree(demo_repository, both, dirs_exist_ok=True, symlinks=True)
    assert [layout.ensemble for layout in installed_ensembles(both)] == ["reranker", "late_interaction"]
    assert load_arguments(both, installed_ensembles(both)) == ()
    (both / "cross_encoder/1/manifest.json").unlink()
    alone = installed_ensembles(both)
    assert [layout.ensemble for layout in alone] == ["late_interaction"]
    loaded = [argument.partition("=")[2] for argument in load_arguments(both, alone)]
    assert loaded == ["explicit", "late_encoder", "late_interaction", "late_scorer"]


@pytest.mark.slow
def test_an_installation_of_an_earlier_release_is_served_and_replaced_only_by_force(colbert_repository, tmp_path):
    """0.1.0 had a model late_tokenizer, which held tokenizer.json."""
    checkpoint = str(colbert_repository.parent / "tiny")
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    old = repository / "late_tokenizer/1"
    old.mkdir(parents=True)
    (repository / "late_scorer/1/tokenizer.json").rename(old / "tokenizer.json")
    (old.parent / "config.pbtxt").write_text('name: "late_tokenizer"')
    for path in repository.glob("*/1/manifest.json"):
        path.write_text(path.read_text().replace("late_scorer/1/tokenizer.json", "late_tokenizer/1/tokenizer.json"))
    assert "late_tokenizer/1/tokenizer.json" in verify_late(repository).artefacts
    (late,) = installed_ensembles(repository)
    assert load_arguments(repository, [late]) == ()
    assert "--load-model=late_tokenizer" not in load_arguments(repository, [RERANKER])
    with pytest.raises(RepositoryError, match=r"model late_tokenizer.*--force replaces it.*late_scorer/config\.pbtxt"):
        export(checkpoint, repository=repository)
    assert old.is_dir()
    manifest = export(checkpoint, repository=repository, force=True)
    assert manifest == verify_late(repository)
    assert not old.parent.exists()
    assert {path.name for path in repository.iterdir()} == set(late.models)
