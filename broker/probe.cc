// SPDX-License-Identifier: Apache-2.0
#include "broker/probe.h"

#include "broker/child.h"
#include "broker/child_uids.h"
#include "broker/host_kvm.h"

namespace bulkhead::broker {
namespace {

using Status = control::ProbeReport::Status;

// A guest that hangs the probe ends it.
constexpr auto kProbeTime = 20 * kj::SECONDS;

class ProbeHostServer final : public control::ProbeHost::Server {
 public:
  ProbeHostServer(const OwnFd& kvm, control::ProbeReport::Builder out, kj::PromiseFulfiller<void>& reported)
      : kvm_(kvm), out_(out), reported_(reported) {}

  kj::Promise<void> kvm(KvmContext context) override {
    context.getResults().setKvm(ShareFile(kvm_.get()));
    return kj::READY_NOW;
  }
  kj::Promise<void> report(ReportContext context) override {
    const auto report = context.getParams().getReport();
    out_.setChecks(report.getChecks());
    out_.setStockKernels(report.getStockKernels());
    reported_.fulfill();
    return kj::READY_NOW;
  }

 private:
  const OwnFd& kvm_;
  control::ProbeReport::Builder out_;
  kj::PromiseFulfiller<void>& reported_;
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
    auto reported = kj::newPromiseAndFulfiller<void>();
    Child probe(io, helpers + "/bulkhead-probe", "check", "probe",
                kj::heap<ProbeHostServer>(kvm, out, *reported.fulfiller), {.cgroup = {}, .uid = ChildUids({}).Take()});
    auto dead = probe.WhenDead().then([](std::string how) { throw Failure(how); });
    auto late = io.provider->getTimer().afterDelay(kProbeTime).then([]() -> void {
      throw Failure("the test guests did not end in time");
    });
    reported.promise.exclusiveJoin(kj::mv(dead)).exclusiveJoin(kj::mv(late)).wait(io.waitScope);
  } catch (const FatalError& error) {
    ReportFailure(out, "sandbox", error.what());
  } catch (const kj::Exception& error) {
    ReportFailure(out, "KVM", ReasonOf(error));
  }
}

}  // namespace bulkhead::broker
