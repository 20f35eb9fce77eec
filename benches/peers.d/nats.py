"""NATS JetStream: one server, a stream kept in files, its official Go client.

It writes to the page cache and flushes every two minutes (its default); `sync_interval: always` flushes before the
answer. JetStream has one log for the stream: eight subjects stand for the queues.
"""

import os

from base import PORT, TARGET, Peer, go_load, run

VERSION = "v2.15.2"


class Nats(Peer):
    name = "nats"
    classes = {"page cache": "default", "disk": "sync_interval: always"}

    def install(self):
        if not (TARGET / "bin" / "nats-server").exists():
            command = ["go", "install", f"github.com/nats-io/nats-server/v2@{VERSION}"]
            run(command, TARGET / "install.log", env={**os.environ, "GOBIN": str(TARGET / "bin")})
        go_load()
        return VERSION

    def start(self, durability):
        self.address = f"127.0.0.1:{PORT}"
        sync = "sync_interval: always, " if durability == "disk" else ""
        config = self.dir / "nats.conf"
        config.write_text(f'listen: "{self.address}"\njetstream: {{ {sync}store_dir: "{self.dir}/data", max_file_store: 60GB }}\n')
        self.spawn([TARGET / "bin" / "nats-server", "-c", config])

    def once(self):
        self.load("nats", "once")

    def produce(self, seconds):
        return self.load("nats", "produce", seconds)

    def latency(self, seconds):
        return self.load("nats", "latency", seconds)

    def consume(self, seconds):
        return self.load("nats", "consume", seconds)
