"""Drives the official Python client for the scenarios of the test crate.

usage: driver.py SCENARIO --endpoint HOST:PORT --topic TOPIC [--name value]...

Each line on stdout is one JSON object with `event` and `at` (milliseconds since 1970). The driver ends when its work is
done or when stdin ends. The drivers of the other clients, `tests/clients/*`, understand the same words as far as their
client has the feature, and answer the event `unsupported` otherwise; `tests/src/driver.rs` is the other side.

Scenarios and what they report, beside `ready` (the client has started), `done`, and `fatal` (it could not start):

  produce         `sent` or `failed` for each try. `failed` is tried again, with a new message id.
  produce-batch   the same with `--batch` messages in each call; `failed` is not tried again.
  transaction     `sent`; `ended` or `end-failed` for each commit and rollback; `checked` when the server asks back.
                  Answers the questions of the server until stdin ends, or for `--linger` seconds after the last send.
  recall          `sent`, then `recalled` with the outcome `accepted` or `refused`.
  consume-simple  `message` for each delivery, `acked`, `nacked` or `ack-failed`, `receive-failed`.
  consume-push    `message` for each call of the listener, then `nacked` (it returned a failure) or `consumed`.
  consume-lite    the same of a lite push consumer, whose bind topic is the topic; `subscribed` or `subscribe-failed`
                  for each lite topic.
  send-raw        one `case`: one message as large as told.
  bad-input       a `case` for each thing that must be refused.

Fields: `id`, `index`, `began` (when a call began), `code`, `message` and `error` of what failed, and of a message
`group` (its message group), `seq` (its running number within its message group or lite topic, which is a property, too),
`due` (its delivery time), `priority`, `lite`, `handle` (for recalling it), `decision`.
"""

import argparse
import os
import sys
import threading

from bad_input import bad_input
from consuming import consume_lite, consume_push, consume_simple
from events import emit, failure, watch_stdin
from producing import produce, recall, send_raw, transaction

SCENARIOS = {"produce": produce, "transaction": transaction, "recall": recall, "consume-simple": consume_simple,
             "consume-push": consume_push, "consume-lite": consume_lite, "send-raw": send_raw, "bad-input": bad_input}
UNSUPPORTED = ["produce-batch"]


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=[*SCENARIOS, *UNSUPPORTED])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", help="the consumer group")
    parser.add_argument("--access-key", default="", help="signs every call, with the next one")
    parser.add_argument("--secret-key", default="")
    parser.add_argument("--count", type=int, default=0, help="messages; 0: until stdin ends")
    parser.add_argument("--threads", type=int, default=4)

    parser.add_argument("--seed", default="seed")
    parser.add_argument("--size", type=int, default=0, help="bytes of the body; 0: follows from the seed")
    parser.add_argument("--property-bytes", type=int, default=0)
    parser.add_argument("--pause", type=int, default=0, help="milliseconds between two sends of a thread")
    parser.add_argument("--group-count", type=int, default=0, help="message groups g0, g1...: index modulo this")
    parser.add_argument("--lite-count", type=int, default=0, help="lite topics l0, l1...: index modulo this")
    parser.add_argument("--priority", type=int, default=0, help="priorities from 1: 1 + index modulo this")
    parser.add_argument("--delay", type=int, default=0, help="milliseconds until the delivery time")
    parser.add_argument("--delay-spread", type=int, default=0, help="milliseconds, to which delivery times are spread")
    parser.add_argument("--decide", default="commit", help="commit, rollback, unknown: a pattern by index, with commas")
    parser.add_argument("--check-decide", default="commit", help="what the checker says of an unknown one")
    parser.add_argument("--recall-wait", type=int, default=0, help="milliseconds from the send to the recall")
    parser.add_argument("--recall-twice", type=int, default=0, help="1: a second recall with the same handle")

    parser.add_argument("--batch", type=int, default=32, help="messages in one call")
    parser.add_argument("--invisible", type=int, default=30, help="seconds")
    parser.add_argument("--filter", default="*")
    parser.add_argument("--filter-type", choices=("tag", "sql"), default="tag")
    parser.add_argument("--lite-topics", help="with commas")
    parser.add_argument("--work", type=int, default=0, help="milliseconds that the processing of a message takes")
    parser.add_argument("--ignore-attempts", type=int, default=0, help="attempts neither acknowledged nor refused")
    parser.add_argument("--nack-attempts", type=int, default=0, help="attempts refused")
    parser.add_argument("--nack-every", type=int, default=1, help="refuse only messages whose index it divides")
    parser.add_argument("--nack-delay", type=int, default=0, help="seconds, simple consumer only")
    parser.add_argument("--linger", type=int, help="seconds to live on after the last message; push consumers: 2")
    return parser.parse_args()


def main():
    options = parse()
    if options.scenario in UNSUPPORTED:
        emit("unsupported", name=options.scenario)
        return
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
