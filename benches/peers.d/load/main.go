// The load for peers whose protocol is not Karman's: the shapes, the counting and the JSON keys of `karman bench`, over
// the official Go client of NATS and of RabbitMQ, and over RESP for Redis. Goroutines send and wait for the answer:
// connections × inflight of them, as many as requests that `karman bench produce` keeps under way.
package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const queues = 8

// peer is one system. Each connection of a producer is a Sender that goroutines share.
type peer interface {
	// prepare makes the stream or the queues; it may be called again.
	prepare() error
	connect() (sender, error)
	// consume receives and acknowledges in the background until the process ends.
	consume(connections int, received func(body []byte)) error
}

// sender sends one message to a queue and returns when the server has accepted it.
type sender interface {
	send(queue int, body []byte) error
}

type samples struct {
	sync.Mutex
	micros []int64
}

func (s *samples) add(since time.Time) {
	micros := time.Since(since).Microseconds()
	s.Lock()
	s.micros = append(s.micros, micros)
	s.Unlock()
}

func (s *samples) quantile(q float64) int64 {
	s.Lock()
	defer s.Unlock()
	if len(s.micros) == 0 {
		return 0
	}
	slices.Sort(s.micros)
	return s.micros[int(q*float64(len(s.micros)-1))]
}

var (
	connections = flag.Int("connections", 4, "")
	inflight    = flag.Int("inflight", 64, "sends under way on each connection")
	size        = flag.Int("size", 1024, "bytes in a body")
	seconds     = flag.Float64("seconds", 5, "")
	rate        = flag.Int("rate", 2000, "messages per second of latency")
)

func main() {
	flag.Parse()
	if flag.NArg() != 3 {
		fatal(fmt.Errorf("usage: load [options] nats|redis|rabbitmq HOST:PORT once|produce|consume|latency"))
	}
	var p peer
	switch address := flag.Arg(1); flag.Arg(0) {
	case "nats":
		p = natsPeer{address}
	case "redis":
		p = redisPeer{address}
	case "rabbitmq":
		p = rabbitPeer{address}
	default:
		fatal(fmt.Errorf("no such peer: %q", flag.Arg(0)))
	}
	fatal(p.prepare())
	switch flag.Arg(2) {
	case "once":
		fatal(mustConnect(p).send(0, make([]byte, *size)))
	case "produce":
		produce(p)
	case "consume":
		consume(p)
	case "latency":
		latency(p)
	default:
		fatal(fmt.Errorf("no such load: %q", flag.Arg(2)))
	}
}

func produce(p peer) {
	var sent samples
	var errors atomic.Int64
	var all sync.WaitGroup
	begun := time.Now()
	end := begun.Add(time.Duration(*seconds * float64(time.Second)))
	for connection := range *connections {
		s := mustConnect(p)
		for number := range *inflight {
			all.Go(func() {
				body := make([]byte, *size)
				for queue := connection + number; time.Now().Before(end); queue++ {
					before := time.Now()
					if err := s.send(queue%queues, body); err != nil {
						report(&errors, err)
						continue
					}
					sent.add(before)
				}
			})
		}
	}
	all.Wait()
	print(&sent, time.Since(begun), errors.Load(), nil)
}

func consume(p peer) {
	var count, last atomic.Int64
	begun := time.Now()
	fatal(p.consume(*connections, func([]byte) {
		count.Add(1)
		last.Store(int64(time.Since(begun)))
	}))
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	// Waiting when there was nothing left is no part of the rate.
	messages, elapsed := count.Load(), time.Duration(last.Load())
	write(map[string]any{"messages": messages, "messages_per_second": float64(messages) / elapsed.Seconds(), "errors": 0})
}

// latency sends on schedule whether or not answers come; a send's latency counts from its schedule, as does the
// arrival's. Older messages are read away first, and count as nothing.
func latency(p peer) {
	var sent, arrived samples
	var errors, drained atomic.Int64
	run := uint64(time.Now().UnixNano())
	fatal(p.consume(*connections, func(body []byte) {
		if len(body) < 16 || binary.LittleEndian.Uint64(body) != run {
			drained.Store(time.Now().UnixNano())
			return
		}
		arrived.add(time.Unix(0, int64(binary.LittleEndian.Uint64(body[8:]))))
	}))
	drained.Store(time.Now().UnixNano())
	for limit := time.Now().Add(30 * time.Second); time.Since(time.Unix(0, drained.Load())) < 1500*time.Millisecond; {
		if time.Now().After(limit) {
			fatal(fmt.Errorf("older messages were not read away in 30 s"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	senders := make([]sender, *connections)
	for i := range senders {
		senders[i] = mustConnect(p)
	}
	free := make(chan struct{}, *connections**inflight)
	var all sync.WaitGroup
	begun := time.Now()
	total := int(*seconds * float64(*rate))
	for number := range total {
		due := begun.Add(time.Duration(number) * time.Second / time.Duration(*rate))
		time.Sleep(time.Until(due))
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			body := make([]byte, *size)
			binary.LittleEndian.PutUint64(body, run)
			binary.LittleEndian.PutUint64(body[8:], uint64(due.UnixNano()))
			if err := senders[number%len(senders)].send(number%queues, body); err != nil {
				report(&errors, err)
				return
			}
			sent.add(due)
		})
	}
	all.Wait()
	elapsed := time.Since(begun)
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		arrived.Lock()
		done := len(arrived.micros) >= total
		arrived.Unlock()
		if done {
			break
		}
	}
	print(&sent, elapsed, errors.Load(), &arrived)
}

func print(sent *samples, elapsed time.Duration, errors int64, arrived *samples) {
	figures := map[string]any{
		"messages": len(sent.micros), "seconds": elapsed.Seconds(),
		"messages_per_second": float64(len(sent.micros)) / elapsed.Seconds(),
		"p50_us":              sent.quantile(0.5), "p99_us": sent.quantile(0.99), "errors": errors,
	}
	if arrived != nil {
		figures["receive_p50_us"], figures["receive_p99_us"] = arrived.quantile(0.5), arrived.quantile(0.99)
		figures["received"] = len(arrived.micros)
	}
	write(figures)
}

func write(figures map[string]any) { fatal(json.NewEncoder(os.Stdout).Encode(figures)) }

func mustConnect(p peer) sender {
	s, err := p.connect()
	fatal(err)
	return s
}

// report counts an error and tells the first.
func report(errors *atomic.Int64, err error) {
	if errors.Add(1) == 1 {
		fmt.Fprintln(os.Stderr, "load:", err)
	}
	time.Sleep(10 * time.Millisecond)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
