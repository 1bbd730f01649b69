// A worker without the library: docs/protocol.md.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"net"
	"os"
	"strings"
)

type failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type message struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *failure        `json:"error,omitempty"`
}

func call(method string, params json.RawMessage) (json.RawMessage, *failure) {
	switch method {
	case "ping":
		return json.RawMessage("null"), nil
	case "add":
		var numbers []float64
		if err := json.Unmarshal(params, &numbers); err != nil {
			return nil, &failure{-32602, err.Error()}
		}
		sum := 0.0
		for _, number := range numbers {
			sum += number
		}
		result, _ := json.Marshal(sum)
		return result, nil
	}
	return nil, &failure{-32601, "method not found"}
}

func main() {
	path, key := os.Getenv("PIPEWRIGHT_CONTROL"), ""
	if at := strings.LastIndex(path, "?"); at >= 0 {
		path, key = path[:at], path[at+1:]
	}
	control, err := net.Dial("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	lines, out := bufio.NewReader(control), json.NewEncoder(control) // not bufio.Scanner, whose lines have a limit
	params, _ := json.Marshal(map[string]any{"key": key, "version": 1})
	out.Encode(message{Version: "2.0", ID: json.RawMessage("0"), Method: "hello", Params: params})
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // ends with the parent
			return
		}
		var received message
		if err := json.Unmarshal(line, &received); err != nil {
			log.Fatal(err)
		}
		switch {
		case received.Error != nil: // the hello is refused
			log.Fatal(received.Error.Message)
		case received.Method == "shutdown": // the parent requests a stop
			return
		case received.Method != "" && received.ID != nil: // not a notification
			result, failed := call(received.Method, received.Params)
			out.Encode(message{Version: "2.0", ID: received.ID, Result: result, Error: failed})
		}
	}
}
