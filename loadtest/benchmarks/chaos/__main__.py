"""The command line of `benchmarks.chaos`."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import chaos
from benchmarks.chaos.callers import Callers, tell_models_apart
from benchmarks.chaos.events import EVENTS, Event
from benchmarks.chaos.figures import Happened, as_json, draw, faults, happened, result, table
from benchmarks.chaos.model import Model, made_model, searches_of
from benchmarks.chaos.stage import Stage, can_mount
from load.workload import Search

READY_TIMEOUT_S = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 if something happened that may not."""
    options = parse(arguments)
    searches = searches_of()
    events = chosen(options.event, own_shm := can_mount())
    seeds = (0, 1) if any(event.name == "roll" for event in events) else (0,)
    models = [made_model(seed, searches) for seed in seeds]
    tell_models_apart(models)
    return run(models, searches, events, options, own_shm=own_shm)


def run(
    models: Sequence[Model],
    searches: Sequence[Search],
    events: Sequence[Event],
    options: argparse.Namespace,
    *,
    own_shm: bool,
) -> int:
    """Let the events happen to servers of these models; the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    with Stage(models, options.out, own_shm=own_shm) as stage:
        with Callers(stage, searches, options.callers, options.calls_per_s) as callers:
            stage.wait_until_ready(READY_TIMEOUT_S)
            time.sleep(options.calm_s)
            done: list[Happened] = []
            for number, event in enumerate(events):
                done.append(let_happen(event, stage, callers, short=options.short))
                end_s = 60 * options.minutes * (number + 1) / len(events)
                time.sleep(max(options.calm_s, end_s - callers.now_s()))
                done[-1].until_s = callers.now_s()
        calls = sorted(callers.calls, key=lambda call: call.start_s)
    told = {name: str(value) for name, value in vars(options).items()}
    (options.out / "chaos.json").write_text(json.dumps(as_json(done, calls, told)), encoding="utf-8")
    draw(done, calls, options.out / "chaos.svg")
    print(table(done, calls))
    broken = faults(done, calls)
    for sentence in broken:
        print(f"error: {sentence}", file=sys.stderr)
    print(result(done, calls))
    return 1 if broken else 0


def let_happen(event: Event, stage: Stage, callers: Callers, *, short: bool) -> Happened:
    """One event, until every server is ready again."""
    begin_s = callers.now_s()
    print(f"{begin_s:6.1f} s  {event.name}: {event.title}", file=sys.stderr, flush=True)
    stage.notes = []
    event.begin(stage, callers)
    if event.end is not None:
        time.sleep(event.short_hold_s if short else event.hold_s)
        event.end(stage, callers)
    end_s = callers.now_s()
    if not stage.wait_until_ready(READY_TIMEOUT_S):
        stage.notes.append(f"not all servers were ready after {READY_TIMEOUT_S:.0f} s")
    return happened(event, begin_s, end_s, callers.now_s(), stage.notes)


def chosen(names: Sequence[str] | None, own_shm: bool) -> list[Event]:
    """The events to let happen, in the order of EVENTS."""
    events = [event for event in EVENTS if not names or event.name in names]
    for event in events:
        if event.needs_mount and not own_shm:
            print(f"{event.name} is left out: this user may not mount a /dev/shm for each server", file=sys.stderr)
    return [event for event in events if own_shm or not event.needs_mount]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [event.name for event in EVENTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=chaos.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of chaos.json, chaos.svg and logs")
    parser.add_argument(
        "--event", action="append", choices=names, metavar="NAME", help=f"repeatable (default: all): {', '.join(names)}"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="duration at least (default: %(default)g)")
    parser.add_argument("--callers", type=positive(int), default=4, help="of each kind (default: %(default)s)")
    parser.add_argument(
        "--calls-per-s", type=positive(float), default=16.0, help="of all callers (default: %(default)g)"
    )
    parser.add_argument("--calm-s", type=float, default=5.0, help="least time between events (default: %(default)g)")
    parser.add_argument("--short", action="store_true", help="hold faults for seconds, not for 20 s")
    return parser.parse_args(arguments)


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """The type of an option that is a number above 0."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return number

    return read


if __name__ == "__main__":
    sys.exit(main())
