# SPDX-License-Identifier: Apache-2.0
"""Counts what a VM's threads do, from exec on, by the kernel's own event histograms (Documentation/trace/histogram.rst):
exact, and without a tracer that the threads would feel."""
import contextlib
import dataclasses
import os
import re
import subprocess

from vm import Failure

TRACEFS = "/sys/kernel/tracing"
# Left the processor to wait; not pushed off it (state 0, or the bit above those of Documentation/trace/events.rst).
WAITED = "prev_state & 255"
EVENTS = {"calls": ("raw_syscalls/sys_enter", ""), "waits": ("sched/sched_switch", f" if {WAITED}")}
LINE = re.compile(r"common_pid: +(\d+) .*hitcount: +(\d+)")


@dataclasses.dataclass(frozen=True)
class Counts:
    calls: int = 0  # system calls
    waits: int = 0  # how often a thread waited

    def __sub__(self, other):
        return Counts(self.calls - other.calls, self.waits - other.waits)


class Counter:
    """Of one VM at a time, which is started by this command line and no other way."""

    def __init__(self):
        if not os.path.exists(f"{TRACEFS}/instances"):
            subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], check=True)
        self.folder = f"{TRACEFS}/instances/bulkhead-{os.getpid()}"
        os.mkdir(self.folder)
        self._write("options/event-fork", "1")

    def close(self):
        self._stop()
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)

    def _write(self, name, text):
        try:
            with open(f"{self.folder}/{name}", "w", encoding="ascii") as out:
                out.write(text)
        except OSError as error:
            raise Failure(f"{self.folder}/{name}: {error.strerror}") from error

    def _stop(self):
        for event, condition in EVENTS.values():
            with contextlib.suppress(Failure):
                self._write(f"events/{event}/trigger", f"!hist:keys=common_pid{condition}")

    def command(self, command):
        """Counts what this command and all its descendants do, from 0 on."""
        self._stop()
        self._write("set_event_pid", "")
        for event, condition in EVENTS.values():
            self._write(f"events/{event}/trigger", f"hist:keys=common_pid{condition}")
        return ["/bin/sh", "-c", f'echo $$ >{self.folder}/set_event_pid; exec "$@"', "sh", *command]

    def read(self):
        hits = {}
        for name, (event, _) in EVENTS.items():
            with open(f"{self.folder}/events/{event}/hist", encoding="ascii") as hist:
                hits[name] = {int(pid): int(count) for pid, count in LINE.findall(hist.read())}
        # Switches to one of the VM's threads are events too, of whoever was on the processor before.
        mine = hits["calls"].keys()
        return Counts(**{name: sum(count for pid, count in counts.items() if pid in mine) for name, counts in hits.items()})
