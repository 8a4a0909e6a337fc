"""Install an export, refuse to overwrite another, survive an interruption, detect changed files."""

import ctypes
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support import quick_server
from support.tiny_models import tiny_checkpoint
from triton_rerank_build import RepositoryError, export, exporter, verify
from triton_rerank_build.checkpoints import demo
from triton_rerank_build.contract import EXPORTER_VERSION
from triton_rerank_build.repository.install import exclusive, install, measure, staging
from triton_rerank_build.repository.layout import (
    ARTEFACTS,
    MANIFESTS,
    OPTIONAL_ARTEFACTS,
    complete_from_template,
    template_repository,
)
from triton_rerank_build.repository.manifest import Manifest, read_manifest

EXPORT = [sys.executable, "-m", "triton_rerank_build.cli.main", "export"]
GRAPH = "cross_encoder/1/model.onnx"
WEIGHTS = "cross_encoder/1/model.onnx.data"
TOKENIZER = "tokenizer/1/tokenizer.json"


@pytest.fixture(scope="module")
def built(tiny_exports):
    """A checkpoint and the repository exported from it, at fp32. Read only."""
    made = tiny_exports("xlm-roberta", "fp32")
    return made.checkpoint, made.repository


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
        "tokenizer/1/text_layout.py",
        "tokenizer/1/text_pairs.py",
        "cross_encoder/config.pbtxt",
        "cross_encoder/configs/cpu.pbtxt",
        "cross_encoder/configs/tensorrt.pbtxt",
    ]
    for name in committed:
        assert (built[1] / name).read_bytes() == (template / name).read_bytes()
    assert (built[1] / "reranker/1").is_dir()
    assert [folder.name for folder in version_folders(built[1])] == [str(verify(built[1]).model_version)]
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
    (template / "reranker/123456789").mkdir()
    generated = ("cross_encoder/1/model.plan", "tokenizer/1/x.tmp", "reranker/123456789/checkpoint.txt")
    for name in (GRAPH, WEIGHTS, TOKENIZER, *MANIFESTS, *generated):
        (template / name).write_text("generated")
    complete_from_template(tmp_path / "target", template)
    copied = {path.name for path in (tmp_path / "target").rglob("*") if path.is_file() and path.suffix != ".py"}
    assert copied <= {"config.pbtxt", "cpu.pbtxt", "tensorrt.pbtxt", ".gitkeep"}


@pytest.mark.parametrize("force", [False, True])
def test_the_same_again_does_nothing(built, force):
    checkpoint, repository = built
    before = times(repository)
    assert export(str(checkpoint), repository=repository, force=force) == verify(repository)
    assert {path: time for path, time in times(repository).items() if path in before} == before


