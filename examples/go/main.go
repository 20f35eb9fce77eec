// Sends five orders and ships them: go run . 127.0.0.1:8081
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

const (
	topic = "orders"
	group = "shipping"
	count = 5
)

func main() {
	// The client insists on credentials; a server without access control does not read them.
	keys := &credentials.SessionCredentials{AccessKey: "none", AccessSecret: "none"}
	config := &rmq.Config{Endpoint: os.Args[1], ConsumerGroup: group, Credentials: keys}

	var lock sync.Mutex
	shipped := map[string]bool{}
	allShipped := make(chan struct{})
	// Called once for each message, on goroutines of the client; again, later, for one that was not a SUCCESS.
	ship := func(message *rmq.MessageView) rmq.ConsumerResult {
		lock.Lock()
		defer lock.Unlock()
		fmt.Printf("shipping %s, attempt %d\n", message.GetBody(), message.GetDeliveryAttempt())
		if id := message.GetMessageId(); !shipped[id] {
			shipped[id] = true
			if len(shipped) == count {
				close(allShipped)
			}
		}
		return rmq.SUCCESS
	}
	everything := map[string]*rmq.FilterExpression{topic: rmq.SUB_ALL}
	consumer, err := rmq.NewPushConsumer(config, rmq.WithPushSubscriptionExpressions(everything),
		rmq.WithPushMessageListener(&rmq.FuncMessageListener{Consume: ship}))
	if err == nil {
		err = consumer.Start()
	}
	if err != nil {
		log.Fatal("the consumer does not start: ", err)
	}
	producer, err := rmq.NewProducer(config, rmq.WithTopics(topic))
	if err == nil {
		err = producer.Start()
	}
	if err != nil {
		log.Fatal("the producer does not start: ", err)
	}

	var sent []string
	for number := 1; number <= count; number++ {
		message := &rmq.Message{Topic: topic, Body: fmt.Appendf(nil, "order %d", number)}
		message.SetTag("books")
		message.SetKeys(fmt.Sprintf("order-%d", number))
		// Returns when the message is on disk; an error means that it may or may not be there.
		receipts, err := producer.Send(context.Background(), message)
		if err != nil {
			log.Fatal(err)
		}
		sent = append(sent, receipts[0].MessageID)
	}
	select {
	case <-allShipped:
	case <-time.After(time.Minute):
		log.Fatal("not all orders came back within a minute")
	}
	lock.Lock()
	for _, id := range sent {
		if !shipped[id] {
			log.Fatal("other orders came back than were sent")
		}
	}
	lock.Unlock()
	// The client acknowledges after the listener returns.
	for _, stop := range []func() error{consumer.GracefulStop, producer.GracefulStop} {
		if err := stop(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("all orders are shipped")
}
