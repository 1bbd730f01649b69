#!/usr/bin/env python3
"""Checks a worker against docs/protocol.md: starts it as a parent does, and prints what it violates.

    check.py -- ./my-worker                                   the control address is in PIPEWRIGHT_CONTROL
    check.py -- ./my-worker --control={control}               its path is in an argument, its key in PIPEWRIGHT_CONTROL_KEY
    check.py --call add '[20, 22]' 42 --bad add '["x"]' -- ./my-worker
    check.py --messages --framing nul -- ./my-worker          the message pipe is in PIPEWRIGHT_MESSAGES, or in {messages}

Exit code: 0 if nothing is violated, 1 if something is, 2 if the check itself could not run. A `note` is no violation: the worker
may do so, and the note says what follows from it. It needs Python 3.7 or later on Linux, and nothing else.
"""

import argparse
import itertools
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

VERSION = 1
MAX_MESSAGE_SIZE = 16 << 20
HELLO_BYTES = 4096
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNKNOWN_METHOD = "no such method: \u00e4\u2028\U0001f4a1"


class Findings:
    """What is violated, and what is worth a note; each once."""

    def __init__(self):
        self.violations, self.notes, self.check = [], [], ""

    def violation(self, text):
        self._add(self.violations, "violation", text)

    def note(self, text):
        self._add(self.notes, "note", text)

    def _add(self, found, kind, text):
        line = f"{kind}: {self.check}: {text}"
        if line not in found:
            found.append(line)
            print(line, flush=True)


class Gone(Exception):
    """The worker has closed its connection, or has exited."""


def short(value, limit=120):
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def same_id(one, other):
    """Strings are equal to strings, and numbers to numbers of the same value."""
    kinds = [isinstance(id, (int, float)) and not isinstance(id, bool) for id in (one, other)]
    return one == other and (all(kinds) or type(one) is type(other))


