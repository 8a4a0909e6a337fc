"""`manifest.json`: what is installed, what it was made from, and how it compared with PyTorch.

The same file is beside the graph and beside the tokenizer, so that each of the two can be matched with the other.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from triton_rerank_build.checkpoints.layout import TextLayout
from triton_rerank_build.contract import CROSS_ENCODER, MANIFEST_FILE
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.parity.record import Parity
from triton_rerank_build.support.files import sha256_file

FORMAT = 2

# What decides about the logits. Not the hashes of the artefacts: releases of torch write other bytes for one graph.
_SCORING = ("revision", "precision", "max_length", "exporter", "token_types", "layout", "relevant", "settings")

_TOOLS = ("triton-rerank-build", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class Artefact:
    """One generated file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Artefact":
        """Measure a file."""
        return cls(path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class Engine:
    """The record of a TensorRT plan that was built from the graph.

    Attributes:
        profiles: "1x16 128x64 128x112": the smallest, the tuned and the largest shape of each profile.
        worst_difference: Largest difference between a logit of the plan and of the graph on a CPU.
        tolerance: Largest difference that was accepted.
        num_pairs: Rows that were compared.
        tensorrt: The TensorRT release; no other release loads the plan.
        gpu: The kind of GPU; the plan runs on no other.
        created: UTC, ISO 8601.
    """

    profiles: tuple[str, ...]
    worst_difference: float
    tolerance: float
    num_pairs: int
    tensorrt: str
    gpu: str
    created: str

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Engine":
        """Build from parsed JSON."""
        return cls(**{**content, "profiles": tuple(content["profiles"])})


@dataclass(frozen=True)
class Manifest:
    """The record of one export.

    Attributes:
        checkpoint: A hub id, `demo`, or the name of a local folder.
        revision: The hub's commit, or a digest of the checkpoint's files.
        family: `model_type` of the network.
        precision: fp32, fp16 or int8.
        max_length: Longest pair in tokens.
        opset: Of the graph's operators.
        ir_version: Of the ONNX file.
        exporter: `EXPORTER_VERSION` of the release that made the graph. `export` replaces a graph of another version;
            `verify` and `serve` accept every version.
        parity: Result of the comparison of the padded graph with PyTorch.
        artefacts: By path inside the repository, "cross_encoder/1/model.onnx".
        tools: Versions of the packages that made it, by distribution name.
        created: UTC, ISO 8601.
        engine: The plan that `engine` built from the graph; None if there is none.
        activation: See `Checkpoint`; `triton_rerank.compat.CrossEncoder` applies it.
        token_types: Whether the graph reads token types from `attention_mask`. If not, the mask is 0 or 1. Release
            0.1.0 did not write this field: its graphs derive token types from the first separator.
        packed: Result of the comparison of the packed graph. None if there is none, and model.onnx is the padded graph.
        layout: How the served tokenizer lays out a pair. None in manifests that do not have the field: their pairs
            have the layout of the template in tokenizer.json, as all of release 0.1.0 had.
        relevant: See `Checkpoint`.
    """

    checkpoint: str
    revision: str
    family: str
    precision: str
    max_length: int
    opset: int
    ir_version: int
    exporter: int
    parity: Parity
    artefacts: Mapping[str, Artefact]
    tools: Mapping[str, str]
    created: str
    engine: Engine | None = None
    activation: str | None = None
    token_types: bool = False
    packed: Parity | None = None
    layout: TextLayout | None = None
    relevant: int | None = None

    @property
    def model_version(self) -> int:
        """Triton's version of the ensemble, nine digits: the same for exports that score alike, on any machine."""
        facts = {name: value for name, value in asdict(self).items() if name in _SCORING}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
        return 100_000_000 + int.from_bytes(digest[:8], "big") % 900_000_000

    def describe(self, name: str, revision: str) -> str:
        """The installation in a message about a checkpoint `name` at `revision`: "tiny (fp32, 80 tokens)"."""
        settings = f"{self.precision}, {self.max_length} tokens"
        if self.checkpoint == name and self.revision != revision:
            return f"another {name} (its files differ; {settings})"
        return f"{self.checkpoint} ({settings})"

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        facts = {"format": FORMAT, "model_version": self.model_version, **asdict(self)}
        return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse what `to_json` wrote.

        Raises:
            RepositoryError: The text is not a manifest of this format.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if (found := content.pop("format")) != FORMAT:
                raise RepositoryError(f"{MANIFEST_FILE} has format {found}; this version reads {FORMAT}")
            content.pop("model_version", None)  # follows from the rest
            if isinstance(content["exporter"], str):  # release 0.1.0 wrote a digest of its source text
                content["exporter"] = 1
            content["parity"] = Parity(**content["parity"])
            content["artefacts"] = {name: Artefact(**entry) for name, entry in content["artefacts"].items()}
            if content.get("packed") is not None:
                content["packed"] = Parity(**content["packed"])
            if content.get("layout") is not None:
                content["layout"] = TextLayout.from_dict(content["layout"])
            if content.get("engine") is not None:
                content["engine"] = Engine.from_dict(content["engine"])
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RepositoryError(f"{MANIFEST_FILE} cannot be read: {error!r}") from error


def tool_versions() -> dict[str, str]:
    """Versions of the packages that determine the result."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def now() -> str:
    """The current time in the format of `Manifest.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_manifest(repository: Path) -> Manifest | None:
    """The manifest of a complete installation; None if nothing is installed.

    Raises:
        RepositoryError: The file exists but cannot be read.
    """
    path = repository / CROSS_ENCODER / MANIFEST_FILE
    return Manifest.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
