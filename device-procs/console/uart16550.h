// SPDX-License-Identifier: Apache-2.0
// A 16550A UART (National Semiconductor PC16550D data sheet; section numbers in the code are its). Console
// process, device thread. Offsets and values come from the guest: hostile. Bytes from the outside are data,
// never interpreted.
//
// No byte is lost between a guest that obeys LSR.THRE and the outside, nor the other way round: sent bytes
// wait in a bounded buffer and THRE is withheld while it is full; received bytes are taken from the outside
// only as they fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "device-procs/console/byte_port.h"
#include "device-procs/console/console_state.capnp.h"
#include "ipc/fd.h"
#include "ipc/result.h"

namespace bulkhead::device {

class Uart16550 {
 public:
  static constexpr uint64_t kPorts = 8;
  static constexpr size_t kFifoBytes = 16;
  static constexpr size_t kTransmitBytes = 64 * 1024;

  // `irq` is signalled on each rising edge of the interrupt output. A fresh UART is paused.
  Uart16550(BytePort& port, OwnFd irq);
  ~Uart16550();
  Uart16550(const Uart16550&) = delete;
  Uart16550& operator=(const Uart16550&) = delete;

  uint64_t Read(uint64_t offset, uint8_t width);
  void Write(uint64_t offset, uint8_t width, uint64_t value);
  // The end of a batch of accesses: buffered bytes go out in one piece and interrupts that follow from them
  // rise.
  void Flush();

  void Pause();
  void Resume();
  void Save(state::UartState::Builder state) const;
  Result<void> Restore(state::UartState::Reader state);

 private:
  uint8_t ReadRegister(uint64_t offset);
  void WriteRegister(uint64_t offset, uint8_t value);
  uint8_t ReadReceiver();
  uint8_t ReadInterruptId();
  uint8_t ReadLineStatus();
  uint8_t ReadModemStatus();
  void WriteTransmitter(uint8_t value);
  void WriteInterruptEnable(uint8_t value);
  void WriteFifoControl(uint8_t value);
  void WriteModemControl(uint8_t value);

  bool fifo_enabled() const { return (fcr_ & 1) != 0; }
  bool loopback() const;
  size_t receive_capacity() const { return fifo_enabled() ? kFifoBytes : 1; }
  size_t unsent() const { return transmit_.size() - transmit_head_; }
  bool HasRoom() const { return unsent() + kFifoBytes <= kTransmitBytes; }
  bool WantsInput() const;
  uint8_t ModemInputs() const;
  uint8_t PendingInterrupt() const;

  void TakeInput();
  void SendOutput();
  void SettleTransmitter();
  void ResetReceiver(bool from_outside);
  void UpdateLine();

  BytePort& port_;
  OwnFd irq_;
  bool paused_ = true;
  bool line_ = false;          // the interrupt output as last shown
  bool port_blocked_ = false;  // the outside took less than offered; its writable handler comes

  uint8_t ier_ = 0;
  uint8_t fcr_ = 0;
  uint8_t lcr_ = 0;
  uint8_t mcr_ = 0;
  uint8_t scr_ = 0;
  uint16_t divisor_ = 0;
  uint8_t modem_inputs_;  // MSR bits 7:4 as of the last change
  uint8_t modem_deltas_ = 0;
  bool overrun_ = false;
  bool thre_pending_ = false;
  bool thre_owed_ = false;
  uint32_t line_polls_ = 0;

  std::deque<uint8_t> received_;
  std::deque<uint8_t> unread_;
  std::vector<std::byte> transmit_;
  size_t transmit_head_ = 0;
};

}  // namespace bulkhead::device
