// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the journal of a process that somebody owned before it died, and the guest memory that it left, in the
// hands of its successor.
#include <capnp/serialize.h>

#include "device-procs/common/function_fuzz.h"
#include "device-procs/common/pattern_device.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using namespace bulkhead::device::test;
using bulkhead::fuzz::FuzzInput;

constexpr size_t kQueues = 2;

struct SharedJournal {
  SharedJournal()
      : file(OrThrow(Journal::Make("journal-fuzz", kQueues))), journal(OrThrow(Journal::Map(file.get(), kQueues))) {}
  OwnFd file;
  Journal journal;
};

// A live device's state, with some of its bytes changed.
std::vector<std::byte> MakeState(FuzzInput& input) {
  RudeDriver driver(std::make_unique<PatternDevice>(RudeDriver::Memory()));
  for (unsigned steps = input.Take<uint8_t>() % 16; steps != 0; --steps) driver.Step(input);
  driver.driver().function().Pause();
  capnp::MallocMessageBuilder message;
  driver.driver().function().Save(message.initRoot<capnp::AnyPointer>());
  const auto words = capnp::messageToFlatArray(message);
  const auto bytes = words.asBytes();
  std::vector<std::byte> state(bytes.size());
  std::memcpy(state.data(), bytes.begin(), bytes.size());
  for (unsigned changes = input.Take<uint8_t>() % 4; changes != 0; --changes) {
    state[input.TakeBelow(state.size())] = input.Take<std::byte>();
  }
  return state;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  static SharedJournal shared;
  const std::vector<std::byte> state = MakeState(input);
  Frame reply;
  reply.length_bytes = input.Take<uint8_t>();
  if (reply.length_bytes > kFrameCapacity) reply.length_bytes = 0;
  shared.journal.Commit({input.Take<uint32_t>(), input.Take<uint32_t>()}, reply, state);
  for (size_t queue = 0; queue < kQueues; ++queue) {
    QueueLog log = shared.journal.Queue(queue);
    log.Reset(input.Take<uint16_t>(), input.Take<uint16_t>());
    for (unsigned chains = input.Take<uint8_t>() % 20; chains != 0; --chains) {
      log.Take(input.Take<uint8_t>(), input.Take<uint16_t>());
    }
    if (input.Take<uint8_t>() % 2 == 0) log.SetUsed(input.Take<uint16_t>());
  }
  RudeDriver driver(std::make_unique<PatternDevice>(RudeDriver::Memory()), shared.journal);
  while (!input.empty()) driver.Step(input);
  return 0;
}
