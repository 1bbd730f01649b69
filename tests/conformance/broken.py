#!/usr/bin/env python3
"""A worker with one fault, which its argument names: each is found by check.py. Without an argument it has none."""

import json
import os
import signal
import socket
import sys
import time

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""


def has(*faults):
    return FAULT in faults


path, key = os.environ["PIPEWRIGHT_CONTROL"].rsplit("?", 1)
if has("never connects"):
    time.sleep(1000)
if has("exits at once"):
    sys.exit("no licence")
if has("ignores SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
control = socket.socket(socket.AF_UNIX)
control.connect(path)


def send(line):
    if has("drops what does not fit"):
        try:
            control.send(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    else:
        control.sendall(line)


def say(message):
    message = {"jsonrpc": "2.0", **message}
    if has("omits the version of JSON-RPC") and "id" in message:
        del message["jsonrpc"]
    text = json.dumps(message)
    if has("answers in another encoding"):
        text = text.replace("\\u00e4", "\u00e4")
        return send(text.encode("latin-1") + b"\n")
    send(text.encode() + b"\n")


def answer(id, method, params):
    if has("returns ids as text") and method == "ping":
        id = str(id)
    if has("returns ids as numbers") and isinstance(id, str) and id.isdigit():
        id = int(id)
    if method == "ping":
        say({"id": id, "result": "pong" if has("answers ping with a text") else None})
    elif method == "add" and has("accepts any params"):
        say({"id": id, "result": 42})
    elif method == "add":
        try:
            say({"id": id, "result": sum(params)})
        except TypeError:
            say({"id": id, "error": {"code": -32602, "message": "not numbers"}})
    elif method == "wait":
        if has("never answers a cancelled request"):
            return
        time.sleep(0.3)
        code = -32603 if has("answers a cancelled request with another error") else -32800
        say({"id": id, "error": {"code": code, "message": "cancelled"}})
    elif has("answers an unknown method with a result"):
        say({"id": id, "result": None})
    elif has("sends an error without a code"):
        say({"id": id, "error": {"message": "no"}})
    elif has("sends a result beside the error"):
        say({"id": id, "result": None, "error": {"code": -32601, "message": "method not found"}})
    else:
        say({"id": id, "error": {"code": -32601, "message": "method not found"}})
    if has("answers twice"):
        say({"id": id, "result": None})


def stop():
    if has("ignores shutdown"):
        return
    if has("takes longer than it asks for"):
        say({"method": "$/extend", "params": {"ms": 700}})
        time.sleep(1000)
    sys.exit(3 if has("exits with 3 at shutdown") else 0)


def lines():
    """The lines of the parent."""
    rest = b""
    while True:
        part = control.recv(4096 if has("reads no large lines") else 1 << 16)
        if not part:
            break
        if has("takes a read for a line"):
            yield part.split(b"\n")[0]
            continue
        rest += part
        if has("reads no large lines") and len(rest) > 1 << 16:
            rest = b""
        if has("splits lines at U+2028"):
            text = rest.decode("utf-8", "ignore")
            *whole, last = text.splitlines(keepends=True) or [""]
            rest = b"" if last.endswith("\n") else last.encode()
            yield from (line.encode() for line in whole + ([last] if last.endswith("\n") else []))
            continue
        *whole, rest = rest.split(b"\n")
        yield from whole
    if has("survives its parent"):
        time.sleep(1000)


hello = {"method": "hello", "params": {"key": key, "version": 1}, "id": 0}
if has("says hello with another key"):
    hello["params"]["key"] = "0" * 32
if has("says hello with version 2"):
    hello["params"]["version"] = 2
if has("says hello late"):
    say({"method": "$/extend", "params": {"ms": 1000}})
if has("prints to the connection"):
    say(hello)
    send(b"starting up\n")
elif not has("says nothing"):
    say(hello)
if has("says hello twice"):
    say(hello)
if has("connects twice"):
    again = socket.socket(socket.AF_UNIX)
    again.connect(path)
if has("sends a scalar as params"):
    say({"method": "progress", "params": 5})
if has("extends by a text"):
    say({"method": "$/extend", "params": {"ms": "1 s"}})
if "PIPEWRIGHT_MESSAGES" in os.environ:
    messages = int(os.environ["PIPEWRIGHT_MESSAGES"])
    value = json.dumps({"done": 1}).encode()
    if has("sends a message in another encoding"):
        value = b'"\xe4"'
    if has("prints to the message pipe"):
        value = b"starting up"
    frame = {
        "lines": value + b"\n",
        "nul": value + b"\0",
        "length": len(value).to_bytes(4, "big") + value,
        "content-length": b"Content-Length: %d\r\n\r\n" % len(value) + value,
    }[sys.argv[2] if len(sys.argv) > 2 else "lines"]
    os.write(messages, frame + (frame[:-1] if has("sends half a message") else frame))

if not has("is never ready"):
    if "NOTIFY_SOCKET" in os.environ:
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"STATUS=up\nREADY=1", os.environ["NOTIFY_SOCKET"])
    if len(sys.argv) > 3 and sys.argv[3].isdigit():
        os.write(int(sys.argv[3]), b"\n")

for line in lines():
    try:
        message = json.loads(line)
    except ValueError:
        if has("takes a read for a line", "splits lines at U+2028"):
            continue
        sys.exit("not JSON")
    if "error" in message:
        if has("survives its refusal"):
            time.sleep(1000)
        sys.exit(0 if has("exits with 0 when it is refused") else message["error"]["message"])
    method = message.get("method")
    if method == "shutdown":
        stop()
    elif method and ("id" in message or has("answers notifications")):
        answer(message.get("id"), method, message.get("params"))
