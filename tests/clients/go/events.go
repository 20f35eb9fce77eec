package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
)

type fields map[string]any

// with is a copy that has more.
func (f fields) with(more fields) fields {
	all := maps.Clone(f)
	maps.Copy(all, more)
	return all
}

var output sync.Mutex

func now() int64 {
	return time.Now().UnixMilli()
}

// emit writes one JSON object in one line to stdout.
func emit(event string, facts fields) {
	all := fields{"event": event, "at": now()}.with(facts)
	line, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n'))
}

func failure(err error) fields {
	facts := fields{"message": err.Error(), "error": fmt.Sprintf("%T", err)}
	if status, ok := rmq.AsErrRpcStatus(err); ok {
		facts["code"] = status.Code
	}
	return facts
}
