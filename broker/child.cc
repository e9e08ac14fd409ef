// SPDX-License-Identifier: Apache-2.0
#include "broker/child.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "broker/plain_line.h"
#include "ipc/child.h"
#include "ipc/ring.h"

namespace bulkhead::broker {
namespace {

constexpr int kMaxLinesPerSecond = 20;
constexpr auto kLastWordsTime = 1 * kj::SECONDS;

using FdObserver = kj::UnixEventPort::FdObserver;

void SetNonBlocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

}  // namespace

std::string ChildTitle(const std::string& vm, const std::string& name) { return "bulkhead:" + vm + " " + name; }

namespace {

ProcessEnd Reap(int pidfd) {
  siginfo_t info{};
  ::waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED);
  return {info.si_code, info.si_status};
}

// A child of this process's own.
Newborn Bear(const std::string& executable, const std::string& title, const Birthplace& place) {
  Newborn born{.process = SpawnChild(executable, title, place),
               .reports_violations = false,
               .was_ready = false,
               .listener = {},
               .take_listener = {},
               .reap = {}};
  born.reports_violations = CanWatchViolations(born.process.pidfd);
  const int pidfd = born.process.pidfd.get();
  born.take_listener = [pidfd](int listener) -> kj::Promise<OwnFd> {
    auto taken = ViolationWatch::TakeListener(pidfd, listener);
    if (!taken.ok()) return Failure(taken.error().message);
    return *std::move(taken);
  };
  born.reap = [pidfd] { return Reap(pidfd); };
  SetNonBlocking(born.process.log.get());
  // It ends with this process.
  born.process.spare.Close();
  return born;
}

}  // namespace

Child::Child(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm, const std::string& name,
             capnp::Capability::Client host, const Birthplace& place)
    : Child(io, Bear(executable, ChildTitle(vm, name), place), vm, name, kj::mv(host)) {
  own_child_ = true;
}

Child::Child(kj::AsyncIoContext& io, Newborn born, const std::string& vm, const std::string& name,
             capnp::Capability::Client host)
    : io_(io),
      vm_(vm),
      name_(name),
      process_(std::move(born.process)),
      death_(io.unixEventPort, process_.pidfd.get(), FdObserver::OBSERVE_READ),
      log_(io.unixEventPort, process_.log.get(), FdObserver::OBSERVE_READ),
      connection_(std::in_place, *io.lowLevelProvider, std::move(process_.control), kj::mv(host),
                  Descriptors::kRefused),
      hang_up_task_(nullptr),
      log_task_(nullptr),
      reports_violations_(born.reports_violations),
      take_listener_(std::move(born.take_listener)),
      reap_(std::move(born.reap)),
      violation_task_(nullptr),
      ready_(born.was_ready),
      death_line_(AwaitDeath().fork()) {
  // One that broke the connection, or closed it, is of no more use. Before it was ready it may be about to say why.
  hang_up_task_ = connection_->OnDisconnect()
                      .then([this]() -> kj::Promise<void> {
                        if (ready_) return kj::READY_NOW;
                        return io_.provider->getTimer().afterDelay(kLastWordsTime);
                      })
                      .then([this] { Kill(); })
                      .eagerlyEvaluate([](kj::Exception&&) {});
  if (born.listener.valid()) WatchViolations(std::move(born.listener));
  log_task_ = ReadLog().eagerlyEvaluate([](kj::Exception&&) {});
}

Child::~Child() {
  if (ended_) return;
  Kill();
  // Another's child is for that to reap.
  if (own_child_) Reap(process_.pidfd.get());
}

kj::Promise<void> Child::SetReady(int violations) {
  ready_ = true;
  if (!reports_violations_) return kj::READY_NOW;
  return taking_.wrap(
      take_listener_(violations).then([this](OwnFd listener) { WatchViolations(std::move(listener)); }));
}

void Child::WatchViolations(OwnFd listener) {
  violations_.emplace(io_.unixEventPort, std::move(listener));
  violation_task_ = violations_->First()
                        .then([this](std::string call) {
                          violation_ = kj::mv(call);
                          Kill();
                        })
                        .eagerlyEvaluate([](kj::Exception&&) {});
}

void Child::Kill() {
  if (!ended_) ::syscall(SYS_pidfd_send_signal, process_.pidfd.get(), SIGKILL, nullptr, 0);
}

kj::Promise<std::string> Child::AwaitDeath() {
  return death_.whenBecomesReadable()
      .then([this] { return reap_(); })
      .catch_([](kj::Exception&&) { return ProcessEnd(); })
      .then([this](ProcessEnd end) { return DescribeDeath(end); });
}

std::string Child::DescribeDeath(const ProcessEnd& end) {
  // What it wrote last may still be in the pipe.
  std::array<char, 4096> bytes;
  ssize_t count;
  while ((count = ::read(process_.log.get(), bytes.data(), bytes.size())) > 0) {
    TakeLog({bytes.data(), static_cast<size_t>(count)});
  }
  ended_ = true;
  if (!ready_ && !last_line_.empty()) return name_ + ": " + last_line_;
  if (!violation_.empty()) return name_ + " was killed by its sandbox: it made the forbidden system call " + violation_;
  if (end.code == 0) return name_ + " has ended, and so has the spawner, which would know how";
  if (end.code == CLD_EXITED) return name_ + " ended with status " + std::to_string(end.status);
  if (end.status == SIGSYS) return name_ + " was killed by its sandbox (a forbidden system call)";
  return name_ + " was killed by signal " + std::to_string(end.status) + " (" + ::strsignal(end.status) + ")";
}

kj::Promise<void> Child::ReadLog() {
  std::array<char, 4096> bytes;
  const ssize_t count = ::read(process_.log.get(), bytes.data(), bytes.size());
  if (count == 0) return kj::READY_NOW;
  if (count > 0) {
    TakeLog({bytes.data(), static_cast<size_t>(count)});
    return kj::evalLater([this] { return ReadLog(); });
  }
  if (errno != EAGAIN) return kj::READY_NOW;
  return log_.whenBecomesReadable().then([this] { return ReadLog(); });
}

void Child::TakeLog(std::string_view bytes) {
  for (const char byte : bytes) {
    if (byte == '\n') {
      PrintLine();
    } else if (line_.size() < kMaxLineBytes) {
      line_ += PlainByte(byte);
    }
  }
}

void Child::PrintLine() {
  last_line_ = std::exchange(line_, {});
  if (!ready_) return;
  const int64_t second = MonotonicNow() / 1'000'000'000;
  if (second != std::exchange(log_second_, second)) log_lines_ = 0;
  if (++log_lines_ > kMaxLinesPerSecond) return;
  std::fprintf(stderr, "bulkhead:%s %s: %s\n", vm_.c_str(), name_.c_str(), last_line_.c_str());
}

}  // namespace bulkhead::broker