class Worker:
    """One process, its control connection and its other pipes."""

    def __init__(self, options, findings, alone=False):
        self.options, self.findings = options, findings
        self.directory = tempfile.TemporaryDirectory(prefix="conformance-")
        self.key, self.path = secrets.token_hex(16), os.path.join(self.directory.name, "control")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen()
        self.stderr = tempfile.TemporaryFile()
        self.control, self.received, self.open, self.answers = None, b"", [], []
        self.ids, self.extension = itertools.count(1), 0
        self.pipes = {}  # descriptor: bytes
        self.ended, self.datagrams = {}, []
        self.notify, self.message_pipe, self.newline_pipe = None, None, None
        self._start(alone)

    def _start(self, alone):
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PIPEWRIGHT_")}
        environment.pop("NOTIFY_SOCKET", None)
        replaced, passed = {"{control}": self.path}, []
        if any("{control}" in argument for argument in self.options.command):
            environment["PIPEWRIGHT_CONTROL_KEY"] = self.key
        else:
            environment["PIPEWRIGHT_CONTROL"] = f"{self.path}?{self.key}"
        if self.options.messages or any("{messages}" in argument for argument in self.options.command):
            self.message_pipe, end = os.pipe()
            self.pipes[self.message_pipe] = b""
            passed.append(end)
            replaced["{messages}"] = str(end)
            if not any("{messages}" in argument for argument in self.options.command):
                environment["PIPEWRIGHT_MESSAGES"] = str(end)
        if self.options.ready == "newline":
            self.newline_pipe, end = os.pipe()
            self.pipes[self.newline_pipe] = b""
            passed.append(end)
            replaced["{ready}"] = str(end)
        if self.options.ready == "notify":
            self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            environment["NOTIFY_SOCKET"] = os.path.join(self.directory.name, "notify")
            self.notify.bind(environment["NOTIFY_SOCKET"])
        if alone:
            for name in ("PIPEWRIGHT_CONTROL", "PIPEWRIGHT_CONTROL_KEY", "PIPEWRIGHT_MESSAGES", "NOTIFY_SOCKET"):
                environment.pop(name, None)
        command = self.options.command
        for name, text in replaced.items():
            command = [argument.replace(name, text) for argument in command]
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.stderr, start_new_session=True,
        )
        self.passed = passed
        for end in passed:
            os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for descriptor in self.pipes:
            os.close(descriptor)
        for each in (self.control, self.listener, self.notify, self.stderr):
            if each is not None:
                each.close()
        self.directory.cleanup()

    def errors(self):
        self.stderr.seek(0)
        return self.stderr.read().decode("utf-8", "replace").strip()

    def last_words(self):
        text = self.errors()[-400:]
        return f"; its standard error ends with: {text}" if text else ""

    # The first line.

    def connect(self, accept=True):
        """Accepts the connection and reads the hello. Answers it, unless it is to be refused. Returns its id."""
        deadline = time.monotonic() + self.options.timeout
        while not select.select([self.listener], [], [], 0.02)[0]:
            if self.process.poll() is not None:
                raise Gone(f"exited with {self.process.returncode} before it connected{self.last_words()}")
            if time.monotonic() > deadline:
                raise Gone(f"did not connect within {self.options.timeout} s{self.last_words()}")
        self.control = self.listener.accept()[0]
        self.control.setblocking(False)
        line = self.read_line(deadline)
        if line is None:
            raise Gone("sent no first line")
        if len(line) >= HELLO_BYTES:
            self.findings.violation(f"the first line has {len(line)} bytes, more than {HELLO_BYTES}")
        hello = self.parse(line)
        params = (hello or {}).get("params")
        if not hello or hello.get("method") != "hello" or not isinstance(params, dict):
            raise Gone(f"the first line is not `hello`: {short(line)}")
        if params.get("key") != self.key:
            raise Gone("the hello has another key than the address")
        version = params.get("version", VERSION)
        if version != VERSION or isinstance(version, bool):
            raise Gone(f"the hello names version {version!r}, and this is version {VERSION}")
        if accept and "id" in hello:
            self.send({"id": hello["id"], "result": {"version": VERSION, "max_message_size": MAX_MESSAGE_SIZE}})
        return hello.get("id")

    # Lines in.

    def read_some(self, deadline, writing=b""):
        """Reads what is there, or writes; returns how many bytes were written. Raises `Gone` at the end of the connection."""
        readers = [self.control, *self.pipes] + ([self.notify] if self.notify else [])
        timeout = max(0, deadline - time.monotonic())
        readable, writable, _ = select.select(readers, [self.control] if writing else [], [], timeout)
        for descriptor in [each for each in readable if isinstance(each, int)]:
            part = os.read(descriptor, 1 << 16)
            self.pipes[descriptor] += part
            if not part:
                os.close(descriptor)
                self.ended[descriptor] = self.pipes.pop(descriptor)
        if self.notify in readable:
            self.datagrams += self.notify.recv(1 << 16).split(b"\n")
        if self.control in readable:
            try:
                part = self.control.recv(1 << 16)
            except ConnectionResetError:
                part = b""
            if not part:
                raise Gone("closed its connection" + self.last_words())
            self.received += part
        return self.write_some(writing) if writable else 0

    def read_line(self, deadline):
        while b"\n" not in self.received:
            if time.monotonic() > deadline:
                return None
            self.read_some(deadline)
        line, self.received = self.received.split(b"\n", 1)
        return line

    def parse(self, line):
        if line.startswith(BYTE_ORDER_MARK):
            self.findings.note("a line begins with a byte order mark, which is skipped")
            line = line[len(BYTE_ORDER_MARK):]
        try:
            message = json.loads(line.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        except UnicodeDecodeError:
            return self.findings.violation(f"a line is not UTF-8: {short(line)}")
        except (ValueError, ZeroDivisionError, RecursionError):
            return self.findings.violation(f"a line is not JSON: {short(line)}")
        if not isinstance(message, dict):
            return self.findings.violation(f"a line is not an object: {short(line)}")
        if message.get("jsonrpc") != "2.0":
            self.findings.violation(f'a line lacks "jsonrpc":"2.0": {short(line)}')
        return message

    def handle(self, line):
        """Checks one line of the worker. Keeps an answer; answers a request."""
        if not line.strip():
            return self.findings.note("a blank line, which is skipped")
        message = self.parse(line)
        if message is None:
            return
        if "method" in message:
            self.handle_call(message, line)
        elif "id" not in message or ("result" in message) == ("error" in message):
            self.findings.violation(f"neither a request nor an answer with either result or error: {short(line)}")
        else:
            self.handle_answer(message, line)

    def handle_call(self, message, line):
        method, params = message["method"], message.get("params", [])
        if not isinstance(method, str):
            return self.findings.violation(f"a method is not a string: {short(line)}")
        if "params" in message and not isinstance(params, (list, dict)):
            self.findings.violation(f"params are neither an array nor an object: {short(line)}")
        if method == "hello":
            self.findings.violation("a second hello")
        if method == "$/extend":
            more = params.get("ms") if isinstance(params, dict) else None
            if not isinstance(more, int) or isinstance(more, bool) or more < 0:
                return self.findings.violation(f"$/extend without a whole number `ms`: {short(line)}")
            self.extension = min(60.0, more / 1000)
        if "id" in message:
            known = {"result": None} if method == "ping" else {"error": {"code": -32601, "message": "method not found"}}
            self.send({"id": message["id"], **known})

    def handle_answer(self, message, line):
        error = message.get("error")
        if "error" in message:
            good = isinstance(error, dict) and isinstance(error.get("message"), str)
            code = error.get("code") if good else None
            if not isinstance(code, int) or isinstance(code, bool):
                self.findings.violation(f"an error without a whole code and a message: {short(line)}")
        if message["id"] is None and self.findings.check == "invalid lines":
            return self.findings.note(f"an error without an id, which ends the only open call: {short(line)}")
        match = next((id for id in self.open if same_id(id, message["id"])), None)
        if match is None:
            text = "an answer to no open request (a second answer, to a notification, or with another id)"
            return self.findings.violation(f"{text}: {short(line)}")
        self.open.remove(match)
        self.answers.append(message)

    # Lines out.

    def send_bytes(self, text, pause=None):
        """Writes, and reads meanwhile. `pause` is how long to wait for room before reading."""
        deadline = time.monotonic() + 4 * self.options.timeout
        while text:
            if time.monotonic() > deadline:
                raise Gone("does not read its control connection")
            if pause is not None:
                if select.select([], [self.control], [], pause)[1]:
                    text = text[self.write_some(text):]
                    continue
                pause = None
            text = text[self.read_some(deadline, text):]

    def write_some(self, text):
        try:
            return self.control.send(text[: 1 << 16])
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("closed its connection" + self.last_words())

    def send(self, *messages, **how):
        lines = [json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False) for message in messages]
        self.send_bytes("".join(line + "\n" for line in lines).encode("utf-8"), **how)

    def request(self, method, params=None, id=None):
        id = next(self.ids) if id is None else id
        self.open.append(id)
        return {"id": id, "method": method, **({} if params is None else {"params": params})}

    def wait(self, count=1, timeout=None):
        """The next answers; fewer at the timeout."""
        deadline = time.monotonic() + (timeout or self.options.timeout)
        while len(self.answers) < count:
            line = self.read_line(deadline)
            if line is None:
                break
            self.handle(line)
        found, self.answers = self.answers[:count], self.answers[count:]
        return found

    def call(self, method, params=None, id=None, timeout=None):
        """The answer; `None` if there is none."""
        request = self.request(method, params, id)
        self.send(request)
        return self.answer_to(request, timeout)

    def answer_to(self, request, timeout=None):
        found = self.wait(1, timeout)
        if not found:
            self.open = [id for id in self.open if id is not request["id"]]
            self.findings.violation(f"no answer to {short(request['method'], 40)}, id {short(request['id'], 40)}")
            return None
        return found[0]

    def expect_code(self, code, answer, what):
        found = (answer or {}).get("error", {})
        if answer is not None and (not isinstance(found, dict) or found.get("code") != code):
            self.findings.violation(f"{what} is answered with {short(answer)} instead of the error {code}")

    def settle(self):
        """Everything that was sent before is handled: nothing is open, and no answer is left over."""
        answer = self.call("ping")
        if answer is not None and answer.get("result", 0) is not None:
            self.findings.violation(f"`ping` is answered with {short(answer)} instead of the result null")
        if self.open:
            self.findings.violation(f"no answer to {len(self.open)} requests, the first with the id {short(self.open[0], 40)}")
        self.open, self.answers = [], []

    # Ends.

    def wait_exit(self, seconds):
        """The exit code within the time, or what `$/extend` asks for; `None` if it still runs. Reads meanwhile."""
        started = time.monotonic()
        while time.monotonic() - started < max(seconds, self.extension):
            if self.process.poll() is not None:
                break
            if self.control is not None and self.control.fileno() >= 0:
                try:
                    line = self.read_line(time.monotonic() + 0.02)
                    if line is not None:
                        self.handle(line)
                except Gone:
                    # The worker may wait for that, if it has closed its sending side only.
                    self.control.close()
            else:
                time.sleep(0.005)
        return self.process.poll()


