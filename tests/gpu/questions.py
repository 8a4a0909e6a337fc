"""Seven questions that only a GPU answers about the packed graph, in order, with one report: see `run.sh`.

`python -m gpu.questions --network tiny --provider cpu REPORT` runs the same steps anywhere, over the reference file,
and says of each question that a CPU cannot answer it. The report is written anew after each answer.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from gpu.networks import NETWORKS, check_batches, make_network, workloads
from gpu.probe import CPU, CUDA
from gpu.report import NOT_ON_A_CPU, Answer, bars, write_report
from gpu.runs import Run
from triton_rerank_build.contract import PADDED_FILE, REFERENCE_FILE
from triton_rerank_build.graphs.memory import batch_bytes, most_tokens, weight_bytes
from triton_rerank_build.parity.compare import TOLERANCE, count_swapped
from triton_rerank_build.parity.packed import join

ROWS_PER_CALL = {"v2-m3": (1, 20), "tiny": (1, 4)}
ARRIVAL_SECONDS = {"v2-m3": 6.0, "tiny": 0.5}
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
IN_PROCESS = "Arrivals wait in a queue in front of the session, in the same process: Triton is not in the path."


def flash_attention(run):
    """Also runs the packed graph once, for the next three questions."""
    batches = check_batches(run.network)
    inputs = {f"{name}/{key}": array for name, requests in batches.items() for key, array in join(requests).items()}
    np.savez(run.folder / "batches.npz", **inputs)
    settings = {"batches": run.folder / "batches.npz", "names": list(batches)}
    result, run.printed = run.probe("logits", graph=run.graph, optimized=run.folder / "optimized.onnx", **settings)
    run.found = result["logits"]
    kernels = dict(Counter(re.findall(r"SdpaKernel=(\w+)", run.printed)))
    if not run.on_gpu:
        return Answer(1, NOT_ON_A_CPU)
    flash = set(kernels) == {"FLASH_ATTENTION"}
    return Answer(1, "yes" if flash else "no", {"printed SdpaKernel": kernels or "nothing"})


def logits(run):
    batches = check_batches(run.network)
    # On a CPU the packed graph's reference has just been run: hold it to the padded graph, row by row.
    run.expected = expected = reference(run, batches) if run.on_gpu else rows_alone(run, batches)
    figures: dict[str, object] = {}
    worst, swapped = 0.0, 0
    for name, want in expected.items():
        got = np.array(run.found[name])
        difference = float(np.abs(got - want).max()) if np.isfinite(got).all() else float("inf")
        figures |= {f"{name}: worst difference": difference, f"{name}: rows": len(want)}
        worst, swapped = max(worst, difference), swapped + count_swapped(want, got, TOLERANCE["fp16"])
    figures["pairs in another order, beyond 2e-2"] = swapped
    ragged = expected["ragged"]
    figures["deviation of the reference's logits"] = float(ragged.std())
    agree = worst <= TOLERANCE["fp16"] and not swapped
    note = "" if run.on_gpu else "On a CPU: the reference file, ragged, against the padded graph, each row alone."
    return Answer(2, "yes" if agree else "no", figures, note)


def reference(run, batches):
    settings = {"graph": run.graphs / REFERENCE_FILE, "provider": CPU, "names": list(batches)}
    result, _ = run.probe("logits", batches=run.folder / "batches.npz", **settings)
    return {name: np.array(values) for name, values in result["logits"].items()}


def rows_alone(run, batches):
    inputs = {}
    for name, requests in batches.items():
        for index, request in enumerate(requests):
            inputs[f"{name} {index}/input_ids"] = request.input_ids
            # Of a row of padding the packed graph reads the first token.
            first = np.eye(1, request.input_ids.shape[1], dtype=np.int32)
            inputs[f"{name} {index}/attention_mask"] = np.maximum(request.attention_mask, first)
    np.savez(run.folder / "rows.npz", **inputs)
    names = list(dict.fromkeys(key.split("/")[0] for key in inputs))
    result, _ = run.probe("logits", graph=run.graphs / PADDED_FILE, batches=run.folder / "rows.npz", names=names)
    found = result["logits"]
    return {
        name: np.concatenate([found[f"{name} {index}"] for index in range(len(requests))])
        for name, requests in batches.items()
    }


def fusions(run):
    graph = optimized(run).graph
    operators = Counter(node.op_type for node in graph.node)
    names = ("BiasGelu", "Gelu", "Erf", "SkipLayerNormalization", "LayerNormalization", "PackedMultiHeadAttention")
    figures = {name: operators[name] for name in (*names, "Cast", "Add")}
    if not run.on_gpu:
        return Answer(3, NOT_ON_A_CPU, figures, "ONNX Runtime computes fp16 in fp32 on a CPU, with other operators.")
    layers = run.network.layers
    fused = operators["BiasGelu"] >= layers and operators["SkipLayerNormalization"] >= 2 * layers
    return Answer(
        3, "yes" if fused else "no", figures, f"Wanted: {layers} BiasGelu, {2 * layers} SkipLayerNormalization."
    )


def copies(run):
    if not run.on_gpu:
        return Answer(4, NOT_ON_A_CPU)
    graph = optimized(run).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    found = [node for node in graph.node if node.op_type.startswith("Memcpy")]
    kinds = [types.get(node.input[0]) or types.get(node.output[0]) for node in found]
    listed = [f"{node.op_type} {node.input[0]} ({_type(kind)})" for node, kind in zip(found, kinds, strict=True)]
    warned = re.findall(r"\d+ Memcpy nodes? (?:are|is) added[^\n]*", run.printed)
    verdict = "no" if FLOATS & set(kinds) else "yes" if all(kinds) else "read the list: types unknown"
    figures = {"Memcpy nodes": len(found), "nodes": listed or "none", "ONNX Runtime says": warned or "nothing"}
    return Answer(4, verdict, figures)


def _type(kind):
    return onnx.TensorProto.DataType.Name(kind) if kind else "unknown type"


def optimized(run):
    return onnx.load(run.folder / "optimized.onnx", load_external_data=False)


def peaks(run):
    shape, figures, ratios = run.network.shape, {}, []
    for rows, tokens in run.network.memory_batches:
        computed, name = batch_bytes(shape, rows * tokens), f"{rows} x {tokens}"
        figures[f"{name}: computed, GB"] = computed / 1e9
        figures[f"{name}: computed with weights, GB"] = (computed + weight_bytes(shape)) / 1e9
        if not run.on_gpu:
            continue
        taken, _ = run.probe("memory", graph=run.graph, rows=rows, tokens=tokens)
        ratios.append(taken["batch_bytes"] / computed)
        figures[f"{name}: taken, GB"] = taken["batch_bytes"] / 1e9
        figures[f"{name}: taken, of computed"] = ratios[-1]
        figures[f"{name}: taken with weights, GB"] = taken["all_bytes"] / 1e9
        figures[f"{name}: seconds of the first run"] = taken["first_run_s"]
    if not run.on_gpu:
        note = "benchmarks/batch_memory.py compares the same arithmetic with a peak in fp32 on a CPU."
        return Answer(5, NOT_ON_A_CPU, figures, note)
    return Answer(5, "yes" if max(ratios) <= 1.2 else "no", figures, "Yes: at most 1.2 of what is computed.")


def speeds(run):
    network, calls = run.network, workloads(run.network)
    arrivals = {"rows_per_call": ROWS_PER_CALL[run.key], "arrival_seconds": ARRIVAL_SECONDS[run.key]}
    settings = {"workloads": calls, "most_rows": network.most_rows, "tokens": network.tokens}
    packed, _ = run.probe("packed", graph=run.graph, **settings, **arrivals)
    padded, note = attempt(run, "padded", graph=run.graphs / PADDED_FILE, **settings)
    peer, of_peer = attempt(run, "sentence_transformers", checkpoint=run.checkpoint, **settings)
    unpadded, of_unpadded = {}, ""
    if run.on_gpu:
        unpadded, of_unpadded = attempt(run, "varlen", checkpoint=run.checkpoint, workloads=calls)
    times, figures = packed["seconds"], {}
    others = {"padded graph": padded.get("seconds", {}), "sentence-transformers": peer.get("seconds", {})}
    others["sentence-transformers with its tokenizer"] = peer.get("predict_seconds", {})
    for kind, seconds in unpadded.get("seconds", {}).items():
        others[f"PyTorch without padding, {kind}"] = seconds
    for name, lengths in calls.items():
        label = f"{name} ({len(lengths)} rows, {sum(lengths)} tokens)"
        figures[f"{label}: packed, ms"] = times[name] * 1000
        figures[f"{label}: packed, tokens/s"] = round(sum(lengths) / times[name])
        figures |= {f"{label}: {other}, ms": each[name] * 1000 for other, each in others.items() if each}
    figures |= {f"tokens of {name} in that tokenizer": count for name, count in peer.get("predict_tokens", {}).items()}
    figures["packed, full batches without a pause, pairs/s"] = round(packed["offline_rows_per_s"])
    figures |= {f"arrivals, calls of {rows}, s": each for rows, each in packed["arrivals"].items()}
    p99 = {rows: each["p99"] for rows, each in packed["arrivals"].items()}
    run.bars = bars(run.gpu, times["one pair"], times["documents"], peer.get("seconds", {}).get("documents"), p99)
    where = "" if run.on_gpu else "Times of a CPU and a tiny network: they say that the script runs, and nothing else. "
    if unpadded:
        figures["PyTorch without padding: difference from transformers' own logits"] = unpadded["difference"]
    figures |= kernel_figures(run, run.graph, "packed")
    notes = [where + IN_PROCESS, note, of_peer, of_unpadded]
    return Answer(6, "measured" if run.on_gpu else NOT_ON_A_CPU, figures, "\n".join(filter(None, notes)))


def attempt(run, job, **settings):
    """The result of a job, empty if it failed, and a note that says so."""
    try:
        return run.probe(job, **settings)[0], ""
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {}, f"{job}: {error}"


def kernel_figures(run, graph, label, most=16):
    """The kernels that take longest for one call of documents."""
    if not run.on_gpu:
        return {}
    calls = {name: workloads(run.network)[name] for name in ("documents", "one pair")}
    result, note = attempt(run, "kernels", graph=graph, workloads=calls)
    if note:
        return {f"{label}: kernels": note}
    figures = {}
    for call, kernels in result["kernels"].items():
        figures[f"{label}: {call}: all kernels, ms"] = sum(ms for _, _, ms in kernels)
        figures[f"{label}: {call}: launches"] = sum(count for _, count, _ in kernels)
        figures |= {f"{label}: {call}: {count} x {name[:120]}, ms": ms for name, count, ms in kernels[:most]}
    return figures


def edges(run):
    network, figures = run.network, {}
    moved, _ = run.probe("noise", graph=run.graph, lengths=workloads(network)["documents of mixed lengths"])
    figures |= {f"a row's logit alone and beside others: {name}": value for name, value in moved.items()}
    most = most_tokens(network.shape.intermediate_size) if run.on_gpu else network.most_rows * network.longest
    batches = {"largest batch": (network.most_rows, min(network.longest, most // network.most_rows))}
    if run.on_gpu:
        rows, tokens = batches["largest batch"]
        batches["beyond it"] = (rows + rows // 8, tokens)
    right = True
    for name, (rows, tokens) in batches.items():
        found, note = attempt(run, "largest", graph=run.graph, rows=rows, tokens=tokens)
        figures[f"{name}, {rows} x {tokens}"] = note or found
        right &= name == "beyond it" or (bool(found) and found["worst"] <= TOLERANCE["fp16"])
    settings = {"most_rows": network.most_rows, "tokens": network.tokens, "seconds": ARRIVAL_SECONDS[run.key]}
    rates, _ = run.probe("instances", graph=run.graph, **settings)
    figures |= {f"full batches, {count} at once, rows/s": rate for count, rate in rates["rows_per_s"].items()}
    return Answer(7, ("yes" if right else "no") if run.on_gpu else NOT_ON_A_CPU, figures)


ASKED = (flash_attention, logits, fusions, copies, peaks, speeds, edges)


def ask(run, stem, facts):
    """Answer every question; one that fails is an answer too."""
    answers = []
    for number, question in enumerate(ASKED, start=1):
        started = time.monotonic()
        try:
            answers.append(question(run))
        except Exception as error:  # noqa: BLE001  # the report says what happened, and the other questions are asked
            traceback.print_exc()
            answers.append(Answer(number, "failed", note=f"{type(error).__name__}: {error}"))
        print(f"{number}. {answers[-1].verdict} ({time.monotonic() - started:.0f} s)", flush=True)
        write_report(stem, facts, answers, run.bars)
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stem", help="of the report: STEM.md and STEM.json")
    parser.add_argument("--network", choices=NETWORKS, default="v2-m3")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=570, help="the time for all of it (default: %(default)s)")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        provider = CUDA if options.provider == "cuda" else CPU
        run = Run(options.network, provider, Path(folder), started + options.seconds)
        facts = {"date": datetime.date.today().isoformat(), "network": run.network.name}
        try:
            facts |= run.probe("device")[0]
        except RuntimeError as error:
            raise SystemExit(str(error)) from error
        run.gpu = facts["gpu"]
        write_report(options.stem, facts, [], [])
        run.checkpoint, run.graphs = make_network(run.network, run.folder)
        facts["seconds to make the graphs"] = round(time.monotonic() - started, 1)
        print(f"graphs made ({facts['seconds to make the graphs']} s)", flush=True)
        answers = ask(run, options.stem, facts)
    verdicts = " ".join(f"q{answer.number}={answer.verdict.replace(' ', '_')}" for answer in answers)
    print(f"RESULT {verdicts} seconds={time.monotonic() - started:.0f}")
    return any(answer.verdict in ("no", "failed") for answer in answers)


if __name__ == "__main__":
    sys.exit(main())
