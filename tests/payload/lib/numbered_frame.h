// SPDX-License-Identifier: Apache-2.0
// Frames that a guest and its host send each other for as long as they like, each with a number, the highest number
// that its sender has got, and bytes that follow from both: so either end knows one that was changed on its way, or
// comes late. Freestanding: the guest's side has no library.
#pragma once

#include "tests/bench/net_message.h"

namespace bulkhead::test {

struct Numbers {
  uint32_t number;
  uint32_t got;  // 0: none yet
};

inline constexpr uint32_t kNumberedHeaderBytes = bench::kEthernetBytes + sizeof(Numbers);

// Of all sizes, each number's its own.
inline uint32_t NumberedFrameBytes(uint32_t number) {
  return bench::kSmallestFrame + number * 37 % (bench::kWholeFrame - bench::kSmallestFrame + 1);
}
inline uint8_t NumberedByte(const Numbers& numbers, uint32_t at) {
  return static_cast<uint8_t>(numbers.number * 31 + numbers.got * 17 + at * 7);
}

// Returns its size.
inline uint32_t PutNumberedFrame(uint8_t* frame, const uint8_t* to, const uint8_t* from, const Numbers& numbers) {
  bench::PutEthernet(frame, to, from, bench::kEtherTypeTest);
  __builtin_memcpy(frame + bench::kEthernetBytes, &numbers, sizeof numbers);
  const uint32_t bytes = NumberedFrameBytes(numbers.number);
  for (uint32_t i = kNumberedHeaderBytes; i < bytes; ++i) frame[i] = NumberedByte(numbers, i);
  return bytes;
}
// False: no such frame was sent.
inline bool TakeNumberedFrame(const uint8_t* frame, uint32_t bytes, Numbers* numbers) {
  if (bytes < kNumberedHeaderBytes) return false;
  __builtin_memcpy(numbers, frame + bench::kEthernetBytes, sizeof *numbers);
  if (bytes != NumberedFrameBytes(numbers->number)) return false;
  for (uint32_t i = kNumberedHeaderBytes; i < bytes; ++i) {
    if (frame[i] != NumberedByte(*numbers, i)) return false;
  }
  return true;
}

}  // namespace bulkhead::test
