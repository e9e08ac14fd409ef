// SPDX-License-Identifier: Apache-2.0
// A keyboard controller (Intel 8042 with PC firmware) without keyboard or mouse: it resets the machine,
// answers its own commands, and says so when asked whether something is connected. Firmware and kernels that
// look for it then go on at once; against an absent one (all ones) some wait for the busy bit to clear,
// against a mute one for an answer. Chipset process, device thread; all values are hostile.
#pragma once

#include <cstdint>
#include <functional>

#include "device-procs/chipset/chipset_state.capnp.h"

namespace bulkhead::chipset {

class I8042 {
 public:
  explicit I8042(std::function<void()> reset) : reset_(std::move(reset)) {}

  uint8_t ReadData();                // port 0x60
  void WriteData(uint8_t value);     // port 0x60
  uint8_t ReadStatus() const;        // port 0x64
  void WriteCommand(uint8_t value);  // port 0x64

  void Save(state::I8042State::Builder state) const;
  void Restore(state::I8042State::Reader state);

 private:
  void Answer(uint8_t value);

  std::function<void()> reset_;
  uint8_t command_byte_ = 0x30;  // both interfaces disabled
  uint8_t output_byte_ = 0;
  bool output_full_ = false;
  uint8_t pending_command_ = 0;
  bool last_was_command_ = false;
};

}  // namespace bulkhead::chipset
