#!/usr/bin/env python3
# A plugin that fails in a chosen way, to see what the host does.
import os, sys, threading
import plugin


def crash(cancelled):
    print("about to crash", file=sys.stderr, flush=True)
    os.abort()


def hang(cancelled):
    """A deadlock: pings are not answered either."""
    with plugin.writing:
        threading.Event().wait()


def stubborn(cancelled):
    """Ignores its cancellation. Pings are answered."""
    threading.Event().wait()


def garbage(cancelled):
    with plugin.writing:
        plugin.connection.sendall(b"garbage\n")
    return "after garbage"


def forbidden(cancelled):
    return plugin.ask("store/get", key="total")


plugin.serve({"crash": crash, "hang": hang, "stubborn": stubborn, "garbage": garbage, "forbidden": forbidden})