# The checks. Each gets a worker that is connected, unless its name ends with `process`.


def check_ping(worker):
    worker.settle()
    for params in ([], {}, [1, {"a": None}]):
        answer = worker.call("ping", params)
        if answer is not None and answer.get("result", 0) is not None:
            worker.findings.violation(f"`ping` is answered with {short(answer)} instead of the result null")


def check_ids(worker):
    for id in (0, 1, 9007199254740991, -1, 7.5, "a", "", "7", "\u00e4\u2028\U0001f4a1\"\\\n\0", "x" * 1000):
        worker.call("ping", id=id)
    worker.settle()


def check_unknown_methods(worker):
    for params in (None, [], {"a": 1}):
        answer = worker.call(UNKNOWN_METHOD, params)
        worker.expect_code(-32601, answer, "an unknown method")
    worker.settle()


def check_calls(worker):
    for method, params, result in worker.options.call:
        answer = worker.call(method, params)
        if answer is not None and answer.get("result", answer) != result:
            worker.findings.violation(f"`{method}` is answered with {short(answer)} instead of the result {short(result)}")
    for method, params in worker.options.bad:
        worker.expect_code(-32602, worker.call(method, params), f"`{method}` with invalid params")
    worker.settle()


def check_notifications(worker):
    worker.send({"method": UNKNOWN_METHOD}, {"method": UNKNOWN_METHOD, "params": [1]}, {"method": "ping"})
    worker.send({"method": "$/cancelRequest", "params": {"id": 99999}}, {"method": "$/cancelRequest", "params": {"id": "a"}})
    worker.send({"id": 99998, "result": None})
    worker.settle()


