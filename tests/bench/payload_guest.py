# SPDX-License-Identifier: Apache-2.0
"""One guest of payload code (tests/payload) under Bulkhead and under QEMU, one VM at a time."""
import contextlib
import os
import re
import shutil

from vm import Failure, Vm, held_signals

QEMU = "qemu-system-x86_64"
QBOOT = "/usr/share/qemu/qboot.rom"  # a firmware of milliseconds; SeaBIOS takes seconds where KVM interprets it
MEMORY_MIB = 128
PATIENCE_S = 120
VMMS = ("bulkhead", "qemu")
OVER = rb"|FAIL .*\n|DONE"
BEGUN = re.compile(rb"begin (\d+)\n" + OVER)
ENDED = re.compile(rb"end (\d+)\n" + OVER)


class PayloadGuest:
    """What both VMMs are told of a guest, and how a run of it goes: it says "begin CYCLES", what it measures, "end
    CYCLES", and sleeps."""

    def __init__(self, build, directory, payload):
        self.program = os.path.abspath(os.path.join(build, "bulkhead"))
        self.kernel = os.path.abspath(os.path.join(build, "payload", f"{payload}.elf"))
        self.log = os.path.join(directory, "log")
        self.started = 0
        self.qemu = shutil.which(QEMU)
        if not self.qemu or not os.path.exists(QBOOT):
            raise Failure(f"{QEMU} or its {QBOOT} is not installed; run scripts/deps run")
        os.environ["BULKHEAD_RUNTIME_DIR"] = os.path.join(directory, "run")
        os.makedirs(os.environ["BULKHEAD_RUNTIME_DIR"], 0o700, exist_ok=True)

    def command(self, who, devices, parameters):
        """With these words for its devices, and the guest's parameters."""
        if who == "bulkhead":
            return [self.program, "run", "--name", f"bench-{os.getpid()}-{self.started}", "-m", str(MEMORY_MIB),
                    "--console", "none", "--debug-console", "stdio", "--kernel", self.kernel, *devices, "--append", parameters]
        # The memfd is there to tell the guest's memory from QEMU's own. Not every KVM lets arch-capabilities be set.
        command = [self.qemu, "-M", "q35,accel=kvm,memory-backend=guest", "-cpu", "host,arch-capabilities=off"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-bios", QBOOT, "-m", str(MEMORY_MIB)]
        command += ["-object", f"memory-backend-memfd,id=guest,size={MEMORY_MIB}M"]
        command += ["-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"]
        return [*command, *devices, "-kernel", self.kernel, "-append", parameters]

    @contextlib.contextmanager
    def running(self, command):
        self.started += 1
        with held_signals():
            vm = Vm(command, self.log)
        try:
            yield vm
        finally:
            with held_signals():
                vm.end(0.1)

    @staticmethod
    def cycles_of_second(vm):
        """The guest counts cycles: the time between its first and its last line tells how long one is. Waits for both."""
        begun_ms = vm.wait_for(BEGUN, PATIENCE_S)
        return PayloadGuest.cycles_since(vm, begun_ms)

    @staticmethod
    def cycles_since(vm, begun_ms):
        ended_ms = vm.wait_for(ENDED, PATIENCE_S)
        begun, ended = BEGUN.search(vm.seen), ENDED.search(vm.seen)
        if not begun[1] or not ended[1]:
            raise Failure(f"a load failed: {' '.join(vm.command)}\n{vm.seen.decode('utf-8', 'replace')}")
        return (int(ended[1]) - int(begun[1])) / (ended_ms - begun_ms) * 1000
