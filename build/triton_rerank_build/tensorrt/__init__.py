"""From the installed ONNX graph to a TensorRT plan beside it: `triton-rerank-build engine`.

NVIDIA's program `trtexec` builds the plan. It is often in a container that has TensorRT and nothing of this project, so
the work has three steps with files between them:

1. `prepare` writes a working folder: the graph as TensorRT reads it (`graph`), rows to check for each optimization
   profile (`profiles`, `check`) and a bash script of `trtexec` commands (`trtexec`).
2. The script builds the plan and runs it once per profile.
3. `install` compares the plan's logits with the graph's, and moves the plan and the manifest into the repository.

`install.build_engine` does all three where `trtexec` is on PATH. NVIDIA's Python package of the same name is not used.
"""
