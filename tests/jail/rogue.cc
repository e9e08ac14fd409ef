// SPDX-License-Identifier: Apache-2.0
// A device process that an attacker owns: it gets the grants, the sandbox and the ring of the one whose name it is
// started under, and at the first read makes the attempt that its settings name. A read gives 1 if that got through, 0
// if not. One that the guest does not reach makes it when it is restored, and fails that if it did not get through.
#include <cstdlib>
#include <sstream>

#include "device-procs/chipset/policy.h"
#include "device-procs/common/runtime.h"
#include "device-procs/console/policy.h"
#include "device-procs/disk/policy.h"
#include "device-procs/net/policy.h"
#include "device-procs/rng/policy.h"
#include "device-procs/usernet/policy.h"
#include "tests/jail/attempts.h"
#include "tests/jail/no_policy.h"
#include "vcpu-runner/policy.h"

namespace bulkhead::jail {
namespace {

class RogueDevice final : public device::DeviceModel {
 public:
  explicit RogueDevice(device::DeviceContext context) : context_(std::move(context)) {
    std::istringstream words(context_.settings.getAs<capnp::Text>().cStr());
    words >> attempt_ >> targets_.victim >> targets_.file >> targets_.socket;
  }

  uint64_t Read(uint16_t, uint64_t, uint8_t) override {
    const Attempt* attempt = FindAttempt(attempt_);
    return attempt != nullptr && attempt->make(targets_) ? 1 : 0;
  }
  device::WriteEffect Write(uint16_t, uint64_t, uint8_t, uint64_t) override { return {}; }
  void Pause() override {}
  void Resume() override {}
  void Save(capnp::AnyPointer::Builder) const override {}
  Result<void> Restore(capnp::AnyPointer::Reader) override {
    if (Read(0, 0, 1) == 1) return {};
    return Error{EPERM, "did not get through"};
  }

 private:
  device::DeviceContext context_;
  std::string attempt_;
  Targets targets_;
};

// By the last word of the title, "bulkhead:VM KIND" or "bulkhead:VM KIND-unfiltered".
SyscallPolicy PolicyOf(const std::string& title) {
  const std::string kind = title.substr(title.rfind(' ') + 1);
  if (kind.ends_with("unfiltered")) return NoPolicy();
  if (kind.starts_with("disk")) return device::DiskPolicy();
  if (kind.starts_with("net")) return device::NetPolicy();
  if (kind.starts_with("usernet")) return usernet::UserNetPolicy();
  if (kind == "console") return device::ConsolePolicy();
  if (kind == "chipset") return chipset::ChipsetPolicy();
  if (kind == "vcpu-runner") return runner::RunnerPolicy();
  return device::RngPolicy();
}

}  // namespace
}  // namespace bulkhead::jail

int main(int argc, char** argv) {
  using namespace bulkhead;
  const auto create = [](device::DeviceContext context) -> std::unique_ptr<device::DeviceModel> {
    return std::make_unique<jail::RogueDevice>(std::move(context));
  };
  return device::RunDeviceProcess({jail::PolicyOf(argc > 0 ? argv[0] : ""), create}, argc, argv);
}
