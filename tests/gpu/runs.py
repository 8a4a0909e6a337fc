"""What the questions of `questions.py` share, and the way to `probe`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpu.networks import NETWORKS, Network
from gpu.probe import CUDA
from triton_rerank_build.contract import MODEL_FILE, REFERENCE_FILE

MOST_JOB_SECONDS = 150


@dataclass
class Run:
    """What the questions share.

    Attributes:
        key: Of `NETWORKS`.
        provider: ONNX Runtime's.
        folder: For the graphs and what the probes leave.
        ends: When the time is up, of `time.monotonic`.
    """

    key: str
    provider: str
    folder: Path
    ends: float
    gpu: str | None = None
    checkpoint: Path | None = None
    graphs: Path | None = None
    printed: str = ""
    found: dict[str, list[float]] = field(default_factory=dict)
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    bars: list = field(default_factory=list)

    @property
    def network(self) -> Network:
        return NETWORKS[self.key]

    @property
    def on_gpu(self) -> bool:
        return self.provider == CUDA

    @property
    def graph(self) -> Path:
        """What the provider can run: the packed graph, or its reference on a CPU."""
        return self.graphs / (MODEL_FILE if self.on_gpu else REFERENCE_FILE)

    def probe(self, job, **settings):
        """Run a job of `probe` in a process of its own.

        Returns:
            Its result, and what it printed.

        Raises:
            RuntimeError: It failed, or ran out of time.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        asked, answered = folder / "settings.json", folder / "result.json"
        asked.write_text(json.dumps({"provider": self.provider, **settings}, default=str), encoding="utf-8")
        command = [sys.executable, "-m", "gpu.probe", job, str(asked), str(answered)]
        environment = os.environ | {"ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"} if job == "logits" else None
        left = min(self.ends - time.monotonic(), MOST_JOB_SECONDS)
        if left <= 0:
            raise RuntimeError(f"no time left for {job}")
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=left, env=environment)
        if done.returncode:
            raise RuntimeError(f"{job} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        return json.loads(answered.read_text(encoding="utf-8")), done.stdout + done.stderr
