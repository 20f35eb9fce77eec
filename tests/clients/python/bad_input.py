"""What must be refused, as far as the client lets it through."""

import time

from rocketmq import FilterExpression, Message, SimpleConsumer
from rocketmq.grpc_protocol import FilterType

from events import attempt, emit
from messages import properties_of
from producing import configuration, started_producer


def bad_input(options):
    producer = started_producer(options)
    emit("ready")

    def send(name, topic=options.topic, properties=(), **attributes):
        def action():
            message = Message()
            message.topic = topic
            message.body = attributes.pop("body", b"x")
            for key, value in attributes.items():
                setattr(message, key, value)
            for key, value in properties:
                message.add_property(key, value)
            return producer.send(message).message_id
        attempt(name, action)

    send("unknown-topic", topic=options.topic + "-unknown")
    send("illegal-topic", topic="no.dots.allowed")
    send("long-topic", topic="t" * 128)
    send("system-topic", topic="rmq_sys_something")
    send("empty-body", body=b"")
    send("large-body", body=b"x" * (4 * 1024 * 1024 + 1))
    send("many-properties", properties=[(f"p{n}", "v") for n in range(129)])
    send("large-properties", properties=properties_of(16 * 1024 + 1))
    send("reserved-property", properties=[("KEYS", "v")])
    send("control-property", properties=[("a\u0001b", "v")])
    send("control-tag", tag="a\u0001b")
    send("control-key", keys="a\u0001b")
    send("fifo-on-normal", message_group="g")
    send("delay-on-normal", delivery_timestamp=int(time.time()) + 60)

    receive(options, "short-invisible", options.group, invisible=1)
    receive(options, "long-group", "g" * 121)
    receive(options, "system-group", "CID_RMQ_SYS_x")
    receive(options, "sql-filter", options.group, filter=FilterExpression("index = ", FilterType.SQL))
    receive(options, "consume-unknown-topic", options.group, topic=options.topic + "-unknown")
    emit("done")


def receive(options, name, group, topic=None, invisible=10, filter=FilterExpression()):
    def action():
        consumer = SimpleConsumer(configuration(options), group)
        consumer.startup()
        consumer.subscribe(topic or options.topic, filter)
        return str(len(consumer.receive(1, invisible)))
    attempt(name, action)
