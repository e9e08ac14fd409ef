// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whoever may connect to a VM's control socket, sending any bytes with any descriptors. The VM behind it has
// just ended, or is about to.
#include <optional>

#include "broker/fuzz_peer.h"
#include "broker/host_kvm.h"
#include "broker/vm_service.h"

namespace bulkhead::broker {

// In place of broker/host_kvm.cc: nothing here runs.
OwnFd OpenKvm() { return OrThrow(MakeEventFd()); }

}  // namespace bulkhead::broker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bulkhead;
  fuzz::FuzzInput input(data, size);
  broker::VmSettings settings;
  settings.name = "fuzz";
  broker::VmService service(fuzz::Loop(), "/nowhere", std::move(settings));
  auto [ours, theirs] = MakeSocketPair();
  fuzz::HostilePeer peer(std::move(theirs));
  RpcConnection connection(*fuzz::Loop().lowLevelProvider, std::move(ours), service.MakeControl(),
                           Descriptors::kRefused);
  while (!input.empty()) {
    const auto descriptors = input.Take<uint8_t>();
    peer.Send(input.TakeBytes(input.Take<uint16_t>()), descriptors >= 0xF0 ? descriptors : 0);
    if (descriptors == 0xEF) service.Kill();
  }
  peer.HangUp();
  return 0;
}
