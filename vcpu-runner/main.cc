// SPDX-License-Identifier: Apache-2.0
// bulkhead-vcpu-runner: runs one VM's vCPUs and forwards their exits. Holds the VM, guest memory and the rings; no
// host resource and no device model.
#include <unistd.h>

#include "ipc/broker_link.h"
#include "ipc/child.h"
#include "ipc/start_up_memory.h"
#include "vcpu-runner/policy.h"
#include "vcpu-runner/runner.h"

namespace bulkhead::runner {
namespace {

// Descriptors of all devices of a VM, and the vCPUs'.
constexpr rlim_t kMaxDescriptors = 4096;

class RunnerServer final : public control::Runner::Server {
 public:
  RunnerServer(Runner& runner, kj::Timer& timer) : runner_(runner), start_up_(timer) {}

  kj::Promise<void> load(LoadContext) override {
    if (auto loaded = runner_.Load(); !loaded.ok()) throw Failure(loaded.error().message);
    return kj::READY_NOW;
  }
  kj::Promise<void> pause(PauseContext) override {
    runner_.Pause();
    return kj::READY_NOW;
  }
  kj::Promise<void> resume(ResumeContext) override {
    runner_.Resume();
    start_up_.ForgetSoon();
    return kj::READY_NOW;
  }
  kj::Promise<void> markDeviceDead(MarkDeviceDeadContext context) override {
    runner_.MarkDeviceDead(context.getParams().getDevice());
    return kj::READY_NOW;
  }
  kj::Promise<void> logWrites(LogWritesContext context) override {
    if (auto set = runner_.LogWrites(context.getParams().getOn()); !set.ok()) throw Failure(set.error().message);
    return kj::READY_NOW;
  }
  kj::Promise<void> collectWrites(CollectWritesContext) override {
    if (auto collected = runner_.CollectWrites(); !collected.ok()) throw Failure(collected.error().message);
    return kj::READY_NOW;
  }

 private:
  Runner& runner_;
  StartUpMemory start_up_;
};

void Serve(kj::AsyncIoContext& io, ChildSandbox& sandbox) {
  BrokerLink broker(io);
  auto host = broker.Host<control::RunnerHost>();
  Mailbox mailbox(io.unixEventPort);
  std::optional<Runner> runner;
  {
    auto response = host.grantsRequest().send().wait(io.waitScope);
    const auto grants = response.getGrants();
    runner.emplace(grants, broker, mailbox, io.waitScope);
    sandbox.Close(grants.getSandbox(), {{RLIMIT_NOFILE, kMaxDescriptors}, {RLIMIT_FSIZE, 0}, {RLIMIT_MEMLOCK, 0}},
                  RunnerPolicy());
  }

  auto ready = host.readyRequest();
  const auto make_server = [&]() -> control::Runner::Client {
    return kj::heap<RunnerServer>(*runner, io.provider->getTimer());
  };
  ready.setRunner(make_server());
  sandbox.Report(ready.initSandbox());
  ready.send().wait(io.waitScope);
  sandbox.Reported();
  const auto letters = mailbox.Serve().eagerlyEvaluate(nullptr);
  broker.Serve([&] {
    auto go_on = broker.Host<control::RunnerHost>().goOnRequest();
    go_on.setRunner(make_server());
    return go_on.send().ignoreResult();
  });
  // Without a broker there is no VM; the vCPU threads end with the process.
  ::_exit(0);
}

}  // namespace
}  // namespace bulkhead::runner

int main(int argc, char** argv) {
  return bulkhead::RunChild(argc, argv, bulkhead::runner::RunnerPolicy(), bulkhead::runner::Serve);
}
