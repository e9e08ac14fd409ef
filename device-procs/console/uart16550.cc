// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/uart16550.h"

#include <algorithm>
#include <array>

#include "device-procs/common/byte_access.h"

namespace bulkhead::device {
namespace {

constexpr uint32_t kStateVersion = 1;

// Register offsets (PC16550D table II).
constexpr uint64_t kData = 0;  // RBR, THR; DLL while DLAB
constexpr uint64_t kIer = 1;   // DLM while DLAB
constexpr uint64_t kIirFcr = 2;
constexpr uint64_t kLcr = 3;
constexpr uint64_t kMcr = 4;
constexpr uint64_t kLsr = 5;
constexpr uint64_t kMsr = 6;
constexpr uint64_t kScr = 7;

constexpr uint8_t kIerReceived = 0x01;
constexpr uint8_t kIerTransmitterEmpty = 0x02;
constexpr uint8_t kIerLineStatus = 0x04;
constexpr uint8_t kIerModemStatus = 0x08;
constexpr uint8_t kIerBits = 0x0F;

// IIR codes in falling priority (table IV).
constexpr uint8_t kIirLineStatus = 0x06;
constexpr uint8_t kIirReceived = 0x04;
constexpr uint8_t kIirTimeout = 0x0C;
constexpr uint8_t kIirTransmitterEmpty = 0x02;
constexpr uint8_t kIirModemStatus = 0x00;
constexpr uint8_t kIirNone = 0x01;
constexpr uint8_t kIirFifos = 0xC0;

constexpr uint8_t kFcrEnable = 0x01;
constexpr uint8_t kFcrResetReceiver = 0x02;
constexpr uint8_t kFcrKept = 0xC1;
constexpr std::array<size_t, 4> kTriggerLevels = {1, 4, 8, 14};

constexpr uint8_t kLcrDlab = 0x80;

constexpr uint8_t kMcrDtr = 0x01;
constexpr uint8_t kMcrRts = 0x02;
constexpr uint8_t kMcrOut1 = 0x04;
constexpr uint8_t kMcrOut2 = 0x08;
constexpr uint8_t kMcrLoop = 0x10;
constexpr uint8_t kMcrBits = 0x1F;

constexpr uint8_t kLsrDataReady = 0x01;
constexpr uint8_t kLsrOverrun = 0x02;
constexpr uint8_t kLsrThre = 0x20;
constexpr uint8_t kLsrTransmitterIdle = 0x40;

constexpr uint8_t kMsrCts = 0x10;
constexpr uint8_t kMsrDsr = 0x20;
constexpr uint8_t kMsrRi = 0x40;
constexpr uint8_t kMsrDcd = 0x80;
constexpr uint8_t kMsrRiDelta = 0x04;  // TERI: set by the trailing edge only

// A batch larger than this goes out before its end.
constexpr size_t kSendBytes = 4096;
// So many LSR reads without a configuration write between them are a guest that polls for input.
constexpr uint32_t kPollsOfAReader = 16;
constexpr size_t kUnreadBytes = 2 * Uart16550::kFifoBytes;

void CopyTo(capnp::Data::Builder to, const std::deque<uint8_t>& from) {
  std::copy(from.begin(), from.end(), to.begin());
}

}  // namespace

Uart16550::Uart16550(BytePort& port, OwnFd irq) : port_(port), irq_(std::move(irq)), modem_inputs_(ModemInputs()) {
  port_.SetHandlers(
      [this] {
        TakeInput();
        UpdateLine();
      },
      [this] {
        port_blocked_ = false;
        Flush();
      });
}

Uart16550::~Uart16550() { port_.SetHandlers({}, {}); }

uint64_t Uart16550::Read(uint64_t offset, uint8_t width) {
  return ReadAsBytes(offset, width, [this](uint64_t at) { return ReadRegister(at); });
}

void Uart16550::Write(uint64_t offset, uint8_t width, uint64_t value) {
  WriteAsBytes(offset, width, value, [this](uint64_t at, uint8_t byte) { WriteRegister(at, byte); });
}

uint8_t Uart16550::ReadRegister(uint64_t offset) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  switch (offset) {
    case kData:
      return dlab ? static_cast<uint8_t>(divisor_) : ReadReceiver();
    case kIer:
      return dlab ? static_cast<uint8_t>(divisor_ >> 8) : ier_;
    case kIirFcr:
      return ReadInterruptId();
    case kLcr:
      return lcr_;
    case kMcr:
      return mcr_;
    case kLsr:
      return ReadLineStatus();
    case kMsr:
      return ReadModemStatus();
    case kScr:
      return scr_;
    default:
      return 0xFF;
  }
}

