"""A Python that has its imports behind it: ``python preloaded.py SOCKET MODULE ARGUMENTS`` as ``python -m MODULE``.

A chapter takes two processes, papermill and its kernel, and both import for seconds before they do anything; so does
the renderer. Here one process imports it all once and forks for each of them. The process that was asked for stays as
their deputy: it passes its streams, its environment and its folder on, forwards an interrupt, and ends with their exit
code. So they are started, waited for and ended as any others. This file is run as a script, so that its imports are
cheap.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

# What chapters, their kernel and papermill import; what is not installed is left out.
MODULES = (
    "ipykernel.kernelapp", "ipykernel.ipkernel", "matplotlib.pyplot", "matplotlib_inline.backend_inline", "myst_nb",
    "pandas", "papermill.cli", "scipy.stats", "sklearn.datasets", "torch", "torch._dynamo",
    "riembn", "riembn.evidence", "riembn.pages", "riembn.training",
)  # fmt: skip
ENOUGH = 1 << 20  # bytes of an environment


def serve(path: str) -> None:
    """Import, then fork for each that asks, until the process is ended."""
    import gc
    import importlib

    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # see `website`
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # the cell that imports it will say so
            pass
    gc.freeze()  # else the collector would touch, and so copy, every page in each fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{path}.new")
        server.listen()
        os.rename(f"{path}.new", path)  # it is there once it can be asked
        while True:
            asked, _ = server.accept()
            with asked:
                told, streams, _, _ = socket.recv_fds(asked, ENOUGH, 3)
                if told and not os.fork():
                    server.close()
                    _become(asked, json.loads(told), streams)
                for stream in streams:
                    os.close(stream)


def _become(asked: socket.socket, told: dict[str, Any], streams: list[int]) -> None:
    """Run a module as ``python -m`` does, in what is now a process of its own."""
    import runpy
    import threading

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # One's deputy passes interrupts on. A build that was started in the background ignores its own.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(told["environment"])
        os.environ["JPY_PARENT_PID"] = str(os.getppid())  # a kernel ends with its parent, which is no longer papermill
        os.chdir(told["folder"])
        named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [entry for entry in named if entry and entry not in sys.path]
        sys.argv = told["arguments"]
        asked.send(str(os.getpid()).encode())
        threading.Thread(target=_end_with, args=(asked,), daemon=True).start()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asked.send(str(code).encode())
        os._exit(code)


def _end_with(asked: socket.socket) -> None:
    """End with one's deputy."""
    if not asked.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


def ask(path: str, arguments: list[str]) -> int:
    """Have a module run, and stand in for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until it is known whom to send it to
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(path)
        told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(server, [json.dumps(told).encode()], [0, 1, 2])
        process = int(server.recv(64))
        signal.signal(signal.SIGINT, lambda *_: os.kill(process, signal.SIGINT))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return int(server.recv(64) or 1)  # nothing: it was killed


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
