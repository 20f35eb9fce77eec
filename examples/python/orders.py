"""Sends five orders and ships them: python orders.py 127.0.0.1:8081"""

import sys
import threading

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message, MessageListener,
                      Producer, PushConsumer)

TOPIC, GROUP, COUNT = "orders", "shipping", 5

sent = set()
shipped = set()
all_shipped = threading.Event()


class Shipping(MessageListener):
    """Called once for each message, on threads of the client; again, later, for one that was not a SUCCESS."""

    def consume(self, message):
        print(f"shipping {message.body.decode()}, attempt {message.delivery_attempt}", flush=True)
        shipped.add(message.message_id)
        if len(shipped) >= COUNT:
            all_shipped.set()
        return ConsumeResult.SUCCESS


configuration = ClientConfiguration(sys.argv[1], Credentials())
consumer = PushConsumer(configuration, GROUP, Shipping(), {TOPIC: FilterExpression("*")})
consumer.startup()
producer = Producer(configuration, (TOPIC,))
producer.startup()
try:
    for number in range(1, COUNT + 1):
        message = Message()
        message.topic = TOPIC
        message.tag = "books"
        message.keys = f"order-{number}"
        message.body = f"order {number}".encode()
        # Returns when the message is on disk; an error means that it may or may not be there.
        sent.add(producer.send(message).message_id)
    if not all_shipped.wait(timeout=60) or not sent <= shipped:
        sys.exit("not all orders came back within a minute")
    print("all orders are shipped", flush=True)
finally:
    producer.shutdown()
    consumer.shutdown()
