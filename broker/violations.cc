// SPDX-License-Identifier: Apache-2.0
#include "broker/violations.h"

#include <fmt/core.h>
#include <limits.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "ipc/rpc.h"
#include "ipc/syscall_policy.h"

namespace bulkhead::broker {
namespace {

OwnFd TakeDescriptor(int pidfd, int number) {
  return OwnFd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, number, 0)));
}

std::string Describe(const seccomp_data& call) {
  std::string text = SyscallName(call.nr) + "(";
  for (size_t i = 0; i < std::size(call.args); ++i) text += fmt::format("{}{:#x}", i == 0 ? "" : ", ", call.args[i]);
  return text + ")";
}

}  // namespace

bool CanWatchViolations(const OwnFd& pidfd) { return TakeDescriptor(pidfd.get(), kControlFd).valid(); }

Result<OwnFd> ViolationWatch::TakeListener(int pidfd, int listener) {
  OwnFd taken = TakeDescriptor(pidfd, listener);
  if (!taken.valid()) return ErrnoError(errno, "take a system call filter's listener");
  std::array<char, PATH_MAX> kind{};
  const std::string link = "/proc/self/fd/" + std::to_string(taken.get());
  if (::readlink(link.c_str(), kind.data(), kind.size() - 1) < 0 ||
      std::string(kind.data()) != "anon_inode:seccomp notify") {
    return Error{EPROTO, "a child gave something else than its system call filter's listener"};
  }
  return taken;
}

ViolationWatch::ViolationWatch(kj::UnixEventPort& port, OwnFd listener)
    : listener_(std::move(listener)), observer_(port, listener_.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ) {}

kj::Promise<std::string> ViolationWatch::First() {
  return observer_.whenBecomesReadable().then([this]() -> kj::Promise<std::string> {
    // With nobody left behind the filter there will be no call; and some kernels (6.1) would wait for one here.
    if (observer_.atEndHint().orDefault(false)) return kj::NEVER_DONE;
    // The kernel wants it zeroed. It fails if the process has been killed in the meantime.
    seccomp_notif received{};
    if (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_RECV, &received) != 0) return First();
    return Describe(received.data);
  });
}

}  // namespace bulkhead::broker
