// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/vm_brokers.h"

#include <sys/prctl.h>
#include <sys/wait.h>

#include <cstdio>

#include "ipc/ring.h"

namespace bulkhead::launcher {

VmBrokers::VmBrokers(kj::AsyncIoContext& io, const RunOptions& options, const RuntimeDir& directory,
                     const VmResources& resources)
    : io_(io), options_(options), directory_(directory), resources_(resources), restraint_(options.device_restarts) {
  // A broker's spawner becomes this process's child when that broker ends, and so can be waited for.
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) ThrowErrno("be told of the end of a VM's processes");
  Start();
}

control::VmControl::Client VmBrokers::TakeOver() {
  for (;;) {
    const bool asked_for = broker_->HandedOver();
    const std::string how = broker_->DescribeEnd();
    const auto delay_ns = asked_for ? std::optional<int64_t>(0) : restraint_.Died(MonotonicNow());
    if (!spawner_.valid() || !delay_ns) throw FatalError(how + ", and the VM with it");
    if (!asked_for) {
      std::fprintf(stderr, "bulkhead: VM '%s': %s; another takes its place\n", options_.name.c_str(), how.c_str());
    }
    io_.provider->getTimer().afterDelay(*delay_ns * kj::NANOSECONDS).wait(io_.waitScope);
    Start();
    auto request = broker_->broker().takeOverVmRequest();
    resources_.Fill(options_, directory_, request.initConfig());
    request.setSpawner(ShareFile(spawner_.get()));
    try {
      return request.send().wait(io_.waitScope).getVm();
    } catch (const kj::Exception& error) {
      if (error.getType() == kj::Exception::Type::DISCONNECTED) continue;
      throw FatalError(how + ", and no other can take its place: " + ReasonOf(error));
    }
  }
}

void VmBrokers::Finish() {
  spawner_.Close();
  if (broker_) broker_->Finish();
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
}

}  // namespace bulkhead::launcher