def check_lines(worker):
    request = worker.request("ping", {"text": "\u00e4\u2028\u2029\u0085\U0001f4a1"}, "\u00e4\u2028")
    for byte in json.dumps({"jsonrpc": "2.0", **request}, ensure_ascii=False).encode("utf-8") + b"\n":
        worker.send_bytes(bytes([byte]))
        # Without a pause the kernel would hand over several writes as one.
        time.sleep(0.0005)
    worker.answer_to(request)
    request = worker.request("ping")
    worker.send({"later": {"id": 1}, **request})
    worker.answer_to(request)
    requests = [worker.request("ping") for _ in range(1000)]
    worker.send(*requests)
    worker.wait(len(requests))
    worker.settle()


def check_large_request(worker):
    worker.call("ping", ["x" * worker.options.large], timeout=4 * worker.options.timeout)
    worker.settle()


def check_full_connection(worker):
    """Answers that do not fit in the socket wait until the parent reads."""
    requests = [worker.request(UNKNOWN_METHOD, id=f"{n} " + "x" * 4000) for n in range(500)]
    worker.send(*requests, pause=0.3)
    worker.wait(len(requests), timeout=4 * worker.options.timeout)
    worker.settle()


def check_cancellation(worker):
    for method, params in worker.options.slow:
        request = worker.request(method, params)
        worker.send(request)
        time.sleep(0.1)
        worker.send({"method": "$/cancelRequest", "params": {"id": request["id"]}})
        answer = worker.answer_to(request)
        if answer is not None and "error" in answer:
            worker.expect_code(-32800, answer, f"the cancelled `{method}`")
    requests = [worker.request("ping"), worker.request("ping")]
    cancellation = {"method": "$/cancelRequest", "params": {"id": requests[1]["id"]}}
    worker.send(*requests, cancellation)
    for answer in worker.wait(2):
        if "error" in answer:
            worker.expect_code(-32800, answer, "a cancelled request")
    worker.settle()