void Uart16550::WriteRegister(uint64_t offset, uint8_t value) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  if (offset != kData || dlab) line_polls_ = 0;
  switch (offset) {
    case kData:
      if (dlab) {
        divisor_ = static_cast<uint16_t>((divisor_ & 0xFF00) | value);
      } else {
        WriteTransmitter(value);
      }
      return;
    case kIer:
      if (dlab) {
        divisor_ = static_cast<uint16_t>((divisor_ & 0x00FF) | (value << 8));
      } else {
        WriteInterruptEnable(value);
      }
      return;
    case kIirFcr:
      return WriteFifoControl(value);
    case kLcr:
      lcr_ = value;
      return;
    case kMcr:
      return WriteModemControl(value);
    case kScr:
      scr_ = value;
      return;
    default:
      return;  // LSR and MSR are for factory tests when written (§8.4, §8.8)
  }
}

// The guest's own reads fill the FIFO again only once it is empty, and by the status read after, not here: so
// the interrupt output falls and rises between two fillings, and a guest that leaves its handler early still
// has an edge to come for the rest.
uint8_t Uart16550::ReadReceiver() {
  if (received_.empty()) return 0;
  const uint8_t value = received_.front();
  received_.pop_front();
  UpdateLine();
  return value;
}

uint8_t Uart16550::ReadInterruptId() {
  if (received_.empty()) TakeInput();
  SettleTransmitter();
  const uint8_t pending = PendingInterrupt();
  if (pending == kIirTransmitterEmpty) thre_pending_ = false;  // §8.6: reading it as the source acknowledges it
  UpdateLine();
  return static_cast<uint8_t>(pending | (fifo_enabled() ? kIirFifos : 0));
}

// A guest that reads the status has its ring empty and waits: what is buffered goes out now, so that TEMT is
// true.
uint8_t Uart16550::ReadLineStatus() {
  if (line_polls_ < kPollsOfAReader) ++line_polls_;
  SendOutput();
  if (received_.empty()) TakeInput();
  uint8_t status = 0;
  if (!received_.empty()) status |= kLsrDataReady;
  if (overrun_) status |= kLsrOverrun;
  if (HasRoom()) status |= kLsrThre;
  if (unsent() == 0) status |= kLsrTransmitterIdle;
  overrun_ = false;
  UpdateLine();
  return status;
}

uint8_t Uart16550::ReadModemStatus() {
  const auto status = static_cast<uint8_t>(modem_inputs_ | modem_deltas_);
  modem_deltas_ = 0;
  UpdateLine();
  return status;
}

void Uart16550::WriteTransmitter(uint8_t value) {
  thre_pending_ = false;
  thre_owed_ = true;
  if (loopback()) {
    if (received_.size() < receive_capacity()) {
      received_.push_back(value);
    } else {
      overrun_ = true;
    }
  } else if (unsent() < kTransmitBytes) {
    // A guest that ignores THRE loses what does not fit, as it would on a wire.
    transmit_.push_back(std::byte{value});
    if (unsent() >= kSendBytes) SendOutput();
  }
  // The THRE interrupt that this byte earns rises at the end of the batch: one edge, not one for each byte.
  UpdateLine();
}

void Uart16550::WriteInterruptEnable(uint8_t value) {
  const auto enabled = static_cast<uint8_t>(value & kIerBits & ~ier_);
  ier_ = value & kIerBits;
  if ((enabled & kIerTransmitterEmpty) != 0 && HasRoom()) thre_pending_ = true;
  if ((enabled & kIerReceived) != 0) TakeInput();
  UpdateLine();
}

