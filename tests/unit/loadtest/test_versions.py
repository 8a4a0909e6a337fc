"""The benchmark of a client of two versions, on two servers that answer at once."""

import re
from itertools import islice

from benchmarks.versions import result
from load.workload import generated
from support.fake_triton import FakeTriton


def test_half_of_the_requests_that_follow_the_first_meet_the_other_version():
    with FakeTriton() as old, FakeTriton() as new:
        new.version = "2"
        line = result(old.url, new.url, list(islice(generated(40, seed=3), 2)), calls=10, pairs_per_request=5)
    found = re.fullmatch(r"RESULT time_ratio=\d+\.\d+ sent_again_a_call=(\d+\.\d+) versions=2", line)
    assert 2 <= float(found[1]) <= 7
