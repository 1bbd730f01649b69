"""The peer `python` of the bench `pool`: tasks through a ProcessPoolExecutor. Arguments: tasks, bytes, workers. Prints tasks per second."""

import sys
import time
from concurrent.futures import ProcessPoolExecutor


def echo(text):
    return text


if __name__ == "__main__":
    tasks, size, workers = map(int, sys.argv[1:])
    payload = "x" * size
    with ProcessPoolExecutor(workers) as executor:
        for _ in executor.map(echo, [payload] * (10 * workers)):  # warm-up: the workers start with the first tasks
            pass
        began = time.perf_counter()
        for answer in executor.map(echo, [payload] * tasks):
            if answer != payload:
                sys.exit("the answer differs from the request")
        print(tasks / (time.perf_counter() - began))
