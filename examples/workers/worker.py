#!/usr/bin/env python3
# A worker without the library: docs/protocol.md.
import json, os, socket, sys

path, key = os.environ["PIPEWRIGHT_CONTROL"].rsplit("?", 1)
control = socket.socket(socket.AF_UNIX)
control.connect(path)
methods = {"ping": lambda params: None, "add": sum}

def say(**message):
    control.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

say(id=0, method="hello", params={"key": key, "version": 1})
for line in control.makefile("rb"):                         # ends with the parent
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if "error" in message:                                  # the hello is refused
        sys.exit(message["error"]["message"])
    elif method == "shutdown":                              # the parent requests a stop
        break
    elif method in methods and "id" in message:
        try:
            say(id=id, result=methods[method](message.get("params")))
        except TypeError as error:
            say(id=id, error={"code": -32602, "message": str(error)})
    elif method and "id" in message:                        # not a notification
        say(id=id, error={"code": -32601, "message": "method not found"})
