package karman.tests;

import java.io.IOException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.StaticSessionCredentialsProvider;

/**
 * Drives the official Java client for the scenarios of the test crate. The words on the command line and on stdout are
 * those of {@code tests/clients/python/driver.py}.
 */
public final class Driver {
    static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    private static final CountDownLatch STOPPED = new CountDownLatch(1);

    private Driver() {}

    public static void main(String[] arguments) {
        try {
            Options options = Options.parse(arguments);
            Thread watch = new Thread(Driver::watchStdin);
            watch.setDaemon(true);
            watch.start();
            run(options);
        } catch (Throwable error) {
            Events.emitFailure("fatal", error);
            Runtime.getRuntime().halt(1);
        }
        // Threads of the client may sit in a long poll.
        Runtime.getRuntime().halt(0);
    }

    private static void run(Options options) throws Exception {
        switch (options.scenario()) {
            case "produce" -> new Producing(options).produce();
            case "transaction" -> new Producing(options).transaction();
            case "recall" -> new Producing(options).recall();
            case "send-raw" -> new Producing(options).sendRaw();
            case "consume-simple" -> new Consuming(options).consumeSimple();
            case "consume-push" -> new Consuming(options).consumePush();
            case "consume-lite" -> new Consuming(options).consumeLite();
            case "bad-input" -> new BadInput(options).run();
            default -> {
                Events.emit("unsupported", "name", options.scenario());
                return;
            }
        }
        Events.emit("done");
    }

    private static void watchStdin() {
        try {
            System.in.transferTo(java.io.OutputStream.nullOutputStream());
        } catch (IOException error) {
            Events.emitFailure("stdin", error);
        }
        stop();
    }

    static void stop() {
        STOPPED.countDown();
    }

    static boolean isStopped() {
        return STOPPED.getCount() == 0;
    }

    static void waitStopped() throws InterruptedException {
        STOPPED.await();
    }

    /** True when the driver was stopped meanwhile. */
    static boolean pause(long milliseconds) {
        try {
            return STOPPED.await(milliseconds, TimeUnit.MILLISECONDS);
        } catch (InterruptedException error) {
            return true;
        }
    }

    static void sleep(long milliseconds) {
        try {
            TimeUnit.MILLISECONDS.sleep(milliseconds);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }

    static ClientConfiguration configuration(Options options) {
        var builder = ClientConfiguration.newBuilder().setEndpoints(options.text("endpoint"));
        String accessKey = options.text("access-key", "");
        if (!accessKey.isEmpty()) {
            String secretKey = options.text("secret-key");
            builder.setCredentialProvider(new StaticSessionCredentialsProvider(accessKey, secretKey));
        }
        return builder.build();
    }
}
