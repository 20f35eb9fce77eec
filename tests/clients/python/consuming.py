"""The scenarios that consume."""

import collections
import threading
import time

from rocketmq import ConsumeResult, FilterExpression, LitePushConsumer, MessageListener, PushConsumer, SimpleConsumer
from rocketmq.grpc_protocol import FilterType

from events import Countdown, emit, failure, now, stopped
from messages import report
from producing import configuration

PUSH_LINGER = 2


def expression(options):
    return FilterExpression(options.filter, FilterType.SQL if options.filter_type == "sql" else FilterType.TAG)


def consume_simple(options):
    consumer = SimpleConsumer(configuration(options), options.group)
    consumer.startup()
    consumer.subscribe(options.topic, expression(options))
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
                time.sleep(options.work / 1000)
                handle(consumer, options, countdown, message)

    for _ in range(options.threads):
        threading.Thread(target=receive_until_done, daemon=True).start()
    stopped.wait()
    emit("done")


def nack_attempts_of(options, message):
    return options.nack_attempts if int(message.properties["index"]) % options.nack_every == 0 else 0


def handle(consumer, options, countdown, message):
    began = now()
    try:
        if message.delivery_attempt <= options.ignore_attempts:
            return
        if message.delivery_attempt <= nack_attempts_of(options, message):
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
        self.options = options
        self.countdown = Countdown(options.count)
        self.tries = collections.Counter()

    def consume(self, message):
        report(message)
        time.sleep(self.options.work / 1000)
        nack_attempts = nack_attempts_of(self.options, message)
        if nack_attempts:
            # The FIFO consumer tries again by itself, and the attempt stays what the broker said.
            self.tries[message.message_id] += 1
            attempt = max(message.delivery_attempt, self.tries[message.message_id])
            if attempt <= nack_attempts:
                emit("nacked", id=message.message_id)
                return ConsumeResult.FAILURE
        emit("consumed", id=message.message_id)
        self.countdown.one()
        return ConsumeResult.SUCCESS


def run_push(options, consumer, subscribe=lambda: None):
    consumer.startup()
    subscribe()
    emit("ready")
    stopped.wait()
    # The client acknowledges after the listener returns.
    time.sleep(PUSH_LINGER if options.linger is None else options.linger)
    emit("done")


def consume_push(options):
    subscription = {options.topic: expression(options)}
    run_push(options, PushConsumer(configuration(options), options.group, Listener(options), subscription))


def consume_lite(options):
    consumer = LitePushConsumer(configuration(options), options.group, options.topic, Listener(options))

    def subscribe():
        for lite in options.lite_topics.split(","):
            try:
                consumer.subscribe_lite(lite)
                emit("subscribed", lite=lite)
            except Exception as error:
                emit("subscribe-failed", lite=lite, **failure(error))
        # This client announces a new lite topic letter by letter, and all of them as they are every 30 s, or by this.
        consumer.subscribe_lite_all()

    run_push(options, consumer, subscribe)
