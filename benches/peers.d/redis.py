"""Redis Streams: one server with an append-only file, XADD pipelined over four connections.

`appendfsync everysec` (its advice) answers from memory and flushes once a second; `always` flushes before it answers,
once for all that a turn of its event loop has taken. Snapshots are off, rewriting of the file too: neither is in the
others' figures. Everything stays in memory, which bounds what it can hold, but not its speed here.
"""

from base import PORT, Peer, debian, go_load


class Redis(Peer):
    name = "redis"
    classes = {"page cache": "appendfsync everysec", "disk": "appendfsync always"}

    def install(self):
        version = debian("redis-server", "redis-server")
        go_load()
        return version

    def start(self, durability):
        self.address = f"127.0.0.1:{PORT}"
        sync = {"page cache": "everysec", "disk": "always"}[durability]
        self.spawn(["redis-server", "--bind", "127.0.0.1", "--port", str(PORT), "--dir", self.dir, "--save", "", "--appendonly", "yes",
                    "--appendfsync", sync, "--auto-aof-rewrite-percentage", "0", "--daemonize", "no"])

    def once(self):
        self.load("redis", "once")

    def produce(self, seconds):
        return self.load("redis", "produce", seconds)

    def latency(self, seconds):
        return self.load("redis", "latency", seconds)

    def consume(self, seconds):
        return self.load("redis", "consume", seconds)
