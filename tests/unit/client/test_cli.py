"""The commands `rerank`, `score`, `info` and `ready`. The server's logit of a text that is a number is that number."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata

import grpc
import pytest

from support import CLIENT_COMMAND
from support.fake_triton import FakeTriton, hang, refuse
from support.monitors import free_port
from triton_rerank.cli.main import main
from triton_rerank.cli.output import shorten


@pytest.fixture
def server(monkeypatch):
    with FakeTriton() as running:
        monkeypatch.setenv("TRITON_RERANK_URL", running.url)
        yield running


def shell(*arguments, stdin=""):
    """Run a command with streams of its own, in this process: a process of its own takes half a second to start."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def test_rerank_prints_a_table(server):
    command, stdin = [*CLIENT_COMMAND, "rerank", "-q", "如何", "--top-n", "2"], "1\n\n3\n正则化技术详解\n"
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
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
    assert (first["rank"], first["index"], first["line"], first["logit"]) == (1, 1, 2, 2.0)


def logits(*arguments, stdin="", **options):
    """Index -> (line, logit) of the documents that `rerank` reads."""
    done = shell("rerank", "-q", "q", "--json", *arguments, stdin=stdin, **options)
    assert (done.returncode, done.stderr) == (0, "")
    results = map(json.loads, done.stdout.splitlines())
    return {result["index"]: (result.get("line"), result["logit"]) for result in results}


def test_lines_count_blank_lines_and_indices_do_not(server):
    assert logits(stdin="\n1\n\n \n2\n") == {0: (2, 1.0), 1: (5, 2.0)}
    done = shell("score", "--json", stdin="\nq\t0\n")
    assert json.loads(done.stdout) == {"line": 2, "relevance_score": 0.5}


@pytest.mark.parametrize("text", ['{"text": "7"}\n', "7\n"])
def test_a_byte_order_mark_is_not_text(server, tmp_path, text):
    file = tmp_path / "documents.txt"
    file.write_text(text, encoding="utf-8-sig")
    assert logits(str(file)) == logits(stdin="\ufeff" + text) == {0: (1, 7.0)}
    pairs = tmp_path / "pairs.txt"
    pairs.write_text('{"query": "q", "document": "7"}\n', encoding="utf-8-sig")
    assert shell("score", "--raw", str(pairs)).stdout == "7\n"


def test_text_may_start_with_a_brace_or_a_bracket(server):
    lines = ["{x | x > 0} is a set", "[1] A citation.", "{", '{"a", "b"} is a set', "[]"]
    expected = {index: (index + 1, -float(len(line))) for index, line in enumerate(lines)}
    assert logits(stdin="\n".join(lines)) == expected
    assert logits(stdin=lines[3] + "\nb") == {0: (1, -19.0), 1: (2, -1.0)}
    done = shell("score", "--raw", stdin="{x\t1\nq\t{y}\n")
    assert done.stdout.splitlines() == ["1", "-3"]


@pytest.mark.parametrize(
    "content", ['[{"text": "1"}, "2"]', '[\n  {\n    "text": "1"\n  },\n  "2"\n]\n', '["1",\n"2"]']
)
def test_a_json_array_is_read_as_documents(server, tmp_path, content):
    assert logits(stdin=content) == {0: (None, 1.0), 1: (None, 2.0)}
    file = tmp_path / "documents.json"
    file.write_text(content, encoding="utf-8-sig")
    assert logits(str(file)) == {0: (None, 1.0), 1: (None, 2.0)}


def test_csv_has_fields(server, tmp_path):
    file = tmp_path / "shop.csv"
    file.write_bytes('\ufefftitle,text,price\r\nab,3,10\r\n\r\n"c,\r\nd",4,5\r\n'.encode())
    assert logits(str(file)) == {0: (2, 3.0), 1: (4, 4.0)}
    assert logits(str(file), "--fields", "title,price") == {
        0: (2, -float(len("ab\n10"))),
        1: (4, -float(len("c,\nd\n5"))),
    }
    assert logits(str(file), "--template", "{price}") == {0: (2, 10.0), 1: (4, 5.0)}


def test_gzipped_documents(server, tmp_path):
    file = tmp_path / "documents.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "1"}\n'))
    assert logits(str(file)) == {0: (1, 1.0)}


@pytest.mark.parametrize("option", [("--fields", "title,price"), ("--template", "{title}\n{price}")])
def test_rerank_makes_text_of_fields(server, option):
    done = shell("rerank", "-q", "q", "--json", *option, stdin='{"title": "abc", "price": 5}\n')
    assert json.loads(done.stdout)["logit"] == -len("abc\n5")


