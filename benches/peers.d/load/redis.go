package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisPeer: eight streams; XADD pipelined by hand, as what waits on a connection goes out in one write; a consumer
// group with XREADGROUP and XACK.
type redisPeer struct{ address string }

func (p redisPeer) prepare() error {
	client := redis.NewClient(&redis.Options{Addr: p.address})
	defer client.Close()
	for queue := range queues {
		err := client.XGroupCreateMkStream(context.Background(), queueName(queue), "bench", "0").Err()
		if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
			return err
		}
	}
	return nil
}

type redisSender struct {
	mutex   sync.Mutex
	writer  *bufio.Writer
	waiting chan chan error
	dirty   chan struct{}
}

func (p redisPeer) connect() (sender, error) {
	connection, err := net.Dial("tcp", p.address)
	if err != nil {
		return nil, err
	}
	s := &redisSender{
		writer:  bufio.NewWriterSize(connection, 256*1024),
		waiting: make(chan chan error, 100_000),
		dirty:   make(chan struct{}, 1),
	}
	go s.flush()
	go s.read(bufio.NewReaderSize(connection, 64*1024))
	return s, nil
}

func (s *redisSender) send(queue int, body []byte) error {
	answer := make(chan error, 1)
	name := queueName(queue)
	s.mutex.Lock()
	fmt.Fprintf(s.writer, "*5\r\n$4\r\nXADD\r\n$%d\r\n%s\r\n$1\r\n*\r\n$1\r\nb\r\n$%d\r\n", len(name), name, len(body))
	s.writer.Write(body)
	s.writer.WriteString("\r\n")
	s.waiting <- answer
	s.mutex.Unlock()
	select {
	case s.dirty <- struct{}{}:
	default:
	}
	select {
	case err := <-answer:
		return err
	case <-time.After(10 * time.Second):
		return errors.New("no answer within 10 s")
	}
}

func (s *redisSender) flush() {
	for range s.dirty {
		s.mutex.Lock()
		err := s.writer.Flush()
		s.mutex.Unlock()
		fatal(err)
	}
}

// read gives each waiting send its answer: a bulk string with the id, or an error line.
func (s *redisSender) read(reader *bufio.Reader) {
	for answer := range s.waiting {
		line, err := reader.ReadString('\n')
		fatal(err)
		if line[0] != '$' {
			answer <- errors.New(strings.TrimSpace(line))
			continue
		}
		length, err := strconv.Atoi(strings.TrimSpace(line[1:]))
		fatal(err)
		_, err = reader.Discard(length + 2)
		fatal(err)
		answer <- nil
	}
}

func (p redisPeer) consume(connections int, received func([]byte)) error {
	client := redis.NewClient(&redis.Options{Addr: p.address, PoolSize: queues + connections})
	for queue := range queues {
		name := queueName(queue)
		arguments := redis.XReadGroupArgs{Group: "bench", Consumer: "reader", Streams: []string{name, ">"}, Count: 32, Block: time.Second}
		go func() {
			for {
				read, err := client.XReadGroup(context.Background(), &arguments).Result()
				if errors.Is(err, redis.Nil) {
					continue
				}
				fatal(err)
				var ids []string
				for _, message := range read[0].Messages {
					ids = append(ids, message.ID)
				}
				fatal(client.XAck(context.Background(), name, "bench", ids...).Err())
				for _, message := range read[0].Messages {
					received([]byte(message.Values["b"].(string)))
				}
			}
		}()
	}
	return nil
}
