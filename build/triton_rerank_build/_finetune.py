"""Adapt a cross-encoder to one's own data: data, training, a checkpoint that `export` takes, a manifest."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_build import _finetune_data as data
from triton_rerank_build._finetune_settings import Settings
from triton_rerank_build.checkpoints.resolve import Checkpoint, resolve_checkpoint
from triton_rerank_build.errors import BuildError, MissingExtraError
from triton_rerank_build.support.extras import require_build_extra
from triton_rerank_build.support.files import sha256_texts
from triton_rerank_build.support.progress import Steps, logger

if TYPE_CHECKING:
    from triton_rerank_build._finetune_train import State

MANIFEST = "finetune.json"
_WORK = "training"
# Queries whose documents are measured, to say how many are cut.
_LOOKED_AT = 200


@dataclass(frozen=True)
class Finetuned:
    """What came out.

    Attributes:
        folder: The checkpoint.
        before: nDCG@10 of the checkpoint that training started from, on the held-out queries.
        after: nDCG@10 of the new one.
        best_step: Where it was reached; 0 if nothing was better than the start.
    """

    folder: Path
    before: float
    after: float
    best_step: int


def finetune(
    checkpoint: str,
    data_paths: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    dev_paths: Sequence[Path] = (),
    revision: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Finetuned:
    """Train, and write the best checkpoint.

    The same call again goes on where one was broken off.

    Args:
        checkpoint: A local folder, an id on the Hugging Face hub, or `demo`.
        data_paths: BEIR folders and JSON lines to learn from.
        out: Folder of the new checkpoint; made if it is not there.
        settings: How to train.
        dev_paths: Held-out data of the same layouts; a share of the data if empty.
        revision: Branch, tag or commit on the hub.
        on_step: Called after each step with the steps done and planned; may raise to break off.

    Raises:
        BuildError: The data or the checkpoint is unusable, or `out` holds another training or a finished one.
    """
    require_extras()
    started = time.monotonic()
    if (out / MANIFEST).exists():
        raise BuildError(f"{out} holds a finished checkpoint; choose another folder")
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out} is a file; give a folder for the new checkpoint")
    steps = Steps(4)
    with steps.step("checkpoint and data"):
        found = resolve_checkpoint(checkpoint, revision)
        train, dev = _examples(data_paths, dev_paths, settings)
        logger.info("      %d queries to learn from, %d held out", len(train), len(dev))
    from triton_rerank_build._finetune_model import RankingModel
    from triton_rerank_build._finetune_train import Training

    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    model = RankingModel(found, settings)
    if cut := model.share_cut(train[:_LOOKED_AT]):
        logger.info("      %.0f %% of the relevant documents are cut at %d tokens", 100 * cut, model.max_length)
    with steps.step("mining negatives"):
        if settings.negatives == "model":
            train = _mine(model, train, work)
    digests = data.digests(data_paths) | data.digests(dev_paths, "dev")
    with steps.step(f"training on {model.device}"):
        signature = sha256_texts([found.revision, json.dumps([settings.resumable(), digests])])
        state = Training(model, train, dev, settings, work / "state.pt", signature, on_step).run()
    with steps.step(f"writing {out}"):
        about = _manifest(found, settings, digests, (len(train), len(dev)), state, time.monotonic() - started)
        _write(model, out, about)
    return Finetuned(out, state.before, *state.best)


def require_extras() -> None:
    """Check that training can start.

    Raises:
        MissingExtraError: A library is not installed.
    """
    require_build_extra()
    for name in ("bm25s", "ir-measures"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise MissingExtraError(f'{name} not installed; run: pip install "triton-rerank[build,eval]"') from None


def _examples(
    data_paths: Sequence[Path], dev_paths: Sequence[Path], settings: Settings
) -> tuple[list[data.Example], list[data.Example]]:
    train = data.load(data_paths, settings.negatives, settings.mining_depth)
    if not dev_paths:
        return data.split(train, settings.dev_share, settings.dev_queries, settings.seed)
    dev = data.load(dev_paths, settings.negatives, settings.mining_depth, "dev")
    return train, data.sample(dev, settings.dev_queries, settings.seed)


def _mine(model: Any, train: list[data.Example], work: Path) -> list[data.Example]:  # noqa: ANN401  # imported late
    """Negatives by the untrained model's own scores; kept on disk, since a resumed run must see the same."""
    path = work / "mined.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if len(kept) == len(train):
            return [
                data.Example(example.query, example.relevant, tuple(negatives))
                for example, negatives in zip(train, kept, strict=True)
            ]
    mined = data.hardest_by(model.score, train)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([example.negatives for example in mined]), encoding="utf-8")
    temporary.replace(path)
    return mined


def _manifest(
    checkpoint: Checkpoint,
    settings: Settings,
    digests: dict[str, str],
    counts: tuple[int, int],
    state: "State",
    seconds: float,
) -> dict[str, Any]:
    after, best_step = state.best
    return {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "settings": settings.as_dict(),
        "data_sha256": digests,
        "num_queries": counts[0],
        "num_dev_queries": counts[1],
        "nDCG@10": {"before": state.before, "after": after, "step": best_step},
        "history": [{"step": step, "loss": loss, "nDCG@10": value} for step, loss, value in state.history],
        "seconds_since_last_start": round(seconds, 1),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "triton-rerank")},
    }


def _write(model: Any, out: Path, about: dict[str, Any]) -> None:  # noqa: ANN401  # imported late
    """The checkpoint's files, the manifest last: with it the folder is finished."""
    model.save(out)
    (out / MANIFEST).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(out / _WORK)
