# SPDX-License-Identifier: Apache-2.0
"""Many full VMs (as in exec.py): how fast they start, as many at a time as there are processors, and what they cost when all
of them are there and idle. 100 of them, in scripts/kvm-host 4."""
import os
import time

from figures import Figure
from full_vm import FullVmRow
from vm import cpu_seconds, memory_of

SETTLE_S, IDLE_S = 4, 5


class Density(FullVmRow):
    figures = (
        Figure("rate", "VMs started, for each processor", "/s", more_is_better=True, target=lambda _: 5),
        Figure("pss", "many idle VMs: PSS of each", "MiB"),
        Figure("cpu", "many idle VMs: CPU time of each", "ms/s"),
    )
    rounds, rounds_emulated = 3, 2

    def __init__(self, setting):
        super().__init__(setting)
        self.count = setting.some(100, 4)

    def measure(self, side):
        processors = len(os.sched_getaffinity(0))
        with self.vms.running(self.count) as vms:
            begun = time.monotonic()
            for first in range(0, self.count, processors):
                for vm in [vms.start(side) for _ in range(min(processors, self.count - first))]:
                    vms.wait_for(vm)
            seconds = time.monotonic() - begun
            time.sleep(SETTLE_S)
            pids = [vm.pid for vm in vms.vms]
            pss = memory_of(pids)["pss"] / 1024 / self.count
            before = cpu_seconds(pids)
            time.sleep(IDLE_S)
            idle = cpu_seconds(pids) - before
            return {"rate": self.count / seconds / processors, "pss": pss, "cpu": idle * 1000 / IDLE_S / self.count}
