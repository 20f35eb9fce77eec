package karman.tests;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.message.MessageView;

/** What is sent follows from a seed and an index alone, so that a test can say what must arrive. */
final class Messages {
    private static final List<String> COLOURS = List.of("red", "green", "blue");

    private Messages() {}

    static byte[] sha256(byte[] bytes) {
        try {
            return MessageDigest.getInstance("SHA-256").digest(bytes);
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    /** SHA-256 in counter mode over {@code seed:index}; the length follows from the same hash unless size is given. */
    static byte[] body(String seed, long index, int size) {
        byte[] root = sha256((seed + ":" + index).getBytes(StandardCharsets.UTF_8));
        int length = size > 0 ? size : 1 + ((root[0] & 0xff) << 8 | root[1] & 0xff) % 2048;
        ByteBuffer blocks = ByteBuffer.allocate((length + 31) / 32 * 32);
        ByteBuffer input = ByteBuffer.allocate(36).put(root);
        for (int n = 0; blocks.hasRemaining(); n++) {
            blocks.put(sha256(input.putInt(32, n).array()));
        }
        byte[] body = new byte[length];
        blocks.flip().get(body);
        return body;
    }

    static Message message(Options options, long index, Kind kind) {
        String seed = options.text("seed", "seed");
        MessageBuilder builder = Driver.PROVIDER.newMessageBuilder()
                .setTopic(options.text("topic"))
                .setBody(body(seed, index, options.number("size", 0)))
                .setTag(COLOURS.get((int) (index % 3)))
                .setKeys("key-" + seed + "-" + index, "seventh-" + index % 7)
                .addProperty("index", String.valueOf(index))
                .addProperty("text", "größe " + index + " 漢字 🚀");
        if (kind.seq() != null) {
            builder.addProperty("seq", String.valueOf(kind.seq()));
        }
        if (kind.group() != null) {
            builder.setMessageGroup(kind.group());
        }
        if (kind.lite() != null) {
            builder.setLiteTopic(kind.lite());
        }
        if (kind.priority() != null) {
            builder.setPriority(kind.priority());
        }
        if (kind.due() != null) {
            builder.setDeliveryTimestamp(kind.due());
        }
        return builder.build();
    }

    /** Properties whose keys and values together have {@code total} bytes. */
    static Map<String, String> properties(int total) {
        Map<String, String> properties = new LinkedHashMap<>();
        while (total > 0) {
            String key = String.format("p%03d", properties.size());
            int length = Math.min(1024, total - key.length());
            int rest = total - key.length() - length;
            if (0 < rest && rest <= key.length()) {
                length -= key.length();
            }
            properties.put(key, "v".repeat(length));
            total -= key.length() + length;
        }
        return properties;
    }

    static void report(MessageView view) {
        ByteBuffer buffer = view.getBody();
        byte[] body = new byte[buffer.remaining()];
        buffer.get(body);
        List<String> keys = new ArrayList<>(view.getKeys());
        keys.sort(null);
        String seq = view.getProperties().get("seq");
        Events.emit("message", "id", view.getMessageId().toString(), "topic", view.getTopic(),
                "tag", view.getTag().orElse(null), "keys", keys, "properties", view.getProperties(),
                "sha256", HexFormat.of().formatHex(sha256(body)), "length", body.length,
                "attempt", view.getDeliveryAttempt(), "born", view.getBornTimestamp(), "corrupted", false,
                "group", view.getMessageGroup().orElse(null), "seq", seq == null ? null : Long.valueOf(seq),
                "due", view.getDeliveryTimestamp().orElse(null), "priority", view.getPriority().orElse(null),
                "lite", view.getLiteTopic().orElse(null));
    }
}
