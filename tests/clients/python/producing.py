"""The scenarios that send."""

import threading

from rocketmq import ClientConfiguration, Credentials, Message, Producer, TransactionChecker, TransactionResolution
from rocketmq.grpc_protocol import Code

from events import attempt, emit, failure, now, run_threads, stopped
from messages import body_of, message_of, properties_of

RESOLUTIONS = {"commit": TransactionResolution.COMMIT, "rollback": TransactionResolution.ROLLBACK,
               "unknown": TransactionResolution.TRANSACTION_RESOLUTION_UNSPECIFIED}


def configuration(options):
    return ClientConfiguration(options.endpoint, Credentials(options.access_key, options.secret_key))


def started_producer(options, checker=None):
    producer = Producer(configuration(options), (options.topic,), checker)
    producer.startup()
    return producer


def produce(options):
    producer = started_producer(options)
    emit("ready")
    send_all(options, lambda index: send_one(producer, options, index))
    emit("done")
    if not stopped.is_set():  # amid a crash the shutdown of a client can take for ever
        producer.shutdown()


def send_all(options, send):
    """Calls `send` with each index, on several threads. A message group, or a lite topic, belongs to one thread."""
    lanes = options.group_count or options.lite_count
    limit = options.count or 1 << 62
    shared = iter(range(limit))
    lock = threading.Lock()

    def next_shared():
        with lock:
            return next(shared, None)

    def run(thread):
        own = (index for index in range(limit) if index % lanes % options.threads == thread) if lanes else None
        while not stopped.is_set():
            index = next(own, None) if lanes else next_shared()
            if index is None:
                return
            send(index)
            stopped.wait(options.pause / 1000)

    run_threads(min(options.threads, lanes) if lanes else options.threads, run)


def send_one(producer, options, index):
    """Sends the message of `index` until it is acknowledged. Each call of the client's `send` makes a new message id."""
    while True:
        message, kind = message_of(options, index)
        began = now()
        try:
            receipt = producer.send(message)
            if receipt.recall_handle:
                kind["handle"] = receipt.recall_handle
            emit("sent", index=index, id=receipt.message_id, began=began, **kind)
            return receipt
        except Exception as error:
            emit("failed", index=index, id=message.message_id, began=began, **kind, **failure(error))
            if stopped.wait(0.05):
                return None


def decision_of(options, index):
    pattern = options.decide.split(",")
    return pattern[index % len(pattern)]


class Checker(TransactionChecker):
    def __init__(self, options):
        self.options = options

    def check(self, message):
        index = int(message.properties["index"])
        decision = decision_of(self.options, index)
        if decision == "unknown":
            decision = self.options.check_decide
        emit("checked", index=index, id=message.message_id, decision=decision)
        return RESOLUTIONS[decision]


def transaction(options):
    producer = started_producer(options, Checker(options))
    emit("ready")
    send_all(options, lambda index: send_half(producer, options, index))
    stopped.wait(options.linger)
    emit("done")


def send_half(producer, options, index):
    """Sends the half message of `index` until it is acknowledged, and ends its transaction, once."""
    decision = decision_of(options, index)
    while True:
        message, _ = message_of(options, index)
        began = now()
        try:
            begun = producer.begin_transaction()
            receipt = producer.send(message, begun)
            emit("sent", index=index, id=receipt.message_id, began=began, decision=decision)
            break
        except Exception as error:
            emit("failed", index=index, id=message.message_id, began=began, **failure(error))
            if stopped.wait(0.05):
                return
    if decision == "unknown":
        return
    facts = {"index": index, "id": receipt.message_id, "decision": decision, "began": now()}
    try:
        begun.commit() if decision == "commit" else begun.rollback()
        emit("ended", **facts)
    except Exception as error:
        emit("end-failed", **facts, **failure(error))


def recall(options):
    options.delay = options.delay or 60_000
    producer = started_producer(options)
    emit("ready")

    def send_and_recall(index):
        receipt = send_one(producer, options, index)
        if receipt is None or stopped.wait(options.recall_wait / 1000):
            return
        for _ in range(2 if options.recall_twice else 1):
            facts = {"index": index, "began": now()}
            try:
                id = producer.recall_message(options.topic, receipt.recall_handle)
                if id:
                    emit("recalled", id=id, outcome="accepted", **facts)
                else:  # this client's way to say: not found
                    emit("recalled", id=receipt.message_id, outcome="refused", code=int(Code.MESSAGE_NOT_FOUND), **facts)
            except Exception as error:
                emit("recalled", id=receipt.message_id, outcome="refused", **facts, **failure(error))

    send_all(options, send_and_recall)
    emit("done")


def send_raw(options):
    """One message with a body of `--size` bytes and user properties of `--property-bytes` bytes, nothing else."""
    producer = started_producer(options)
    message = Message()
    message.topic = options.topic
    message.body = body_of(options.seed, 0, options.size)
    for key, value in properties_of(options.property_bytes):
        message.add_property(key, value)
    attempt("send-raw", lambda: producer.send(message).message_id)
    emit("done")
