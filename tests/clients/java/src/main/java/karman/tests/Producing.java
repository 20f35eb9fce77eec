package karman.tests;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.IntFunction;
import java.util.function.LongConsumer;
import java.util.function.LongSupplier;
import org.apache.rocketmq.client.apis.ClientException;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.SendReceipt;
import org.apache.rocketmq.client.apis.producer.Transaction;
import org.apache.rocketmq.client.apis.producer.TransactionResolution;

/** The scenarios that send. */
final class Producing {
    private static final long END = Long.MAX_VALUE;

    private final Options options;

    Producing(Options options) {
        this.options = options;
    }

    static Producer producer(Options options) throws ClientException {
        return Driver.PROVIDER.newProducerBuilder()
                .setClientConfiguration(Driver.configuration(options))
                .setTopics(options.text("topic"))
                .build();
    }

    void produce() throws Exception {
        Producer producer = producer(options);
        Events.emit("ready");
        sendAll(index -> sendOne(producer, index));
        // Told to stop, it may be told amid a crash: the client's close waits for ever for a stream that it opened anew
        // while it was closing.
        if (!Driver.isStopped()) {
            producer.close();
        }
    }

    /** Calls {@code send} with each index, on several threads. A message group, or a lite topic, belongs to one thread. */
    private void sendAll(LongConsumer send) throws InterruptedException {
        int count = options.number("count", 0);
        long limit = count == 0 ? END : count;
        int lanes = Math.max(options.number("group-count", 0), options.number("lite-count", 0));
        int threads = options.number("threads", 4);
        AtomicLong shared = new AtomicLong();
        IntFunction<LongSupplier> indices =
                lanes == 0 ? thread -> shared::getAndIncrement : thread -> new Lanes(lanes, threads, thread);
        List<Thread> running = new ArrayList<>();
        for (int i = 0; i < (lanes == 0 ? threads : Math.min(threads, lanes)); i++) {
            LongSupplier next = indices.apply(i);
            Thread thread = new Thread(() -> {
                long index;
                while (!Driver.isStopped() && (index = next.getAsLong()) < limit) {
                    send.accept(index);
                    Driver.pause(options.number("pause", 0));
                }
            });
            thread.setDaemon(true);
            thread.start();
            running.add(thread);
        }
        for (Thread thread : running) {
            thread.join();
        }
    }

    /** The indices of the lanes that belong to one thread. */
    private static final class Lanes implements LongSupplier {
        private final int lanes;
        private final int threads;
        private final int thread;
        private long index = -1;

        Lanes(int lanes, int threads, int thread) {
            this.lanes = lanes;
            this.threads = threads;
            this.thread = thread;
        }

        @Override
        public long getAsLong() {
            do {
                index++;
            } while (index % lanes % threads != thread);
            return index;
        }
    }

    /**
     * Sends the message of {@code index} until it is acknowledged; null when the driver was stopped before. Each call of
     * send makes a new message id.
     */
    private SendReceipt sendOne(Producer producer, long index) {
        while (true) {
            Kind kind = Kind.of(options, index);
            long began = Events.now();
            try {
                SendReceipt receipt = producer.send(Messages.message(options, index, kind));
                String handle = receipt.getRecallHandle();
                Events.emit("sent", kind.fields("index", index, "id", receipt.getMessageId().toString(), "began", began,
                        "handle", handle == null || handle.isEmpty() ? null : handle));
                return receipt;
            } catch (Throwable error) {
                Events.emitFailure("failed", error, kind.fields("index", index, "id", null, "began", began));
            }
            if (Driver.pause(50)) {
                return null;
            }
        }
    }

    private String decision(long index) {
        String[] pattern = options.text("decide", "commit").split(",");
        return pattern[(int) (index % pattern.length)];
    }

    private TransactionResolution check(MessageView view) {
        long index = Long.parseLong(view.getProperties().get("index"));
        String decision = decision(index);
        if (decision.equals("unknown")) {
            decision = options.text("check-decide", "commit");
        }
        Events.emit("checked", "index", index, "id", view.getMessageId().toString(), "decision", decision);
        return TransactionResolution.valueOf(decision.toUpperCase(java.util.Locale.ROOT));
    }

    void transaction() throws Exception {
        Producer producer = Driver.PROVIDER.newProducerBuilder()
                .setClientConfiguration(Driver.configuration(options))
                .setTopics(options.text("topic"))
                .setTransactionChecker(this::check)
                .build();
        Events.emit("ready");
        sendAll(index -> sendHalf(producer, index));
        int linger = options.number("linger", -1);
        if (linger < 0) {
            Driver.waitStopped();
        } else {
            Driver.pause(linger * 1000L);
        }
    }

    /** Sends the half message of {@code index} until it is acknowledged, and ends its transaction, once. */
    private void sendHalf(Producer producer, long index) {
        String decision = decision(index);
        while (true) {
            long began = Events.now();
            try {
                Transaction transaction = producer.beginTransaction();
                String id = producer.send(Messages.message(options, index, Kind.NORMAL), transaction)
                        .getMessageId().toString();
                Events.emit("sent", "index", index, "id", id, "began", began, "decision", decision);
                end(transaction, decision, "index", index, "id", id, "decision", decision, "began", Events.now());
                return;
            } catch (Throwable error) {
                Events.emitFailure("failed", error, "index", index, "id", null, "began", began);
            }
            if (Driver.pause(50)) {
                return;
            }
        }
    }

    private static void end(Transaction transaction, String decision, Object... fields) {
        try {
            switch (decision) {
                case "commit" -> transaction.commit();
                case "rollback" -> transaction.rollback();
                default -> {
                    return;
                }
            }
            Events.emit("ended", fields);
        } catch (Throwable error) {
            Events.emitFailure("end-failed", error, fields);
        }
    }

    void recall() throws Exception {
        options.values().putIfAbsent("delay", "60000");
        Producer producer = producer(options);
        Events.emit("ready");
        sendAll(index -> {
            SendReceipt receipt = sendOne(producer, index);
            if (receipt == null || Driver.pause(options.number("recall-wait", 0))) {
                return;
            }
            for (int i = 0; i <= options.number("recall-twice", 0); i++) {
                recallOne(producer, receipt, index);
            }
        });
    }

    private void recallOne(Producer producer, SendReceipt receipt, long index) {
        long began = Events.now();
        try {
            String id = producer.recallMessage(options.text("topic"), receipt.getRecallHandle())
                    .getMessageId().toString();
            Events.emit("recalled", "index", index, "began", began, "id", id, "outcome", "accepted");
        } catch (Throwable error) {
            Events.emitFailure("recalled", error, "index", index, "began", began,
                    "id", receipt.getMessageId().toString(), "outcome", "refused");
        }
    }

    /** One message with a body of --size bytes and user properties of --property-bytes bytes, nothing else. */
    void sendRaw() throws Exception {
        Producer producer = producer(options);
        BadInput.attempt("send-raw", () -> {
            var builder = Driver.PROVIDER.newMessageBuilder()
                    .setTopic(options.text("topic"))
                    .setBody(Messages.body(options.text("seed", "seed"), 0, options.number("size", 0)));
            Messages.properties(options.number("property-bytes", 0)).forEach(builder::addProperty);
            return producer.send(builder.build()).getMessageId().toString();
        });
    }
}
