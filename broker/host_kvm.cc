// SPDX-License-Identifier: Apache-2.0
#include "broker/host_kvm.h"

#include <fcntl.h>

#include <cerrno>

namespace bulkhead::broker {

OwnFd OpenKvm() {
  constexpr const char* kDevice = "/dev/kvm";
  OwnFd kvm(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (kvm.valid()) return kvm;
  switch (errno) {
    case ENOENT:
      throw FatalError(
          "open /dev/kvm: there is no such device; load KVM with `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`, "
          "and"
          " if that fails switch virtualization (VT-x or SVM) on in the firmware's settings, or nested virtualization "
          "on in"
          " the host of this machine",
          ENOENT);
    case EACCES:
    case EPERM:
      throw FatalError(
          "open /dev/kvm: permission denied; add the user to the group that owns it (`sudo usermod -aG kvm $USER`) and "
          "log"
          " in again",
          errno);
    case ENODEV:
    case ENXIO:
      throw FatalError(
          "open /dev/kvm: the module for this processor is not loaded (kvm_intel or kvm_amd), or its firmware switch "
          "(VT-x or"
          " SVM) is off; see `sudo dmesg | grep -i kvm`",
          errno);
    default:
      ThrowErrno("open /dev/kvm");
  }
}

}  // namespace bulkhead::broker
