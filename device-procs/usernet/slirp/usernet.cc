// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/slirp/usernet.h"

#include "device-procs/usernet/slirp/stack.h"
#include "device-procs/usernet/usernet_state.capnp.h"

namespace bulkhead::usernet {
namespace {

constexpr uint16_t kStateVersion = 1;

[[noreturn]] void EndBroken(const Error& error) {
  LogLine("the net process broke the packet ring: " + error.message);
  ::_exit(1);
}

class UserNet final : public device::DeviceModel {
 public:
  explicit UserNet(device::DeviceContext context)
      : stack_(*context.loop, context.settings.getAs<control::UserNet>(), std::move(*context.packets),
               std::move(context.files), EndBroken) {}

  // The guest does not reach it.
  uint64_t Read(uint16_t, uint64_t, uint8_t width) override { return device::AllOnes(width); }
  device::WriteEffect Write(uint16_t, uint64_t, uint8_t, uint64_t) override { return {}; }
  void Pause() override { stack_.Pause(); }
  void Resume() override { stack_.Resume(); }
  void Save(capnp::AnyPointer::Builder state) const override {
    state.initAs<state::UserNetState>().setVersion(kStateVersion);
  }
  Result<void> Restore(capnp::AnyPointer::Reader state) override {
    if (state.getAs<state::UserNetState>().getVersion() != kStateVersion) {
      return Error{EPROTO, "saved state of user-mode networking is of a version that is not known here"};
    }
    return {};
  }

 private:
  Stack stack_;
};

}  // namespace

std::unique_ptr<device::DeviceModel> MakeUserNet(device::DeviceContext context) {
  if (!context.packets || !context.functions.empty() || context.memory != nullptr) {
    throw FatalError("the grants are not those of user-mode networking");
  }
  return std::make_unique<UserNet>(std::move(context));
}

}  // namespace bulkhead::usernet
