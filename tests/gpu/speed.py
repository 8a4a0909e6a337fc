"""Times of the graphs on one card: calls alone, full batches without a pause, and random arrivals."""

import time
from functools import partial

import numpy as np

from gpu.networks import FIRST_PIECE, PIECES
from gpu.probe import full_rows, open_session

MOST_RUNS, MOST_SECONDS = 30, 1.5


def packed(settings):
    """Times of the packed graph, and its latencies under Poisson arrivals at 80 % of its own offline rate."""
    session = open_session(settings["graph"], settings["provider"])
    calls = {name: partial(session.run, None, full_rows(lengths)) for name, lengths in settings["workloads"].items()}
    times = {name: median_seconds(call) for name, call in calls.items()}
    most_rows, tokens = settings["most_rows"], settings["tokens"]
    rate = most_rows / times["full batch"]  # rows a second
    latencies = {}
    for rows_per_call in settings["rows_per_call"]:
        feeds = {
            calls: full_rows([tokens] * calls * rows_per_call) for calls in range(1, most_rows // rows_per_call + 1)
        }
        for feed in feeds.values():  # each size is new to CUDA's libraries
            session.run(None, feed)
        arrivals = poisson(0.8 * rate / rows_per_call, settings["arrival_seconds"])
        latencies[rows_per_call] = percentiles(
            queue(arrivals, lambda calls, feeds=feeds: session.run(None, feeds[calls]), max(feeds))
        )
    return {"seconds": times, "offline_rows_per_s": rate, "arrivals": latencies}


def padded(settings):
    """Times of the padded graph, in which each call is one rectangle."""
    session = open_session(settings["graph"], settings["provider"])
    return {
        "seconds": {
            name: median_seconds(partial(session.run, None, rectangle(lengths)))
            for name, lengths in settings["workloads"].items()
        }
    }


def rectangle(lengths):
    """Inputs of a padded network."""
    mask = (np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]).astype(np.int32)
    ids = np.random.default_rng(3).integers(FIRST_PIECE, PIECES, mask.shape, np.int32)
    return {"input_ids": np.where(mask, ids, 1).astype(np.int32), "attention_mask": mask}


def median_seconds(call):
    """Of up to `MOST_RUNS` runs, or as many as fit into `MOST_SECONDS`."""
    for _ in range(3):
        call()
    times, begun = [], time.perf_counter()
    while len(times) < MOST_RUNS and (len(times) < 3 or time.perf_counter() - begun < MOST_SECONDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def poisson(rate, seconds):
    """Times of arrivals, in seconds from the start."""
    gaps = np.random.default_rng(2).exponential(1 / rate, max(1, int(rate * seconds)))
    return np.cumsum(gaps)


def queue(arrivals, run, most_calls, clock=time.perf_counter, sleep=time.sleep):
    """Latencies of calls that wait until the card is free and are then run together, as Triton's batcher does.

    Args:
        arrivals: When each call arrives, in seconds from the start, ascending.
        run: Runs this many calls as one batch.
        most_calls: Of a batch.
    """
    begun, first, latencies = clock(), 0, []
    while first < len(arrivals):
        now = clock() - begun
        waiting = int(np.searchsorted(arrivals, now, side="right")) - first
        if waiting <= 0:
            sleep(max(0.0, float(arrivals[first]) - now))
            continue
        taken = min(waiting, most_calls)
        run(taken)
        finished = clock() - begun
        latencies += [finished - float(arrival) for arrival in arrivals[first : first + taken]]
        first += taken
    return latencies


def percentiles(latencies):
    """Seconds."""
    return {f"p{percent}": float(np.percentile(latencies, percent)) for percent in (50, 95, 99)} | {
        "calls": len(latencies)
    }
