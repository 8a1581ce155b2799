"""The program that compiles grammars on trial, since one of few lines may take for ever, or all memory, or
end its process. It says nothing about a grammar but that it has come through it.

workers.py starts it, with the bytes of memory that it may take, its stack included, and the folder of
llguidance as arguments, and talks to it over a socket that is its standard input. The body of a message to it
is JSON: a grammar, its limits, and the seconds that it may take; the answer is the letter T without a text.

It is not imported by the package, and imports nothing of it."""

from __future__ import annotations

import io
import json
import resource
import signal
import socket
import sys
import threading

STACK = 512 << 20  # as grammar.py has it


def serve() -> None:
    """Answers questions until there are no more."""
    from llguidance import LLMatcher, LLParserLimits

    stream = socket.socket(fileno=0).makefile("rwb")
    answer(stream, b"R")
    while head := stream.read(8):
        grammar, limits, seconds = json.loads(stream.read(int.from_bytes(head, "little")))
        signal.alarm(seconds)  # ends this process, also when there is nobody any more who would
        LLMatcher.validate_grammar_with_warnings(grammar, None, limits=LLParserLimits(**limits))
        signal.alarm(0)
        answer(stream, b"T")


def answer(stream: io.BufferedRWPair, letter: bytes) -> None:
    stream.write(letter + bytes(8))
    stream.flush()


def main() -> None:
    memory, folder = int(sys.argv[1]), sys.argv[2]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = [*sys.path[1:], folder]  # not the folder that this file is in
    threading.stack_size(STACK)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
