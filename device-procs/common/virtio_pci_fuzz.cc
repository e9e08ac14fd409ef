// SPDX-License-Identifier: Apache-2.0
// libFuzzer: random accesses to every register of a virtio-pci function, kicks, pauses and restores of edited states,
// with a real device behind it that works on guest memory which the fuzzer fills.
#include "device-procs/common/function_fuzz.h"
#include "device-procs/common/pattern_device.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bulkhead::fuzz::FuzzInput input(data, size);
  using namespace bulkhead::device::test;
  RudeDriver driver(std::make_unique<PatternDevice>(RudeDriver::Memory()));
  while (!input.empty()) driver.Step(input);
  return 0;
}
