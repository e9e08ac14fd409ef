// SPDX-License-Identifier: Apache-2.0
#include "broker/probe.h"

#include "broker/child.h"
#include "broker/child_uids.h"
#include "broker/host_kvm.h"
#include "broker/revoker.h"

namespace bulkhead::broker {
namespace {

using Status = control::ProbeReport::Status;

// A guest that hangs the probe ends it.
constexpr auto kProbeTime = 20 * kj::SECONDS;

struct Probing {
  const OwnFd& kvm;
  control::ProbeReport::Builder out;
  kj::PromiseFulfillerPair<void> reported = kj::newPromiseAndFulfiller<void>();
};

class ProbeHostServer final : public control::ProbeHost::Server {
 public:
  explicit ProbeHostServer(Revocable<Probing> probing) : probing_(std::move(probing)) {}

  kj::Promise<void> kvm(KvmContext context) override {
    context.getResults().setKvm(ShareFile(probing_->kvm.get()));
    return kj::READY_NOW;
  }
  kj::Promise<void> report(ReportContext context) override {
    const auto report = context.getParams().getReport();
    probing_->out.setChecks(report.getChecks());
    probing_->out.setStockKernels(report.getStockKernels());
    probing_->reported.fulfiller->fulfill();
    return kj::READY_NOW;
  }

 private:
  Revocable<Probing> probing_;
};

void ReportFailure(control::ProbeReport::Builder out, const char* name, const std::string& detail) {
  auto check = out.initChecks(1)[0];
  check.setName(name);
  check.setStatus(Status::FAILED);
  check.setDetail(detail);
}

}  // namespace

void Probe(kj::AsyncIoContext& io, const std::string& helpers, control::ProbeReport::Builder out) {
  OwnFd kvm;
  try {
    kvm = OpenKvm();
  } catch (const FatalError& error) {
    ReportFailure(out, "KVM device", error.what());
    return;
  }
  try {
    Probing probing{.kvm = kvm, .out = out};
    Revoker self(probing);
    Child probe(io, helpers + "/bulkhead-probe", "check", "probe", kj::heap<ProbeHostServer>(self.Get()),
                {.cgroup = {}, .uid = ChildUids({}).Take()});
    auto dead = probe.WhenDead().then([](std::string how) { throw Failure(how); });
    auto late = io.provider->getTimer().afterDelay(kProbeTime).then([]() -> void {
      throw Failure("the test guests did not end in time");
    });
    probing.reported.promise.exclusiveJoin(kj::mv(dead)).exclusiveJoin(kj::mv(late)).wait(io.waitScope);
  } catch (const FatalError& error) {
    ReportFailure(out, "sandbox", error.what());
  } catch (const kj::Exception& error) {
    ReportFailure(out, "KVM", ReasonOf(error));
  }
}

}  // namespace bulkhead::broker
