package karman.tests;

import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.producer.Producer;

/** What must be refused, as far as the client lets it through. */
final class BadInput {
    interface Action {
        String run() throws Exception;
    }

    private final Options options;
    private final String topic;
    private final String group;
    private Producer producer;

    BadInput(Options options) {
        this.options = options;
        this.topic = options.text("topic");
        this.group = options.text("group");
    }

    static void attempt(String name, Action action) {
        try {
            String id = action.run();
            Events.emit("case", "name", name, "outcome", "accepted", "id", id);
        } catch (Throwable error) {
            Events.emitFailure("case", error, "name", name, "outcome", "refused");
        }
    }

    void run() throws Exception {
        producer = Producing.producer(options);
        Events.emit("ready");
        send("unknown-topic", m -> m.setTopic(topic + "-unknown"));
        send("illegal-topic", m -> m.setTopic("no.dots.allowed"));
        send("long-topic", m -> m.setTopic("t".repeat(128)));
        send("system-topic", m -> m.setTopic("rmq_sys_something"));
        send("empty-body", m -> m.setBody(new byte[0]));
        send("large-body", m -> m.setBody(new byte[4 * 1024 * 1024 + 1]));
        Map<String, String> many = new LinkedHashMap<>();
        for (int n = 0; n < 129; n++) {
            many.put("p" + n, "v");
        }
        send("many-properties", m -> with(m, many));
        send("large-properties", m -> with(m, Messages.properties(16 * 1024 + 1)));
        send("reserved-property", m -> m.addProperty("KEYS", "v"));
        send("control-property", m -> m.addProperty("a\u0001b", "v"));
        send("control-tag", m -> m.setTag("a\u0001b"));
        send("control-key", m -> m.setKeys("a\u0001b"));
        send("fifo-on-normal", m -> m.setMessageGroup("g"));
        send("delay-on-normal", m -> m.setDeliveryTimestamp(System.currentTimeMillis() + 60_000));

        FilterExpression all = FilterExpression.SUB_ALL;
        receive("short-invisible", topic, group, 1, all);
        receive("long-group", topic, "g".repeat(121), 10, all);
        receive("system-group", topic, "CID_RMQ_SYS_x", 10, all);
        receive("sql-filter", topic, group, 10, Consuming.sql("index = "));
        receive("consume-unknown-topic", topic + "-unknown", group, 10, all);
    }

    private static MessageBuilder with(MessageBuilder message, Map<String, String> properties) {
        properties.forEach(message::addProperty);
        return message;
    }

    private void send(String name, UnaryOperator<MessageBuilder> change) {
        attempt(name, () -> {
            MessageBuilder message = Driver.PROVIDER.newMessageBuilder().setTopic(topic).setBody(new byte[] {'x'});
            return producer.send(change.apply(message).build()).getMessageId().toString();
        });
    }

    private void receive(String name, String topic, String group, int seconds, FilterExpression filter) {
        attempt(name, () -> {
            var consumer = Consuming.simpleConsumer(options, group, Map.of(topic, filter));
            return String.valueOf(consumer.receive(1, Duration.ofSeconds(seconds)).size());
        });
    }
}
