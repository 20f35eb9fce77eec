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

const retryPause = 50 * time.Millisecond

func startedProducer(o options, more ...rmq.ProducerOption) (rmq.Producer, error) {
	producer, err := rmq.NewProducer(o.config(), append(more, rmq.WithTopics(o["topic"]))...)
	if err != nil {
		return nil, err
	}
	if err := producer.Start(); err != nil {
		return nil, err
	}
	emit("ready", nil)
	return producer, nil
}

func produce(o options) error {
	producer, err := startedProducer(o)
	if err != nil {
		return err
	}
	sendAll(o, func(index int64) { sendOne(producer, o, index) })
	if !isStopped() { // amid a crash the shutdown of a client can take for ever
		_ = producer.GracefulStop()
	}
	return nil
}

// sendAll calls send with each index, on several threads. A message group, or a lite topic, belongs to one thread.
func sendAll(o options, send func(index int64)) {
	limit := o.number("count", 0)
	lanes := max(o.number("group-count", 0), o.number("lite-count", 0))
	threads := o.number("threads", 4)
	var shared atomic.Int64
	var running sync.WaitGroup
	for thread := range threads {
		own := int64(-1)
		next := func() int64 { return shared.Add(1) - 1 }
		if lanes > 0 {
			if thread >= lanes {
				break
			}
			next = func() int64 {
				own++
				for own%lanes%threads != thread {
					own++
				}
				return own
			}
		}
		running.Add(1)
		go func() {
			defer running.Done()
			for !isStopped() {
				index := next()
				if limit > 0 && index >= limit {
					return
				}
				send(index)
				pause(o.milliseconds("pause"))
			}
		}()
	}
	running.Wait()
}

// sendOne sends the message of index until it is acknowledged; nil when the driver was stopped before. Each call of Send
// makes a new message id.
func sendOne(producer rmq.Producer, o options, index int64) *rmq.SendReceipt {
	for {
		message, kind := messageOf(o, index)
		facts := kind.with(fields{"index": index, "began": now()})
		receipts, err := producer.Send(context.Background(), message)
		if err == nil {
			facts["id"] = receipts[0].MessageID
			if handle := receipts[0].RecallHandle; handle != "" {
				facts["handle"] = handle
			}
			emit("sent", facts)
			return receipts[0]
		}
		emit("failed", facts.with(failure(err)))
		if pause(retryPause) {
			return nil
		}
	}
}

func decisionOf(o options, index int64) string {
	pattern := strings.Split(o.text("decide", "commit"), ",")
	return pattern[index%int64(len(pattern))]
}

func check(o options, view *rmq.MessageView) rmq.TransactionResolution {
	index, err := strconv.ParseInt(view.GetProperties()["index"], 10, 64)
	if err != nil {
		panic(err)
	}
	decision := decisionOf(o, index)
	if decision == "unknown" {
		decision = o.text("check-decide", "commit")
	}
	emit("checked", fields{"index": index, "id": view.GetMessageId(), "decision": decision})
	switch decision {
	case "commit":
		return rmq.COMMIT
	case "rollback":
		return rmq.ROLLBACK
	case "unknown":
		return rmq.UNKNOWN
	}
	panic("no such decision: " + decision)
}

func transaction(o options) error {
	checker := &rmq.TransactionChecker{
		Check: func(view *rmq.MessageView) rmq.TransactionResolution { return check(o, view) },
	}
	producer, err := startedProducer(o, rmq.WithTransactionChecker(checker))
	if err != nil {
		return err
	}
	sendAll(o, func(index int64) { sendHalf(producer, o, index) })
	if _, ok := o["linger"]; ok {
		pause(o.seconds("linger", 0))
	} else {
		<-stopped
	}
	return nil
}

// sendHalf sends the half message of index until it is acknowledged, and ends its transaction, once.
func sendHalf(producer rmq.Producer, o options, index int64) {
	decision := decisionOf(o, index)
	for {
		message, _ := messageOf(o, index)
		began := now()
		begun := producer.BeginTransaction()
		receipts, err := producer.SendWithTransaction(context.Background(), message, begun)
		if err != nil {
			emit("failed", fields{"index": index, "began": began}.with(failure(err)))
			if pause(retryPause) {
				return
			}
			continue
		}
		facts := fields{"index": index, "id": receipts[0].MessageID, "decision": decision, "began": began}
		emit("sent", facts)
		facts["began"] = now()
		switch decision {
		case "commit":
			err = begun.Commit()
		case "rollback":
			err = begun.RollBack()
		default:
			return
		}
		if err != nil {
			emit("end-failed", facts.with(failure(err)))
		} else {
			emit("ended", facts)
		}
		return
	}
}

func recall(o options) error {
	o["delay"] = o.text("delay", "60000")
	producer, err := startedProducer(o)
	if err != nil {
		return err
	}
	sendAll(o, func(index int64) {
		receipt := sendOne(producer, o, index)
		if receipt == nil || pause(o.milliseconds("recall-wait")) {
			return
		}
		for range 1 + o.number("recall-twice", 0) {
			facts := fields{"index": index, "began": now()}
			id, err := producer.Recall(context.Background(), o["topic"], receipt.RecallHandle)
			if err != nil {
				emit("recalled", facts.with(fields{"id": receipt.MessageID, "outcome": "refused"}).with(failure(err)))
			} else {
				emit("recalled", facts.with(fields{"id": id, "outcome": "accepted"}))
			}
		}
	})
	return nil
}
