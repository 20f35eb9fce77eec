"""Apache RocketMQ: namesrv, and broker + proxy in one JVM ("LOCAL" mode, its fastest), loaded by the same program as Karman.

Heaps of 4 GiB and 512 MiB, G1: with less the garbage collector shows in the figures. ASYNC_FLUSH is its default and
leaves messages to the page cache as Karman's class memory does; SYNC_FLUSH answers after the flush as class disk does.
Its timeout of queued requests (200 ms) answers TOO_MANY_REQUESTS while the JVM is cold: hence the warm-up.
"""

import json

from base import PORT, copy_jars
from karman import Karman

VERSION = "5.5.0"
# What its own start scripts open for JDK 17.
OPENS = [f"--add-opens=java.base/{p}=ALL-UNNAMED" for p in ("java.nio", "sun.nio.ch", "java.util", "jdk.internal.ref")]
EXPORTS = [f"--add-exports=java.base/{p}=ALL-UNNAMED" for p in ("sun.nio.ch", "jdk.internal.ref", "sun.security.action")]


class RocketMq(Karman):
    """Sends, batches, latency and receive + ack are Karman's: the protocol is the same."""

    name = "rocketmq"
    classes = {"page cache": "ASYNC_FLUSH (its default)", "disk": "SYNC_FLUSH"}
    warm_seconds = 10

    def install(self):
        parts = ("namesrv", "broker", "proxy")
        self.jars = copy_jars("rocketmq", *(f"org.apache.rocketmq:rocketmq-{part}:{VERSION}" for part in parts))
        return VERSION

    def start(self, durability):
        self.address = f"127.0.0.1:{PORT}"
        namesrv = f"127.0.0.1:{PORT + 1}"
        config = self.dir / "store" / "config"
        config.mkdir(parents=True)
        # The topics are there from the start as Karman's are: eight queues, of type NORMAL.
        topic = {"perm": 6, "readQueueNums": 8, "writeQueueNums": 8, "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0,
                 "order": False, "attributes": {"message.type": "NORMAL"}}
        table = {name: {"topicName": name, **topic} for name in ("bench", "latency")}
        (config / "topics.json").write_text(json.dumps({"topicConfigTable": table}))
        # LOCAL mode refuses a consumer whose group is not there, although auto-creation is on.
        groups = {name: {"groupName": name} for name in ("bench", "bench-latency")}
        (config / "subscriptionGroup.json").write_text(json.dumps({"subscriptionGroupTable": groups}))
        conf = self.dir / "conf"
        conf.mkdir()
        flush = {"page cache": "ASYNC_FLUSH", "disk": "SYNC_FLUSH"}[durability]
        (conf / "broker.conf").write_text(
            f"brokerClusterName=DefaultCluster\nbrokerName=broker-a\nbrokerId=0\nbrokerRole=ASYNC_MASTER\n"
            f"brokerIP1=127.0.0.1\nlistenPort={PORT + 10}\nnamesrvAddr={namesrv}\nflushDiskType={flush}\n"
            f"storePathRootDir={self.dir}/store\nautoCreateSubscriptionGroup=true\n"
        )
        (conf / "namesrv.conf").write_text(f"listenPort={PORT + 1}\n")
        proxy = {"rocketMQClusterName": "DefaultCluster", "grpcServerPort": PORT, "remotingListenPort": PORT + 2,
                 "namesrvAddr": namesrv, "localServeAddr": "127.0.0.1"}
        (conf / "rmq-proxy.json").write_text(json.dumps(proxy))
        home = {"ROCKETMQ_HOME": self.dir, "NAMESRV_ADDR": namesrv}
        java = ["java", "-XX:+UseG1GC", "-Drocketmq.client.logUseSlf4j=true", f"-Duser.home={self.dir}", *OPENS, *EXPORTS]
        self.spawn([*java, "-Xms512m", "-Xmx512m", "-cp", self.jars,
                    "org.apache.rocketmq.namesrv.NamesrvStartup", "-c", conf / "namesrv.conf"], **home)
        self.spawn([*java, "-Xms4g", "-Xmx4g", f"-Dcom.rocketmq.proxy.configPath={conf}/rmq-proxy.json", "-cp", self.jars,
                    "org.apache.rocketmq.proxy.ProxyStartup", "-pm", "local", "-bc", conf / "broker.conf",
                    "-pc", conf / "rmq-proxy.json"], **home)

    def once(self):
        arguments = ("--connections", "1", "--inflight", "1", "--seconds", "1")
        self.bench("produce", *arguments)
