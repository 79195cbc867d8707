"""A subject that holds no model: each row takes as long as told, so that bench can be tested without one.

Modes: `work` says how long a row would take, `sleep` takes it, `slow start` says that its first calls took ten times as
long, `late` takes ten times as long as it says; the others misbehave.
"""

import json
import os
import sys
import time

FIRST_SLOW = 5


def say(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(milliseconds: float, mode: str) -> None:
    if mode == "crash":
        sys.exit("no such model")
    say({"ready": True, "start_seconds": 0.01})
    calls = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("quit"):
            return
        if mode == "hang":
            time.sleep(60)
        if mode == "garbage":
            sys.stdout.write("hello\n")
            sys.stdout.flush()
            continue
        if mode == "affinity":
            milliseconds = float(len(os.sched_getaffinity(0)))
        noise = 1 + 0.01 * ((asked["round"] * 7919) % 5)
        work = asked["work"]
        size = work["batch"] * (2 if work["end_to_end"] else 1)
        taken = [round(size * milliseconds * noise * 1e6) + row for row in asked["rows"]]
        if mode == "slow start":
            taken = [ns * (10 if calls + place < FIRST_SLOW else 1) for place, ns in enumerate(taken)]
        if mode in ("sleep", "late"):
            time.sleep((10 if mode == "late" and len(taken) == 1 else 1) * milliseconds * size * len(taken) / 1e3)
        calls += len(taken)
        say({"ns": taken})


if __name__ == "__main__":
    answer(float(sys.argv[1]), sys.argv[2])
