// SPDX-License-Identifier: Apache-2.0
// libFuzzer: virtio-rng behind its PCI function, with a rude driver. The bytes that it gives are fixed, so that an
// input always does the same.
#include <sys/random.h>

#include "device-procs/common/function_fuzz.h"
#include "device-procs/rng/virtio_rng.h"

extern "C" ssize_t getrandom(void* to, size_t size, unsigned) noexcept(noexcept(::getrandom(to, size, 0))) {
  std::memset(to, 0xA5, size);
  return static_cast<ssize_t>(size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bulkhead::device;
  bulkhead::fuzz::FuzzInput input(data, size);
  test::RudeDriver driver(std::make_unique<VirtioRng>(test::RudeDriver::Memory()));
  while (!input.empty()) driver.Step(input);
  return 0;
}
