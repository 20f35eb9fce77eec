"""What is sent follows from a seed and an index alone, so that a test can say what must arrive."""

import hashlib

from rocketmq import Message

from events import emit, now

COLOURS = ("red", "green", "blue")


def body_of(seed, index, size):
    """SHA-256 in counter mode over `seed:index`; the length follows from the same hash unless `size` is given."""
    root = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    length = size if size else 1 + int.from_bytes(root[:2], "big") % 2048
    blocks = (length + 31) // 32
    return b"".join(hashlib.sha256(root + n.to_bytes(4, "big")).digest() for n in range(blocks))[:length]


def message_of(options, index):
    """Message `index`, and what its `sent` event says of its kind."""
    message = Message()
    message.topic = options.topic
    message.body = body_of(options.seed, index, options.size)
    message.tag = COLOURS[index % 3]
    message.keys = f"key-{options.seed}-{index}"
    message.keys = f"seventh-{index % 7}"
    message.add_property("index", str(index))
    message.add_property("text", f"größe {index} 漢字 🚀")
    kind = kind_of(options, index)
    if "seq" in kind:
        message.add_property("seq", str(kind["seq"]))
    if "group" in kind:
        message.message_group = kind["group"]
    if "lite" in kind:
        message.lite_topic = kind["lite"]
    if "priority" in kind:
        message.priority = kind["priority"]
    if "due" in kind:
        kind["due"] = -(-kind["due"] // 1000) * 1000  # the client knows whole seconds only
        message.delivery_timestamp = kind["due"] // 1000
    return message, kind


def kind_of(options, index):
    kind = {}
    if options.group_count:
        kind["group"] = f"g{index % options.group_count}"
        kind["seq"] = index // options.group_count
    if options.lite_count:
        kind["lite"] = f"l{index % options.lite_count}"
        kind["seq"] = index // options.lite_count
    if options.priority:
        kind["priority"] = 1 + index % options.priority  # 0 is "none" to some clients
    if options.delay or options.delay_spread:
        spread = index * 7919 % options.delay_spread if options.delay_spread else 0
        kind["due"] = now() + options.delay + spread
    return kind


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


def report(message):
    body = message.body
    seq = message.properties.get("seq")
    # What is not set reads as 0 in this client.
    emit("message", id=message.message_id, topic=message.topic, tag=message.tag, keys=sorted(message.keys),
         properties=dict(message.properties), sha256=hashlib.sha256(body).hexdigest(), length=len(body),
         attempt=message.delivery_attempt, born=message.born_timestamp, corrupted=message.corrupted,
         group=message.message_group, seq=int(seq) if seq else None, due=message.delivery_timestamp or None,
         priority=message.priority or None, lite=message.lite_topic)
