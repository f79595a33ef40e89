"""Pages makes tables and pages of text, and keeps the pages if it is told to.

    pages.py keep|drop

Prints its truth as a line of JSON, ten times a second, and lives on until stdin closes.
"""

import json
import select
import sys
import time

keeps = sys.argv[1] == "keep"
kept = []
began = time.monotonic()


def page(number):
    """Larger than what Python's own allocator hands out, so malloc is asked for it."""
    return bytearray(4000 + number % 100)


def serve(number):
    rows = [{"row": row, "text": str(row) * 8} for row in range(100)]
    text = page(number)
    text[: len(rows)] = bytes(len(row["text"]) for row in rows)
    if keeps:
        kept.append(text)


number = 0
due = began
while True:
    for _ in range(5):
        number += 1
        serve(number)
    truth = {"seconds": time.monotonic() - began, "kept": len(kept)}
    print(json.dumps(truth), flush=True)
    # What a stall holds up is made up for.
    due += 0.1
    pause = max(due - time.monotonic(), 0)
    if select.select([sys.stdin], [], [], pause)[0] and not sys.stdin.readline():
        break
