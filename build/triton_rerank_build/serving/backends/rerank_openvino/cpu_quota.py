"""Number of CPUs that this process may use: its affinity and the CPU quotas of its control groups.

For the backends `rerank_openvino`, `encode_openvino` and `onnxruntime`, which lie side by side and import this one
file. Runtimes count cores only: in a container with a limit of 2 CPUs on 64 cores they start 64 threads, which the
kernel then stops for most of each period. The `tokenizers` library needs nothing of this: Rust's
`available_parallelism` reads the same files.
"""

import os
from pathlib import Path


def usable_cpus(
    process: Path = Path("/proc/self"), control_groups: Path = Path("/sys/fs/cgroup"), affinity: int | None = None
) -> int:
    """CPUs of the affinity mask, or fewer if a quota allows less time; at least 1.

    Args:
        process: Folder with the file `cgroup`, which names the control groups of the process.
        control_groups: Where the control groups are mounted.
        affinity: CPUs of the affinity mask; those of this process if None.
    """
    cpus = len(os.sched_getaffinity(0)) if affinity is None else affinity
    quotas = [quota for folder in _folders(process, control_groups) for quota in (_quota(folder),) if quota is not None]
    return max(1, min([cpus, *map(int, quotas)]))


def _folders(process: Path, control_groups: Path) -> list[Path]:
    """Folders of the control groups that limit CPU time, with all their parents: each of them may have a quota.

    Inside a container the path in `cgroup` may be the host's, which is not mounted; then the root has the quota.
    """
    folders = [control_groups]  # version 2; the path is "/" inside a container
    for line in _read(process / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            roots = [control_groups, control_groups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [control_groups / controllers, control_groups / "cpu"]
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        folders += [root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts) + 1)]
    return folders


def _quota(folder: Path) -> float | None:
    """CPUs that the quota of one control group allows; None if it has none."""
    if fields := _read(folder / "cpu.max").split():  # version 2: "200000 100000", or "max 100000"
        used, period = fields
    else:  # version 1: -1 for no limit
        used, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    if not used.isdigit() or not period.isdigit() or not int(period):
        return None
    return int(used) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
