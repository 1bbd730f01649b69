"""A worker of a pool: calls the functions of a module. Requests and answers are lines of JSON-RPC 2.0."""
import asyncio, functools, importlib, inspect, json, os, sys, threading, traceback

requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
# Functions and programs that they start read nothing, and what they print goes to standard error.
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
lock, current, module = threading.Lock(), None, None


def send(**message):
    line = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False).encode() + b"\n"
    with lock:
        answers.write(line)
        answers.flush()


def progress(value):
    """Reports the progress of the running task: `import __main__; __main__.progress(value)`."""
    send(method="$/progress", params={"token": current, "value": value})


def run(method, params):
    global module
    if method == "initialize":
        module = importlib.import_module(params["module"])
        return None
    name, arguments = params
    function = functools.reduce(getattr, name.split("."), module)
    result = function(**arguments) if isinstance(arguments, dict) else function(*arguments)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


for line in requests:
    request = json.loads(line)
    current = request.get("id")
    if current is None:
        continue
    try:
        send(id=current, result=run(request["method"], request["params"]))
    except Exception as error:
        name, stack = type(error).__name__, traceback.format_exc()
        data = {"name": name, "message": str(error), "stack": stack}
        send(id=current, error={"code": -32000, "message": f"{name}: {error}", "data": data})
