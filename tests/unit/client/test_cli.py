import json
import os
import signal
import subprocess
import sys
import time

import pytest

from support.fake_triton import FakeTriton, hang
from triton_rerank.cli.main import main
from triton_rerank.cli.output import shorten


@pytest.fixture
def server(monkeypatch):
    with FakeTriton() as running:
        monkeypatch.setenv("TRITON_RERANK_URL", running.url)
        yield running


def shell(*arguments, stdin="", **options):
    code = "import sys; from triton_rerank.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False, **options)


def test_rerank_prints_a_table(server):
    done = shell("rerank", "-q", "如何", "--top-n", "2", stdin="1\n\n3\n正则化技术详解\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "rank  relevance_score  document",
        "   1           0.9526  3",
        "   2           0.7311  1",
    ]


def test_rerank_prints_json_lines_and_reads_them(server, tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text('{"text": "1", "id": "a"}\n{"text": "2", "id": "b"}\n')
    done = shell("rerank", "--query", "q", "--json", str(file))
    first = json.loads(done.stdout.splitlines()[0])
    assert first["document"] == {"text": "2", "id": "b"}
    assert (first["rank"], first["index"], first["logit"]) == (1, 1, 2.0)


@pytest.mark.parametrize("option", [("--fields", "title,price"), ("--template", "{title}\n{price}")])
def test_rerank_makes_text_of_fields(server, option):
    done = shell("rerank", "-q", "q", "--json", *option, stdin='{"title": "abc", "price": 5}\n')
    assert json.loads(done.stdout)["logit"] == -len("abc\n5")


def test_score_reads_tabs_and_json_and_streams(server):
    lines = "q\t1\n" + '{"query": "q", "document": "2"}\n' + "q\t-3\n" * 600
    done = shell("score", "--raw", stdin=lines)
    assert done.stdout.splitlines() == ["1", "2"] + ["-3"] * 600
    assert done.stderr == ""
    assert json.loads(shell("score", "--json", stdin="q\t0\n").stdout) == {"relevance_score": 0.5}


def test_info_and_ready(server):
    assert "checkpoint           fake" in shell("info").stdout
    assert json.loads(shell("info", "--json").stdout)["manifest"]["checkpoint"] == "fake"
    assert shell("ready").stdout == "ready\n"
    assert shell("ready", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("rerank", "-q", " "), "x\n", "query is empty"),
        (("rerank", "-q", "q", "/nowhere/file"), "", "/nowhere/file: No such file"),
        (("rerank", "-q", "q"), '{"text": 1}\n', 'documents[0]["text"] is not text'),
        (("rerank", "-q", "q"), "{broken\n", "line 1 is not JSON"),
        (("score",), "no tab\n", "line 1 has no tab"),
        (("score",), '{"query": "q"}\n', 'line 1 needs "query" and "document"'),
        (("ready", "--model", "none"), "", "unknown model"),
        (("ready", "--url", "127.0.0.1:1", "--timeout", "2"), "", "is Triton running there?"),
        (("ready", "--header", "novalue"), "", "--header must be"),
        (("ready", "--tls-ca", "/nowhere/ca.pem"), "", "No such file"),
    ],
)
def test_errors_are_one_line_and_status_1(server, arguments, stdin, message):
    done = shell(*arguments, stdin=stdin)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("triton-rerank: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_text_that_is_not_utf8_is_told(server, tmp_path):
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9\n")
    done = shell("rerank", "-q", "q", str(file))
    assert done.returncode == 1
    assert "utf-8" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(server, tmp_path):
    file = tmp_path / "documents.txt"
    file.write_text("".join(f"{number} {'x' * 500}\n" for number in range(5000)))
    command = (
        f"{sys.executable} -c 'from triton_rerank.cli.main import main; main()' rerank -q q --json {file} | head -n 1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_ctrl_c_is_clean(server):
    server.faults.append(hang(30))
    code = "import sys; from triton_rerank.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ready"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 20
    while not server.requests:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_usage_errors_are_argparses(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["rerank"])
    assert caught.value.code == 2
    assert "--query" in capsys.readouterr().err


def test_tables_count_wide_characters_twice():
    assert shorten("abc", 3) == "abc"
    assert shorten("正则化", 6) == "正则化"
    assert shorten("正则化技术", 6) == "正则…"
