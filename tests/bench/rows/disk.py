# SPDX-License-Identifier: Apache-2.0
"""Requests of a guest to a raw virtio-blk disk, past the page cache, and the CPU time of the device side for each; the guest
polls (tests/payload/bench-blk.cc). QEMU's disk has an iothread and io_uring. The limit is io_uring on the same image without
a guest (tests/bench/image_bench.cc)."""
import subprocess

from disk_guest import DiskGuest, make_image
from figures import LIMIT, SIDES, Figure, Row

SCATTER = 4096 * 9001  # a stride that visits the disk's blocks in no order
LOADS = {  # count, count in scripts/kvm-host, depth, bytes, step
    "4k-1": ("4 KiB, 1 at a time", 4000, 300, 1, 4096, SCATTER),
    "4k-32": ("4 KiB, 32 at a time", 20000, 1500, 32, 4096, SCATTER),
    "1m-1": ("1 MiB in sequence", 400, 40, 1, 1 << 20, 1 << 20),
}
KINDS = ("read", "write")


def figures_of(kind, key):
    title = f"disk: {kind} {LOADS[key][0]}"
    return (Figure(f"{kind}-{key}", title, "/s", more_is_better=True, target=lambda medians: medians["qemu"]),
            Figure(f"{kind}-{key}-cpu", f"{title}: CPU time of each", "µs", target=lambda medians: medians["qemu"]))


class Disk(Row):
    figures = tuple(figure for kind in KINDS for key in LOADS for figure in figures_of(kind, key))
    sides = (*SIDES, LIMIT)
    rounds, rounds_emulated = 5, 3

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = DiskGuest(setting.build, setting.work)
        self.image_bench = setting.tool("image-bench")
        self.image = setting.path("bench.raw")
        make_image(self.image, setting.emulated)
        self.loads = [(key, setting.some(count, fewer), *more) for key, (_, count, fewer, *more) in LOADS.items()]

    def measure(self, side):
        taken = {}
        for kind in KINDS:
            if side == LIMIT:
                results = [(self._without_guest(load, kind), None) for load in self.loads]
            else:
                results, _ = self.guest.run(side, self.image, "raw", None, self.loads, kind == "write")
            for (key, count, *_), (seconds, cpu) in zip(self.loads, results):
                taken[f"{kind}-{key}"] = count / seconds
                if cpu is not None:
                    taken[f"{kind}-{key}-cpu"] = cpu / count * 1e6
        return taken

    def _without_guest(self, load, kind):
        words = [self.image_bench, f"{self.image},raw", "--", *map(str, load[1:]), kind]
        return float(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