@pytest.mark.slow
def test_an_intact_installation_gets_the_python_files_of_this_release(built, repository):
    checkpoint, _ = built
    (repository / "tokenizer/1/model.py").write_text("# of an earlier release, which needs no other file")
    for name in ("text_pairs.py", "text_layout.py"):
        (repository / "tokenizer/1" / name).unlink()
    manifest = verify(repository)
    assert export(str(checkpoint), repository=repository) == manifest == verify(repository)
    for name in ("tokenizer/1/model.py", "tokenizer/1/text_pairs.py", "tokenizer/1/text_layout.py"):
        assert (repository / name).read_bytes() == (template_repository() / name).read_bytes()
        assert (repository / name).stat().st_mode & 0o444 == 0o444
    assert not list(repository.rglob("*.py.*"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_demo_of_an_earlier_release_is_replaced(tmp_path, monkeypatch):
    checkpoint, repository = tiny_checkpoint(tmp_path / "tiny", "bert"), tmp_path / "repository"
    monkeypatch.setattr(demo, "demo_checkpoint", lambda: checkpoint)
    for release in "12":
        monkeypatch.setattr(demo, "demo_revision", lambda release=release: release * 64)
        if release == "2":
            with pytest.raises(RepositoryError, match=r"holds another demo .*; use --force to replace it"):
                export("demo", repository=repository, max_length=64)
        assert export("demo", repository=repository).revision == release * 64
        assert verify(repository).revision == release * 64


@pytest.mark.slow
def test_other_weights_of_the_same_name_are_called_so(repository, tmp_path):
    other = tiny_checkpoint(tmp_path / "tiny", "xlm-roberta", seed=1)
    with pytest.raises(RepositoryError, match=r"holds another tiny \(its files differ; fp32, 80 tokens\); use --force"):
        export(str(other), repository=repository)


@pytest.mark.slow
def test_a_replaced_model_is_said_to_be_served_until_a_restart(built, repository, tmp_path, caplog):
    caplog.set_level("INFO", "triton_rerank_build")
    export(str(built[0]), repository=tmp_path / "new")
    assert "restart it" not in caplog.text
    export(str(built[0]), repository=repository, max_length=64, force=True)
    assert f"a server that runs from {repository} keeps the old model: restart it" in caplog.text
    (folder,) = version_folders(repository)
    assert folder.name == str(verify(repository).model_version) != str(read_manifest(built[1]).model_version)
    assert (folder / "checkpoint.txt").read_text().endswith(" fp32\n")


def without_override():
    """Take root's right to write anywhere, if it is root; for the new process alone."""
    ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.slow
@pytest.mark.parametrize("below", [".", "below/it", "cross_encoder"])
def test_a_repository_that_cannot_be_written_is_told_before_any_work(built, tmp_path, below):
    folder = tmp_path / "served"
    (folder / "cross_encoder/1").mkdir(parents=True)
    locked = folder / "cross_encoder/1" if below == "cross_encoder" else folder
    locked.chmod(0o555)
    target = folder if below == "cross_encoder" else folder / below
    command = [*EXPORT, str(built[0]), "--repository", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=without_override)
    locked.chmod(0o755)
    assert done.returncode == 1
    assert "loading tokenizer and weights" not in done.stderr
    last = done.stderr.splitlines()[-1]
    if below == "cross_encoder":
        assert last.startswith(f"error: {folder} cannot be written: Permission denied: {locked}")
    else:
        assert last == f"error: {folder} is read-only; name a repository that can be written with --repository"
        assert "finding the checkpoint" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_names_the_folder(built, tmp_path):
    def limit():
        # As a full disk does, the kernel refuses to write more; this limit counts per file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [*EXPORT, str(built[0]), "--repository", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"{tmp_path}/cross_encoder/1" in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("export-*"))


def as_written_by_release_0_1_0(repository):
    """That release wrote the first digits of a digest of its source into `exporter`."""
    text = (
        (repository / MANIFESTS[0])
        .read_text()
        .replace(f'"exporter": {EXPORTER_VERSION},', '"exporter": "e086b3063e393d4a",')
    )
    assert "e086b3063e393d4a" in text
    for path in MANIFESTS:
        (repository / path).write_text(text)
    for folder in version_folders(repository):
        shutil.rmtree(folder)


def version_folders(repository):
    """Those of the ensemble, without folder 1 of the committed files."""
    return [folder for folder in (repository / "reranker").iterdir() if folder.is_dir() and folder.name != "1"]


@pytest.mark.slow
def test_an_installation_of_release_0_1_0_stays_valid(built, repository, monkeypatch):
    as_written_by_release_0_1_0(repository)
    before = times(repository)
    assert verify(repository).exporter == 1
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "EXPORTER_VERSION", 1)
        export(str(built[0]), repository=repository)
    assert {path: time for path, time in times(repository).items() if path in before} == before
    assert "e086b3063e393d4a" in (repository / MANIFESTS[0]).read_text()

    assert export(str(built[0]), repository=repository).exporter == EXPORTER_VERSION
    assert verify(repository).exporter == EXPORTER_VERSION


@pytest.mark.slow
def test_an_installation_of_release_0_1_0_is_served(repository):
    from triton_rerank import RerankClient

    as_written_by_release_0_1_0(repository)
    with quick_server(repository) as server, RerankClient(server.grpc_url) as client:
        assert len(client.score([("query", "document")])) == 1
        assert client.model_info().max_length == 80


@pytest.mark.slow
def test_an_unreadable_manifest_is_replaced_with_force(built, repository):
    checkpoint, _ = built
    (repository / "cross_encoder/1/manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"manifest.json cannot be read"):
        export(str(checkpoint), repository=repository)
    assert export(str(checkpoint), repository=repository, force=True) == verify(repository)


@pytest.mark.slow
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
    with pytest.raises(RepositoryError, match=rf"differs from its manifest:\n  {name} has sha256"):
        verify(repository)


def test_verify_lists_every_difference(repository):
    (repository / GRAPH).unlink()
    with (repository / WEIGHTS).open("ab") as file:
        file.write(b"x")
    (repository / "tokenizer/1/manifest.json").write_text("{}")
    with pytest.raises(RepositoryError) as caught:
        verify(repository)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{repository} differs from its manifest:"
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
    with pytest.raises(RepositoryError, match="is not a folder"):
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
    # A rename onto a folder fails, so the installation stops at this file.
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


def test_graphs_that_the_new_export_lacks_are_removed(repository):
    manifest = verify(repository)
    for path in OPTIONAL_ARTEFACTS:
        (repository / path).write_text("of an export at fp16")
    with staging(repository, 1) as staged:
        for path in ARTEFACTS:
            (repository / path).replace(staged / path.name)
        install(staged, repository, manifest)
    assert verify(repository) == manifest
    assert not any((repository / path).exists() for path in OPTIONAL_ARTEFACTS)


def test_a_gpu_config_of_an_earlier_release_is_told_before_any_work(built, tmp_path):
    config = tmp_path / "cross_encoder/config.pbtxt"
    config.parent.mkdir()
    committed = (template_repository() / "cross_encoder/config.pbtxt").read_text()
    config.write_text(committed.replace("allow_ragged_batch: true", "").replace("batch_input [", "# "))
    with pytest.raises(
        RepositoryError, match=r"config.pbtxt is for the padded graphs .* no ragged input_ids, attention"
    ):
        export(str(built[0]), repository=tmp_path, precision="fp16")
    config.write_text("input [")
    with pytest.raises(RepositoryError, match=r"config.pbtxt cannot be parsed"):
        export(str(built[0]), repository=tmp_path, precision="fp16")
    assert not (tmp_path / "tokenizer/config.pbtxt").exists()


def test_one_export_at_a_time(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(RepositoryError, match="another export or engine build is writing into"),
        exclusive(tmp_path),
    ):
        pass
    with exclusive(tmp_path):
        pass


def test_the_manifest_is_read_under_the_lock(built, repository):
    # Read before, it could be replaced by an export that ends between the two.
    with exclusive(repository), pytest.raises(RepositoryError, match="another export or engine build is writing into"):
        export(str(built[0]), repository=repository, max_length=64)
    with pytest.raises(RepositoryError, match="use --force"):
        export(str(built[0]), repository=repository, max_length=64)


def test_what_a_killed_export_left_is_removed(tmp_path):
    left = tmp_path / "cross_encoder/1/export-abc.tmp"
    left.mkdir(parents=True)
    (left / "model.onnx.data").write_bytes(b"x" * 1000)
    with exclusive(tmp_path), staging(tmp_path, 1) as staged:
        assert not left.exists()
        assert staged.is_dir()
    assert not staged.exists()


def test_a_full_disk_is_noticed_first(tmp_path):
    with (
        exclusive(tmp_path),
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
    for path in OPTIONAL_ARTEFACTS:
        (tmp_path / path.name).write_text("x")
    assert set(measure(tmp_path)) == {GRAPH, WEIGHTS, TOKENIZER, *map(str, OPTIONAL_ARTEFACTS)}
    assert all(not Path(name).is_absolute() for name in measure(tmp_path))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"created": "2020-01-01", "tools": {}, "checkpoint": "other/name", "artefacts": {}}, True),
        ({"revision": "another"}, False),
        ({"precision": "int8"}, False),
        ({"max_length": 79}, False),
        ({"layout": None}, False),
    ],
)
def test_the_version_stands_for_what_decides_about_scores(built, change, same):
    manifest = verify(built[1])
    assert 100_000_000 <= manifest.model_version < 1_000_000_000
    assert Manifest.from_json(manifest.to_json()).model_version == manifest.model_version
    assert (replace(manifest, **change).model_version == manifest.model_version) is same
