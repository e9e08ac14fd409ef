# SPDX-License-Identifier: Apache-2.0
"""Dirty logging beside a load: what a VM writes to its memory is looked at for a second, again and again, by `bulkhead
dirty-rate` and by QEMU's calc-dirty-rate with a dirty bitmap. Each time all pages are write-protected anew, as by a
migration's rounds."""
import contextlib
import json
import socket
import subprocess
import threading

from vm import Failure

SECONDS = 1
POLL_S = 0.1
PATIENCE_S = 120


def qmp_words(path):
    """What QEMU is told so that it can be asked at that socket."""
    return ["-qmp", f"unix:{path},server=on,wait=off"]


class _Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, what, **arguments):
        self.socket.sendall(json.dumps({"execute": what, "arguments": arguments}).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                raise Failure(f"QEMU's {what}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise Failure(f"QEMU did not answer {what}")

    def close(self):
        self.lines.close()
        self.socket.close()


def _qemu(path, stop):
    with contextlib.closing(_Qmp(path)) as qmp:
        while not stop.is_set():
            qmp.ask("calc-dirty-rate", **{"calc-time": SECONDS, "mode": "dirty-bitmap"})
            while qmp.ask("query-dirty-rate")["status"] != "measured":
                if stop.wait(POLL_S):
                    return
            yield


def _bulkhead(command, stop):
    name = command[command.index("--name") + 1]
    while not stop.is_set():
        looked = subprocess.run([command[0], "dirty-rate", name, "--seconds", str(SECONDS)], check=False, text=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if looked.returncode != 0:
            raise Failure(looked.stderr.strip())
        yield


@contextlib.contextmanager
def logged(command, qmp):
    """Logs what the VM of that command writes, until the end of the block; `qmp` is its socket, if it is QEMU's."""
    stop, looks, failures = threading.Event(), [], []

    def look():
        try:
            for _ in _qemu(qmp, stop) if "-qmp" in command else _bulkhead(command, stop):
                looks.append(1)
        except (Failure, OSError) as failure:
            failures.append(failure)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures or not looks:
        raise Failure(f"nothing was logged: {failures[0] if failures else 'it took too long'}")
