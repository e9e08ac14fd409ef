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
EVENTS = {"calls_of": ("raw_syscalls/sys_enter", "common_pid,id", ""),
          "waits_of": ("sched/sched_switch", "common_pid", f" if {WAITED}")}
LINE = re.compile(r"common_pid: +(\d+)(?:, id: +(?:\S+ *\[)?(\d+)\]?)? .*hitcount: +(\d+)")


@dataclasses.dataclass(frozen=True)
class Counts:
    calls_of: dict = dataclasses.field(default_factory=dict)  # system calls by (thread, number)
    waits_of: dict = dataclasses.field(default_factory=dict)  # how often a thread waited
    # Of threads that are still there:
    ns_of: dict = dataclasses.field(default_factory=dict)  # nanoseconds of CPU time
    titles: dict = dataclasses.field(default_factory=dict)

    @property
    def calls(self):
        return sum(self.calls_of.values())

    @property
    def waits(self):
        return sum(self.waits_of.values())

    def __sub__(self, other):
        return Counts(less(self.calls_of, other.calls_of), less(self.waits_of, other.waits_of), less(self.ns_of, other.ns_of),
                      self.titles)


def less(counts, before):
    return {key: count - before.get(key, 0) for key, count in counts.items() if count != before.get(key, 0)}


def title_of(thread):
    """As "disk0/queue0": its process, as the broker named it, and the thread."""
    with open(f"/proc/{thread}/cmdline", encoding="utf-8") as words, open(f"/proc/{thread}/comm", encoding="utf-8") as name:
        process = words.read().split("\0")[0]
        return f"{os.path.basename(process.split(' ')[-1])}/{name.read().strip()}"


def look_at(threads):
    """CPU times and titles of those that are still there."""
    times, titles = {}, {}
    for thread in threads:
        with contextlib.suppress(OSError):
            with open(f"/proc/{thread}/schedstat", encoding="ascii") as schedstat:
                times[thread] = int(schedstat.read().split()[0])
            titles[thread] = title_of(thread)
    return times, titles


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
        for event, keys, condition in EVENTS.values():
            with contextlib.suppress(Failure):
                self._write(f"events/{event}/trigger", f"!hist:keys={keys}{condition}")

    def command(self, command):
        """Counts what this command and all its descendants do, from 0 on."""
        self._stop()
        self._write("set_event_pid", "")
        for event, keys, condition in EVENTS.values():
            self._write(f"events/{event}/trigger", f"hist:keys={keys}{condition}")
        return ["/bin/sh", "-c", f'echo $$ >{self.folder}/set_event_pid; exec "$@"', "sh", *command]

    def read(self):
        hits = {}
        for name, (event, _, _) in EVENTS.items():
            with open(f"{self.folder}/events/{event}/hist", encoding="ascii") as hist:
                hits[name] = [(int(pid), call, int(count)) for pid, call, count in LINE.findall(hist.read())]
        calls = {(pid, int(call)): count for pid, call, count in hits["calls_of"]}
        # Switches to one of the VM's threads are events too, of whoever was on the processor before.
        mine = {pid for pid, _ in calls}
        return Counts(calls, {pid: count for pid, _, count in hits["waits_of"] if pid in mine}, *look_at(mine))
