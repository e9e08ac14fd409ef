# SPDX-License-Identifier: Apache-2.0
"""Requests of a guest to its disk: tests/payload/bench-blk.cc under Bulkhead and under QEMU."""
import os

from payload_guest import PayloadGuest
from vm import memory_of

# Reads into all the memory that the loads use. Whoever serves the disk is the first time slower there, which a load of few
# requests would show as if it were so each time.
WARM_UP = "read,1048576,32,32,1048576"
IMAGE_MIB, IMAGE_MIB_EMULATED = 1024, 128


def make_image(path, emulated):
    """A raw disk without holes."""
    with open(path, "wb") as out:
        for _ in range(IMAGE_MIB_EMULATED if emulated else IMAGE_MIB):
            out.write(os.urandom(1 << 20))


def disk(who, path, image_format, backing=None):
    """What a VMM is told of it."""
    if who == "bulkhead":
        return ["--disk", f"{path},format={image_format}" + (f",backing={backing},backing-format=qcow2" if backing else "")]
    return ["-object", "iothread,id=thread",
            "-drive", f"file={path},format={image_format},cache=none,aio=io_uring,if=none,id=disk",
            "-device", "virtio-blk-pci,drive=disk,iothread=thread,num-queues=1,disable-legacy=on"]


class DiskGuest:
    """Runs loads on images."""

    def __init__(self, build, directory):
        self.guest = PayloadGuest(build, directory, "bench-blk")

    def run(self, who, path, image_format, backing, loads, write):
        """For each load the seconds it took and the CPU time, in seconds, of the device side meanwhile (of writes, with the
        flush behind them); and KiB of the VMM's memory after them. A load: (name, count, depth, bytes, step)."""
        kind = "write" if write else "read"
        words = [WARM_UP] + [f"{kind},{size},{depth},{count},{step}" for _, count, depth, size, step in loads]
        parameters = " ".join(f"load{number}={word}" for number, word in enumerate(words))
        command = self.guest.command(who, disk(who, path, image_format, backing), parameters)
        with self.guest.running(command) as vm:
            return self.guest.time_loads(vm, len(words))[1:], self._memory(vm)

    @staticmethod
    def _memory(vm):
        try:
            return memory_of([vm.pid])["pss"]
        except PermissionError:
            return 0
