// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/debug_console.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "ipc/platform.h"

namespace bulkhead::chipset {
namespace {

// A batch larger than this goes out before its end.
constexpr size_t kSendBytes = 4096;
// One-shot: a hang-up is reported once, whatever is waited for, not for ever.
constexpr uint32_t kHangUpOnly = EPOLLONESHOT;
constexpr uint32_t kRoom = EPOLLOUT | EPOLLONESHOT;

}  // namespace

DebugConsole::DebugConsole(device::EventLoop& loop, OwnFd output, OutputStage stage)
    : loop_(loop), output_(std::move(output)), counted_(std::move(stage)) {
  counted_.SetOutput(output_.get());
  if (output_.valid()) loop_.Watch(output_.get(), kHangUpOnly, [this] { OutputEvent(); });
}

DebugConsole::~DebugConsole() { EndOutput(); }

uint8_t DebugConsole::Read() const { return platform::kDebugConsoleId; }

void DebugConsole::Write(uint8_t value) {
  if (!output_.valid() || buffer_.size() >= kBufferBytes) return;
  buffer_.push_back(std::byte{value});
  if (buffer_.size() % kSendBytes == 0) Flush();
}

void DebugConsole::Flush() {
  if (paused_ || blocked_) return;
  size_t sent = counted_.TakeOwed(buffer_.size());
  while (sent < buffer_.size() && output_.valid()) {
    const auto count = counted_.Write(std::span(buffer_).subspan(sent));
    const int code = count.ok() ? 0 : count.error().code;
    if (count.ok() && *count > 0) {
      sent += *count;
    } else if (code == EINTR) {
      continue;
    } else if (code == EAGAIN) {
      blocked_ = true;
      loop_.SetEvents(output_.get(), kRoom);
      break;
    } else if (code == ENOSPC || code == EDQUOT || code == EFBIG) {
      // A full disk may have room again later.
      sent = buffer_.size();
    } else {
      EndOutput();
    }
  }
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(output_.valid() ? sent : buffer_.size()));
}

void DebugConsole::OutputEvent() {
  if (!blocked_) {
    // Nothing was waited for, so this is a hang-up.
    EndOutput();
    buffer_.clear();
    return;
  }
  blocked_ = false;
  loop_.SetEvents(output_.get(), kHangUpOnly);
  Flush();
}

void DebugConsole::EndOutput() {
  if (!output_.valid()) return;
  loop_.Unwatch(output_.get());
  output_.Close();
  blocked_ = false;
}

void DebugConsole::Resume() {
  paused_ = false;
  Flush();
}

void DebugConsole::Save(state::DebugConsoleState::Builder state) const {
  state.setUnsent(capnp::Data::Reader(reinterpret_cast<const capnp::byte*>(buffer_.data()), buffer_.size()));
  state.setWritten(counted_.written());
}

Result<void> DebugConsole::Restore(state::DebugConsoleState::Reader state) {
  const auto unsent = state.getUnsent();
  if (unsent.size() > kBufferBytes) return Error{EPROTO, "the saved state of the debug port is too large"};
  const auto* bytes = reinterpret_cast<const std::byte*>(unsent.begin());
  buffer_.assign(bytes, bytes + unsent.size());
  counted_.GoOn(state.getWritten());
  return {};
}

}  // namespace bulkhead::chipset
