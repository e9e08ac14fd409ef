# SPDX-License-Identifier: Apache-2.0
"""A stock Debian kernel with the initial RAM disk of scripts/make-initrd, under Bulkhead and under QEMU's machines; and
programs of this machine that load it (load-in-guest)."""
import contextlib
import os
import re
import shutil
import subprocess

from commands import Commands, Guest
from payload_guest import DeviceMeter, cgroup_for
from vm import ROOT, Vm, held_signals, processes_of
from write_log import logged, qmp_words

MEMORY_MIB = 256
PATIENCE_S = 240
CONSOLE = "console=ttyS0 quiet loglevel=3 panic=-1"
# A second disk of the guest is /dev/vdb: the first one has the programs.
TOOLS = {
    "bulkhead": lambda path: ["--disk", f"{path},readonly"],
    "q35": lambda path: ["-drive", f"file={path},format=raw,if=none,id=tools,readonly=on",
                         "-device", "virtio-blk-pci,drive=tools,disable-legacy=on"],
}


def make_stock(folder):
    """Makes there what a StockGuest starts from: a few seconds, and a download the first time."""
    def script(name, *words):
        return subprocess.run([os.path.join(ROOT, "scripts", name), *words], check=True, stdout=subprocess.PIPE,
                              text=True).stdout.strip()

    def here(name):
        return os.path.join(ROOT, "tests", "bench", name)

    os.makedirs(folder, exist_ok=True)
    kernel = script("fetch-kernel", "cloud")
    shutil.copy(os.path.join(kernel, "vmlinuz"), folder)
    script("make-initrd", kernel, os.path.join(folder, "initrd"), "--script", here("load-in-guest"),
           "--file", f"{here('first-process')}=first-process", "--file", f"{here('loads.fio')}=loads.fio")
    script("make-tools", os.path.join(folder, "tools.img"), "fio", "iperf3")


class StockGuest:
    """One VM at a time."""

    def __init__(self, build, stock, work):
        self.commands = Commands(build, os.path.join(work, "stock"), MEMORY_MIB)
        self.kernel, self.initrd, self.tools = (self.commands.copy(os.path.join(stock, name))
                                                for name in ("vmlinuz", "initrd", "tools.img"))

    def boot_command(self, vmm):
        """Of a guest whose first process says so, and which then comes to a shell."""
        guest = Guest(self.kernel, self.initrd, f"{CONSOLE} rdinit=/first-process", rng=True)
        return self.commands.command(vmm, guest)

    def load_command(self, vmm, devices, load):
        """Of a guest that runs a load (see load-in-guest) on these devices."""
        guest = Guest(self.kernel, self.initrd, f"{CONSOLE} bulkhead.test={load}")
        return [*self.commands.command(vmm, guest), *TOOLS[vmm](self.tools), *devices]

    @contextlib.contextmanager
    def running(self, command):
        with cgroup_for(command) as cgroup:
            with held_signals():
                vm = Vm(command, self.commands.path("log"), cgroup)
            try:
                yield vm
            finally:
                with held_signals():
                    vm.end(0.1)

    def run_loads(self, command, names, logs=False):
        """By the loads' names what the guest says of each, an amount and seconds, and the device side's CPU seconds
        meanwhile; with `logs` while its writes to memory are logged."""
        taken, meter, qmp = {}, None, self.commands.path("qmp")
        if logs and command[0] != self.commands.program:
            command = [*command, *qmp_words(qmp)]
        with self.running(command) as vm, contextlib.ExitStack() as beside:
            for name in names:
                vm.wait_for(re.compile(f"next {name}\\r?\\n|exit status".encode()), PATIENCE_S)
                if meter is None:
                    meter = DeviceMeter(vm.pid)
                    if logs:
                        beside.enter_context(logged(command, qmp))
                processes, before = processes_of(vm.pid), meter.read()
                over = re.compile(rf"over {name} (\d+) ([0-9.]+)\r?\n|exit status".encode())
                vm.wait_for(over, PATIENCE_S)
                cpu = meter.read() - before
                found = over.search(vm.seen)
                if not found[1]:
                    raise vm.failure(f"no figures of {name}")
                if processes_of(vm.pid) != processes:
                    raise vm.failure(f"a process was replaced during {name}, and its CPU time is not known")
                taken[name] = int(found[1]), float(found[2]), cpu
        return taken
