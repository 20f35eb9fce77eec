package main

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
)

const (
	longPoll        = 20 * time.Second
	messageNotFound = 40401
)

func expression(o options) *rmq.FilterExpression {
	if o.text("filter-type", "tag") == "sql" {
		return rmq.NewFilterExpressionWithType(o["filter"], rmq.SQL92)
	}
	return rmq.NewFilterExpression(o.text("filter", "*"))
}

// countdown stops the driver when so many messages are done; never when it begins at 0.
type countdown struct{ left atomic.Int64 }

func newCountdown(o options) *countdown {
	c := &countdown{}
	c.left.Store(o.number("count", 0))
	return c
}

func (c *countdown) one() {
	if c.left.Add(-1) == 0 {
		stop()
	}
}

func consumeSimple(o options) error {
	consumer, err := rmq.NewSimpleConsumer(o.config(), rmq.WithSimpleAwaitDuration(longPoll),
		rmq.WithSimpleReceiveRateLimit(int(o.number("threads", 4))),
		rmq.WithSimpleSubscriptionExpressions(map[string]*rmq.FilterExpression{o["topic"]: expression(o)}))
	if err != nil {
		return err
	}
	if err := consumer.Start(); err != nil {
		return err
	}
	emit("ready", nil)
	left := newCountdown(o)
	for range o.number("threads", 4) {
		go receiveUntilDone(consumer, o, left)
	}
	<-stopped
	return nil
}

func receiveUntilDone(consumer rmq.SimpleConsumer, o options, left *countdown) {
	for !isStopped() {
		views, err := consumer.Receive(context.Background(), int32(o.number("batch", 32)), o.seconds("invisible", 30))
		if status, ok := rmq.AsErrRpcStatus(err); ok && status.Code == messageNotFound {
			continue // this client's way to say: none
		}
		if err != nil {
			emit("receive-failed", failure(err))
			pause(100 * time.Millisecond)
			continue
		}
		// All at once: when a message was delivered must not hang on how long the acknowledgements of others take.
		for _, view := range views {
			report(view)
		}
		for _, view := range views {
			time.Sleep(o.milliseconds("work"))
			handle(consumer, o, left, view)
		}
	}
}

// nackAttempts is how many attempts of this message are refused.
func nackAttempts(o options, view *rmq.MessageView) int64 {
	index, _ := strconv.ParseInt(view.GetProperties()["index"], 10, 64)
	if index%o.number("nack-every", 1) != 0 {
		return 0
	}
	return o.number("nack-attempts", 0)
}

func handle(consumer rmq.SimpleConsumer, o options, left *countdown, view *rmq.MessageView) {
	facts := fields{"id": view.GetMessageId(), "began": now()}
	attempt := int64(view.GetDeliveryAttempt())
	if attempt <= o.number("ignore-attempts", 0) {
		return
	}
	event := "acked"
	var err error
	if attempt <= nackAttempts(o, view) {
		event = "nacked"
		err = consumer.ChangeInvisibleDuration(view, o.seconds("nack-delay", 0))
	} else {
		err = consumer.Ack(context.Background(), view)
	}
	if err != nil {
		emit("ack-failed", facts.with(failure(err)))
		return
	}
	emit(event, facts)
	if event == "acked" {
		left.one()
	}
}

func listener(o options) rmq.PushConsumerOption {
	left := newCountdown(o)
	tries := map[string]int64{}
	var lock sync.Mutex
	return rmq.WithPushMessageListener(&rmq.FuncMessageListener{
		Consume: func(view *rmq.MessageView) rmq.ConsumerResult {
			report(view)
			time.Sleep(o.milliseconds("work"))
			id := view.GetMessageId()
			if refused := nackAttempts(o, view); refused > 0 {
				// The FIFO consumers of some clients try again by themselves, and the attempt stays what the broker said.
				lock.Lock()
				tries[id]++
				attempt := max(tries[id], int64(view.GetDeliveryAttempt()))
				lock.Unlock()
				if attempt <= refused {
					emit("nacked", fields{"id": id})
					return rmq.FAILURE
				}
			}
			emit("consumed", fields{"id": id})
			left.one()
			return rmq.SUCCESS
		},
	})
}

func consumePush(o options) error {
	consumer, err := rmq.NewPushConsumer(o.config(), listener(o),
		rmq.WithPushSubscriptionExpressions(map[string]*rmq.FilterExpression{o["topic"]: expression(o)}))
	if err != nil {
		return err
	}
	if err := consumer.Start(); err != nil {
		return err
	}
	return linger(o)
}

func consumeLite(o options) error {
	lite := rmq.NewLitePushConsumerConfig(o["topic"], o.seconds("invisible", 30))
	consumer, err := rmq.NewLitePushConsumer(o.config(), lite, listener(o))
	if err != nil {
		return err
	}
	if err := consumer.Start(); err != nil {
		return err
	}
	for _, lite := range strings.Split(o["lite-topics"], ",") {
		if err := consumer.SubscribeLite(lite); err != nil {
			emit("subscribe-failed", fields{"lite": lite}.with(failure(err)))
		} else {
			emit("subscribed", fields{"lite": lite})
		}
	}
	return linger(o)
}

func linger(o options) error {
	emit("ready", nil)
	<-stopped
	time.Sleep(o.seconds("linger", 2)) // the client acknowledges after the listener returns
	return nil
}