// Resets of the transmitter FIFO change nothing: what the guest wrote counts as sent. The receiver's are
// below.
void Uart16550::WriteFifoControl(uint8_t value) {
  const bool toggled = ((value ^ fcr_) & kFcrEnable) != 0;
  const bool enabled = (value & kFcrEnable) != 0;
  fcr_ = enabled ? value & kFcrKept : 0;  // §8.5: the other bits are taken only along with bit 0
  if (toggled || (enabled && (value & kFcrResetReceiver) != 0)) ResetReceiver(!loopback());
  if ((ier_ & kIerReceived) != 0) TakeInput();
  UpdateLine();
}

void Uart16550::WriteModemControl(uint8_t value) {
  const bool was_loopback = loopback();
  mcr_ = value & kMcrBits;
  // Bytes from the outside do not mix with those of a loopback test.
  if (loopback() && !was_loopback) ResetReceiver(true);
  const uint8_t inputs = ModemInputs();
  auto deltas = static_cast<uint8_t>((inputs ^ modem_inputs_) >> 4);
  if ((inputs & kMsrRi) != 0) deltas &= static_cast<uint8_t>(~kMsrRiDelta);
  modem_deltas_ |= deltas;
  modem_inputs_ = inputs;
  TakeInput();
  UpdateLine();
}

bool Uart16550::loopback() const { return (mcr_ & kMcrLoop) != 0; }

// Flow control: the outside sends only while the guest shows that it listens, by RTS, by the interrupt, or by
// polling. Drivers discard what has arrived while they set the UART up; input piped to a VM from its start
// survives that.
bool Uart16550::WantsInput() const {
  if (paused_ || loopback()) return false;
  return (mcr_ & kMcrRts) != 0 || (ier_ & kIerReceived) != 0 || line_polls_ >= kPollsOfAReader;
}

// In loopback the outputs drive the inputs (§8.7); else there is always a peer that is ready.
uint8_t Uart16550::ModemInputs() const {
  if (!loopback()) return kMsrCts | kMsrDsr | kMsrDcd;
  uint8_t inputs = 0;
  if ((mcr_ & kMcrRts) != 0) inputs |= kMsrCts;
  if ((mcr_ & kMcrDtr) != 0) inputs |= kMsrDsr;
  if ((mcr_ & kMcrOut1) != 0) inputs |= kMsrRi;
  if ((mcr_ & kMcrOut2) != 0) inputs |= kMsrDcd;
  return inputs;
}

uint8_t Uart16550::PendingInterrupt() const {
  if ((ier_ & kIerLineStatus) != 0 && overrun_) return kIirLineStatus;
  if ((ier_ & kIerReceived) != 0 && !received_.empty()) {
    // The timeout of §8.6 is four character times without traffic. All that the outside had is in the FIFO
    // already, so fewer bytes than the trigger level are such a pause at once.
    return fifo_enabled() && received_.size() < kTriggerLevels[fcr_ >> 6] ? kIirTimeout : kIirReceived;
  }
  if ((ier_ & kIerTransmitterEmpty) != 0 && thre_pending_) return kIirTransmitterEmpty;
  if ((ier_ & kIerModemStatus) != 0 && modem_deltas_ != 0) return kIirModemStatus;
  return kIirNone;
}

void Uart16550::TakeInput() {
  if (!WantsInput()) return;
  while (received_.size() < receive_capacity() && !unread_.empty()) {
    received_.push_back(unread_.front());
    unread_.pop_front();
  }
  while (received_.size() < receive_capacity()) {
    std::array<std::byte, kFifoBytes> bytes;
    const size_t free = receive_capacity() - received_.size();
    const size_t got = std::min(port_.Read(std::span(bytes).first(free)), free);
    for (size_t i = 0; i < got; ++i) received_.push_back(std::to_integer<uint8_t>(bytes[i]));
    if (got < free) break;
  }
}

void Uart16550::SendOutput() {
  if (paused_ || port_blocked_ || unsent() == 0) return;
  const size_t offered = unsent();
  // Set first: the port may call the writable handler from inside Write.
  port_blocked_ = true;
  const size_t taken = std::min(port_.Write(std::span(transmit_).subspan(transmit_head_)), offered);
  if (taken == offered) port_blocked_ = false;
  transmit_head_ += taken;
  if (unsent() == 0) {
    transmit_.clear();
    transmit_head_ = 0;
  } else if (transmit_head_ >= kTransmitBytes / 2) {
    transmit_.erase(transmit_.begin(), transmit_.begin() + static_cast<ptrdiff_t>(transmit_head_));
    transmit_head_ = 0;
  }
}

