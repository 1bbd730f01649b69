// A worker without the library: docs/protocol.md.
package main

import (
	"encoding/json"
	"log"
	"net"
	"os"
	"strings"
)

type object map[string]any

func answer(method string, params json.RawMessage) (string, any) {
	switch method {
	case "ping":
		return "result", nil
	case "add":
		var numbers []float64
		if err := json.Unmarshal(params, &numbers); err != nil {
			return "error", object{"code": -32602, "message": err.Error()}
		}
		sum := 0.0
		for _, number := range numbers {
			sum += number
		}
		return "result", sum
	}
	return "error", object{"code": -32601, "message": "method not found"}
}

func main() {
	address := os.Getenv("PIPEWRIGHT_CONTROL")
	at := strings.LastIndex(address, "?")
	if at < 0 {
		log.Fatal("PIPEWRIGHT_CONTROL is not set")
	}
	control, err := net.Dial("unix", address[:at])
	if err != nil {
		log.Fatal(err)
	}
	in, out := json.NewDecoder(control), json.NewEncoder(control)
	out.Encode(object{"jsonrpc": "2.0", "id": 0, "method": "hello", "params": object{"key": address[at+1:], "version": 1}})
	for {
		var message struct {
			ID, Params, Error json.RawMessage
			Method            string
		}
		if in.Decode(&message) != nil { // ends with the parent
			return
		}
		switch {
		case message.Error != nil: // the hello is refused
			log.Fatal(string(message.Error))
		case message.Method == "shutdown": // the parent requests a stop
			return
		case message.Method != "" && message.ID != nil: // not a notification
			member, value := answer(message.Method, message.Params)
			out.Encode(object{"jsonrpc": "2.0", "id": message.ID, member: value})
		}
	}
}
