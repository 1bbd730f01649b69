# For plugins in Python: the connection to the host. Not executable, so it is not a plugin itself. See docs/protocol.md.
import json, os, queue, socket, sys, threading

path, key = os.environ.pop("PIPEWRIGHT_CONTROL").rsplit("?", 1)
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
writing = threading.Lock()
answers = {}    # of requests to the host: id -> queue
cancelled = {}  # requests of the host that are in work: id -> event


def say(**message):
    with writing:
        connection.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def log(text):
    say(method="log", params={"text": text})


def ask(method, /, **params):
    """Calls a method of the host, and waits for the result."""
    answer = queue.SimpleQueue()
    answers[id(answer)] = answer
    say(id=id(answer), method=method, params=params)
    message = answer.get()
    if "error" in message:
        raise RuntimeError(message["error"]["message"])
    return message["result"]


def work(number, method, params):
    try:
        say(id=number, result=method(cancelled[number], *params))
    except Exception as error:  # the host shows it
        say(id=number, error={"code": 1, "message": f"{type(error).__name__}: {error}"})
    finally:
        del cancelled[number]


def serve(methods, version=2, capabilities=()):
    """Answers requests, each on a thread, until the host ends the plugin."""
    hello = {"version": version, "methods": sorted(methods), "capabilities": list(capabilities)}
    say(id=0, method="hello", params={"key": key, "version": 1})
    for line in connection.makefile("rb"):
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if method is None:
            if number in answers:
                answers.pop(number).put(message)
            elif "error" in message:
                sys.exit(message["error"]["message"])  # the connection is refused
        elif method == "shutdown":
            break
        elif method == "$/cancelRequest" and message["params"]["id"] in cancelled:
            cancelled[message["params"]["id"]].set()
        elif number is None:
            continue
        elif method in ("ping", "initialize"):
            say(id=number, result=None if method == "ping" else hello)
        elif method in methods:
            cancelled[number] = threading.Event()
            arguments = (number, methods[method], message.get("params", ()))
            threading.Thread(target=work, args=arguments, daemon=True).start()
        else:
            say(id=number, error={"code": -32601, "message": f"method not found: {method}"})
