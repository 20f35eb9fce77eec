// Drives the official Go client for the scenarios of the test crate. The words on the command line and on stdout are
// those of tests/clients/python/driver.py.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

// options is the command line: a scenario, then pairs of --name value.
type options map[string]string

func (o options) text(name, fallback string) string {
	if value, ok := o[name]; ok {
		return value
	}
	return fallback
}

func (o options) number(name string, fallback int64) int64 {
	value, ok := o[name]
	if !ok {
		return fallback
	}
	number, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("--%s %s: not a number", name, value))
	}
	return number
}

func (o options) milliseconds(name string) time.Duration {
	return time.Duration(o.number(name, 0)) * time.Millisecond
}

func (o options) seconds(name string, fallback int64) time.Duration {
	return time.Duration(o.number(name, fallback)) * time.Second
}

func (o options) config() *rmq.Config {
	// The client insists on credentials; a server without access control does not read them.
	keys := &credentials.SessionCredentials{
		AccessKey: o.text("access-key", "none"), AccessSecret: o.text("secret-key", "none"),
	}
	return &rmq.Config{Endpoint: o["endpoint"], ConsumerGroup: o["group"], Credentials: keys}
}

func parse(arguments []string) (string, options) {
	if len(arguments) == 0 || len(arguments)%2 == 0 {
		panic("usage: SCENARIO [--name value]...")
	}
	parsed := options{}
	for i := 1; i < len(arguments); i += 2 {
		parsed[strings.TrimPrefix(arguments[i], "--")] = arguments[i+1]
	}
	return arguments[0], parsed
}

var (
	stopped  = make(chan struct{})
	stopOnce sync.Once
)

func stop() {
	stopOnce.Do(func() { close(stopped) })
}

func isStopped() bool {
	select {
	case <-stopped:
		return true
	default:
		return false
	}
}

// pause is true when the driver was stopped meanwhile.
func pause(duration time.Duration) bool {
	select {
	case <-stopped:
		return true
	case <-time.After(duration):
		return false
	}
}

func main() {
	scenario, parsed := parse(os.Args[1:])
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	scenarios := map[string]func(options) error{
		"produce":        produce,
		"transaction":    transaction,
		"recall":         recall,
		"consume-simple": consumeSimple,
		"consume-push":   consumePush,
		"consume-lite":   consumeLite,
	}
	run, ok := scenarios[scenario]
	if !ok {
		emit("unsupported", fields{"name": scenario})
		return
	}
	if err := run(parsed); err != nil {
		emit("fatal", failure(err))
		os.Exit(1)
	}
	emit("done", nil)
}
