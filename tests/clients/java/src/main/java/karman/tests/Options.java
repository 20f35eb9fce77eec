package karman.tests;

import java.util.HashMap;
import java.util.Map;

/** The command line: a scenario, then pairs of {@code --name value}. */
record Options(String scenario, Map<String, String> values) {
    static Options parse(String[] arguments) {
        if (arguments.length == 0 || arguments.length % 2 == 0) {
            throw new IllegalArgumentException("usage: SCENARIO [--name value]...");
        }
        Map<String, String> values = new HashMap<>();
        for (int i = 1; i < arguments.length; i += 2) {
            values.put(arguments[i].substring(2), arguments[i + 1]);
        }
        return new Options(arguments[0], values);
    }

    String text(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is required");
        }
        return value;
    }

    String text(String name, String fallback) {
        return values.getOrDefault(name, fallback);
    }

    int number(String name, int fallback) {
        return values.containsKey(name) ? Integer.parseInt(values.get(name)) : fallback;
    }
}
