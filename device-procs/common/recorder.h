// SPDX-License-Identifier: Apache-2.0
// Writes a device's journal (ipc/journal.h) while it works, and reads the one that a predecessor left. Device thread;
// what is read is hostile.
//
// A device's state is saved whenever it may have changed: after writes, after reads that change it, and after a round
// of the event loop that did anything. It is committed together with the exits that changed it, before these are
// answered: so a successor carries out an exit again only if nobody has seen what came of it.
#pragma once

#include <capnp/message.h>

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "device-procs/common/device_model.h"
#include "ipc/journal.h"

namespace bulkhead::device {

class Recorder {
 public:
  // Without a journal nothing is recorded. `successor`: the journal is a predecessor's.
  explicit Recorder(std::optional<Journal> journal = {}, bool successor = false)
      : journal_(journal), taking_over_(successor) {}

  // Once, before anything else; the device outlives the calls.
  void Attach(const DeviceModel& device) { device_ = &device; }

  bool on() const { return journal_.has_value(); }
  // From construction until the state of the predecessor has been taken over: nothing is recorded then.
  bool taking_over() const { return taking_over_; }
  std::optional<QueueLog> Log(size_t queue) const;
  // The journal's room for an image's tables; empty where it has none.
  std::span<std::byte> Tables() const { return journal_ ? journal_->tables() : std::span<std::byte>(); }

  void MarkChanged() { changed_ = true; }
  // The next exit is about to be carried out: what is committed on the way is the state after those before it.
  void Reach(const ExitPosition& position) { position_ = position; }
  // The exits up to there have been carried out; `reply` is the last answer.
  void Commit(const ExitPosition& position, const Frame& reply);
  // The state alone, where it has changed.
  void Commit() { Commit(position_, reply_); }

  // Restores the device, which is paused, from what the predecessor left. Where that is nothing the device stays as it
  // is, which is how the predecessor was.
  struct Inheritance {
    ExitPosition position;
    Frame reply;
  };
  Result<Inheritance> TakeOver(DeviceModel& device);

 private:
  Result<void> Restore(DeviceModel& device, const Journal::Legacy& legacy);

  std::optional<Journal> journal_;
  const DeviceModel* device_ = nullptr;
  bool taking_over_ = false;
  bool changed_ = false;
  ExitPosition position_;
  Frame reply_;
  // Words of a message: a usual state fits, so that saving it allocates little.
  std::array<uint64_t, 1024> scratch_{};
  std::vector<std::byte> encoded_;
};

}  // namespace bulkhead::device