def test_score_reads_tabs_and_json_and_streams(server):
    lines = "q\t1\n" + '{"query": "q", "document": "2"}\n' + "q\t-3\n" * 600
    done = shell("score", "--raw", stdin=lines)
    assert done.stdout.splitlines() == ["1", "2"] + ["-3"] * 600
    assert done.stderr == ""


def test_info_and_ready(server):
    info = shell("info").stdout.splitlines()
    assert "checkpoint           fake" in info
    assert "revision             -" in info
    assert "logit_scale          -" in info
    assert json.loads(shell("info", "--json").stdout)["manifest"]["checkpoint"] == "fake"
    twice = shell("info", "--url", server.url, "--url", server.url, "--json").stdout.splitlines()
    assert [json.loads(line)["url"] for line in twice] == [server.url] * 2
    assert shell("info", "--url", server.url, "--url", server.url).stdout.count("checkpoint           fake") == 2
    assert shell("ready").stdout == "ready\n"
    assert shell("ready", "--quiet").stdout == ""


def test_version():
    assert shell("--version").stdout == f"triton-rerank {metadata.version('triton-rerank')}\n"


@pytest.mark.slow
def test_ready_waits_for_a_server_that_starts_later():
    port = free_port()
    process = subprocess.Popen(
        [*CLIENT_COMMAND, "ready", "--wait", "60", "--url", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(3)
    assert process.poll() is None
    with FakeTriton(port=port) as server:
        server.faults.append(refuse(grpc.StatusCode.INTERNAL, "Stub process is not healthy"))
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout, stderr) == (0, "ready\n", "")
        assert len(server.requests) == 2


def test_ready_gives_up_after_the_wait(server):
    done = shell("ready", "--wait", "1", "--url", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("triton-rerank: not ready after 1 s: 127.0.0.1:1: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_behind_stdout(server):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*CLIENT_COMMAND, "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "triton-rerank: standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("rerank", "-q", " "), "x\n", "--query is empty"),
        (("rerank", "-q", "q", "/nowhere/file"), "", "/nowhere/file: No such file"),
        (("rerank", "-q", "q", "/tmp"), "", "/tmp: Is a directory"),
        (("rerank", "-q", "q"), '\n{"text": 1}\n', 'stdin:2: document["text"] is not text'),
        (("rerank", "-q", "q"), '{"text": "a"}\n\n{"text": "b\n', "stdin:3: not JSON"),
        (("rerank", "-q", "q"), '{"text": "a\n', "stdin:1: not JSON"),
        (("rerank", "-q", "q"), '{"text": "a"}\nplain\n', "stdin:2: not JSON"),
        (("rerank", "-q", "q"), '[\n{"text": "a"},\n', "stdin:1: starts like JSON, but is not valid"),
        (("rerank", "-q", "q"), '{\n"text": "a"\n}\n', "stdin:1: one JSON object over several lines"),
        (
            ("rerank", "-q", "q"),
            '{"a": "b"}\n',
            "stdin:1: document has no \"text\" (its keys: 'a'); add it, or say with --f",
        ),
        (("rerank", "-q", "q", "--fields", "a"), "text\n", "stdin:1: not a JSON object; --fields needs JSON lines"),
        (("rerank", "-q", "q", "--template", "{a}"), "text\n", "stdin:1: not a JSON object; --template needs"),
        (("rerank", "-q", "q", "--fields", "b"), '["a"]', "stdin: element 0: not a JSON object; --fields needs"),
        (
            ("rerank", "-q", "q", "--template", "{a}"),
            '{"a": 1}\n\n{"b": 1}',
            "stdin:3: document has no 'a', which --template",
        ),
        (("rerank", "-q", "q", "--fields", "a"), '{"a": 1}\n\n{"b": 1}', "stdin:3: document has none of ['a']"),
        (("rerank", "-q", "q", "--template", "{a"), '{"a": 1}\n', "--template is not a template"),
        (("rerank", "-q", "q"), '{"text": "\\ud800"}\n', "stdin:1: document has a lone surrogate"),
        (("score",), "no tab\n", "stdin:1: no tab"),
        (("score",), '{"query": "q"}\n', 'stdin:1: needs "query" and "document"'),
        (("score",), "q\ta\n\n \tb\n", "stdin:3: query is empty"),
        (("score", "--priority", "9"), "q\ta\n", "--priority is 9; pass 1 (first) to 3\n"),
        (("ready", "--model", "none"), "", "; use --model reranker\n"),
        (("ready", "--wait", "60", "--header", "novalue"), "", "--header must be"),
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


@pytest.mark.parametrize("command", [("rerank", "-q", "q"), ("score",)])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"q\ttea\nq\tcaf\xe9\n", ":2: not UTF-8 text: invalid continuation byte at byte 5; save the file as UTF-8\n"),
        (b"\x7fELF\xaf\n", ":1: not UTF-8 text: invalid start byte at byte 4; save the file as UTF-8\n"),
        ("q\ta\n".encode("utf-16"), ":1: UTF-16 text; save the file as UTF-8\n"),
    ],
)
def test_files_that_are_not_utf8_are_named(server, tmp_path, command, content, reason):
    file = tmp_path / "bin.dat"
    file.write_bytes(content)
    done = shell(*command, str(file))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"triton-rerank: {file}{reason}")


