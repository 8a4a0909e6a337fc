"""Speaks the command line of NVIDIA's trtexec where there is no GPU: the plan it "builds" names the graph.

It takes only options that `trtexec --help` of TensorRT 10.5 lists, checks shapes as TensorRT does, and computes with
ONNX Runtime. `FAKE_TRTEXEC=fail` ends a build with an error, `=wrong` computes other logits, `=nan` no numbers.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

# The options of trtexec's help text that this project uses.
OPTIONS = {
    "--onnx", "--saveEngine", "--loadEngine", "--stronglyTyped", "--noTF32", "--skipInference", "--timingCacheFile",
    "--profile", "--minShapes", "--optShapes", "--maxShapes", "--useProfile", "--shapes", "--loadInputs",
    "--exportOutput", "--warmUp", "--duration", "--iterations", "--fp16", "--verbose", "--memPoolSize",
    "--builderOptimizationLevel", "--precisionConstraints", "--layerPrecisions", "--layerOutputTypes",
}  # fmt: skip


def main():
    mode = os.environ.get("FAKE_TRTEXEC")
    words = [argument.partition("=") for argument in sys.argv[1:]]
    unknown = {name for name, _, _ in words} - OPTIONS
    assert not unknown, f"trtexec has no options {unknown}"
    options = {name: value for name, _, value in words}
    if "--onnx" in options:
        sys.stdout.write("&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18]\n[I] Selected Device: NVIDIA L4\n")
        if mode == "fail":
            sys.exit("&&&& FAILED TensorRT.trtexec [TensorRT v100500]")
        build(words, options)
    else:
        check(options, mode)


def build(words, options):
    model = onnx.load(options["--onnx"])  # with its weights
    refuse(model)
    profiles = []
    for name, _, value in words:
        if name == "--profile":
            assert int(value) == len(profiles)
            profiles.append({})
        elif name.endswith("Shapes"):
            profiles[-1][name] = shapes(value)
    for profile in profiles:
        for name in ("input_ids", "attention_mask"):
            low, best, high = (profile[f"--{bound}Shapes"][name] for bound in ("min", "opt", "max"))
            assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)), profile
    Path(options["--timingCacheFile"]).write_text("timings")
    plan = {"graph": str(Path(options["--onnx"]).resolve()), "profiles": profiles}
    Path(options["--saveEngine"]).write_text(json.dumps(plan))


def refuse(model):
    """What TensorRT 10's parser does not read."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "CumSum":
            assert types[node.input[0]] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16), "CumSum takes floats"
        if node.op_type == "Shape":
            assert not node.attribute, "start and end are ignored"
        if node.op_type == "MatMul":
            assert types.get(node.output[0]) != onnx.TensorProto.INT32, "MatMul takes floats"


def check(options, mode):
    plan = json.loads(Path(options["--loadEngine"]).read_text())
    profile = plan["profiles"][int(options["--useProfile"])]
    wanted = shapes(options["--shapes"])
    feed = {}
    for item in options["--loadInputs"].split(","):
        name, _, file = item.partition(":")
        low, high = profile["--minShapes"][name], profile["--maxShapes"][name]
        assert all(a <= b <= c for a, b, c in zip(low, wanted[name], high, strict=True))
        feed[name] = np.fromfile(file, np.int32).reshape(wanted[name])
    (logits,) = onnxruntime.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"]).run(None, feed)
    if mode == "wrong":
        logits = logits[::-1]
    values = " ".join(f"{value}," for value in logits.ravel()).rstrip(",")
    if mode == "nan":
        values = values.replace(values.split(",")[0], "-nan", 1)
    # As sampleReporting.cpp writes it.
    text = f'[\n  {{ "name" : "logits"\n  , "dimensions" : "{len(logits)}x1"\n  , "values" : [ {values} ]\n  }}\n]\n'
    Path(options["--exportOutput"]).write_text(text)


def shapes(spec):
    return {
        name: tuple(map(int, shape.split("x"))) for name, _, shape in (item.partition(":") for item in spec.split(","))
    }


if __name__ == "__main__":
    main()
