"""What a driver says: one JSON object per line on stdout. And when it ends: `stopped`."""

import json
import sys
import threading
import time

output = threading.Lock()
stopped = threading.Event()


def now():
    return time.time_ns() // 1_000_000


def emit(event, **fields):
    line = json.dumps({"event": event, "at": now(), **fields})
    with output:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def watch_stdin():
    sys.stdin.buffer.read()
    stopped.set()


def failure(error):
    code = getattr(error, "code", None)
    if callable(code):  # grpc.RpcError: a transport failure, not an answer of the server
        code = None
    return {"code": code, "message": str(error), "error": type(error).__name__}


def attempt(name, action):
    try:
        emit("case", name=name, outcome="accepted", id=action())
    except Exception as error:
        emit("case", name=name, outcome="refused", **failure(error))


def run_threads(count, work):
    """Runs `work` with the number of its thread, from 0, on `count` threads until all have ended."""
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Countdown:
    """Sets `stopped` when `count` messages are acknowledged; never when `count` is 0."""

    def __init__(self, count):
        self.left = count
        self.endless = count == 0
        self.lock = threading.Lock()

    def one(self):
        with self.lock:
            self.left -= 1
            if self.left == 0 and not self.endless:
                stopped.set()
