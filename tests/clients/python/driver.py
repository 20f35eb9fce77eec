"""Drives the official Python client for the scenarios of the test crate.

usage: driver.py SCENARIO --endpoint HOST:PORT [options]

Each line on stdout is one JSON object with `event` and `at` (milliseconds since 1970). The driver ends when its work is
done or when stdin ends. `tests/clients/java` understands the same words; `tests/src/driver.rs` is the other side.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message, MessageListener,
                      Producer, PushConsumer, SimpleConsumer)
from rocketmq.grpc_protocol import FilterType

COLOURS = ("red", "green", "blue")
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


def body_of(seed, index, size):
    """SHA-256 in counter mode over `seed:index`; the length follows from the same hash unless `size` is given."""
    root = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    length = size if size else 1 + int.from_bytes(root[:2], "big") % 2048
    blocks = (length + 31) // 32
    return b"".join(hashlib.sha256(root + n.to_bytes(4, "big")).digest() for n in range(blocks))[:length]


def message_of(topic, seed, index, size):
    message = Message()
    message.topic = topic
    message.body = body_of(seed, index, size)
    message.tag = COLOURS[index % 3]
    message.keys = f"key-{seed}-{index}"
    message.keys = f"seventh-{index % 7}"
    message.add_property("index", str(index))
    message.add_property("text", f"größe {index} 漢字 🚀")
    return message


def configuration(options):
    return ClientConfiguration(options.endpoint, Credentials())


def produce(options):
    producer = Producer(configuration(options), (options.topic,))
    producer.startup()
    emit("ready")
    lock = threading.Lock()
    following = iter(range(options.count)) if options.count else iter(range(1 << 62))

    def send_until_done():
        while not stopped.is_set():
            with lock:
                index = next(following, None)
            if index is None:
                return
            send_one(producer, options, index)
            stopped.wait(options.pause / 1000)

    run_threads(options.threads, send_until_done)
    emit("done")
    if not stopped.is_set():  # amid a crash the shutdown of a client can take for ever
        producer.shutdown()


def send_one(producer, options, index):
    """Sends the message of `index` until it is acknowledged. Each call of the client's `send` makes a new message id."""
    while True:
        message = message_of(options.topic, options.seed, index, options.size)
        began = now()
        try:
            receipt = producer.send(message)
            emit("sent", index=index, id=receipt.message_id, began=began)
            return
        except Exception as error:
            emit("failed", index=index, id=message.message_id, began=began, **failure(error))
            if stopped.wait(0.05):
                return


def run_threads(count, work):
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def report(message):
    body = message.body
    emit("message", id=message.message_id, topic=message.topic, tag=message.tag, keys=sorted(message.keys),
         properties=dict(message.properties), sha256=hashlib.sha256(body).hexdigest(), length=len(body),
         attempt=message.delivery_attempt, born=message.born_timestamp, corrupted=message.corrupted)


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


def consume_simple(options):
    consumer = SimpleConsumer(configuration(options), options.group)
    consumer.startup()
    consumer.subscribe(options.topic, FilterExpression(options.filter))
    emit("ready")
    countdown = Countdown(options.count)

    def receive_until_done():
        while not stopped.is_set():
            try:
                messages = consumer.receive(options.batch, options.invisible)
            except Exception as error:
                emit("receive-failed", **failure(error))
                stopped.wait(0.1)
                continue
            # All at once: when a message was delivered must not hang on how long the acknowledgements of others take.
            for message in messages:
                report(message)
            for message in messages:
                handle(consumer, options, countdown, message)

    for _ in range(options.threads):
        threading.Thread(target=receive_until_done, daemon=True).start()
    stopped.wait()
    emit("done")


