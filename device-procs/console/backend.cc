// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/backend.h"

#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "ipc/result.h"

namespace bulkhead::device {
namespace {

constexpr int64_t kLogIntervalNs = 60'000'000'000;

// One-shot throughout: epoll reports a hang-up whatever is asked for, and again and again; a one-shot
// registration that has fired is silent until it is set again.
constexpr uint32_t kInputEvents = EPOLLIN | EPOLLONESHOT;
constexpr uint32_t kHangUpOnly = EPOLLONESHOT;
constexpr uint32_t kOutputEvents = EPOLLOUT | EPOLLONESHOT;

bool WouldBlock(int code) { return code == EAGAIN || code == EWOULDBLOCK; }

// The file is full; it may have room again later, unlike a peer that hung up.
bool IsFull(int code) { return code == ENOSPC || code == EDQUOT || code == EFBIG; }

}  // namespace

int64_t FdBytePort::MonotonicNs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

FdBytePort::FdBytePort(EventLoop& loop, Log log, OutputStage stage, Clock clock_ns)
    : loop_(loop), log_(std::move(log)), clock_ns_(std::move(clock_ns)), counted_(std::move(stage)) {}

FdBytePort::~FdBytePort() {
  EndInput();
  EndOutput();
}

void FdBytePort::Attach(OwnFd input, OwnFd output) {
  EndInput();
  EndOutput();
  input_ = std::move(input);
  output_ = std::move(output);
  counted_.SetOutput(output_.get());
  try {
    if (output_.valid()) loop_.Watch(output_.get(), kHangUpOnly, [this] { OutputEvent(); });
    if (input_.valid()) loop_.Watch(input_.get(), kInputEvents, [this] { InputEvent(); });
  } catch (const FatalError&) {
    // No memory in the kernel for one more watch: as if the peer had hung up at once. Attaching happens after
    // lock-down too, where nothing may throw.
    EndInput();
    EndOutput();
  }
  // The writer may wait for the connection before; and regular files have no events, so their reader starts
  // here.
  if (writable_) writable_();
  if (input_.valid() && readable_) readable_();
}

void FdBytePort::Detach() { Attach(OwnFd(), OwnFd()); }

void FdBytePort::SetHandlers(std::function<void()> readable, std::function<void()> writable) {
  readable_ = std::move(readable);
  writable_ = std::move(writable);
}

size_t FdBytePort::Read(std::span<std::byte> bytes) {
  size_t got = 0;
  while (got < bytes.size() && input_.valid()) {
    const ssize_t count = ::read(input_.get(), bytes.data() + got, bytes.size() - got);
    if (count > 0) {
      got += static_cast<size_t>(count);
    } else if (count < 0 && errno == EINTR) {
      continue;
    } else if (count < 0 && WouldBlock(errno)) {
      loop_.SetEvents(input_.get(), kInputEvents);
      break;
    } else {
      EndInput();
    }
  }
  return got;
}

size_t FdBytePort::Write(std::span<const std::byte> bytes) {
  size_t taken = counted_.TakeOwed(bytes.size());
  while (taken < bytes.size() && output_.valid()) {
    const auto count = counted_.Write(bytes.subspan(taken));
    const int code = count.ok() ? 0 : count.error().code;
    if (count.ok() && *count > 0) {
      taken += *count;
    } else if (code == EINTR) {
      continue;
    } else if (WouldBlock(code)) {
      output_blocked_ = true;
      loop_.SetEvents(output_.get(), kOutputEvents);
      return taken;
    } else if (IsFull(code)) {
      LogLostOutput(code);
      break;
    } else {
      EndOutput();
    }
  }
  return bytes.size();
}

void FdBytePort::EndInput() {
  if (!input_.valid()) return;
  loop_.Unwatch(input_.get());
  input_.Close();
}

void FdBytePort::EndOutput() {
  if (!output_.valid()) return;
  loop_.Unwatch(output_.get());
  output_.Close();
  counted_.SetOutput(-1);
  output_blocked_ = false;
}

void FdBytePort::InputEvent() {
  if (readable_) readable_();
}

void FdBytePort::OutputEvent() {
  if (!output_blocked_) {
    // Nothing was waited for, so this is a hang-up.
    EndOutput();
    return;
  }
  output_blocked_ = false;
  loop_.SetEvents(output_.get(), kHangUpOnly);
  if (writable_) writable_();
}

void FdBytePort::LogLostOutput(int code) {
  const int64_t now_ns = clock_ns_();
  if (logged_ && now_ns - logged_at_ns_ < kLogIntervalNs) return;
  logged_ = true;
  logged_at_ns_ = now_ns;
  log_(std::string("console output is lost: ") + std::strerror(code));
}

}  // namespace bulkhead::device
