package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsPeer: one stream of eight subjects, kept in files; a durable consumer with explicit acknowledgements, which NATS
// does not answer (Karman's are answered: the advantage is NATS's).
type natsPeer struct{ address string }

func (p natsPeer) open() (jetstream.JetStream, error) {
	connection, err := nats.Connect("nats://" + p.address)
	if err != nil {
		return nil, err
	}
	return jetstream.New(connection)
}

func (p natsPeer) prepare() error {
	js, err := p.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "bench", Subjects: []string{"bench.*"}, Storage: jetstream.FileStorage})
	return err
}

type natsSender struct {
	js       jetstream.JetStream
	subjects [queues]string
}

func (p natsPeer) connect() (sender, error) {
	js, err := p.open()
	s := &natsSender{js: js}
	for queue := range queues {
		s.subjects[queue] = fmt.Sprintf("bench.%d", queue)
	}
	return s, err
}

func (s *natsSender) send(queue int, body []byte) error {
	future, err := s.js.PublishAsync(s.subjects[queue], body)
	if err != nil {
		return err
	}
	select {
	case <-future.Ok():
		return nil
	case err := <-future.Err():
		return err
	case <-time.After(10 * time.Second):
		return errors.New("no answer within 10 s")
	}
}

func (p natsPeer) consume(connections int, received func([]byte)) error {
	for range connections {
		js, err := p.open()
		if err != nil {
			return err
		}
		config := jetstream.ConsumerConfig{Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 8192}
		consumer, err := js.CreateOrUpdateConsumer(context.Background(), "bench", config)
		if err != nil {
			return err
		}
		acknowledge := func(message jetstream.Msg) {
			if message.Ack() == nil {
				received(message.Data())
			}
		}
		if _, err := consumer.Consume(acknowledge, jetstream.PullMaxMessages(512)); err != nil {
			return err
		}
	}
	return nil
}
