"""The lines of a server's log that explain its end."""

from triton_rerank_build.serving.log import last_crash, open_log, tail

START = """I1126 12:00:00.000000 1 server.cc:631]
+----------+------+
| Backend  | Path |
+----------+------+
E1126 12:00:00.100000 1 pinned_memory_manager.cc:300] "Failed: CudaDriverHelper has not been initialized."
I1126 12:00:01.000000 1 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:8001"
"""
LOST_LOCK = """terminate called after throwing an instance of 'boost::interprocess::lock_exception'
  what():  boost::interprocess::lock_exception
Signal (6) received.
"""
RESTART = "supervisor: tritonserver was ended by signal 6 (SIGABRT); starting again\n"


def log_of(tmp_path, text):
    log = open_log(tmp_path / "server.log")
    log.write(text.encode())
    log.flush()
    return log


def test_the_tail_after_a_crash_is_what_ended_the_process(tmp_path):
    with log_of(tmp_path, START + LOST_LOCK + RESTART) as log:
        assert tail(log) == (LOST_LOCK + RESTART).rstrip("\n")


def test_without_an_error_the_tail_is_the_last_lines(tmp_path):
    with log_of(tmp_path, START) as log:
        first, last = tail(log).splitlines()
        assert first.endswith("server.cc:631]")
        assert last.endswith('"Started GRPCInferenceService at 127.0.0.1:8001"')


def test_the_last_crash_is_that_of_the_run_that_has_ended(tmp_path):
    earlier = "terminate called without an active exception\nsupervisor: gone; starting again\n"
    with log_of(tmp_path, earlier + START + LOST_LOCK + RESTART) as log:
        assert last_crash(log) == (
            "terminate called after throwing an instance of 'boost::interprocess::lock_exception'; "
            "what():  boost::interprocess::lock_exception; Signal (6) received."
        )
    with log_of(tmp_path, START) as log:
        assert last_crash(log) is None
