// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/uart16550.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <string>

namespace bulkhead::device {
namespace {

constexpr uint64_t kData = 0;
constexpr uint64_t kIer = 1;
constexpr uint64_t kIir = 2;
constexpr uint64_t kFcr = 2;
constexpr uint64_t kLcr = 3;
constexpr uint64_t kMcr = 4;
constexpr uint64_t kLsr = 5;
constexpr uint64_t kMsr = 6;
constexpr uint64_t kScr = 7;

// An outside that takes and gives as much as the test says.
class FakePort final : public BytePort {
 public:
  size_t Write(std::span<const std::byte> bytes) override {
    ++writes;
    const size_t taken = std::min(bytes.size(), room);
    room -= taken;
    for (size_t i = 0; i < taken; ++i) sent.push_back(static_cast<char>(bytes[i]));
    return taken;
  }
  size_t Read(std::span<std::byte> bytes) override {
    const size_t got = std::min(bytes.size(), input.size());
    for (size_t i = 0; i < got; ++i) {
      bytes[i] = static_cast<std::byte>(input.front());
      input.pop_front();
    }
    return got;
  }
  void SetHandlers(std::function<void()> readable_handler, std::function<void()> writable_handler) override {
    readable = std::move(readable_handler);
    writable = std::move(writable_handler);
  }
  void Type(const std::string& text) {
    input.insert(input.end(), text.begin(), text.end());
    if (readable) readable();
  }
  void MakeRoom(size_t bytes) {
    room = bytes;
    writable();
  }

  std::string sent;
  std::deque<char> input;
  size_t room = SIZE_MAX;
  int writes = 0;
  std::function<void()> readable;
  std::function<void()> writable;
};

class Uart16550Test : public testing::Test {
 protected:
  Uart16550Test() { Make(); }

  void Make() {
    OwnFd irq = OrThrow(MakeEventFd());
    irq_ = OrThrow(DuplicateFd(irq.get()));
    uart_.reset();
    uart_ = std::make_unique<Uart16550>(port_, std::move(irq));
    uart_->Resume();
  }
  uint8_t In(uint64_t at) { return static_cast<uint8_t>(uart_->Read(at, 1)); }
  void Out(uint64_t at, uint8_t value) { uart_->Write(at, 1, value); }
  uint64_t Edges() { return DrainEventFd(irq_.get()); }
  // As a driver that has opened the port: FIFOs, DTR, RTS, OUT2, receive interrupts.
  void Open(uint8_t ier = 0x05) {
    Out(kFcr, 0x81);  // trigger at 8
    Out(kMcr, 0x0B);
    Out(kIer, ier);
    uart_->Flush();
  }
  std::string Drain() {
    std::string got;
    while ((In(kLsr) & 1) != 0) got.push_back(static_cast<char>(In(kData)));
    return got;
  }

