"""The number of threads under an affinity mask and under CPU quotas of control groups, versions 1 and 2."""

import subprocess
import sys

import pytest

from triton_rerank_build.contract import BACKENDS
from triton_rerank_build.serving.backends.rerank_openvino.cpu_quota import usable_cpus

V2, V1 = "0::/\n", "9:memory:/a\n4:cpu,cpuacct:/kubepods/pod1/c1\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "affinity", "expected"),
    [
        ("", {}, 64, 64),
        # Version 2: in a container with its own namespace, with the path of the host, and with a parent's quota.
        (V2, {"cpu.max": "200000 100000\n"}, 64, 2),
        (V2, {"cpu.max": "max 100000\n"}, 64, 64),
        (V2, {"cpu.max": "800000 100000\n"}, 4, 4),
        (V2, {"cpu.max": "50000 100000\n"}, 64, 1),
        (V2, {"cpu.max": "250000 100000\n"}, 64, 2),
        ("0::/kubepods/pod1/c1\n", {"kubepods/pod1/c1/cpu.max": "300000 100000\n"}, 64, 3),
        (
            "0::/kubepods/pod1/c1\n",
            {"kubepods/pod1/cpu.max": "400000 100000\n", "kubepods/pod1/c1/cpu.max": "max 100000\n"},
            64,
            4,
        ),
        ("0::/on/the/host\n", {"cpu.max": "200000 100000\n"}, 64, 2),
        # Version 1: the same, with two files, and with a link `cpu` beside `cpu,cpuacct`.
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 64, 2),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 64, 64),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "50000\n"}, 64, 3),
        (V1, {"cpu/kubepods/cpu.cfs_quota_us": "700000\n", "cpu/kubepods/cpu.cfs_period_us": "100000\n"}, 64, 7),
        # A quota of memory is no quota of CPUs, and a damaged file is no limit.
        (V1, {"memory/a/cpu.max": "100000 100000\n"}, 64, 64),
        (V2, {"cpu.max": "0 0\n"}, 64, 64),
    ],
)
def test_the_quota_and_the_affinity_limit_the_threads(tmp_path, cgroup, files, affinity, expected):
    (tmp_path / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cpus(tmp_path, tmp_path / "mounted", affinity) == expected


def test_the_affinity_of_the_process_counts():
    pin = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"import os; {pin}; from cpu_quota import usable_cpus; print(usable_cpus())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=BACKENDS / "rerank_openvino", capture_output=True, text=True, check=True
    )
    assert found.stdout == "1\n"
