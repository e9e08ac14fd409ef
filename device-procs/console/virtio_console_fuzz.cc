// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the virtio console behind its PCI function, with a rude driver, and an outside that types, takes what it
// likes, and changes its size.
#include <string>

#include "device-procs/common/function_fuzz.h"
#include "device-procs/console/virtio_console.h"

namespace {

using namespace bulkhead::device;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

class Outside final : public BytePort {
 public:
  ~Outside() override { Require(!readable && !writable); }
  size_t Write(std::span<const std::byte> bytes) override {
    Require(!bytes.empty());
    const size_t taken = std::min(room, bytes.size());
    room -= taken;
    return taken;
  }
  size_t Read(std::span<std::byte> bytes) override {
    const size_t got = std::min(input.size(), bytes.size());
    std::copy_n(input.begin(), got, bytes.begin());
    input.erase(input.begin(), input.begin() + static_cast<ptrdiff_t>(got));
    return got;
  }
  void SetHandlers(std::function<void()> on_readable, std::function<void()> on_writable) override {
    readable = std::move(on_readable);
    writable = std::move(on_writable);
  }

  std::vector<std::byte> input;
  size_t room = 4096;
  std::function<void()> readable;
  std::function<void()> writable;
};

void StepOutside(FuzzInput& input, Outside& outside, VirtioConsole& console) {
  switch (input.Take<uint8_t>() % 3) {
    case 0: {
      const auto typed = input.TakeBytes(input.Take<uint8_t>());
      outside.input.insert(outside.input.end(), typed.begin(), typed.end());
      outside.readable();
      break;
    }
    case 1:
      outside.room = input.Take<uint16_t>();
      outside.writable();
      break;
    default:
      console.SetSize({.columns = input.Take<uint8_t>(), .rows = input.Take<uint8_t>()});
      break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  auto port = std::make_unique<Outside>();
  Outside& outside = *port;
  auto device = std::make_unique<VirtioConsole>(test::RudeDriver::Memory(), std::move(port));
  VirtioConsole& console = *device;
  test::RudeDriver driver(std::move(device));
  while (!input.empty()) {
    if (input.Take<uint8_t>() % 4 == 0) {
      StepOutside(input, outside, console);
    } else {
      driver.Step(input);
    }
  }
  return 0;
}
