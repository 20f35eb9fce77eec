"""Apache Kafka: one KRaft node, acks=all, loaded by its own ProducerPerformance and ConsumerPerformance.

Its default leaves records to the page cache; flush.messages=1 makes each append to a partition wait for its flush.
Its producer has no limit of sends under way, only of bytes: buffer.memory of 320 KiB holds about 256 records of 1 KiB
beside their batches, the 4 × 64 of the others; linger.ms=0 sends at once what waits. "Batches" is its default
producer (linger 5 ms, 32 MiB of buffer). ProducerPerformance tells whole milliseconds. It sends a number of records,
not for a time: the number comes from the rate of the warm-up.
"""

import re

from base import PORT, Peer, copy_jars, run

VERSION = "4.3.1"
SAID = re.compile(r"(\d+) records sent, ([\d.]+) records/sec .*?(\d+) ms 50th, \d+ ms 95th, (\d+) ms 99th")


class Kafka(Peer):
    name = "kafka"
    classes = {"page cache": "default", "disk": "flush.messages=1"}
    warm_seconds = 8

    def install(self):
        coordinates = (f"org.apache.kafka:kafka_2.13:{VERSION}", f"org.apache.kafka:kafka-tools:{VERSION}")
        self.jars = copy_jars("kafka", *coordinates)
        return VERSION

    def java(self, main, *arguments, heap="512m"):
        return ["java", "-XX:+UseG1GC", f"-Xmx{heap}", "-cp", self.jars, main, *arguments]

    def start(self, durability):
        self.address, controller = f"127.0.0.1:{PORT}", f"127.0.0.1:{PORT + 1}"
        self.rate = 1000  # until the warm-up has told a better one
        flush = "log.flush.interval.messages=1\n" if durability == "disk" else ""
        config = self.dir / "server.properties"
        config.write_text(
            f"process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{controller}\n"
            f"listeners=PLAINTEXT://{self.address},CONTROLLER://{controller}\nadvertised.listeners=PLAINTEXT://{self.address}\n"
            f"controller.listener.names=CONTROLLER\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n"
            f"log.dirs={self.dir}/data\nnum.partitions=8\noffsets.topic.replication.factor=1\n"
            f"transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n"
            # The share coordinator's topic is made on demand too; one node is enough for it.
            f"share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n{flush}"
        )
        # Formatting belongs to the first start, as making the data directory does elsewhere.
        run(self.java("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", config), self.raw)
        self.spawn(self.java("kafka.Kafka", config, heap="1g"))

    def send(self, records, *properties, throughput=-1):
        command = self.java(
            "org.apache.kafka.tools.ProducerPerformance", "--topic", "bench", "--num-records", str(records), "--record-size", "1024",
            "--throughput", str(throughput), "--producer-props", f"bootstrap.servers={self.address}", "acks=all", *properties,
        )
        said = SAID.findall(run(command, self.raw, timeout=120))[-1]
        return {"messages": int(said[0]), "messages_per_second": float(said[1]), "p50_us": int(said[2]) * 1000, "p99_us": int(said[3]) * 1000}

    def once(self):
        # The topic is made by the first send, with eight partitions.
        self.send(1, "max.block.ms=30000")

    def produce(self, seconds):
        figures = self.send(max(1000, int(self.rate * seconds)), "linger.ms=0", "buffer.memory=327680")
        self.rate = figures["messages_per_second"]
        return figures

    def batch(self, seconds):
        return self.send(max(5_000, int(self.rate * 2 * seconds)))

    def latency(self, seconds):
        # No tool of its own tells the time to a consumer at a rate: the send alone, without a consumer.
        return self.send(2000 * seconds, "linger.ms=0", throughput=2000)

    def consume(self, seconds):
        records = str(int(self.rate * seconds))
        command = self.java(
            "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", self.address, "--topic", "bench",
            "--messages", records, "--group", "bench", "--hide-header",
        )
        cells = [line for line in run(command, self.raw, timeout=120).splitlines() if line.count(",") == 9][-1].split(",")
        return {"messages": int(cells[4]), "messages_per_second": float(cells[9])}
