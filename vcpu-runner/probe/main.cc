// SPDX-License-Identifier: Apache-2.0
// bulkhead-probe: tries what this host's KVM can do, with guests of a few instructions, for `bulkhead check`. Reads
// nothing untrusted; sandboxed like any child but for a system call filter, since it creates VMs throughout.
#include <unistd.h>

#include "ipc/child.h"
#include "ipc/rpc.h"
#include "ipc/sandbox.h"
#include "vcpu-runner/probe/checks.h"

namespace bulkhead::probe {
namespace {

constexpr rlim_t kMaxDescriptors = 256;

void Serve(kj::AsyncIoContext& io, ChildSandbox&) {
  RpcConnection broker(*io.lowLevelProvider, OwnFd(kControlFd));
  auto host = broker.Bootstrap<control::ProbeHost>();
  OwnFd kvm;
  {
    auto response = host.kvmRequest().send().wait(io.waitScope);
    kvm = TakeFile(response.getKvm(), io.waitScope);
  }
  LimitProcess({{RLIMIT_NOFILE, kMaxDescriptors}, {RLIMIT_MEMLOCK, 0}});
  const auto results = RunChecks(kvm.get());
  auto request = host.reportRequest();
  auto report = request.initReport();
  report.setStockKernels(StockKernelsRun(results));
  auto checks = report.initChecks(static_cast<unsigned>(results.size()));
  for (unsigned i = 0; i < results.size(); ++i) {
    checks[i].setName(results[i].name);
    checks[i].setStatus(results[i].status);
    checks[i].setDetail(results[i].detail);
  }
  request.send().wait(io.waitScope);
  // A vCPU thread of the last check may still sit in its guest.
  ::_exit(0);
}

}  // namespace
}  // namespace bulkhead::probe

int main(int argc, char** argv) {
  return bulkhead::RunChild(argc, argv, bulkhead::SyscallPolicy(), bulkhead::probe::Serve);
}
