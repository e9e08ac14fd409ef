// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/recorder.h"

#include <capnp/any.h>
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <algorithm>
#include <string>

namespace bulkhead::device {
std::optional<QueueLog> Recorder::Log(size_t queue) const {
  if (!journal_ || queue >= journal_->queue_count()) return std::nullopt;
  return journal_->Queue(queue);
}

void Recorder::Commit(const ExitPosition& position, const Frame& reply) {
  if (!journal_ || taking_over_) return;
  position_ = position;
  if (&reply != &reply_) reply_ = reply;
  if (!changed_) {
    journal_->Commit(position_, reply_);
    return;
  }
  changed_ = false;
  scratch_.fill(0);
  capnp::MallocMessageBuilder message(kj::arrayPtr(reinterpret_cast<capnp::word*>(scratch_.data()), scratch_.size()));
  device_->Save(message.initRoot<capnp::AnyPointer>());
  encoded_.resize(capnp::computeSerializedSizeInWords(message) * sizeof(capnp::word));
  kj::ArrayOutputStream out(kj::arrayPtr(reinterpret_cast<kj::byte*>(encoded_.data()), encoded_.size()));
  capnp::writeMessage(out, message);
  journal_->Commit(position_, reply_, encoded_);
}

Result<Recorder::Inheritance> Recorder::TakeOver(DeviceModel& device) {
  if (!journal_ || !taking_over_) return Error{EINVAL, "there is nobody whose place to take"};
  auto legacy = journal_->Read();
  if (!legacy.ok() && legacy.error().code != ENODATA) return legacy.error();
  Inheritance inheritance;
  if (legacy.ok()) {
    if (auto restored = Restore(device, *legacy); !restored.ok()) return restored.error();
    inheritance = {legacy->position, legacy->reply};
  }
  position_ = inheritance.position;
  reply_ = inheritance.reply;
  taking_over_ = false;
  changed_ = true;
  Commit();
  return inheritance;
}

Result<void> Recorder::Restore(DeviceModel& device, const Journal::Legacy& legacy) {
  Result<void> restored;
  // Cap'n Proto throws where a message is malformed, and it may be.
  const auto malformed = kj::runCatchingExceptions([&] {
    const auto* words = reinterpret_cast<const capnp::word*>(legacy.state.data());
    capnp::FlatArrayMessageReader message(kj::arrayPtr(words, legacy.state.size() / sizeof(capnp::word)));
    restored = device.Restore(message.getRoot<capnp::AnyPointer>());
  });
  KJ_IF_MAYBE (exception, malformed) {
    return Error{EPROTO,
                 std::string("the process before left a malformed state: ") + exception->getDescription().cStr()};
  }
  const int64_t now_ns = MonotonicNow();
  if (restored.ok()) device.CatchUp(now_ns - std::clamp<int64_t>(legacy.saved_at_ns, 0, now_ns));
  return restored;
}

}  // namespace bulkhead::device
