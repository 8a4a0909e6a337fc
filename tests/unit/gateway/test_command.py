"""Options of `triton-rerank gateway` that it refuses before it starts."""

import argparse

import pytest

from triton_rerank.cli import gateway
from triton_rerank.cli.main import main


@pytest.mark.parametrize(
    ("options", "env", "status", "message"),
    [
        (["--api-key-file", "empty"], {}, 1, "--api-key-file empty holds no key; write one a line"),
        (["--api-key-file", "binary"], {}, 1, "--api-key-file binary is not UTF-8 text"),
        (["--api-key-file", "absent"], {}, 1, "absent: No such file"),
        ([], {"API_KEYS": "ключ"}, 1, "an API key is not printable ASCII"),
        (["--port", "x"], {}, 2, "argument --port: 'x' is not a port"),
        (["--port", "70000"], {}, 2, "argument --port: 70000 is not a port"),
        ([], {"PORT": "y"}, 2, "argument --port: 'y' is not a port"),
        (["--max-body", "0"], {}, 2, "argument --max-body: 0 is not 1 or more"),
        (["--max-documents", "20000"], {}, 1, "max_documents is 20000; pass 1 or more and 10,000 at most"),
        ([], {"LONG_DOCUMENTS": "both"}, 1, 'long_documents is \'both\'; pass "truncate" or "chunk"'),
        (["--max-retries", "-1"], {}, 1, "max_retries is -1; pass 0 or more"),
        (["--cascade", "0"], {}, 2, "argument --cascade: 0 is not 1 or more"),
        ([], {"CASCADE": "2.5"}, 2, "argument --cascade: 2.5 is not between 0 and 1"),
        ([], {"CASCADE_FIRST": "colbert"}, 1, "--cascade-first has no effect without --cascade"),
        (["--cascade", "5", "--cascade-first", "reranker"], {}, 1, "the cascade's first stage is 'reranker'"),
        (["--header", "nonsense"], {}, 1, "--header must be 'key: value'"),
    ],
)
def test_unusable_options(tmp_path, monkeypatch, capsys, options, env, status, message):
    (tmp_path / "empty").write_text("# no key\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(f"TRITON_RERANK_GATEWAY_{name}", value)
    try:
        returned = main(["gateway", *options])
    except SystemExit as exit_:
        returned = exit_.code
    assert returned == status
    assert message in capsys.readouterr().err


def test_every_option_is_an_environment_variable(monkeypatch, capsys):
    """And the help can be read whatever they hold."""
    parser = argparse.ArgumentParser()
    gateway.add_arguments(parser)
    variables = parser.get_default("variables")
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    named = {"--" + name.removeprefix("TRITON_RERANK_GATEWAY_").lower().replace("_", "-") for name in variables}
    assert named == options - {"--help"} | {"--api-keys"}
    for name in variables:
        monkeypatch.setenv(name, "7")
    with pytest.raises(SystemExit):
        main(["gateway", "--help"])
    assert "(7)" in capsys.readouterr().out
