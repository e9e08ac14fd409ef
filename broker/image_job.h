// SPDX-License-Identifier: Apache-2.0
// Runs the process that works on images for `bulkhead img`. Broker, main thread. What the launcher asks for and what
// the process says are hostile; neither is looked into beyond what starting it takes.
#pragma once

#include <capnp/message.h>
#include <kj/async-io.h>

#include <memory>
#include <optional>
#include <string>

#include "broker/child.h"
#include "broker/revoker.h"
#include "ipc/broker.capnp.h"

namespace bulkhead::broker {

class ImageJob {
 public:
  // Returns when the process is locked down; throws FatalError or kj::Exception.
  ImageJob(kj::AsyncIoContext& io, const std::string& helpers, capnp::List<control::ImageChain>::Reader images);

  control::ImageWorker::Client worker() { return *worker_; }
  // Resolves when the process has ended, with a line that says how.
  kj::Promise<std::string> WhenDead() { return child_->WhenDead(); }
  // Ends the connection, as if the broker were gone.
  void HangUp() { child_->HangUp(); }

 private:
  class Host;

  void TakeImages(capnp::List<control::ImageChain>::Reader images, kj::WaitScope& wait);

  capnp::MallocMessageBuilder grants_;  // with descriptors of this process's own
  std::unique_ptr<Child> child_;
  std::optional<control::ImageWorker::Client> worker_;
  Revoker<ImageJob> self_{*this};  // last, so that it goes first
};

}  // namespace bulkhead::broker
