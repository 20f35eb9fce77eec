package karman.tests;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What makes a message more than a normal one; null is "not that". */
record Kind(String group, String lite, Long seq, Integer priority, Long due) {
    static final Kind NORMAL = new Kind(null, null, null, null, null);

    static Kind of(Options options, long index) {
        int groups = options.number("group-count", 0);
        int lites = options.number("lite-count", 0);
        int priorities = options.number("priority", 0);
        long delay = options.number("delay", 0);
        int spread = options.number("delay-spread", 0);
        Long seq = groups > 0 ? (Long) (index / groups) : lites > 0 ? (Long) (index / lites) : null;
        return new Kind(
                groups > 0 ? "g" + index % groups : null,
                lites > 0 ? "l" + index % lites : null,
                seq,
                priorities > 0 ? (Integer) (int) (1 + index % priorities) : null,
                delay > 0 || spread > 0
                        ? (Long) (Events.now() + delay + (spread > 0 ? index * 7919 % spread : 0))
                        : null);
    }

    /** {@code fields} and what is to be said of the kind. */
    Object[] fields(Object... fields) {
        List<Object> all = new ArrayList<>(Arrays.asList(fields));
        all.addAll(Arrays.asList("group", group, "lite", lite, "seq", seq, "priority", priority, "due", due));
        return all.toArray();
    }
}
