"""What the packed graph does at its edges: a row alone and beside others, the largest batch, two instances at once."""

import threading
import time

import numpy as np

from gpu.probe import full_rows, open_session


def noise(settings):
    """How far a row's logit moves with what is computed beside it."""
    session = open_session(settings["graph"], settings["provider"])
    alone = logits_alone(session, settings["lengths"], range(len(settings["lengths"])))
    (together,) = session.run(None, full_rows(settings["lengths"]))
    moved = np.abs(together.ravel() - alone)
    return {"worst": float(moved.max()), "median": float(np.median(moved)), "deviation": float(alone.std())}


def largest(settings):
    """The first and last rows of a batch of equal rows beside themselves alone, and what the batch takes."""
    session = open_session(settings["graph"], settings["provider"])
    lengths = [settings["tokens"]] * settings["rows"]
    picked = [0, 1, settings["rows"] // 2, settings["rows"] - 1]
    alone = logits_alone(session, lengths, picked)
    started = time.perf_counter()
    (together,) = session.run(None, full_rows(lengths))
    seconds = time.perf_counter() - started
    found = together.ravel()
    worst = float(np.abs(found[picked] - alone).max()) if np.isfinite(found).all() else float("inf")
    return {"worst": worst, "seconds": seconds, "deviation": float(found.std())}


def logits_alone(session, lengths, picked):
    """Logits of these rows, each in a batch of its own."""
    feed = full_rows(lengths)
    ends = np.cumsum(lengths)
    found = []
    for row in picked:
        part = slice(ends[row] - lengths[row], ends[row])
        alone = {name: array[part] for name, array in feed.items() if name != "row_length"}
        (logits,) = session.run(None, alone | {"row_length": feed["row_length"][row : row + 1]})
        found.append(float(logits[0, 0]))
    return np.array(found)


def instances(settings):
    """Rows a second of full batches in one session, and in two at once, as `instance_group count: 2` runs them."""
    feed = full_rows([settings["tokens"]] * settings["most_rows"])
    sessions = [open_session(settings["graph"], settings["provider"]) for _ in range(2)]
    found = {}
    for count in (1, 2):
        finished, begun = [0] * count, threading.Barrier(count + 1)

        def work(index, finished=finished, begun=begun):
            for _ in range(3):
                sessions[index].run(None, feed)
            begun.wait()
            ends = time.perf_counter() + settings["seconds"]
            while time.perf_counter() < ends:
                sessions[index].run(None, feed)
                finished[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        begun.wait()
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        found[count] = sum(finished) * settings["most_rows"] / (time.perf_counter() - started)
    return {"rows_per_s": found}
