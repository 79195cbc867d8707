"""A subject that holds no model: each row takes as long as told, so that bench can be tested without one."""

import json
import os
import sys
import time


def say(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(milliseconds: float, mode: str) -> None:
    if mode == "crash":
        sys.exit("no such model")
    say({"ready": True, "start_seconds": 0.01})
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
        say({"ns": [round(milliseconds * noise * 1e6) + row for row in asked["rows"]]})


if __name__ == "__main__":
    answer(float(sys.argv[1]), sys.argv[2])
