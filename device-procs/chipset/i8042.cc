// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/i8042.h"

namespace bulkhead::chipset {
namespace {

constexpr uint8_t kStatusOutputFull = 0x01;
constexpr uint8_t kStatusSystemFlag = 0x04;  // self-test passed
constexpr uint8_t kStatusLastWasCommand = 0x08;
constexpr uint8_t kStatusNotLocked = 0x10;

constexpr uint8_t kReadCommandByte = 0x20;
constexpr uint8_t kWriteCommandByte = 0x60;
constexpr uint8_t kDisableMouse = 0xA7;
constexpr uint8_t kEnableMouse = 0xA8;
constexpr uint8_t kTestMouse = 0xA9;
constexpr uint8_t kSelfTest = 0xAA;
constexpr uint8_t kTestKeyboard = 0xAB;
constexpr uint8_t kDisableKeyboard = 0xAD;
constexpr uint8_t kEnableKeyboard = 0xAE;
constexpr uint8_t kReadInputPort = 0xC0;
constexpr uint8_t kReadOutputPort = 0xD0;
constexpr uint8_t kWriteOutputPort = 0xD1;
constexpr uint8_t kWriteKeyboardOutput = 0xD2;
constexpr uint8_t kWriteMouseOutput = 0xD3;
constexpr uint8_t kWriteMouse = 0xD4;
constexpr uint8_t kPulseOutputPort = 0xF0;  // to 0xFF: pulses low the lines whose bits are 0

constexpr uint8_t kCommandByteKeyboardOff = 0x10;
constexpr uint8_t kCommandByteMouseOff = 0x20;
constexpr uint8_t kSelfTestPassed = 0x55;
constexpr uint8_t kClockStuckLow = 0x01;  // an interface test's result where nothing is connected
constexpr uint8_t kOutputPortNotReset = 0x01;
constexpr uint8_t kOutputPortA20 = 0x02;  // always on
constexpr uint8_t kInputPortNotLocked = 0x80;

bool TakesData(uint8_t command) {
  return command == kWriteCommandByte || (command >= kWriteOutputPort && command <= kWriteMouse);
}

}  // namespace

uint8_t I8042::ReadData() {
  output_full_ = false;
  return output_byte_;
}

uint8_t I8042::ReadStatus() const {
  // Input is taken at once, so the input buffer never shows full; a guest waits for that before it asks for a
  // reset.
  uint8_t status = kStatusSystemFlag | kStatusNotLocked;
  if (output_full_) status |= kStatusOutputFull;
  if (last_was_command_) status |= kStatusLastWasCommand;
  return status;
}

void I8042::Answer(uint8_t value) {
  output_byte_ = value;
  output_full_ = true;
}

void I8042::WriteCommand(uint8_t value) {
  last_was_command_ = true;
  pending_command_ = TakesData(value) ? value : 0;
  if (value >= kPulseOutputPort) {
    if ((value & kOutputPortNotReset) == 0) reset_();
    return;
  }
  switch (value) {
    case kReadCommandByte:
      return Answer(command_byte_);
    case kDisableMouse:
      command_byte_ |= kCommandByteMouseOff;
      return;
    case kEnableMouse:
      command_byte_ &= static_cast<uint8_t>(~kCommandByteMouseOff);
      return;
    case kDisableKeyboard:
      command_byte_ |= kCommandByteKeyboardOff;
      return;
    case kEnableKeyboard:
      command_byte_ &= static_cast<uint8_t>(~kCommandByteKeyboardOff);
      return;
    case kSelfTest:
      return Answer(kSelfTestPassed);
    case kTestKeyboard:
    case kTestMouse:
      return Answer(kClockStuckLow);
    case kReadInputPort:
      return Answer(kInputPortNotLocked);
    case kReadOutputPort:
      return Answer(kOutputPortNotReset | kOutputPortA20);
    default:
      return;
  }
}

void I8042::WriteData(uint8_t value) {
  last_was_command_ = false;
  const uint8_t command = pending_command_;
  pending_command_ = 0;
  switch (command) {
    case kWriteCommandByte:
      command_byte_ = value;
      return;
    case kWriteOutputPort:
      if ((value & kOutputPortNotReset) == 0) reset_();
      return;
    case kWriteKeyboardOutput:
    case kWriteMouseOutput:
      return Answer(value);
    default:
      return;  // for a keyboard or mouse that is not there
  }
}

void I8042::Save(state::I8042State::Builder state) const {
  state.setCommandByte(command_byte_);
  state.setOutputByte(output_byte_);
  state.setOutputFull(output_full_);
  state.setPendingCommand(pending_command_);
  state.setLastWasCommand(last_was_command_);
}

void I8042::Restore(state::I8042State::Reader state) {
  command_byte_ = state.getCommandByte();
  output_byte_ = state.getOutputByte();
  output_full_ = state.getOutputFull();
  pending_command_ = TakesData(state.getPendingCommand()) ? state.getPendingCommand() : 0;
  last_was_command_ = state.getLastWasCommand();
}

}  // namespace bulkhead::chipset
