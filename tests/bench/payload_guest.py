# SPDX-License-Identifier: Apache-2.0
"""One guest of payload code (tests/payload) under Bulkhead and under QEMU, one VM at a time."""
import contextlib
import glob
import os
import re
import shutil

from vm import Failure, Vm, held_signals, own_cgroup, processes_of

QEMU = "qemu-system-x86_64"
QBOOT = "/usr/share/qemu/qboot.rom"  # a firmware of milliseconds; SeaBIOS takes seconds where KVM interprets it
MEMORY_MIB = 128
PATIENCE_S = 120
PAUSE_CYCLES = 600_000_000  # for the meter to be read in
# An entropy device, which Bulkhead's VMs always have.
RNG = {"bulkhead": [], "qemu": ["-device", "virtio-rng-pci,disable-legacy=on"]}
# By which the meter tells QEMU's vCPUs from its other threads.
NAMED_THREADS = ("-name", "bench,debug-threads=on")
VMMS = ("bulkhead", "qemu")
OVER = rb"|FAIL .*\n|DONE"
BEGUN = re.compile(rb"begin (\d+)\n" + OVER)
ENDED = re.compile(rb"end (\d+)\n" + OVER)
BENCH = re.compile(rb"(?m)^bench (\S+) (?:p50 (\d+) p99 (\d+)|each (\d+))$")


def qemu_program():
    path = shutil.which(QEMU)
    if not path:
        raise Failure(f"{QEMU} is not installed; run scripts/deps run")
    return path


def cgroup_for(command):
    return own_cgroup() if command[0] == qemu_program() else contextlib.nullcontext()


def use_runtime_folder(directory):
    """Bulkhead's VMs are known in a folder below this one only."""
    os.environ["BULKHEAD_RUNTIME_DIR"] = os.path.join(directory, "run")
    os.makedirs(os.environ["BULKHEAD_RUNTIME_DIR"], 0o700, exist_ok=True)


def read_line(path):
    with open(path, encoding="utf-8") as text:
        return text.readline()


class DeviceMeter:
    """Tells the CPU time, in seconds, of all threads of a VMM but its vCPUs: the guest polls, so theirs tell nothing. With the
    kernel's threads of vhost-net, which have their owner's number in their name. Processes are looked for once: that takes
    longer than a guest pauses for its reader, and the longer the more processes a VM has."""

    def __init__(self, pid):
        self.pids = processes_of(pid)
        self.counts = {}  # whether a thread does, by its folder
        for name in glob.glob("/proc/[0-9]*/comm"):
            with contextlib.suppress(OSError):
                owner = re.match(r"vhost-(\d+)$", read_line(name))
                if owner and int(owner[1]) in self.pids and int(name.split("/")[2]) not in self.pids:
                    self.counts[os.path.dirname(name)] = True
        self.read()
        if all(self.counts.values()):
            raise Failure("no thread of the VMM is called a vCPU")

    def read(self):
        for pid in self.pids:
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    folder = f"/proc/{pid}/task/{thread}"
                    if folder not in self.counts:
                        self.counts[folder] = not re.match(r"vcpu|CPU \d", read_line(f"{folder}/comm"))
        total = 0
        for folder, counts in self.counts.items():
            with contextlib.suppress(OSError):
                total += int(read_line(f"{folder}/schedstat").split()[0]) if counts else 0
        return total / 1e9