def check_descriptors(worker):
    for end in worker.passed:
        try:
            with open(f"/proc/{worker.process.pid}/fdinfo/{end}") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        except (OSError, StopIteration):
            continue
        if not flags & os.O_CLOEXEC:
            worker.findings.note(f"descriptor {end} has no close-on-exec: children of the worker keep the pipe open")


def check_readiness(worker):
    deadline = time.monotonic() + worker.options.timeout
    while True:
        pipe = worker.pipes.get(worker.newline_pipe, worker.ended.get(worker.newline_pipe, b""))
        if b"READY=1" in worker.datagrams or b"\n" in pipe:
            return
        if time.monotonic() > deadline:
            return worker.findings.violation(f"not ready within {worker.options.timeout} s")
        worker.read_some(min(deadline, time.monotonic() + 0.05))
        while b"\n" in worker.received:
            worker.handle(worker.read_line(deadline))


def check_shutdown(worker):
    worker.settle()
    worker.send({"method": "shutdown"})
    code = worker.wait_exit(worker.options.stop)
    if code is None:
        worker.findings.violation(f"still runs {max(worker.options.stop, worker.extension)} s after `shutdown`")
    elif code != 0:
        worker.findings.violation(f"exits with {code} instead of 0 after `shutdown`{worker.last_words()}")
    check_rest(worker)


def check_end_of_connection(worker):
    worker.settle()
    worker.control.close()
    if worker.wait_exit(worker.options.stop) is None:
        worker.findings.violation(f"still runs {worker.options.stop} s after the end of the connection")


def check_sigterm(worker):
    worker.settle()
    os.killpg(worker.process.pid, signal.SIGTERM)
    if worker.wait_exit(worker.options.stop + 4) is None:
        worker.findings.violation(f"still runs {worker.options.stop + 4} s after SIGTERM")


def check_invalid_lines(worker):
    """The parent sends none. What a worker does with them is worth a note."""
    for line, what in ((b"not json\n", "a line that is not JSON"), (b"[]\n", "a line that is not an object")):
        try:
            worker.send_bytes(line)
            worker.settle()
        except Gone:
            return worker.findings.note(f"{what} ends the worker")


def check_refusal_process(worker):
    """A refused worker exits with an error."""
    id = worker.connect(accept=False)
    error = {"code": -32600, "message": "no worker with this key is expected"}
    worker.send({"id": id, "error": error})
    worker.control.close()
    code = worker.wait_exit(worker.options.stop)
    if code is None:
        worker.findings.violation(f"still runs {worker.options.stop} s after its hello was refused")
    elif code == 0:
        worker.findings.violation("exits with 0 after its hello was refused")
    elif error["message"] not in worker.errors():
        worker.findings.note("its standard error does not say why its hello was refused")


def check_alone_process(worker):
    """A worker without a parent says so."""
    code = worker.wait_exit(worker.options.stop)
    if code is None:
        worker.findings.note(f"still runs after {worker.options.stop} s although it has no parent")
    elif code == 0 or not worker.errors():
        worker.findings.note(f"exits with {code} without a parent, and says on its standard error: {short(worker.errors())}")


def check_rest(worker):
    """What is left when the worker has exited."""
    if select.select([worker.listener], [], [], 0)[0]:
        worker.findings.violation("connected twice, and a key is valid once")
    if worker.received.strip():
        worker.findings.violation(f"the last line has no end: {short(worker.received)}")
    if worker.process.poll() is None or worker.message_pipe is None:
        return
    stream = worker.ended.get(worker.message_pipe)
    if stream is None:
        stream = worker.pipes[worker.message_pipe]
        while select.select([worker.message_pipe], [], [], 0.2)[0]:
            part = os.read(worker.message_pipe, 1 << 16)
            if not part:
                break
            stream += part
    check_messages(stream, worker.options.framing, worker.findings)


