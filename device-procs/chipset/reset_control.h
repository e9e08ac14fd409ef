// SPDX-License-Identifier: Apache-2.0
// The reset control register at port 0xCF9 (Intel ICH and PIIX data sheets, "RST_CNT"). Device thread;
// hostile values.
#pragma once

#include <cstdint>
#include <functional>

namespace bulkhead::chipset {

class ResetControl {
 public:
  explicit ResetControl(std::function<void()> reset) : reset_(std::move(reset)) {}

  uint8_t Read() const { return value_; }

  void Write(uint8_t value) {
    // RST_CPU always reads 0, so that each write of a 1 is the rising edge that resets. SYS_RST chooses
    // between a reset of the system and one of the processor; the machine knows only the former.
    value_ = value & kKept;
    if ((value & kResetCpu) != 0) reset_();
  }

  void Restore(uint8_t value) { value_ = value & kKept; }

 private:
  static constexpr uint8_t kSystemReset = 1 << 1;
  static constexpr uint8_t kResetCpu = 1 << 2;
  static constexpr uint8_t kFullReset = 1 << 3;
  static constexpr uint8_t kKept = kSystemReset | kFullReset;

  std::function<void()> reset_;
  uint8_t value_ = 0;
};

}  // namespace bulkhead::chipset