  FakePort port_;
  OwnFd irq_;
  std::unique_ptr<Uart16550> uart_;
};

TEST_F(Uart16550Test, IsFoundAsA16550A) {
  EXPECT_EQ(In(kIir), 0x01);
  Out(kFcr, 0x01);
  EXPECT_EQ(In(kIir), 0xC1);
  Out(kFcr, 0x00);
  EXPECT_EQ(In(kIir), 0x01);
  Out(kScr, 0xA5);
  EXPECT_EQ(In(kScr), 0xA5);
  Out(kIer, 0xFF);
  EXPECT_EQ(In(kIer), 0x0F);
  EXPECT_EQ(In(kLsr), 0x60);
}

TEST_F(Uart16550Test, DivisorHidesBehindDlab) {
  Out(kLcr, 0x83);
  Out(kData, 0x0C);
  Out(kIer, 0x01);
  EXPECT_EQ(uart_->Read(kData, 2), 0x010Cu);
  Out(kLcr, 0x03);
  EXPECT_EQ(In(kIer), 0x00);
  uart_->Flush();
  EXPECT_EQ(port_.sent, "");
}

// What Linux does to see whether there is a UART at all, and more.
TEST_F(Uart16550Test, LoopbackJoinsOutputsToInputs) {
  EXPECT_EQ(In(kMsr) & 0xF0, 0xB0);
  Out(kMcr, 0x1A);
  EXPECT_EQ(In(kMsr) & 0xF0, 0x90);
  Out(kMcr, 0x15);
  EXPECT_EQ(In(kMsr) & 0xF0, 0x60);
  Out(kMcr, 0x10);
  EXPECT_EQ(In(kMsr) & 0x0F, 0x06) << "DDSR and the trailing edge of RI";
  EXPECT_EQ(In(kMsr) & 0x0F, 0x00) << "reading clears";
  Out(kData, 0xAE);
  EXPECT_EQ(In(kLsr) & 0x01, 0x01);
  EXPECT_EQ(In(kData), 0xAE);
  uart_->Flush();
  EXPECT_EQ(port_.sent, "");
}

TEST_F(Uart16550Test, LoopbackOverrunIsReportedOnce) {
  Out(kFcr, 0x01);
  Out(kMcr, 0x10);
  for (int i = 0; i < 17; ++i) Out(kData, static_cast<uint8_t>(i));
  EXPECT_EQ(In(kLsr) & 0x03, 0x03);
  EXPECT_EQ(In(kLsr) & 0x03, 0x01);
  EXPECT_EQ(In(kData), 0);
}

TEST_F(Uart16550Test, ABatchOfBytesIsOneWrite) {
  for (char c : std::string("Linux version 6.1")) Out(kData, static_cast<uint8_t>(c));
  EXPECT_EQ(port_.writes, 0);
  uart_->Flush();
  EXPECT_EQ(port_.sent, "Linux version 6.1");
  EXPECT_EQ(port_.writes, 1);
  uart_->Write(kData, 1, 'x');
  EXPECT_EQ(In(kLsr), 0x60) << "the status is that after the byte went out";
  EXPECT_EQ(port_.sent.back(), 'x');
}

TEST_F(Uart16550Test, TransmitterInterruptComesOnEnablingAndOncePerBatch) {
  Out(kMcr, 0x0B);
  Out(kIer, 0x02);
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(In(kIir), 0x02);
  EXPECT_EQ(In(kIir), 0x01) << "reading it as the source clears it";
  EXPECT_EQ(Edges(), 0u);
  for (int i = 0; i < 16; ++i) Out(kData, 'a');
  EXPECT_EQ(Edges(), 0u);
  uart_->Flush();
  EXPECT_EQ(Edges(), 1u);
  Out(kData, 'b');
  uart_->Flush();
  EXPECT_EQ(Edges(), 1u) << "fell with the write, rose with the end of the batch";
  EXPECT_EQ(In(kIir), 0x02);
  Out(kIer, 0x00);
  Out(kIer, 0x02);
  EXPECT_EQ(In(kIir), 0x02) << "enabling raises it again";
}

TEST_F(Uart16550Test, NoInterruptWithoutOut2) {
  Out(kIer, 0x02);
  EXPECT_EQ(Edges(), 0u);
  Out(kMcr, 0x08);
  EXPECT_EQ(Edges(), 1u);
}

TEST_F(Uart16550Test, SlowOutsideWithholdsThreAndLosesNothing) {
  port_.room = 100;
  Out(kMcr, 0x08);
  std::string written;
  while ((In(kLsr) & 0x20) != 0) {
    for (int i = 0; i < 16; ++i) {
      written.push_back(static_cast<char>('a' + written.size() % 26));
      Out(kData, static_cast<uint8_t>(written.back()));
    }
    ASSERT_LT(written.size(), Uart16550::kTransmitBytes * 2);
  }
  EXPECT_GT(written.size(), Uart16550::kTransmitBytes);
  EXPECT_EQ(In(kLsr) & 0x60, 0);
  Out(kIer, 0x02);
  EXPECT_EQ(Edges(), 0u) << "full: nothing to write to";
  EXPECT_EQ(port_.sent, written.substr(0, 100));
  port_.MakeRoom(1000);
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(In(kLsr) & 0x60, 0x20);
  port_.MakeRoom(SIZE_MAX);
  EXPECT_EQ(port_.sent, written);
  EXPECT_EQ(In(kLsr) & 0x60, 0x60);
}

TEST_F(Uart16550Test, BlockedOutsideIsNotAskedAgainForEachByte) {
  port_.room = 0;
  Out(kData, 'a');
  uart_->Flush();
  for (int i = 0; i < 10'000; ++i) Out(kData, 'a');
  uart_->Flush();
  EXPECT_EQ(port_.writes, 1);
}

TEST_F(Uart16550Test, ReceiverTakesOnlyWhatFits) {
  Open();
  const std::string text = "the quick brown fox jumps over the lazy dog";
  port_.Type(text);
  EXPECT_EQ(port_.input.size(), text.size() - 16);
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(In(kIir), 0xC4);
  EXPECT_EQ(Drain(), text);
  EXPECT_EQ(In(kIir), 0xC1);
}

TEST_F(Uart16550Test, BelowTheTriggerLevelItIsATimeout) {
  Open();
  port_.Type("1234567");
  EXPECT_EQ(In(kIir), 0xCC);
  port_.Type("8");
  EXPECT_EQ(In(kIir), 0xC4);
  EXPECT_EQ(In(kData), '1');
  EXPECT_EQ(In(kIir), 0xCC);
  EXPECT_EQ(Edges(), 1u) << "the line has been up all along";
}

TEST_F(Uart16550Test, WithoutFifosOneByteAtATime) {
  Out(kMcr, 0x0B);
  Out(kIer, 0x01);
  port_.Type("ab");
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(In(kIir), 0x04);
  EXPECT_EQ(In(kData), 'a');
  uart_->Flush();
  EXPECT_EQ(Edges(), 1u) << "a guest that reads a byte for each interrupt gets one for each";
  EXPECT_EQ(In(kData), 'b');
  EXPECT_EQ(In(kIir), 0x01);
}

// A handler with a limit leaves while there is more; the next filling must raise an edge.
TEST_F(Uart16550Test, EveryFillingRaisesAnEdge) {
  Open();
  port_.Type(std::string(64, 'x'));
  EXPECT_EQ(Edges(), 1u);
  for (int i = 0; i < 16; ++i) {
    In(kLsr);
    In(kData);
  }
  In(kLsr);
  EXPECT_EQ(Edges(), 1u);
}

// Linux clears the FIFOs and reads LSR and RBR while it starts the port up, with RTS off.
TEST_F(Uart16550Test, InputTypedBeforeTheGuestListensIsKept) {
  port_.Type("root\nuname -a\npoweroff\n");
  for (int i = 0; i < 100; ++i) In(kLsr);  // console output polls
  Out(kMcr, 0x08);
  Out(kFcr, 0x01);
  Out(kFcr, 0x07);
  Out(kFcr, 0x00);
  In(kLsr);
  In(kData);
  In(kIir);
  In(kMsr);
  Out(kFcr, 0x81);
  Out(kIer, 0x05);
  EXPECT_EQ(Edges(), 1u);
  Out(kMcr, 0x0B);
  EXPECT_EQ(Drain(), "root\nuname -a\npoweroff\n");
}

TEST_F(Uart16550Test, AGuestThatOnlyPollsGetsItsInput) {
  port_.Type("hello");
  for (int i = 0; i < 16 && (In(kLsr) & 1) == 0; ++i) {
  }
  EXPECT_EQ(Drain(), "hello");
}

TEST_F(Uart16550Test, LineStatusComesBeforeData) {
  Out(kMcr, 0x10);
  Out(kIer, 0x0F);
  Out(kData, 'a');
  Out(kData, 'b');
  EXPECT_EQ(In(kIir), 0x06);
  In(kLsr);
  EXPECT_EQ(In(kIir), 0x04);
  In(kData);
  EXPECT_EQ(In(kIir), 0x02);
  EXPECT_EQ(In(kIir), 0x00) << "modem status: the change into loopback";
  In(kMsr);
  EXPECT_EQ(In(kIir), 0x01);
}

TEST_F(Uart16550Test, PausedItMovesNothing) {
  Open(0x07);
  Edges();
  uart_->Pause();
  port_.Type("abc");
  Out(kData, 'z');
  uart_->Flush();
  EXPECT_EQ(port_.input.size(), 3u);
  EXPECT_EQ(port_.sent, "");
  EXPECT_EQ(Edges(), 0u);
  uart_->Resume();
  EXPECT_EQ(port_.sent, "z");
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(Drain(), "abc");
}

TEST_F(Uart16550Test, StateCarriesBytesInFlight) {
  Open(0x07);
  Out(kScr, 0x77);
  port_.room = 0;
  for (char c : std::string("unsent")) Out(kData, static_cast<uint8_t>(c));
  uart_->Flush();
  port_.Type("received and more");
  uart_->Pause();
  Edges();
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::UartState>();
  uart_->Save(state);

  OwnFd irq = OrThrow(MakeEventFd());
  irq_ = OrThrow(DuplicateFd(irq.get()));
  uart_.reset();
  uart_ = std::make_unique<Uart16550>(port_, std::move(irq));
  ASSERT_TRUE(uart_->Restore(state.asReader()).ok());
  EXPECT_EQ(port_.sent, "");
  port_.room = SIZE_MAX;
  uart_->Resume();
  EXPECT_EQ(Edges(), 1u);
  EXPECT_EQ(port_.sent, "unsent");
  EXPECT_EQ(In(kScr), 0x77);
  EXPECT_EQ(In(kIer), 0x07);
  EXPECT_EQ(Drain(), "received and more");
}

TEST_F(Uart16550Test, RefusesStatesThatCannotBe) {
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::UartState>();
  EXPECT_FALSE(uart_->Restore(state.asReader()).ok()) << "no version";
  state.setVersion(2);
  EXPECT_FALSE(uart_->Restore(state.asReader()).ok());
  state.setVersion(1);
  EXPECT_TRUE(uart_->Restore(state.asReader()).ok());
  state.initReceived(17);
  EXPECT_FALSE(uart_->Restore(state.asReader()).ok());
}

TEST_F(Uart16550Test, SurvivesRandomAccesses) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300'000; ++i) {
    const auto width = static_cast<uint8_t>(1u << random() % 4);
    const uint64_t offset = random() % (8 - width + 1);
    if (random() % 2 == 0) {
      uart_->Write(offset, width, random());
    } else {
      uart_->Read(offset, width);
    }
    if (random() % 8 == 0) uart_->Flush();
    if (random() % 64 == 0 && port_.input.size() < 1000) port_.Type("some input");
    if (random() % 64 == 0) port_.MakeRoom(random() % 64);
    port_.sent.clear();
  }
  uart_->Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::UartState>();
  uart_->Save(state);
  EXPECT_TRUE(uart_->Restore(state.asReader()).ok()) << "what it saves it takes";
}

}  // namespace
}  // namespace bulkhead::device
