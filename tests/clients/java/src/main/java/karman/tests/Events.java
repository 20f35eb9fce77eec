package karman.tests;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** One JSON object per line on stdout. */
final class Events {
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    /** The client keeps the server's code only in the text of its exceptions. */
    private static final Pattern CODE = Pattern.compile("response-code=(\\d+)");

    private Events() {}

    static long now() {
        return System.currentTimeMillis();
    }

    /** {@code fields}: name, value, name, value... */
    static void emit(String event, Object... fields) {
        StringBuilder line = new StringBuilder("{\"event\":");
        append(line, event);
        line.append(",\"at\":").append(now());
        for (int i = 0; i < fields.length; i += 2) {
            line.append(',');
            append(line, fields[i]);
            line.append(':');
            append(line, fields[i + 1]);
        }
        OUT.println(line.append('}'));
    }

    /** {@code fields} and what is to be said about {@code error}. */
    static void emitFailure(String event, Throwable error, Object... fields) {
        Throwable cause = error;
        while (cause instanceof java.util.concurrent.ExecutionException && cause.getCause() != null) {
            cause = cause.getCause();
        }
        String message = String.valueOf(cause.getMessage());
        Matcher code = CODE.matcher(message);
        Object[] all = new Object[fields.length + 6];
        System.arraycopy(fields, 0, all, 0, fields.length);
        all[fields.length] = "code";
        all[fields.length + 1] = code.find() ? Integer.valueOf(code.group(1)) : null;
        all[fields.length + 2] = "message";
        all[fields.length + 3] = message;
        all[fields.length + 4] = "error";
        all[fields.length + 5] = cause.getClass().getSimpleName();
        emit(event, all);
    }

    private static void append(StringBuilder line, Object value) {
        if (value == null || value instanceof Number || value instanceof Boolean) {
            line.append(value);
        } else if (value instanceof Collection<?> values) {
            String separator = "[";
            for (Object one : values) {
                line.append(separator);
                append(line, one);
                separator = ",";
            }
            line.append(values.isEmpty() ? "[]" : "]");
        } else if (value instanceof Map<?, ?> values) {
            String separator = "{";
            for (Map.Entry<?, ?> one : values.entrySet()) {
                line.append(separator);
                append(line, String.valueOf(one.getKey()));
                line.append(':');
                append(line, one.getValue());
                separator = ",";
            }
            line.append(values.isEmpty() ? "{}" : "}");
        } else {
            quote(line, value.toString());
        }
    }

    private static void quote(StringBuilder line, String text) {
        line.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c == '"' || c == '\\') {
                line.append('\\').append(c);
            } else if (c < ' ') {
                line.append(String.format("\\u%04x", (int) c));
            } else {
                line.append(c);
            }
        }
        line.append('"');
    }
}
