// SPDX-License-Identifier: Apache-2.0
// Asks a net process what its interface has carried. Broker, main thread. The answer is hostile: it may never come, and
// what comes is taken as numbers that somebody is shown.
#pragma once

#include <kj/async.h>
#include <kj/timer.h>

#include <optional>

#include "ipc/broker.capnp.h"

namespace bulkhead::broker {

struct NetTraffic {
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint64_t dropped = 0;
  uint64_t refused = 0;

  bool operator==(const NetTraffic&) const = default;
};

struct NetFigures {
  control::LinkState link = control::LinkState::UP;
  std::optional<NetTraffic> received;  // where the process counts
  std::optional<NetTraffic> sent;

  void Fill(control::NetReport::Builder out) const;
  bool operator==(const NetFigures&) const = default;
};

class NetInquiry {
 public:
  using Answer = std::optional<NetFigures>;

  // The timer outlives it.
  NetInquiry(kj::Timer& timer, kj::Duration patience) : timer_(timer), patience_(patience) {}

  // Nothing where the process does not answer in time, or nothing that can be. Dropped before this is.
  kj::Promise<Answer> Ask(control::Device::Client device);

 private:
  kj::Timer& timer_;
  const kj::Duration patience_;
  // The call that was made last. Those who ask before it is answered wait for the same answer: calls to a process that
  // hangs do not pile up here.
  std::optional<kj::ForkedPromise<Answer>> call_;
  bool answered_ = true;
};

}  // namespace bulkhead::broker
