"""Karman itself: `karman dev`, a namesrv and a broker in one process, all defaults but the durability."""

from base import KARMAN, PORT, Failed, Peer, run, TARGET


class Karman(Peer):
    name = "karman"
    classes = {"page cache": "class memory", "disk": "class disk"}

    def install(self):
        if not KARMAN.exists():
            raise Failed("build it first: cargo build --release -p karman (or set KARMAN)")
        return run([KARMAN, "--version"], TARGET / "install.log").split()[-1]

    def start(self, durability):
        self.address = f"127.0.0.1:{PORT}"
        self.spawn([
            KARMAN, "dev", "--data", self.dir / "data", "--durability", {"page cache": "memory", "disk": "disk"}[durability],
            "--grpc", self.address, "--namesrv", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
            "--topic", "bench:normal:8", "--topic", "latency:normal:8",
        ])

    def once(self):
        self.karman("message", "send", "bench", "--body", "x", timeout=10)

    def produce(self, seconds):
        return self.bench("produce", "--connections", "4", "--inflight", "64", "--seconds", str(seconds))

    def batch(self, seconds):
        # The shape that carried RocketMQ furthest: one connection, 32 requests of 32.
        return self.bench("produce", "--connections", "1", "--inflight", "32", "--batch", "32", "--seconds", str(seconds))

    def latency(self, seconds):
        # A topic of its own, so that nothing older has to be read away.
        return self.bench("latency", "--rate", "2000", "--seconds", str(seconds), topic="latency")

    def consume(self, seconds):
        return self.bench("consume", "--seconds", str(seconds))