def handle(consumer, options, countdown, message):
    began = now()
    try:
        if message.delivery_attempt <= options.ignore_attempts:
            return
        if message.delivery_attempt <= options.nack_attempts:
            consumer.change_invisible_duration(message, options.nack_delay)
            emit("nacked", id=message.message_id, began=began)
        else:
            consumer.ack(message)
            emit("acked", id=message.message_id, began=began)
            countdown.one()
    except Exception as error:
        emit("ack-failed", id=message.message_id, began=began, **failure(error))


class Listener(MessageListener):
    def __init__(self, options):
        self.nack_attempts = options.nack_attempts
        self.countdown = Countdown(options.count)

    def consume(self, message):
        report(message)
        if message.delivery_attempt <= self.nack_attempts:
            return ConsumeResult.FAILURE
        self.countdown.one()
        return ConsumeResult.SUCCESS


def consume_push(options):
    subscription = {options.topic: FilterExpression(options.filter)}
    consumer = PushConsumer(configuration(options), options.group, Listener(options), subscription)
    consumer.startup()
    emit("ready")
    stopped.wait()
    time.sleep(options.linger)  # the client acknowledges after the listener returns
    emit("done")


def send_raw(options):
    """One message with a body of `--size` bytes and user properties of `--property-bytes` bytes, nothing else."""
    producer = Producer(configuration(options), (options.topic,))
    producer.startup()
    message = Message()
    message.topic = options.topic
    message.body = body_of(options.seed, 0, options.size)
    for key, value in properties_of(options.property_bytes):
        message.add_property(key, value)
    attempt("send-raw", lambda: producer.send(message).message_id)
    emit("done")


def properties_of(total):
    """Properties whose keys and values together have `total` bytes."""
    properties = []
    while total > 0:
        key = f"p{len(properties):03}"
        length = min(1024, total - len(key))
        if 0 < total - len(key) - length <= len(key):
            length -= len(key)
        properties.append((key, "v" * length))
        total -= len(key) + length
    return properties


def attempt(name, action):
    try:
        emit("case", name=name, outcome="accepted", id=action())
    except Exception as error:
        emit("case", name=name, outcome="refused", **failure(error))


def bad_input(options):
    producer = Producer(configuration(options), (options.topic,))
    producer.startup()
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
    receive(options, "sql-filter", options.group, filter=FilterExpression("index = '1'", FilterType.SQL))
    receive(options, "consume-unknown-topic", options.group, topic=options.topic + "-unknown")
    emit("done")


def receive(options, name, group, topic=None, invisible=10, filter=FilterExpression()):
    def action():
        consumer = SimpleConsumer(configuration(options), group)
        consumer.startup()
        consumer.subscribe(topic or options.topic, filter)
        return str(len(consumer.receive(1, invisible)))
    attempt(name, action)


SCENARIOS = {"produce": produce, "consume-simple": consume_simple, "consume-push": consume_push,
             "send-raw": send_raw, "bad-input": bad_input}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group")
    parser.add_argument("--count", type=int, default=0, help="0: until stdin ends")
    parser.add_argument("--seed", default="seed")
    parser.add_argument("--size", type=int, default=0, help="bytes of the body; 0: follows from the seed")
    parser.add_argument("--property-bytes", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pause", type=int, default=0, help="milliseconds between two sends of a thread")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--invisible", type=int, default=30, help="seconds")
    parser.add_argument("--filter", default="*")
    parser.add_argument("--ignore-attempts", type=int, default=0, help="attempts neither acknowledged nor refused")
    parser.add_argument("--nack-attempts", type=int, default=0, help="attempts refused")
    parser.add_argument("--nack-delay", type=int, default=0, help="seconds, simple consumer only")
    parser.add_argument("--linger", type=int, default=2, help="seconds a push consumer lives on after its last message")
    options = parser.parse_args()
    threading.Thread(target=watch_stdin, daemon=True).start()
    try:
        SCENARIOS[options.scenario](options)
    except Exception as error:
        emit("fatal", **failure(error))
        sys.stdout.flush()
        os._exit(1)
    # The client's threads are not daemons and some of them sit in a long poll.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
