package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
)

// What is sent follows from a seed and an index alone, so that a test can say what must arrive.

var colours = []string{"red", "green", "blue"}

// bodyOf is SHA-256 in counter mode over seed:index; the length follows from the same hash unless size is given.
func bodyOf(seed string, index, size int64) []byte {
	root := sha256.Sum256(fmt.Appendf(nil, "%s:%d", seed, index))
	length := int(size)
	if length == 0 {
		length = 1 + int(binary.BigEndian.Uint16(root[:2]))%2048
	}
	body := make([]byte, 0, length+sha256.Size)
	for n := uint32(0); len(body) < length; n++ {
		block := sha256.Sum256(binary.BigEndian.AppendUint32(root[:], n))
		body = append(body, block[:]...)
	}
	return body[:length]
}

// messageOf is message index, and what its sent event says of its kind.
func messageOf(o options, index int64) (*rmq.Message, fields) {
	seed := o.text("seed", "seed")
	message := &rmq.Message{Topic: o["topic"], Body: bodyOf(seed, index, o.number("size", 0))}
	message.SetTag(colours[index%3])
	message.SetKeys(fmt.Sprintf("key-%s-%d", seed, index), fmt.Sprintf("seventh-%d", index%7))
	message.AddProperty("index", strconv.FormatInt(index, 10))
	message.AddProperty("text", fmt.Sprintf("größe %d 漢字 🚀", index))
	kind := fields{}
	setSeq := func(lanes int64) {
		kind["seq"] = index / lanes
		message.AddProperty("seq", strconv.FormatInt(index/lanes, 10))
	}
	if groups := o.number("group-count", 0); groups > 0 {
		group := fmt.Sprintf("g%d", index%groups)
		message.SetMessageGroup(group)
		kind["group"] = group
		setSeq(groups)
	}
	if lites := o.number("lite-count", 0); lites > 0 {
		lite := fmt.Sprintf("l%d", index%lites)
		message.SetLiteTopic(lite)
		kind["lite"] = lite
		setSeq(lites)
	}
	if priorities := o.number("priority", 0); priorities > 0 {
		priority := 1 + index%priorities
		if err := message.SetPriority(int32(priority)); err != nil {
			panic(err)
		}
		kind["priority"] = priority
	}
	if delay, spread := o.number("delay", 0), o.number("delay-spread", 0); delay > 0 || spread > 0 {
		due := now() + delay
		if spread > 0 {
			due += index * 7919 % spread
		}
		message.SetDelayTimestamp(time.UnixMilli(due))
		kind["due"] = due
	}
	return message, kind
}

func report(view *rmq.MessageView) {
	keys := slices.Clone(view.GetKeys())
	slices.Sort(keys)
	sum := sha256.Sum256(view.GetBody())
	facts := fields{
		"id": view.GetMessageId(), "topic": view.GetTopic(), "tag": view.GetTag(), "keys": keys,
		"properties": view.GetProperties(), "sha256": hex.EncodeToString(sum[:]), "length": len(view.GetBody()),
		"attempt": view.GetDeliveryAttempt(), "group": view.GetMessageGroup(),
	}
	if born := view.GetBornTimestamp(); born != nil {
		facts["born"] = born.UnixMilli()
	}
	if due := view.GetDeliveryTimestamp(); due != nil {
		facts["due"] = due.UnixMilli()
	}
	if lite := view.GetLiteTopic(); lite != "" {
		facts["lite"] = lite
	}
	if seq, err := strconv.ParseInt(view.GetProperties()["seq"], 10, 64); err == nil {
		facts["seq"] = seq
	}
	emit("message", facts)
}
