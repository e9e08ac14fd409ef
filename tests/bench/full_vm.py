# SPDX-License-Identifier: Apache-2.0
"""VMs with everything that a guest usually has, under Bulkhead and under QEMU's microvm; and bare ones, the limit."""
import contextlib
import os
import signal

from commands import Guest
from figures import LIMIT, SIDES, Row
from first_guest import FIRST, FirstGuest
from net_guest import tap
from vm import Vm, held_signals

MEMORY_MIB = 256
PATIENCE_S = 60


class FullVms:
    """Some at a time. Each has a disk and a tap of its own."""

    def __init__(self, setting):
        self.guests = FirstGuest(setting.build, setting.first, setting.path("full"), MEMORY_MIB)
        self.bare = setting.tool("bare-vm")
        self.vms, self.taps = [], []

    @contextlib.contextmanager
    def running(self, count):
        """As many as that can be started, and are ended afterwards."""
        with contextlib.ExitStack() as stack:
            self.taps = [stack.enter_context(tap(f"bench{number}")) for number in range(count)]
            try:
                yield self
            finally:
                with held_signals():
                    for vm in self.vms:  # all at once, then each to its end
                        os.kill(vm.pid, signal.SIGTERM)
                    while self.vms:
                        self.vms.pop().end(0.1)

    def start(self, side):
        number = len(self.vms)
        guest = Guest(self.guests.first, disk=self.guests.make_disk(number), rng=True, debug_port=True,
                      tap=self.taps[number], consoles=True, firmware=self.guests.firmware)
        command = [self.bare, "start", str(MEMORY_MIB)] if side == LIMIT else \
            self.guests.command("microvm" if side == "qemu" else side, guest)
        with held_signals():
            self.vms.append(Vm(command, self.guests.path(f"log{number}")))
        return self.vms[-1]

    @staticmethod
    def wait_for(vm):
        """Milliseconds from exec to the guest's first instruction."""
        return vm.wait_for(FIRST, PATIENCE_S)


class FullVmRow(Row):
    """A row about such VMs."""

    sides = (*SIDES, LIMIT)

    def __init__(self, setting):
        super().__init__(setting)
        self.vms = FullVms(setting)
