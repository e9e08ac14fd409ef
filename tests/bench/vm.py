# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: VMMs that are started, watched, and ended however the benchmark ends."""
import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60
PR_SET_PDEATHSIG = 1
CGROUPS = "/sys/fs/cgroup"  # where hosts with version 2 alone have it
CLONE_NEWNET = 0x40000000
CPUCLOCK_SCHED = 2  # with a process's number, what clock_getcpuclockid(3) gives
libc = ctypes.CDLL(None, use_errno=True)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_signals():
    """No signal ends this program between starting or ending a VM and taking note of that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def kvm_in_use():
    """Keeps a VM that never runs. Linux changes its own code when the first VM comes and when the last one goes, which an
    emulated host of several processors does not always survive (see kvm-host): so it does that only once."""
    with contextlib.ExitStack() as opened:
        def keep(fd):
            opened.callback(os.close, fd)
            return fd

        kvm = keep(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        machine = keep(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
        fcntl.ioctl(machine, KVM_CREATE_IRQCHIP, 0)
        keep(fcntl.ioctl(machine, KVM_CREATE_VCPU, 0))
        yield


class Failure(Exception):
    """Ends the benchmark with one line."""


def unshare_network():
    """This process and those it starts have a network of their own from here on."""
    if libc.unshare(CLONE_NEWNET) != 0:
        raise Failure(f"no network namespace: {os.strerror(ctypes.get_errno())}")


def say(text):
    print(f"bench-{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr, flush=True)


def run_program(main):
    """Runs it to its end, in a way that cleans up after each end there is."""
    for number in SIGNALS:
        signal.signal(number, lambda signum, _: sys.exit(128 + signum))
    try:
        main()
    except (Failure, subprocess.CalledProcessError, OSError) as error:
        say(error)
        sys.exit(1)


def in_kvm_host(arguments, limit, processors=1, more=()):
    """What a benchmark's --json prints in scripts/kvm-host, with these and more of its options."""
    command = ["scripts/kvm-host", "-c", str(processors), "-t", str(limit), *more, "--", *arguments]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        answer, _ = host.communicate()
        if host.returncode != 0:
            raise Failure(f"scripts/kvm-host ended with status {host.returncode}")
        return json.loads(answer)
    finally:
        if host.poll() is None:
            host.terminate()
            host.wait()


@contextlib.contextmanager
def own_cgroup():
    """For a VMM that makes none itself: one within one for all of its kind, as Bulkhead's VMs have, and QEMU's where libvirt
    starts them. Else each of its threads would have as large a share of a busy processor as all of Bulkhead's VMs together.
    None where the host's cgroups do not share the processor."""
    with contextlib.ExitStack() as stack:
        folder = CGROUPS
        for name in (f"bench-{os.getpid()}", "vm"):
            try:
                with open(f"{folder}/cgroup.subtree_control", "w", encoding="ascii") as control:
                    control.write("+cpu")
                folder = f"{folder}/{name}"
                os.mkdir(folder)
            except OSError:
                folder = None
                break
            stack.callback(os.rmdir, folder)
        yield folder


class Vm:
    """A running VMM, in that cgroup if one is named; `exec_time` is taken in its process just before exec."""

    def __init__(self, command, log, cgroup=None):
        self.command, self.log, self.cgroup = command, log, cgroup
        self.pid = self.output = None
        self.seen, self.last_ns = b"", 0
        read_end, write_end = os.pipe()
        clock_read, clock_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._exec(parent, write_end, clock_write)
        os.close(write_end)
        os.close(clock_write)
        self.output = read_end
        stamp = os.read(clock_read, 8)
        os.close(clock_read)
        self.exec_time = struct.unpack("q", stamp)[0] if len(stamp) == 8 else 0

    def _exec(self, parent, output, clock):
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(127)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            if self.cgroup:
                with open(f"{self.cgroup}/cgroup.procs", "w", encoding="ascii") as members:
                    members.write("0")
            os.setsid()  # a Ctrl-C at the terminal is this program's to handle
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
            os.write(clock, struct.pack("q", time.monotonic_ns()))
            os.execv(self.command[0], self.command)
        finally:
            os._exit(127)

    def wait_for(self, marker, seconds):
        """Milliseconds from exec until all the output so far matches."""
        deadline = time.monotonic() + seconds
        while not marker.search(self.seen):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.output], [], [], left)[0]:
                raise self.failure(f"no sign of life within {seconds} s")
            data = os.read(self.output, 65536)
            self.last_ns = time.monotonic_ns()
            if not data:
                raise self.failure("ended early")
            self.seen += data
        return (self.last_ns - self.exec_time) / 1e6

    def failure(self, why):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            tail = (self.seen.decode("utf-8", "replace") + log.read())[-1500:]
        return Failure(f"{why}: {' '.join(self.command)}\n{tail}")

    def _ended(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
            time.sleep(0.005)
        return False

    def end(self, patience=5):
        """A first SIGTERM asks a guest under Bulkhead to shut down; the second one, `patience` s later, ends the VM."""
        if self.pid is None:
            return
        processes = processes_of(self.pid)
        for name, seconds in ((signal.SIGTERM, patience), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            os.kill(self.pid, name)
            if self._ended(seconds):
                break
        self.pid = None
        os.close(self.output)
        deadline = time.monotonic() + 5
        while any(os.path.exists(f"/proc/{each}") for each in processes) and time.monotonic() < deadline:
            time.sleep(0.005)


def processes_of(pid):
    """`pid` and all its descendants."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pids):
    """CPU time of these VMs' processes, with that of threads that have ended."""
    total = 0
    for each in (process for pid in pids for process in processes_of(pid)):
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~each << 3 | CPUCLOCK_SCHED)
    return total


def memory_of(pids):
    """KiB of these VMs' processes without the guests' memory."""
    header = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
    total = {"pss": 0, "anonymous": 0, "processes": 0}
    keys = {"Pss": "pss", "Anonymous": "anonymous"}
    for each in (process for pid in pids for process in processes_of(pid)):
        guest_memory = False
        with open(f"/proc/{each}/smaps", encoding="utf-8", errors="replace") as smaps:
            for line in smaps:
                if match := header.match(line):
                    guest_memory = match[1].startswith(("/memfd:guest", "/memfd:memory-backend-memfd"))
                    continue
                name, _, value = line.partition(":")
                if not guest_memory and name in keys:
                    total[keys[name]] += int(value.split()[0])
        total["processes"] += 1
    return total
