# SPDX-License-Identifier: Apache-2.0
"""Loads whose cost in system calls and waits does not depend on how fast a machine is, each under Bulkhead with a tracing
Counter: for counts, which holds the sums against a baseline, and for scripts/profile, which shows who made them."""
import os
import re
import time

from disk_guest import DiskGuest
from net_guest import NetGuest, interface, tap
from payload_guest import PATIENCE_S, PayloadGuest
from tracing import Counter
from vm import memory_of

# Its requests are done when the call that makes them returns: any other disk's, when the machine around this one gets to it.
RAM_DISK = "/dev/ram0"
SETTLE_S, IDLE_S = 3, 3  # by then each process has forgotten what only its start needed (ipc/start_up_memory.h)
# Each load ends with a line on the console, whose characters are carried one by one or together: up to 200 system calls.
# There are so many accesses, requests and frames that it does not matter.
EXITS = 5000
REPEATS = 3
# Of posted writes, and of many requests at a time, all depends on who finds the processor when.
ACCESSES = {"pio-read": "read of a port", "mmio-read": "read of a register"}
DISK_LOADS = [("disk request", 3000, 1, 4096, 4096)]
NET_LOADS = [("frame there and back", "echo", 60, 1500, 1)]
MANY_FRAMES = [("frame there and back, 32 at a time", "echo", 60, 1000, 32), ("frame received", "receive", 60, 1500, 0),
               ("large frame received", "receive", 1472, 1500, 0), ("frame sent", "send", 60, 1500, 0)]


class Costs:
    """`note` is called for each load with its name, what was counted and how many accesses, requests or frames it was.
    `idle` is called with the memory of a VM that does nothing and what was counted meanwhile."""

    def __init__(self, build, work, note, idle):
        self.build, self.work, self.note, self.idle = build, work, note, idle
        self.counter = Counter()

    def counted(self, guest):
        guest.wrap = self.counter.command
        guest.meter = lambda _: self.counter.read
        return guest

    def note_least(self, metered):
        """The same load finds the processor with one thread or the other: its best run tells most of what it needs."""
        for name in dict.fromkeys(name for name, *_ in metered):
            self.note(name, *min(((counts, count) for load, count, counts in metered if load == name),
                                 key=lambda each: each[0].calls))

    def image(self):
        path = os.path.join(self.work, "disk.img")
        with open(path, "wb") as out:
            out.write(bytes(16 << 20))
        return path

    def start(self):
        guest = self.counted(PayloadGuest(self.build, self.work, "idle"))
        with tap():
            devices = ["--disk", self.image(), *interface("bulkhead", "tap")]
            with guest.running(guest.command("bulkhead", devices, "mode=halt")) as vm:
                vm.wait_for(re.compile(b"idle\n"), PATIENCE_S)
                self.note("start", self.counter.read(), 1)
                time.sleep(SETTLE_S)
                memory, before = memory_of([vm.pid]), self.counter.read()
                time.sleep(IDLE_S)
                self.idle(memory, self.counter.read() - before)

    def exits(self):
        guest = self.counted(PayloadGuest(self.build, self.work, "bench-exit"))
        with guest.running(guest.command("bulkhead", [], f"n={EXITS}")) as vm:
            for name, title in ACCESSES.items():
                vm.wait_for(re.compile(f"next {name}\n".encode()), PATIENCE_S)
                before = self.counter.read()
                vm.wait_for(re.compile(f"bench {name} .*\n".encode()), PATIENCE_S)
                self.note(title, self.counter.read() - before, EXITS)

    def disk(self):
        guest = DiskGuest(self.build, self.work)
        self.counted(guest.guest)
        loads = DISK_LOADS * REPEATS
        taken, _ = guest.run("bulkhead", RAM_DISK, "raw", None, loads, False)
        self.note_least([(name, count, counts) for (name, count, *_), (_, counts) in zip(loads, taken)])

    def net(self):
        self.note_least(self.frames("tap", NET_LOADS * REPEATS))

    def traffic(self):
        """By whom much of it is done when depends on the machine."""
        for wire in ("tap", "user"):
            for name, count, counts in self.frames(wire, MANY_FRAMES):
                self.note(f"{wire}: {name}", counts, count)

    def frames(self, wire, loads):
        guest = NetGuest(self.build, self.work)
        self.counted(guest.guest)
        taken = guest.run("bulkhead", wire, loads)
        return [(name, count, counts) for (name, _, _, count, _), (_, counts) in zip(loads, taken)]

    def measure(self, *parts):
        try:
            for part in parts:
                part(self)
        finally:
            self.counter.close()
