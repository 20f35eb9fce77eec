package main

import (
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbitPeer: eight quorum queues, publisher confirms, one channel on each connection.
type rabbitPeer struct{ address string }

func queueName(queue int) string { return fmt.Sprintf("bench.%d", queue) }

func (p rabbitPeer) open() (*amqp.Channel, error) {
	connection, err := amqp.Dial("amqp://guest:guest@" + p.address + "/")
	if err != nil {
		return nil, err
	}
	return connection.Channel()
}

func (p rabbitPeer) prepare() error {
	channel, err := p.open()
	if err != nil {
		return err
	}
	for queue := range queues {
		arguments := amqp.Table{"x-queue-type": "quorum"}
		if _, err := channel.QueueDeclare(queueName(queue), true, false, false, false, arguments); err != nil {
			return err
		}
	}
	return nil
}

type rabbitSender struct{ channel *amqp.Channel }

func (p rabbitPeer) connect() (sender, error) {
	channel, err := p.open()
	if err != nil {
		return nil, err
	}
	return rabbitSender{channel}, channel.Confirm(false)
}

func (s rabbitSender) send(queue int, body []byte) error {
	message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}
	confirm, err := s.channel.PublishWithDeferredConfirm("", queueName(queue), false, false, message)
	if err != nil {
		return err
	}
	if !confirm.Wait() {
		return errors.New("the broker did not confirm")
	}
	return nil
}

func (p rabbitPeer) consume(connections int, received func([]byte)) error {
	for number := range connections {
		channel, err := p.open()
		if err != nil {
			return err
		}
		if err := channel.Qos(512, 0, false); err != nil {
			return err
		}
		for queue := number; queue < queues; queue += connections {
			deliveries, err := channel.Consume(queueName(queue), "", false, false, false, false, nil)
			if err != nil {
				return err
			}
			go func() {
				for delivery := range deliveries {
					if delivery.Ack(false) == nil {
						received(delivery.Body)
					}
				}
			}()
		}
	}
	return nil
}