def test_csv_errors_name_the_line(server, tmp_path):
    file = tmp_path / "shop.csv"
    for content, reason in (
        ('text,price\n"two\nlines",1\na\n', ":4: 1 columns, but the header has 2"),
        ("title,price\na,1\n", ":2: document has no \"text\" (its keys: 'title', 'price')"),
        ('text\n"open\n', ":2: not CSV: unexpected end of data"),
    ):
        file.write_text(content)
        done = shell("rerank", "-q", "q", str(file))
        assert done.returncode == 1
        assert done.stderr.startswith(f"triton-rerank: {file}{reason}")


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
    process = subprocess.Popen([*CLIENT_COMMAND, "ready"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not server.requests:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["rerank"], "the following arguments are required: --query"),
        (["rerank", "-q", "q", "--top-n", "0"], "argument --top-n/-n: 0 is not 1 or more"),
        (["rerank", "-q", "q", "--max-length", "x"], "argument --max-length: 'x' is not an integer"),
        (["rerank", "-q", "q", "--min-relevance-score", "2"], "--min-relevance-score: 2 is not between 0 and 1"),
        (["rerank", "-q", "q", "--min-relevance-score", "nan"], "nan is not between 0 and 1"),
        (["score", "--priority", "0"], "argument --priority: 0 is not 1 or more"),
        (["ready", "--timeout", "inf"], "argument --timeout: inf is not a number of seconds above 0"),
        (["ready", "--wait", "0"], "argument --wait: 0 is not a number of seconds above 0"),
        (["rerank", "-q", "q", "--fields", ","], "argument --fields: no field name"),
    ],
)
def test_usage_errors_name_the_option(capsys, arguments, reason):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


def test_tables_count_wide_characters_twice():
    assert shorten("abc", 3) == "abc"
    assert shorten("正则化", 6) == "正则化"
    assert shorten("正则化技术", 6) == "正则…"


@pytest.fixture
def cascading(server):
    server.first_stage = lambda text: -float(text)  # the opposite order
    return server


def test_a_cascade_marks_the_documents_of_its_first_stage(cascading):
    done = shell("rerank", "-q", "q", "--cascade", "2", stdin="1\n3\n0\n2\n")
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["1", "0.7311", "1"],
        ["2", "0.5000", "0"],
        ["3", "0.0000", "2", "[late_interaction]"],
        ["4", "0.0000", "3", "[late_interaction]"],
    ]
    done = shell("rerank", "-q", "q", "--cascade", "0.5", "--json", stdin="1\n3\n0\n2\n")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(result["line"], result["stage"]) for result in results] == [
        (1, "reranker"),
        (3, "reranker"),
        (4, "late_interaction"),
        (2, "late_interaction"),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--cascade-first", "colbert"], 1, "--cascade-first has no effect without --cascade; give both"),
        (["--cascade-fallback"], 1, "--cascade-fallback has no effect without --cascade; give both"),
        (["--cascade", "0"], 2, "argument --cascade: 0 is not 1 or more"),
        (["--cascade", "1.5"], 2, "argument --cascade: 1.5 is not between 0 and 1"),
        (["--cascade", "0.0"], 2, "argument --cascade: 0.0 keeps no document"),
        (
            ["--cascade", "1", "--cascade-first", "reranker"],
            1,
            "--cascade-first is 'reranker', which is the client's own",
        ),
        (["--cascade", "1", "--cascade-first", "x"], 1, "; check --cascade-first, or give --cascade-fallback"),
    ],
)
def test_unusable_cascades(cascading, arguments, status, message):
    done = shell("rerank", "-q", "q", *arguments, stdin="1\n2\n")
    assert done.returncode == status
    assert message in done.stderr


def test_a_cascade_falls_back_on_request(cascading):
    done = shell("rerank", "-q", "q", "--cascade", "1", "--cascade-first", "x", "--cascade-fallback", stdin="1\n2\n")
    assert [line.split()[2:] for line in done.stdout.splitlines()[1:]] == [["2"], ["1"]]
    assert done.returncode == 0