def check_messages(stream, framing, findings):
    frames = []
    while stream:
        before = len(stream)
        if framing in ("lines", "nul"):
            frame, end, stream = stream.partition(b"\n" if framing == "lines" else b"\0")
            if not end:
                return findings.violation(f"the last message has no end: {short(frame)}")
        else:
            if framing == "length":
                size, stream = int.from_bytes(stream[:4], "big"), stream[4:]
            else:
                header, _, stream = stream.partition(b"\r\n\r\n")
                names = dict(line.split(b":", 1) for line in header.split(b"\r\n") if b":" in line)
                if not names.get(b"Content-Length", b"").strip().isdigit():
                    return findings.violation(f"a header without Content-Length: {short(header)}")
                size = int(names[b"Content-Length"])
            frame, stream = stream[:size], stream[size:]
            if len(frame) < size:
                return findings.violation(f"a message of {size} bytes ends after {len(frame)}: {short(frame)}")
        assert len(stream) < before
        frames.append(frame[len(BYTE_ORDER_MARK):] if frame.startswith(BYTE_ORDER_MARK) else frame)
    for frame in filter(bytes.strip, frames):
        try:
            json.loads(frame.decode("utf-8"))
        except UnicodeDecodeError:
            findings.violation(f"a message is not UTF-8: {short(frame)}")
        except ValueError:
            findings.violation(f"a message is not JSON: {short(frame)}")


# One process goes through these; it is started again if it exits. Each of the others needs a new one.
SHARED = [
    check_ping, check_ids, check_unknown_methods, check_calls, check_notifications, check_lines, check_large_request,
    check_full_connection, check_cancellation, check_descriptors, check_shutdown,
]
SEPARATE = [check_end_of_connection, check_sigterm, check_invalid_lines, check_refusal_process, check_alone_process]


def name_of(check):
    return check.__name__[len("check_"):].replace("_process", "").replace("_", " ")


def run_in_one_process(checks, options, findings):
    """Returns the checks that were not reached, and whether the worker has connected."""
    with Worker(options, findings, alone=checks == [check_alone_process]) as worker:
        try:
            findings.check = "hello"
            if not checks[0].__name__.endswith("_process"):
                worker.connect()
        except Gone as error:
            findings.violation(str(error))
            return [], False
        for at, check in enumerate(checks):
            findings.check = name_of(check)
            try:
                check(worker)
            except Gone as error:
                findings.violation(str(error))
                return checks[at + 1:], True
    return [], True


def run(options):
    findings = Findings()
    ready = [check_readiness] if options.ready else []
    wanted = lambda checks: [check for check in checks if not options.only or name_of(check) in options.only]
    rest, connects = wanted(ready + SHARED), True
    while rest and connects:
        rest, connects = run_in_one_process(rest, options, findings)
    for check in wanted(SEPARATE) if connects else []:
        run_in_one_process([check], options, findings)
    if not options.call and not options.only:
        findings.check = "calls"
        findings.note("not checked: results (--call), invalid params (--bad), cancellation (--slow)")
    counts = f"{len(findings.violations)} violations, {len(findings.notes)} notes"
    print(f"{'violates' if findings.violations else 'conforms to'} version {VERSION} of the protocol: {counts}")
    return 1 if findings.violations else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = {"metavar": ("METHOD", "PARAMS"), "nargs": 2, "action": "append", "default": []}
    parser.add_argument("--call", **{**text, "nargs": 3, "metavar": ("METHOD", "PARAMS", "RESULT")}, help="a call that succeeds")
    parser.add_argument("--bad", **text, help="a call with invalid params")
    parser.add_argument("--slow", **text, help="a call that takes longer than 100 ms, which is cancelled")
    parser.add_argument("--messages", action="store_true", help="pass a message pipe in PIPEWRIGHT_MESSAGES")
    parser.add_argument("--framing", choices=["lines", "nul", "length", "content-length"], default="lines")
    parser.add_argument("--ready", choices=["notify", "newline"], help="NOTIFY_SOCKET, or a descriptor in {ready}")
    parser.add_argument("--large", type=int, default=1 << 20, metavar="BYTES", help="the size of a large request")
    names = [name_of(check) for check in [check_readiness, *SHARED, *SEPARATE]]
    parser.add_argument("--only", choices=names, action="append", metavar="CHECK", help=f"one of: {', '.join(names)}")
    parser.add_argument("--timeout", type=float, default=5, metavar="SECONDS", help="for each answer")
    parser.add_argument("--stop", type=float, default=1, metavar="SECONDS", help="for the exit after `shutdown`")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        for values in options.call + options.bad + options.slow:
            values[1:] = [json.loads(value) for value in values[1:]]
        return run(options)
    except (OSError, ValueError) as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
