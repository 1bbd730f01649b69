#!/usr/bin/env python3
# A plugin in Python: counts words, and asks the host and other plugins for help.
import plugin


def count(cancelled, text):
    return len(text.split())


def total(cancelled, text):
    """The words of all calls. The host keeps the sum while this plugin is restarted or reloaded."""
    words = (plugin.ask("store/get", key="total") or 0) + count(cancelled, text)
    plugin.ask("store/set", key="total", value=words)
    return words


def factor(cancelled, text):
    """The prime factors of the number of words, by another plugin."""
    return plugin.ask("call", plugin="primes", method="factor", params=[count(cancelled, text)])


def sleep(cancelled, seconds):
    """Ends early if it is cancelled."""
    if cancelled.wait(seconds):
        plugin.log(f"sleep {seconds} was cancelled")
        raise RuntimeError("cancelled")
    return seconds


plugin.serve({"count": count, "total": total, "factor": factor, "sleep": sleep}, capabilities=["call", "log", "store"])
