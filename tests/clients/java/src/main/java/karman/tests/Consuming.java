package karman.tests;

import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.apis.ClientException;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.MessageView;

/** The scenarios that consume. */
final class Consuming {
    private static final Duration LONG_POLL = Duration.ofSeconds(20);

    private final Options options;
    private final AtomicLong unacknowledged;
    private final int nackAttempts;
    private final int nackEvery;
    private final Map<String, Integer> tries = new ConcurrentHashMap<>();

    Consuming(Options options) {
        this.options = options;
        this.unacknowledged = new AtomicLong(options.number("count", 0));
        this.nackAttempts = options.number("nack-attempts", 0);
        this.nackEvery = options.number("nack-every", 1);
    }

    static FilterExpression sql(String expression) {
        return new FilterExpression(expression, FilterExpressionType.SQL92);
    }

    private Map<String, FilterExpression> subscription() {
        String filter = options.text("filter", "*");
        boolean isSql = options.text("filter-type", "tag").equals("sql");
        return Map.of(options.text("topic"), isSql ? sql(filter) : new FilterExpression(filter));
    }

    static SimpleConsumer simpleConsumer(Options options, String group, Map<String, FilterExpression> subscription)
            throws ClientException {
        return Driver.PROVIDER.newSimpleConsumerBuilder()
                .setClientConfiguration(Driver.configuration(options))
                .setConsumerGroup(group)
                .setAwaitDuration(LONG_POLL)
                .setSubscriptionExpressions(subscription)
                .build();
    }

    void consumeSimple() throws Exception {
        SimpleConsumer consumer = simpleConsumer(options, options.text("group"), subscription());
        Events.emit("ready");
        int batch = options.number("batch", 32);
        Duration invisible = Duration.ofSeconds(options.number("invisible", 30));
        Runnable receiveUntilDone = () -> {
            while (!Driver.isStopped()) {
                try {
                    // All at once: when a message was delivered must not hang on how long other acknowledgements take.
                    var views = consumer.receive(batch, invisible);
                    views.forEach(Messages::report);
                    for (MessageView view : views) {
                        Driver.sleep(options.number("work", 0));
                        handle(consumer, view);
                    }
                } catch (Throwable error) {
                    Events.emitFailure("receive-failed", error);
                    Driver.pause(100);
                }
            }
        };
        for (int i = 0; i < options.number("threads", 4); i++) {
            Thread thread = new Thread(receiveUntilDone);
            thread.setDaemon(true);
            thread.start();
        }
        Driver.waitStopped();
    }

    private int nackAttempts(MessageView view) {
        return Long.parseLong(view.getProperties().get("index")) % nackEvery == 0 ? nackAttempts : 0;
    }

    private void handle(SimpleConsumer consumer, MessageView view) {
        String id = view.getMessageId().toString();
        long began = Events.now();
        try {
            if (view.getDeliveryAttempt() <= options.number("ignore-attempts", 0)) {
                return;
            }
            if (view.getDeliveryAttempt() <= nackAttempts(view)) {
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
            Driver.stop();
        }
    }

    private ConsumeResult consume(MessageView view) {
        Messages.report(view);
        Driver.sleep(options.number("work", 0));
        String id = view.getMessageId().toString();
        // The FIFO consumers of some clients try again by themselves, and the attempt stays what the broker said.
        int refused = nackAttempts(view);
        if (refused > 0 && Math.max(view.getDeliveryAttempt(), tries.merge(id, 1, Integer::sum)) <= refused) {
            Events.emit("nacked", "id", id);
            return ConsumeResult.FAILURE;
        }
        Events.emit("consumed", "id", id);
        countDown();
        return ConsumeResult.SUCCESS;
    }

    void consumePush() throws Exception {
        Driver.PROVIDER.newPushConsumerBuilder()
                .setClientConfiguration(Driver.configuration(options))
                .setConsumerGroup(options.text("group"))
                .setSubscriptionExpressions(subscription())
                .setMessageListener(this::consume)
                .build();
        linger();
    }

    void consumeLite() throws Exception {
        var consumer = Driver.PROVIDER.newLitePushConsumerBuilder()
                .setClientConfiguration(Driver.configuration(options))
                .setConsumerGroup(options.text("group"))
                .bindTopic(options.text("topic"))
                .setMessageListener(this::consume)
                .build();
        for (String lite : options.text("lite-topics").split(",")) {
            try {
                consumer.subscribeLite(lite);
                Events.emit("subscribed", "lite", lite);
            } catch (Throwable error) {
                Events.emitFailure("subscribe-failed", error, "lite", lite);
            }
        }
        linger();
    }

    private void linger() throws InterruptedException {
        Events.emit("ready");
        Driver.waitStopped();
        // The client acknowledges after the listener returns.
        Driver.sleep(options.number("linger", 2) * 1000L);
    }
}
