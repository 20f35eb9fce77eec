"""RabbitMQ: one node, eight quorum queues, publisher confirms, its official Go client.

A quorum queue confirms after its write-ahead log is flushed: class `disk`. There is no peer of it in `page cache`.
epmd is started here too, on a port of its own, so that none is left running.
"""

from base import PORT, Peer, debian, go_load


class RabbitMq(Peer):
    name = "rabbitmq"
    classes = {"disk": "quorum queues"}

    def install(self):
        version = debian("rabbitmq-server", "rabbitmq-server")
        go_load()
        return version

    def start(self, durability):
        self.address = f"127.0.0.1:{PORT}"
        epmd = {"ERL_EPMD_PORT": PORT + 1, "ERL_EPMD_ADDRESS": "127.0.0.1"}
        self.spawn(["epmd"], **epmd)
        (self.dir / "plugins").write_text("[].\n")
        (self.dir / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {self.address}\n")
        # The program itself: the wrapper in the PATH changes user and directories.
        self.spawn(
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"], HOME=self.dir, RABBITMQ_NODENAME="peers@localhost",
            RABBITMQ_MNESIA_BASE=self.dir / "data", RABBITMQ_LOG_BASE=self.dir / "log", RABBITMQ_DIST_PORT=PORT + 2,
            RABBITMQ_CONFIG_FILE=self.dir / "rabbitmq.conf", RABBITMQ_ENABLED_PLUGINS_FILE=self.dir / "plugins",
            RABBITMQ_CONF_ENV_FILE=self.dir / "none", **epmd,
        )

    def once(self):
        self.load("rabbitmq", "once")

    def produce(self, seconds):
        return self.load("rabbitmq", "produce", seconds)

    def latency(self, seconds):
        return self.load("rabbitmq", "latency", seconds)

    def consume(self, seconds):
        return self.load("rabbitmq", "consume", seconds)
