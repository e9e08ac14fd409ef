# SPDX-License-Identifier: Apache-2.0
"""What Bulkhead and QEMU's machines are told of a guest that is a kernel or a firmware."""
import os
import shutil

from net_guest import MAC, interface
from payload_guest import NAMED_THREADS, qemu_program, use_runtime_folder


class Guest:
    """What a VMM is to start. `firmware` replaces the kernel, and `consoles` are those of a Linux guest with nobody at
    the other end (both QEMU only: Bulkhead has no firmware, and consoles always); `tap` is an interface's name."""

    def __init__(self, kernel=None, initrd=None, append=None, firmware=None, disk=None, rng=False, debug_port=False,
                 tap=None, consoles=False):
        self.kernel, self.initrd, self.append, self.firmware = kernel, initrd, append, firmware
        self.disk, self.rng, self.debug_port, self.tap, self.consoles = disk, rng, debug_port, tap, consoles


class Commands:
    """Copies what is started and read to one place, so that no file system favours one VMM."""

    def __init__(self, build, work, memory):
        self.work, self.memory = work, memory
        self.program = self.path("bin", "bulkhead")
        self.started = 0
        os.makedirs(self.path("bin"))
        shutil.copy(os.path.join(build, "bulkhead"), self.program)
        shutil.copytree(os.path.join(build, "libexec"), self.path("bin", "libexec"))
        use_runtime_folder(work)

    def path(self, *names):
        return os.path.join(self.work, *names)

    def copy(self, source):
        """The path of the copy."""
        return shutil.copy(source, self.path(os.path.basename(source)))

    def command(self, vmm, guest):
        """`vmm` is bulkhead or one of QEMU's machines, microvm or q35. Further devices may be appended."""
        self.started += 1
        return self._bulkhead(guest) if vmm == "bulkhead" else self._qemu(vmm, guest)

    def _bulkhead(self, guest):
        command = [self.program, "run", "--name", f"bench-{os.getpid()}-{self.started}", "-m", str(self.memory)]
        command += ["--kernel", guest.kernel]
        command += ["--console", "none", "--debug-console", "stdio"] if guest.debug_port else []
        command += ["--initrd", guest.initrd] if guest.initrd else []
        command += ["--append", guest.append] if guest.append else []
        command += ["--disk", guest.disk] if guest.disk else []
        return command + (interface("bulkhead", "tap", tap=guest.tap) if guest.tap else [])

    def _qemu(self, machine, guest):
        # -display none and not -nographic: the latter has SeaBIOS print on the serial port, which costs QEMU time.
        # Not every KVM lets arch-capabilities be set. The memfd is there to tell the guest's memory from QEMU's own.
        # Without rtc=on a stock kernel spends most of its boot polling microvm's missing clock.
        machine_options = f"{machine},accel=kvm,memory-backend=guest" + (",rtc=on" if machine == "microvm" else "")
        command = [qemu_program(), *NAMED_THREADS, "-M", machine_options, "-cpu", "host,arch-capabilities=off", "-smp", "1"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-m", str(self.memory)]
        command += ["-object", f"memory-backend-memfd,id=guest,size={self.memory}M"]
        command += ["-debugcon", "stdio"] if guest.debug_port else ["-serial", "stdio"]
        command += ["-bios", guest.firmware] if guest.firmware else ["-kernel", guest.kernel]
        command += ["-initrd", guest.initrd] if guest.initrd else []
        command += ["-append", guest.append] if guest.append else []
        bus = "device" if machine == "microvm" else "pci"
        if guest.consoles:
            command += ["-serial", "null", "-chardev", "null,id=console", "-device", f"virtio-serial-{bus}"]
            command += ["-device", "virtconsole,chardev=console"]
        if guest.disk:
            command += ["-drive", f"file={guest.disk},format=raw,if=none,id=disk"]
            command += ["-device", f"virtio-blk-{bus},drive=disk"]
        if guest.tap:
            command += ["-netdev", f"tap,id=net,ifname={guest.tap},script=no,downscript=no"]
            command += ["-device", f"virtio-net-{bus},netdev=net,mac={MAC}"]
        return command + (["-device", f"virtio-rng-{bus}"] if guest.rng else [])
