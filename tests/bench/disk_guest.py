# SPDX-License-Identifier: Apache-2.0
"""Requests of a guest to its disk: tests/payload/bench-blk.cc under Bulkhead and under QEMU."""
import os
import re
import shutil

from vm import Failure, Vm, held_signals, memory_of

QEMU = "qemu-system-x86_64"
QBOOT = "/usr/share/qemu/qboot.rom"  # a firmware of milliseconds; SeaBIOS takes seconds where KVM interprets it
MEMORY_MIB = 128
PATIENCE_S = 120
BEGUN = re.compile(rb"begin (\d+)\n|FAIL .*\n|DONE")
ENDED = re.compile(rb"end (\d+)\n|FAIL .*\n|DONE")
LOAD = re.compile(rb"load (\d+) flush (\d+)\n")


class DiskGuest:
    """Runs loads on images, one VM at a time."""

    def __init__(self, build, directory):
        self.program = os.path.abspath(os.path.join(build, "bulkhead"))
        self.kernel = os.path.abspath(os.path.join(build, "payload", "bench-blk.elf"))
        self.log = os.path.join(directory, "log")
        self.started = 0
        self.qemu = shutil.which(QEMU)
        if not self.qemu or not os.path.exists(QBOOT):
            raise Failure(f"{QEMU} or its {QBOOT} is not installed; run scripts/deps run")
        os.environ["BULKHEAD_RUNTIME_DIR"] = os.path.join(directory, "run")
        os.makedirs(os.environ["BULKHEAD_RUNTIME_DIR"], 0o700, exist_ok=True)

    def _bulkhead(self, path, image_format, backing):
        disk = f"{path},format={image_format}" + (f",backing={backing},backing-format=qcow2" if backing else "")
        return [self.program, "run", "--name", f"bench-{os.getpid()}-{self.started}", "-m", str(MEMORY_MIB),
                "--console", "none", "--debug-console", "stdio", "--kernel", self.kernel, "--disk", disk]

    def _qemu(self, path, image_format):
        # The memfd is there to tell the guest's memory from QEMU's own. Not every KVM lets arch-capabilities be set.
        command = [self.qemu, "-M", "q35,accel=kvm,memory-backend=guest", "-cpu", "host,arch-capabilities=off"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-bios", QBOOT, "-m", str(MEMORY_MIB)]
        command += ["-object", f"memory-backend-memfd,id=guest,size={MEMORY_MIB}M", "-object", "iothread,id=thread"]
        command += ["-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"]
        command += ["-drive", f"file={path},format={image_format},cache=none,aio=io_uring,if=none,id=disk"]
        command += ["-device", "virtio-blk-pci,drive=disk,iothread=thread,num-queues=1,disable-legacy=on"]
        return command + ["-kernel", self.kernel]

    def run(self, who, path, image_format, backing, loads, write):
        """Seconds that each load took, and for all of them (writes, with the flush behind them), and KiB of the VMM's
        memory after them. A load: (name, count, depth, bytes, step)."""
        command = self._bulkhead(path, image_format, backing) if who == "bulkhead" else self._qemu(path, image_format)
        words = [f"load{number}={'write' if write else 'read'},{size},{depth},{count},{step}"
                 for number, (_, count, depth, size, step) in enumerate(loads)]
        self.started += 1
        with held_signals():
            vm = Vm([*command, "-append" if who == "qemu" else "--append", " ".join(words)], self.log)
        try:
            begun_ms = vm.wait_for(BEGUN, PATIENCE_S)
            ended_ms = vm.wait_for(ENDED, PATIENCE_S)
            begun, ended = BEGUN.search(vm.seen), ENDED.search(vm.seen)
            taken = LOAD.findall(vm.seen)
            if not begun[1] or not ended[1] or len(taken) != len(loads):
                raise Failure(f"a load failed: {' '.join(command)}\n{vm.seen.decode('utf-8', 'replace')}")
            # The guest counts cycles: the time between its first and its last line tells how long one is.
            second = (int(ended[1]) - int(begun[1])) / (ended_ms - begun_ms) * 1000
            return [int(cycles) / second for cycles, _ in taken], self._memory(vm)
        finally:
            with held_signals():
                vm.end(0.1)

    @staticmethod
    def _memory(vm):
        try:
            return memory_of([vm.pid])["pss"]
        except PermissionError:
            return 0
