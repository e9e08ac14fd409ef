// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the launcher's connection: any bytes with any descriptors reach a broker that takes a VM's configuration
// from them. What it accepts is in range and plans no two things in one place.
#include <optional>
#include <set>

#include "broker/fuzz_peer.h"
#include "broker/vm_settings.h"
#include "ipc/platform.h"

namespace {

using namespace bulkhead;
using fuzz::Require;

// Takes down what is wanted, as the broker's own does; the configuration is looked at on the main flow, which may wait.
class FirstCall final : public control::Broker::Server {
 public:
  using Context = CreateVmContext;
  explicit FirstCall(std::optional<Context>& wanted) : wanted_(wanted) {}
  kj::Promise<void> createVm(CreateVmContext context) override {
    if (wanted_) return Failure("this broker is in use");
    wanted_ = context;
    auto answered = kj::newPromiseAndFulfiller<void>();
    answer = kj::mv(answered.fulfiller);
    return kj::mv(answered.promise);
  }

  // The context lives as long as the call.
  kj::Own<kj::PromiseFulfiller<void>> answer;

 private:
  std::optional<Context>& wanted_;
};

// A capability that is promised by the very call which waits for it never comes: such a launcher keeps itself waiting,
// and the real broker ends with it.
bool AllArrive(control::VmConfig::Reader config) {
  const auto arrives = [](control::File::Client file) { return file.getFd().poll(fuzz::Loop().waitScope); };
  const auto all = [&](control::StreamConfig::Reader stream) {
    return arrives(stream.getInput()) && arrives(stream.getOutput()) && arrives(stream.getListener());
  };
  for (auto disk : config.getDisks()) {
    if (!arrives(disk.getFile())) return false;
    for (auto backing : disk.getBacking()) {
      if (!arrives(backing.getFile())) return false;
    }
  }
  for (auto net : config.getNets()) {
    for (auto tap : net.getTaps()) {
      if (!arrives(tap)) return false;
    }
  }
  return arrives(config.getKernel()) && arrives(config.getInitrd()) && all(config.getSerial()) &&
         all(config.getVirtioConsole()) && arrives(config.getDebugConsole());
}

void CheckPlan(const broker::DevicePlan& plan, std::set<uint32_t>& ports, std::set<uint8_t>& slots,
               std::set<uint32_t>& gsis) {
  Require(!plan.name.empty() && plan.name.size() < 32 && !plan.executable.empty());
  for (const broker::PlannedRegion& region : plan.regions) {
    if (region.kind != broker::PlannedRegion::Kind::kPort) {
      Require(region.number < plan.functions.size());
      continue;
    }
    for (uint32_t i = 0; i < region.size_bytes; ++i) Require(ports.insert(region.number + i).second);
  }
  for (const broker::PlannedFunction& function : plan.functions) {
    Require(function.slot < platform::kMaxPciSlots && slots.insert(function.slot).second);
    // A message carries both ends of each.
    Require(function.queues + function.vectors < kMaxFdsPerMessage);
  }
  for (const broker::PlannedLine& line : plan.lines) {
    Require(line.gsi < platform::kIoApicPins && gsis.insert(line.gsi).second);
  }
  for (const OwnFd& file : plan.files) Require(file.valid());
}

void CheckSettings(const broker::VmSettings& settings) {
  Require(settings.vcpu_count >= 1 && settings.vcpu_count <= platform::kMaxVcpus && settings.kernel.valid());
  Require(settings.memory_bytes % 4096 == 0 && settings.memory_bytes >= 16 * platform::kMiB);
  Require(settings.name.find('/') == std::string::npos && settings.name.size() < 64 && settings.exit_deadline_ns > 0);
  std::set<uint32_t> ports, gsis;
  std::set<uint8_t> slots;
  for (const auto& plan : settings.devices) CheckPlan(*plan, ports, slots, gsis);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::FuzzInput input(data, size);
  std::optional<FirstCall::Context> wanted;
  auto server = kj::heap<FirstCall>(wanted);
  FirstCall& call = *server;
  control::Broker::Client broker(kj::mv(server));
  auto [ours, theirs] = MakeSocketPair();
  fuzz::HostilePeer peer(std::move(theirs));
  RpcConnection connection(*fuzz::Loop().lowLevelProvider, std::move(ours), broker, Descriptors::kTaken);
  while (!input.empty()) {
    const auto descriptors = input.Take<uint8_t>();
    peer.Send(input.TakeBytes(input.Take<uint16_t>()), descriptors);
  }
  // A capability that is still promised is never waited for: the connection's end breaks it.
  peer.HangUp();
  if (!wanted) return 0;
  try {
    const auto config = wanted->getParams().getConfig();
    if (AllArrive(config)) CheckSettings(broker::TakeSettings(config, fuzz::Loop().waitScope));
  } catch (const FatalError& error) {
    Require(error.what()[0] != '\0');
  } catch (const kj::Exception&) {
    // A malformed message, or a capability that was not there: the launcher is told.
  }
  wanted.reset();
  call.answer->fulfill();
  fuzz::Settle();
  return 0;
}
