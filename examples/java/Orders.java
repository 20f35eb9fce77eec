import java.nio.charset.StandardCharsets;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageView;

/** Sends five orders and ships them: {@code java -cp 'lib/*' Orders.java 127.0.0.1:8081} */
public final class Orders {
    private static final String TOPIC = "orders";
    private static final String GROUP = "shipping";
    private static final int COUNT = 5;

    private static final Set<String> SHIPPED = ConcurrentHashMap.newKeySet();
    private static final CountDownLatch ALL_SHIPPED = new CountDownLatch(COUNT);

    /** Called once for each message, on threads of the client; again, later, for one that was not a SUCCESS. */
    private static ConsumeResult ship(MessageView message) {
        String order = StandardCharsets.UTF_8.decode(message.getBody()).toString();
        System.out.println("shipping " + order + ", attempt " + message.getDeliveryAttempt());
        if (SHIPPED.add(message.getMessageId().toString())) {
            ALL_SHIPPED.countDown();
        }
        return ConsumeResult.SUCCESS;
    }

    public static void main(String[] arguments) throws Exception {
        ClientServiceProvider provider = ClientServiceProvider.loadService();
        ClientConfiguration configuration = ClientConfiguration.newBuilder().setEndpoints(arguments[0]).build();
        Set<String> sent = new HashSet<>();
        try (var consumer = provider.newPushConsumerBuilder()
                        .setClientConfiguration(configuration)
                        .setConsumerGroup(GROUP)
                        .setSubscriptionExpressions(Map.of(TOPIC, FilterExpression.SUB_ALL))
                        .setMessageListener(Orders::ship)
                        .build();
                var producer = provider.newProducerBuilder()
                        .setClientConfiguration(configuration)
                        .setTopics(TOPIC)
                        .build()) {
            for (int number = 1; number <= COUNT; number++) {
                Message message = provider.newMessageBuilder()
                        .setTopic(TOPIC)
                        .setTag("books")
                        .setKeys("order-" + number)
                        .setBody(("order " + number).getBytes(StandardCharsets.UTF_8))
                        .build();
                // Returns when the message is on disk; an exception means that it may or may not be there.
                sent.add(producer.send(message).getMessageId().toString());
            }
            if (!ALL_SHIPPED.await(1, TimeUnit.MINUTES) || !SHIPPED.containsAll(sent)) {
                throw new IllegalStateException("not all orders came back within a minute");
            }
        }
        System.out.println("all orders are shipped");
    }
}
