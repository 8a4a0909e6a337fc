"""Downloads with the real huggingface_hub, from a local server that speaks the part of its protocol in use."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from triton_rerank_build.checkpoints.hub import looks_like_hub_id

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 120_000,  # the library reads and keeps 10 MB at a time
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"not needed",
    "README.md": b"not needed",
}


class Hub(BaseHTTPRequestHandler):
    """One model, acme/tiny, at one commit, which `main` and `v1` stand for."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if re.fullmatch(r"/api/models/acme/tiny/revision/(main|v1|[0-9a-f]{40})", self.path):
            siblings = [{"rfilename": name} for name in server.files]
            content = json.dumps({"id": "acme/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            self.reply(200, content, {"Content-Type": "application/json"}, with_body=with_body)
        elif self.path.startswith(f"/api/models/acme/tiny/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in server.files.items()
            ]
            self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body=with_body)
        elif self.path.startswith(f"/acme/tiny/resolve/{COMMIT}/"):
            self.file(server.files[self.path.removeprefix(f"/acme/tiny/resolve/{COMMIT}/")], with_body=with_body)
        else:
            code = "RevisionNotFound" if "acme/tiny" in self.path else "RepoNotFound"
            self.reply(404, b"", {"X-Error-Code": code, "X-Error-Message": "no such thing"}, with_body=with_body)

    def file(self, content, *, with_body):
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        end = int(wanted[2]) + 1 if wanted and wanted[2] else len(content)
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        cut = with_body and len(content) > 1000 and self.server.cuts > 0
        self.server.cuts -= cut
        self.reply(206 if wanted else 200, content[start:end], headers, with_body=with_body, cut=cut)

    def reply(self, status, content, headers, *, with_body, cut=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.files, server.cuts = [], dict(FILES), 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def download(hub, tmp_path):
    """Run `download` in a process of its own: huggingface_hub reads its settings when it is imported."""

    def run(name="acme/tiny", revision=None, port=hub.server_port):
        code = (
            "import sys, json\nfrom triton_rerank_build import BuildError\n"
            "from triton_rerank_build.checkpoints.hub import download\n"
            "try: folder, commit = download(*json.loads(sys.argv[1])); print(json.dumps([str(folder), commit]))\n"
            "except BuildError as error: print(json.dumps([type(error).__name__, str(error)]))"
        )
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", code, json.dumps([name, revision])]
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


def present(folder):
    return {name for name in FILES if os.path.exists(os.path.join(folder, name))}


def test_only_what_an_export_needs_is_fetched_and_its_commit_is_told(download):
    folder, commit = download()
    assert commit == COMMIT
    assert present(folder) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_revision_is_pinned_to_its_commit(download):
    assert download(revision="v1")[1] == COMMIT


def test_pytorchs_own_format_where_there_is_no_other(hub, download):
    del hub.files["model.safetensors"]
    assert present(download()[0]) == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_an_adapter_without_a_model_is_recognized_by_its_file(hub, download):
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    folder, _ = download()
    assert os.listdir(folder) == ["adapter_config.json"]


def test_a_download_that_broke_off_goes_on_where_it_stopped(hub, download):
    hub.cuts = 1
    folder, _ = download()
    with open(os.path.join(folder, "model.safetensors"), "rb") as file:
        assert file.read() == FILES["model.safetensors"]
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert any(wanted and not wanted.startswith("bytes=0-") for wanted in ranges[1:])


def test_what_was_fetched_is_used_when_the_hub_is_down(download):
    first = download()
    assert download(port=9) == first


def test_a_hub_that_cannot_be_reached(download):
    kind, message = download(port=9)
    assert kind == "BuildError"
    assert message == (
        "there is no folder acme/tiny, and the Hugging Face hub cannot be reached (its cache lacks acme/tiny too); "
        "name a local folder, or `demo`"
    )


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        (
            "acme/nothing",
            None,
            "there is neither a folder acme/nothing nor a model acme/nothing on the hub, "
            "or it is private: `hf auth login`",
        ),
        ("acme/tiny", "v99", "acme/tiny has no revision v99 on the hub"),
    ],
)
def test_no_such_model_or_revision(download, name, revision, expected):
    assert download(name, revision) == ["UnsupportedModelError", expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BAAI/bge-reranker-v2-m3", True),
        ("acme/tiny", True),
        ("tiny", False),
        ("./acme/tiny", False),
        ("../tiny", False),
        ("~/tiny", False),
        ("/models/tiny", False),
        ("acme/tiny/deep", False),
        ("acme/", False),
        ("acme/ti ny", False),
    ],
)
def test_what_may_be_an_id(name, expected):
    assert looks_like_hub_id(name) is expected
