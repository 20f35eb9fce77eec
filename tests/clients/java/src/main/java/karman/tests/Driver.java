package karman.tests;

import java.io.IOException;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientException;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;

/**
 * Drives the official Java client for the scenarios of the test crate. The words on the command line and on stdout are
 * those of {@code tests/clients/python/driver.py}.
 */
public final class Driver {
    static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    private static final Duration LONG_POLL = Duration.ofSeconds(20);

    private final Options options;
    private final CountDownLatch stopped = new CountDownLatch(1);
    private final AtomicLong unacknowledged;

    private Driver(Options options) {
        this.options = options;
        this.unacknowledged = new AtomicLong(options.number("count", 0));
    }

    public static void main(String[] arguments) {
        try {
            Driver driver = new Driver(Options.parse(arguments));
            Thread watch = new Thread(driver::watchStdin);
            watch.setDaemon(true);
            watch.start();
            driver.run();
        } catch (Throwable error) {
            Events.emitFailure("fatal", error);
            Runtime.getRuntime().halt(1);
        }
        // Threads of the client may sit in a long poll.
        Runtime.getRuntime().halt(0);
    }

    private void run() throws Exception {
        switch (options.scenario()) {
            case "produce" -> produce();
            case "consume-simple" -> consumeSimple();
            case "consume-push" -> consumePush();
            case "send-raw" -> sendRaw();
            case "bad-input" -> new BadInput(options).run();
            default -> throw new IllegalArgumentException("no such scenario: " + options.scenario());
        }
        Events.emit("done");
    }

    private void watchStdin() {
        try {
            System.in.transferTo(java.io.OutputStream.nullOutputStream());
        } catch (IOException error) {
            Events.emitFailure("stdin", error);
        }
        stopped.countDown();
    }

    private boolean isStopped() {
        return stopped.getCount() == 0;
    }

    static ClientConfiguration configuration(Options options) {
        return ClientConfiguration.newBuilder().setEndpoints(options.text("endpoint")).build();
    }

    static Producer producer(Options options) throws ClientException {
        return PROVIDER.newProducerBuilder()
                .setClientConfiguration(configuration(options))
                .setTopics(options.text("topic"))
                .build();
    }

    private void produce() throws Exception {
        Producer producer = producer(options);
        Events.emit("ready");
        int count = options.number("count", 0);
        AtomicLong following = new AtomicLong();
        runThreads(() -> {
            while (!isStopped()) {
                long index = following.getAndIncrement();
                if (count > 0 && index >= count) {
                    return;
                }
                sendOne(producer, index);
                pause(options.number("pause", 0));
            }
        });
        // Told to stop, it may be told amid a crash: the client's close waits for ever for a stream that it opened anew
        // while it was closing.
        if (!isStopped()) {
            producer.close();
        }
    }

    /** Sends the message of {@code index} until it is acknowledged. Each call of send makes a new message id. */
    private void sendOne(Producer producer, long index) {
        while (true) {
            Message message = Messages.message(
                    options.text("topic"), options.text("seed", "seed"), index, options.number("size", 0));
            long began = Events.now();
            try {
                String id = producer.send(message).getMessageId().toString();
                Events.emit("sent", "index", index, "id", id, "began", began);
                return;
            } catch (Throwable error) {
                Events.emitFailure("failed", error, "index", index, "id", null, "began", began);
            }
            if (pause(50)) {
                return;
            }
        }
    }

    /** True when the driver was stopped meanwhile. */
    private boolean pause(long milliseconds) {
        try {
            return stopped.await(milliseconds, TimeUnit.MILLISECONDS);
        } catch (InterruptedException error) {
            return true;
        }
    }

    private void runThreads(Runnable work) throws InterruptedException {
        Thread[] threads = new Thread[options.number("threads", 4)];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(work);
            threads[i].setDaemon(true);
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
    }

    private Map<String, FilterExpression> subscription() {
        return Map.of(options.text("topic"), new FilterExpression(options.text("filter", "*")));
    }

    static SimpleConsumer simpleConsumer(Options options, String group, Map<String, FilterExpression> subscription)
            throws ClientException {
        return PROVIDER.newSimpleConsumerBuilder()
                .setClientConfiguration(configuration(options))
                .setConsumerGroup(group)
                .setAwaitDuration(LONG_POLL)
                .setSubscriptionExpressions(subscription)
                .build();
    }

    private void consumeSimple() throws Exception {
        SimpleConsumer consumer = simpleConsumer(options, options.text("group"), subscription());
        Events.emit("ready");
        int batch = options.number("batch", 32);
        Duration invisible = Duration.ofSeconds(options.number("invisible", 30));
        Runnable receiveUntilDone = () -> {
            while (!isStopped()) {
                try {
                    // All at once: when a message was delivered must not hang on how long other acknowledgements take.
                    var views = consumer.receive(batch, invisible);
                    views.forEach(Messages::report);
                    for (MessageView view : views) {
                        handle(consumer, view);
                    }
                } catch (Throwable error) {
                    Events.emitFailure("receive-failed", error);
                    pause(100);
                }
            }
        };
        for (int i = 0; i < options.number("threads", 4); i++) {
            Thread thread = new Thread(receiveUntilDone);
            thread.setDaemon(true);
            thread.start();
        }
        stopped.await();
    }

    private void handle(SimpleConsumer consumer, MessageView view) {
        String id = view.getMessageId().toString();
        long began = Events.now();
        try {
            if (view.getDeliveryAttempt() <= options.number("ignore-attempts", 0)) {
                return;
            }
            if (view.getDeliveryAttempt() <= options.number("nack-attempts", 0)) {
                consumer.changeInvisibleDuration(view, Duration.ofSeconds(options.number("nack-delay", 0)));
                Events.emit("nacked", "id", id, "began", began);
            } else {
                consumer.ack(view);
                Events.emit("acked", "id", id, "began", began);
                countDown();
            }
        } catch (Throwable error) {
            Events.emitFailure("ack-failed", error, "id", id, "began", began);
        }
    }

    /** One message is done; the last of {@code --count} stops the driver. */
    private void countDown() {
        if (unacknowledged.decrementAndGet() == 0) {
            stopped.countDown();
        }
    }

    private void consumePush() throws Exception {
        PROVIDER.newPushConsumerBuilder()
                .setClientConfiguration(configuration(options))
                .setConsumerGroup(options.text("group"))
                .setSubscriptionExpressions(subscription())
                .setMessageListener(view -> {
                    Messages.report(view);
                    if (view.getDeliveryAttempt() <= options.number("nack-attempts", 0)) {
                        return ConsumeResult.FAILURE;
                    }
                    countDown();
                    return ConsumeResult.SUCCESS;
                })
                .build();
        Events.emit("ready");
        stopped.await();
        // The client acknowledges after the listener returns.
        TimeUnit.SECONDS.sleep(options.number("linger", 2));
    }

    /** One message with a body of --size bytes and user properties of --property-bytes bytes, nothing else. */
    private void sendRaw() throws Exception {
        Producer producer = producer(options);
        BadInput.attempt("send-raw", () -> {
            var builder = PROVIDER.newMessageBuilder()
                    .setTopic(options.text("topic"))
                    .setBody(Messages.body(options.text("seed", "seed"), 0, options.number("size", 0)));
            Messages.properties(options.number("property-bytes", 0)).forEach(builder::addProperty);
            return producer.send(builder.build()).getMessageId().toString();
        });
    }

    static FilterExpression sql(String expression) {
        return new FilterExpression(expression, FilterExpressionType.SQL92);
    }
}