void Uart16550::SettleTransmitter() {
  if (!thre_owed_ || !HasRoom()) return;
  thre_owed_ = false;
  thre_pending_ = true;
}

// Bytes from the outside that a reset catches in the FIFO count as not yet arrived; those of a loopback test
// are gone.
void Uart16550::ResetReceiver(bool from_outside) {
  // The limit is reached only where bytes of loopback tests were left unread in between.
  if (from_outside && unread_.size() + received_.size() <= kUnreadBytes) {
    unread_.insert(unread_.begin(), received_.begin(), received_.end());
  }
  received_.clear();
}

void Uart16550::UpdateLine() {
  if (paused_) return;
  // OUT2 gates the interrupt on a PC, and loopback forces the outputs inactive (§8.7).
  const bool active = PendingInterrupt() != kIirNone && (mcr_ & kMcrOut2) != 0 && !loopback();
  if (active && !line_) SignalEventFd(irq_.get());
  line_ = active;
}

void Uart16550::Flush() {
  SendOutput();
  SettleTransmitter();
  if ((ier_ & kIerReceived) != 0 && received_.empty()) TakeInput();
  UpdateLine();
}

void Uart16550::Pause() { paused_ = true; }

// What came about while paused shows as one edge; one too many is harmless, one too few is a hang.
void Uart16550::Resume() {
  paused_ = false;
  line_ = false;
  port_blocked_ = false;
  TakeInput();
  Flush();
}

void Uart16550::Save(state::UartState::Builder state) const {
  state.setVersion(kStateVersion);
  state.setIer(ier_);
  state.setFcr(fcr_);
  state.setLcr(lcr_);
  state.setMcr(mcr_);
  state.setScr(scr_);
  state.setDivisor(divisor_);
  state.setModemDeltas(modem_deltas_);
  state.setOverrun(overrun_);
  state.setThrePending(thre_pending_);
  state.setThreOwed(thre_owed_);
  CopyTo(state.initReceived(static_cast<unsigned>(received_.size())), received_);
  CopyTo(state.initUnread(static_cast<unsigned>(unread_.size())), unread_);
  const auto* unsent_bytes = reinterpret_cast<const capnp::byte*>(transmit_.data()) + transmit_head_;
  state.setUnsent(capnp::Data::Reader(unsent_bytes, unsent()));
  state.setLinePolls(line_polls_);
}

Result<void> Uart16550::Restore(state::UartState::Reader state) {
  if (state.getVersion() == 0 || state.getVersion() > kStateVersion) {
    return Error{EPROTO, "the saved state of the serial port has an unknown version"};
  }
  const auto received = state.getReceived();
  const auto unread = state.getUnread();
  const auto unsent_bytes = state.getUnsent();
  if (received.size() > kFifoBytes || unread.size() > kUnreadBytes || unsent_bytes.size() > kTransmitBytes) {
    return Error{EPROTO, "the saved state of the serial port holds more bytes than it can"};
  }
  ier_ = state.getIer() & kIerBits;
  fcr_ = (state.getFcr() & kFcrEnable) != 0 ? state.getFcr() & kFcrKept : 0;
  lcr_ = state.getLcr();
  mcr_ = state.getMcr() & kMcrBits;
  scr_ = state.getScr();
  divisor_ = state.getDivisor();
  modem_inputs_ = ModemInputs();
  modem_deltas_ = state.getModemDeltas() & 0x0F;
  overrun_ = state.getOverrun();
  thre_pending_ = state.getThrePending();
  thre_owed_ = state.getThreOwed();
  line_polls_ = std::min(state.getLinePolls(), kPollsOfAReader);
  received_.assign(received.begin(), received.end());
  unread_.assign(unread.begin(), unread.end());
  const auto* bytes = reinterpret_cast<const std::byte*>(unsent_bytes.begin());
  transmit_.assign(bytes, bytes + unsent_bytes.size());
  transmit_head_ = 0;
  port_blocked_ = false;
  line_ = false;
  return {};
}

}  // namespace bulkhead::device
