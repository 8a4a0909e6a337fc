"""What callers see while parts of a reranker die: `PYTHONPATH=loadtest python -m benchmarks.chaos --out FOLDER`.

Three servers of a tiny model, each behind a TCP proxy, a gateway in front of all three, and callers of both kinds:
threads that share one `RerankClient`, and threads that call the gateway over HTTP. While they call, the events of
`events.py` happen one after another. Every answer is compared with the logits that transformers computes in PyTorch.

An answer is wrong if its scores are not those of a model that was served during the call, or not those of the model
whose version it names; `model_info` of each server tells which model a version is. A call is lost if it ends in
an error other than overload. Refusals for overload are counted apart, and no event but `overload` may cause one; that
event in turn may cause no other error. After each event the next one waits until every server scores a pair again: the
time that this takes is `recovered_s`. A fault that is held, such as a process that is stopped for 20 s, counts from its
end.

Calls, events and figures go to FOLDER/chaos.json, a plot to FOLDER/chaos.svg. The exit status is 1 if a call is lost or
wrong, or if an event has an outcome that it may not have.

Needs Linux with util-linux. Each server has a /dev/shm of its own, which `full-shm` fills: that needs the right to
mount, which root has; without it the event is left out, and the output says so.
"""
