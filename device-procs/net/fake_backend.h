// SPDX-License-Identifier: Apache-2.0
// A back end for tests: what was sent is kept, what is to arrive is given. Its descriptors are eventfds. Any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device-procs/net/backend.h"
#include "ipc/fd.h"

namespace bulkhead::device::test {

class FakePort final : public NetPort {
 public:
  int fd() const override { return event_.get(); }

  Result<void> Send(std::span<const iovec> packet) override {
    std::lock_guard lock(mutex_);
    if (gone_) return Error{ENODEV, "gone"};
    if (room_ == 0) return Error{EAGAIN, "full"};
    --room_;
    std::string& to = sent_.emplace_back();
    for (const iovec& piece : packet) to.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
    return {};
  }
  Result<size_t> Receive(std::span<const iovec> space) override {
    std::lock_guard lock(mutex_);
    if (gone_) return Error{ENODEV, "gone"};
    if (arriving_.empty()) return size_t{0};
    const std::string packet = std::move(arriving_.front());
    arriving_.pop_front();
    size_t done = 0;
    for (const iovec& piece : space) {
      const size_t bytes = std::min(piece.iov_len, packet.size() - done);
      std::memcpy(piece.iov_base, packet.data() + done, bytes);
      done += bytes;
    }
    return done;
  }

  void Arrive(std::string packet) {
    {
      std::lock_guard lock(mutex_);
      arriving_.push_back(std::move(packet));
    }
    SignalEventFd(event_.get());
  }
  // For so many packets more.
  void SetRoom(size_t packets) {
    {
      std::lock_guard lock(mutex_);
      room_ = packets;
    }
    SignalEventFd(event_.get());
  }
  void Disappear() {
    {
      std::lock_guard lock(mutex_);
      gone_ = true;
    }
    SignalEventFd(event_.get());
  }
  std::vector<std::string> TakeSent() {
    std::lock_guard lock(mutex_);
    return std::exchange(sent_, {});
  }
  size_t waiting() {
    std::lock_guard lock(mutex_);
    return arriving_.size();
  }

 private:
  const OwnFd event_ = OrThrow(MakeEventFd());
  std::mutex mutex_;
  std::vector<std::string> sent_;
  std::deque<std::string> arriving_;
  size_t room_ = SIZE_MAX;
  bool gone_ = false;
};

class FakeBackend final : public NetBackend {
 public:
  explicit FakeBackend(uint16_t pairs, bool has_offloads = true) : has_offloads_(has_offloads) {
    for (uint16_t i = 0; i < pairs; ++i) ports_.push_back(std::make_unique<FakePort>());
  }
  uint16_t pair_count() const override { return static_cast<uint16_t>(ports_.size()); }
  bool has_offloads() const override { return has_offloads_; }
  FakePort& port(uint16_t pair) override { return *ports_.at(pair); }
  void SetOffloads(const Offloads& offloads) override { offloads_ = offloads; }
  void SetActivePairs(uint16_t count) override { active_pairs_ = count; }

  const Offloads& offloads() const { return offloads_; }
  uint16_t active_pairs() const { return active_pairs_; }

 private:
  std::vector<std::unique_ptr<FakePort>> ports_;
  const bool has_offloads_;
  Offloads offloads_;
  uint16_t active_pairs_ = 0;
};

}  // namespace bulkhead::device::test
