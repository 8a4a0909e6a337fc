"""The chaos benchmark without servers: its verdict on answers and events, its proxy, and the oracle's models."""

import math
import socket
import threading
from contextlib import closing

import pytest

from benchmarks.chaos.__main__ import chosen, parse
from benchmarks.chaos.callers import Call, judge, tell_models_apart
from benchmarks.chaos.events import EVENTS
from benchmarks.chaos.figures import Happened, as_json, draw, faults, result, table
from benchmarks.chaos.model import Model
from benchmarks.chaos.proxy import Proxy

OLD, NEW = (1.0, -2.0), (3.0, 0.5)


@pytest.mark.parametrize(
    ("scores", "relevance", "outcome"),
    [
        ({0: 1.0, 1: -2.0}, False, ""),
        ({1: 0.5, 0: 3.0}, False, ""),
        ({0: 1.0, 1: 0.5}, False, "wrong"),  # of both models
        ({0: 1.0}, False, "wrong"),
        ({0: 1 / (1 + math.exp(-1)), 1: 1 / (1 + math.exp(2))}, True, ""),
        ({0: 1.0, 1: -2.0}, True, "wrong"),
        ({0: math.nan, 1: -2.0}, False, "wrong"),
    ],
)
def test_an_answer_is_right_if_one_model_has_all_its_scores(scores, relevance, outcome):
    assert judge(scores, (OLD, NEW), relevance=relevance)[0] == outcome


def test_an_answer_that_names_no_served_version_is_wrong():
    assert judge({0: 1.0, 1: -2.0}, (), relevance=False)[0] == "wrong"


def test_models_that_score_alike_prove_nothing(tmp_path):
    one, other = Model("a", tmp_path, [OLD, OLD]), Model("b", tmp_path, [NEW, OLD])
    with pytest.raises(SystemExit, match="alike"):
        tell_models_apart([one, other])


CALLS = [
    Call("client", 1.0, 0.1, ""),
    Call("client", 9.0, 2.0, ""),  # ends during the event
    Call("client", 12.0, 0.1, "down", "refused"),
    Call("gateway", 13.0, 0.1, "overload"),
    Call("gateway", 21.0, 0.2, ""),
    Call("client", 22.0, 0.3, "wrong", "off by 2"),
]


def event(*allowed):
    return Happened("kill", "a kill", begin_s=10, end_s=12, ready_s=20, until_s=30, allowed=allowed)


def test_what_an_event_may_not_cause_is_told_and_overload_is_no_loss(tmp_path):
    assert [sentence.partition(" (")[0] for sentence in faults([event()], CALLS)] == [
        "kill: 1 calls by client: down",
        "kill: 1 calls by gateway: overload",
        "kill: 1 calls by client: wrong",
    ]
    assert len(faults([event("overload")], CALLS)) == 2
    assert table([event()], CALLS).splitlines()[-1] == "| kill | 3 + 2 | 1 | 1 | 1 | 2000 | 200 | 8.0 |"
    line = result([event()], CALLS)
    assert line == (
        "RESULT events=1 calls=6 lost=1 wrong=1 overload=1 recovered_s=8.0 p99_during_ms=2000 p99_after_ms=200"
    )
    draw([event()], CALLS, tmp_path / "chaos.svg")
    drawn = (tmp_path / "chaos.svg").read_text()
    assert all(word in drawn for word in ("kill", "down", "overload", "wrong"))
    assert as_json([event()], CALLS, {})["events"][0]["recovered_s"] == 8


def test_events_are_found_by_name_and_left_out_without_the_right_to_mount(capsys):
    assert len({each.name for each in EVENTS}) == len(EVENTS)
    assert [each.name for each in chosen(["roll", "kill-server"], True)] == ["kill-server", "roll"]
    assert chosen(["full-shm"], False) == []
    assert "full-shm is left out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--callers=0", "--callers=1.5", "--calls-per-s=0", "--calls-per-s=nan"])
def test_unusable_options_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        parse(["--out", "x", option])
    assert "is not a number above 0" in capsys.readouterr().err


@pytest.fixture
def echo():
    """The port of a server that sends back what it reads."""

    def answer(connection):
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_the_proxy_forwards_loses_and_resets(echo):
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as connection:
        connection.sendall(b"one")
        assert connection.recv(10) == b"one"
        proxy.silent = True
        connection.sendall(b"two")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        proxy.speak()  # what is lost stays lost: the connection ends
        connection.settimeout(60)
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as other:
            other.sendall(b"three")
            assert other.recv(10) == b"three"
            proxy.refusing = True
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                other.recv(10)