@contextlib.contextmanager
def first_on_processor():
    """This thread runs when it has something to do, so that it is not in the middle of a load that a guest's pause is over: on
    one processor it would have to wait its turn. Where that is not allowed it takes turns."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def microseconds(text, second):
    """The lines "bench NAME p50 CYCLES p99 CYCLES" and "bench NAME each CYCLES" as NAME-p50, NAME-p99 and NAME-each, in µs;
    of so many cycles is a second."""
    values = {}
    for name, p50, p99, each in BENCH.findall(text):
        for kind, cycles in (("p50", p50), ("p99", p99), ("each", each)):
            if cycles:
                values[f"{name.decode()}-{kind}"] = int(cycles) / second * 1e6
    return values


class PayloadGuest:
    """What both VMMs are told of a guest, and how a run of it goes: it says "begin CYCLES", what it measures, "end
    CYCLES", and sleeps."""

    def __init__(self, build, directory, payload):
        self.program = os.path.abspath(os.path.join(build, "bulkhead"))
        self.kernel = os.path.abspath(os.path.join(build, "payload", f"{payload}.elf"))
        self.log = os.path.join(directory, "log")
        self.started = 0
        self.qemu = qemu_program()
        if not os.path.exists(QBOOT):
            raise Failure(f"{QEMU}'s {QBOOT} is not installed; run scripts/deps run")
        use_runtime_folder(directory)
        self.wrap = list  # around the command that is run
        self.meter = lambda pid: DeviceMeter(pid).read  # what is called before and after each load

    def command(self, who, devices, parameters):
        """With these words for its devices, and the guest's parameters."""
        parameters += f" pause={PAUSE_CYCLES}"
        if who == "bulkhead":
            return [self.program, "run", "--name", f"bench-{os.getpid()}-{self.started}", "-m", str(MEMORY_MIB),
                    "--console", "none", "--debug-console", "stdio", "--kernel", self.kernel, *devices, "--append", parameters]
        # The memfd is there to tell the guest's memory from QEMU's own. Not every KVM lets arch-capabilities be set.
        command = [self.qemu, "-M", "q35,accel=kvm,memory-backend=guest", "-cpu", "host,arch-capabilities=off"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-bios", QBOOT, "-m", str(MEMORY_MIB), *NAMED_THREADS]
        command += ["-object", f"memory-backend-memfd,id=guest,size={MEMORY_MIB}M"]
        command += ["-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"]
        return [*command, *devices, "-kernel", self.kernel, "-append", parameters]

    @contextlib.contextmanager
    def running(self, command):
        self.started += 1
        with cgroup_for(command) as cgroup:
            with held_signals():
                vm = Vm(self.wrap(command), self.log, cgroup)
            try:
                yield vm
            finally:
                with held_signals():
                    vm.end(0.1)

    def measure(self, command):
        """The values of its lines "bench" (see microseconds)."""
        with self.running(command) as vm:
            second = self._cycles_of_second(vm, vm.wait_for(BEGUN, PATIENCE_S))
            return microseconds(vm.seen, second)

    def time_loads(self, vm, count):
        """Seconds of each of the guest's loads, and what the meter says of it: CPU time, in seconds, of the device side. The
        guest says "next loadN" before each and "load CYCLES" after it."""
        begun_ms = vm.wait_for(BEGUN, PATIENCE_S)
        spent = []
        with first_on_processor():
            read = self.meter(vm.pid)
            for number in range(count):
                vm.wait_for(re.compile(f"next load{number}\n".encode() + OVER), PATIENCE_S)
                before = read()
                vm.wait_for(re.compile(rb"(?m)(?:^load .*\n(?:(?!load ).*\n)*){%d}" % (number + 1) + OVER), PATIENCE_S)
                spent.append(read() - before)
        second = self._cycles_of_second(vm, begun_ms)
        taken = re.findall(rb"(?m)^load (\d+)", vm.seen)
        if len(taken) != count:
            raise vm.failure("a load failed")
        return [(int(cycles) / second, metered) for cycles, metered in zip(taken, spent)]

    @staticmethod
    def _cycles_of_second(vm, begun_ms):
        """The guest counts cycles: the time between its first and its last line tells how long one is."""
        ended_ms = vm.wait_for(ENDED, PATIENCE_S)
        begun, ended = BEGUN.search(vm.seen), ENDED.search(vm.seen)
        if not begun[1] or not ended[1]:
            raise vm.failure("a load failed")
        return (int(ended[1]) - int(begun[1])) / (ended_ms - begun_ms) * 1000
