"""The benchmark of bulk jobs, in its short form."""

import subprocess
import sys

import pytest

from benchmarks.bulk import ratio
from support import ROOT


def test_the_ratio_is_the_median_over_rounds():
    assert ratio([(1, 2), (10, 19), (1, 9)]) == 2


@pytest.mark.slow
def test_the_short_form_runs():
    command = [sys.executable, "-m", "benchmarks.bulk", "--rounds", "1", "--rows", "4", "--real-rows", "0", "--no-ray"]
    done = subprocess.run(command, cwd=ROOT / "loadtest", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("RESULT two_over_one_paced=")
