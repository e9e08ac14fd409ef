# SPDX-License-Identifier: Apache-2.0
"""Memory of all processes of one idle full VM (as in exec.py), without the guest's own. PSS divides what processes share
among them; anonymous memory is what they wrote, and no other VM can share."""
import time

from figures import Figure
from full_vm import FullVmRow
from vm import memory_of

SETTLE_S = 3  # by then each process has forgotten what only its start needed (ipc/start_up_memory.h)


class Memory(FullVmRow):
    figures = (
        Figure("pss", "memory of an idle VM's processes: PSS", "MiB", target=lambda _: 8),
        Figure("anonymous", "memory of an idle VM's processes: anonymous", "MiB"),
        Figure("processes", "processes of a VM", ""),
    )
    rounds, rounds_emulated = 3, 3

    def measure(self, side):
        with self.vms.running(1) as vms:
            vm = vms.start(side)
            vms.wait_for(vm)
            time.sleep(SETTLE_S)
            memory = memory_of([vm.pid])
            return {"pss": memory["pss"] / 1024, "anonymous": memory["anonymous"] / 1024,
                    "processes": memory["processes"]}
