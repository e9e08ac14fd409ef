# SPDX-License-Identifier: Apache-2.0
"""fio in a stock guest on a raw virtio-blk disk (loads.fio), past both page caches, and the CPU time of the device side for
each request; the same while what the guest and its devices write to memory is logged (write_log.py). QEMU's disk has an
iothread and io_uring. The limit is fio with the same loads on the same image without a guest."""
import os
import subprocess

from disk_guest import disk, make_image
from figures import LIMIT, SIDES, Figure, Row
from stock_guest import StockGuest
from vm import ROOT

LOADS = {  # a section of loads.fio: KiB of a request
    "read-4k-1": ("read 4 KiB, 1 at a time", 4),
    "read-4k-32": ("read 4 KiB, 32 at a time", 4),
    "read-1m-1": ("read 1 MiB in sequence", 1024),
    "write-4k-1": ("write 4 KiB, 1 at a time", 4),
    "write-4k-32": ("write 4 KiB, 32 at a time", 4),
    "write-1m-1": ("write 1 MiB in sequence", 1024),
}
SECONDS = 2  # of each load


def figures_of(key):
    title = f"fio: {LOADS[key][0]}"
    return (Figure(key, title, "/s", more_is_better=True, target=lambda medians: medians["qemu"]),
            Figure(f"{key}-cpu", f"{title}: CPU time of each", "µs", target=lambda medians: medians["qemu"]),
            Figure(f"{key}-logged", f"{title}, dirty logging on", "/s", more_is_better=True,
                   target=lambda medians: medians["qemu"]))


class Fio(Row):
    figures = tuple(figure for key in LOADS for figure in figures_of(key))
    sides = (*SIDES, LIMIT)
    rounds, rounds_emulated = 3, 2
    stock = True

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = StockGuest(setting.build, setting.stock, setting.work)
        self.image = setting.path("fio.raw")
        make_image(self.image, setting.emulated)

    def measure(self, side):
        taken = {}
        for key, (kib, seconds, cpu) in (self._on_image() if side == LIMIT else self._in_guest(side)).items():
            requests = kib / LOADS[key][1]
            taken[key] = requests / seconds
            if cpu is not None:
                taken[f"{key}-cpu"] = cpu / requests * 1e6
        if side != LIMIT:
            for key, (kib, seconds, _) in self._in_guest(side, logs=True).items():
                taken[f"{key}-logged"] = kib / LOADS[key][1] / seconds
        return taken

    def _in_guest(self, side, logs=False):
        command = self.guest.load_command("q35" if side == "qemu" else side, disk(side, self.image, "raw"),
                                          f"fio,{SECONDS},{','.join(LOADS)}")
        return self.guest.run_loads(command, LOADS, logs)

    def _on_image(self):
        """As run_loads says it of a guest."""
        taken = {}
        for key in LOADS:
            words = ["fio", "--output-format=terse", "--terse-version=3", f"--section={key}",
                     os.path.join(ROOT, "tests", "bench", "loads.fio")]
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=self.setting.work,
                                  env=os.environ | {"DISK": self.image, "SECONDS_OF_LOAD": str(SECONDS)}).stdout.split(";")
            taken[key] = int(said[5]) + int(said[46]), (int(said[8]) + int(said[49])) / 1000, None
        return taken
