"""Installing, refusing to overwrite, breaking off, and finding what changed."""

import json
import shutil
from pathlib import Path

import pytest

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import RepositoryError, export, verify
from triton_rerank_build.repository.install import install, measure, staging
from triton_rerank_build.repository.layout import ARTEFACTS, MANIFESTS, complete_from_template, template_repository

GRAPH = "cross_encoder/1/model.onnx"
WEIGHTS = "cross_encoder/1/model.onnx.data"
TOKENIZER = "tokenizer/1/tokenizer.json"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkpoint, and a repository made from it."""
    folder = tmp_path_factory.mktemp("built")
    checkpoint = tiny_checkpoint(folder / "tiny", "xlm-roberta")
    export(str(checkpoint), repository=folder / "repository")
    return checkpoint, folder / "repository"


@pytest.fixture
def repository(built, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(built[1], tmp_path / "repository")


def times(repository):
    return {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}


def test_a_new_folder_becomes_a_whole_repository(built):
    template = template_repository()
    committed = [
        "reranker/config.pbtxt",
        "tokenizer/config.pbtxt",
        "tokenizer/1/model.py",
        "tokenizer/1/text_pairs.py",
        "cross_encoder/config.pbtxt",
        "cross_encoder/configs/cpu.pbtxt",
        "cross_encoder/configs/tensorrt.pbtxt",
    ]
    for name in committed:
        assert (built[1] / name).read_bytes() == (template / name).read_bytes()
    assert (built[1] / "reranker/1").is_dir()
    assert not list(built[1].rglob("export-*"))


def test_a_configuration_that_is_there_is_left_as_it_is(tmp_path):
    own = tmp_path / "cross_encoder/config.pbtxt"
    own.parent.mkdir(parents=True)
    own.write_text("# my own")
    complete_from_template(tmp_path, template_repository())
    assert own.read_text() == "# my own"
    assert (tmp_path / "reranker/config.pbtxt").is_file()


def test_generated_files_of_the_template_are_not_copied(tmp_path):
    template = shutil.copytree(template_repository(), tmp_path / "template", ignore=shutil.ignore_patterns("*.onnx*"))
    for name in (GRAPH, WEIGHTS, TOKENIZER, *MANIFESTS, "cross_encoder/1/model.plan", "tokenizer/1/x.tmp"):
        (template / name).write_text("generated")
    complete_from_template(tmp_path / "target", template)
    copied = {path.name for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert copied <= {"config.pbtxt", "cpu.pbtxt", "tensorrt.pbtxt", "model.py", "text_pairs.py", ".gitkeep"}


@pytest.mark.parametrize("force", [False, True])
def test_the_same_again_does_nothing(built, force):
    checkpoint, repository = built
    before = times(repository)
    assert export(str(checkpoint), repository=repository, force=force) == verify(repository)
    assert {path: time for path, time in times(repository).items() if path in before} == before


def test_an_intact_installation_gets_the_python_files_of_this_release(built, repository):
    checkpoint, _ = built
    (repository / "tokenizer/1/model.py").write_text("# of an earlier release, which needs no other file")
    (repository / "tokenizer/1/text_pairs.py").unlink()
    manifest = verify(repository)
    assert export(str(checkpoint), repository=repository) == manifest == verify(repository)
    for name in ("tokenizer/1/model.py", "tokenizer/1/text_pairs.py"):
        assert (repository / name).read_bytes() == (template_repository() / name).read_bytes()
        assert (repository / name).stat().st_mode & 0o444 == 0o444
    assert not list(repository.rglob("*.py.*"))


def test_another_installation_is_not_overwritten_without_force(built, repository, tmp_path):
    checkpoint, _ = built
    before = verify(repository)
    with pytest.raises(RepositoryError, match=r"holds tiny \(fp32, 80 tokens\); use --force to replace it"):
        export(str(checkpoint), repository=repository, precision="fp16")
    with pytest.raises(RepositoryError, match="use --force"):
        export(str(checkpoint), repository=repository, max_length=64)
    assert verify(repository) == before

    replaced = export(str(checkpoint), repository=repository, max_length=64, force=True)
    assert (replaced.max_length, verify(repository)) == (64, replaced)


def test_an_unreadable_manifest_is_replaced_with_force(built, repository):
    checkpoint, _ = built
    (repository / "cross_encoder/1/manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"manifest.json cannot be read"):
        export(str(checkpoint), repository=repository)
    assert export(str(checkpoint), repository=repository, force=True) == verify(repository)


def test_a_damaged_installation_of_the_same_is_repaired(built, repository):
    checkpoint, _ = built
    (repository / TOKENIZER).write_text("{}")
    export(str(checkpoint), repository=repository)
    verify(repository)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, TOKENIZER])
def test_verify_finds_a_flipped_byte(repository, name):
    content = bytearray((repository / name).read_bytes())
    content[len(content) // 2] ^= 1
    (repository / name).write_bytes(content)
    with pytest.raises(RepositoryError, match=rf"not as its manifest says:\n  {name} has sha256"):
        verify(repository)


def test_verify_lists_every_difference(repository):
    (repository / GRAPH).unlink()
    with (repository / WEIGHTS).open("ab") as file:
        file.write(b"x")
    (repository / "tokenizer/1/manifest.json").write_text("{}")
    with pytest.raises(RepositoryError) as caught:
        verify(repository)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{repository} is not as its manifest says:"
    assert len(problems) == 3
    assert "tokenizer/1/manifest.json differs from the one beside the graph" in problems[0]
    assert "bytes, the manifest says" in problems[1]
    assert f"{GRAPH} is missing" in problems[2]


def test_verify_reads_the_graphs_signature(repository):
    path = repository / "cross_encoder/1/manifest.json"
    text = json.dumps({**json.loads(path.read_text()), "opset": 17})
    for manifest in (path, repository / "tokenizer/1/manifest.json"):
        manifest.write_text(text)
    with pytest.raises(RepositoryError, match=r"model.onnx: opset \[18\], expected \[17\]"):
        verify(repository)


def test_verify_of_nothing(tmp_path):
    with pytest.raises(RepositoryError, match="is no folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="no complete installation; run: triton-rerank-build export CHECKPOINT"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "checkpoint": 1}'])
def test_an_unreadable_manifest(repository, text):
    for path in MANIFESTS:
        (repository / path).write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json"):
        verify(repository)


@pytest.mark.parametrize("failing", [path.as_posix() for path in ARTEFACTS])
def test_an_interrupted_installation_leaves_no_manifest(repository, failing):
    manifest = verify(repository)
    # A rename onto a folder fails: the installation breaks off at this file.
    (repository / failing).unlink()
    (repository / failing / "in the way").mkdir(parents=True)
    with staging(repository, 1) as staged:
        for path in ARTEFACTS:
            (staged / path.name).write_text(f"new {path}")
        with pytest.raises(OSError, match=r"in the way|directory"):
            install(staged, repository, manifest)
    assert not any((repository / path).exists() for path in MANIFESTS)
    with pytest.raises(RepositoryError, match="no complete installation"):
        verify(repository)


def test_one_export_at_a_time(tmp_path):
    with (
        staging(tmp_path, 1),
        pytest.raises(RepositoryError, match="another export is writing into"),
        staging(tmp_path, 1),
    ):
        pass
    with staging(tmp_path, 1):
        pass


def test_what_a_killed_export_left_is_removed(tmp_path):
    left = tmp_path / "cross_encoder/1/export-abc.tmp"
    left.mkdir(parents=True)
    (left / "model.onnx.data").write_bytes(b"x" * 1000)
    with staging(tmp_path, 1) as staged:
        assert not left.exists()
        assert staged.is_dir()
    assert not staged.exists()


def test_a_full_disk_is_noticed_first(tmp_path):
    with (
        pytest.raises(RepositoryError, match=r"has .*B free; the export writes 1000000\.00 GB"),
        staging(tmp_path, 10**15),
    ):
        pass


def test_artefacts_can_be_read_by_the_user_that_triton_runs_as(built):
    for path in (*ARTEFACTS, *MANIFESTS):
        assert (built[1] / path).stat().st_mode & 0o444 == 0o444


def test_measure_names_files_as_the_manifest_does(tmp_path):
    for path in ARTEFACTS:
        (tmp_path / path.name).write_text("x")
    assert set(measure(tmp_path)) == {GRAPH, WEIGHTS, TOKENIZER}
    assert all(not Path(name).is_absolute() for name in measure(tmp_path))
