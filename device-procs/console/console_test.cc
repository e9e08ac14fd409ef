// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/console.h"

#include <capnp/message.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <csignal>
#include <string>
#include <vector>

namespace bulkhead::device {
namespace {

constexpr uint16_t kUart = static_cast<uint16_t>(ConsoleRegion::kUart);

// Stands for the virtio function: notes what reaches it; its state is one text.
class FakeFunction final : public DeviceModel {
 public:
  explicit FakeFunction(std::vector<std::string>& calls) : calls_(calls) {}

  uint64_t Read(uint16_t region, uint64_t offset, uint8_t) override { return region * 0x1000 + offset; }
  WriteEffect Write(uint16_t region, uint64_t, uint8_t, uint64_t value) override {
    calls_.push_back("write " + std::to_string(region));
    return {.decode = PciDecode{.memory_enabled = true, .bar0_address = value}, .route = {}};
  }
  void Flush() override { calls_.push_back("flush"); }
  void Pause() override { calls_.push_back("pause"); }
  void Resume() override { calls_.push_back("resume"); }
  void Save(capnp::AnyPointer::Builder state) const override { state.setAs<capnp::Text>("function"); }
  Result<void> Restore(capnp::AnyPointer::Reader state) override {
    calls_.push_back(std::string("restore ") + state.getAs<capnp::Text>().cStr());
    return {};
  }

 private:
  std::vector<std::string>& calls_;
};

class ConsoleTest : public testing::Test {
 protected:
  ConsoleTest() { ::signal(SIGPIPE, SIG_IGN); }

  std::unique_ptr<Console> Make(bool with_virtio) {
    return std::make_unique<Console>(
        loop_, SerialSettings{.input = {}, .output = {}, .stage = {}, .irq = OrThrow(MakeEventFd())},
        [](const std::string&) {},
        VirtioSide{.model = with_virtio ? std::make_unique<FakeFunction>(calls_) : nullptr, .port = &virtio_port_});
  }
  // Connects a port of the console to a new peer, which is returned.
  OwnFd Connect(Console& console, ConsolePort port = ConsolePort::kSerial) {
    std::array<int, 2> fds;
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    OwnFd input(fds[1]);
    OwnFd output = OrThrow(DuplicateFd(input.get()));
    console.Attach(static_cast<uint8_t>(port), std::move(input), std::move(output));
    return OwnFd(fds[0]);
  }
  static std::string Take(const OwnFd& peer) {
    std::array<char, 256> piece;
    const ssize_t count = ::read(peer.get(), piece.data(), piece.size());
    return std::string(piece.data(), count > 0 ? static_cast<size_t>(count) : 0);
  }

  EventLoop loop_;
  FdBytePort virtio_port_{loop_, [](const std::string&) {}};
  std::vector<std::string> calls_;
};

TEST_F(ConsoleTest, SerialOutputReachesWhoeverIsAttached) {
  auto console = Make(false);
  console->Resume();
  console->Write(kUart, 0, 1, '0');
  console->Flush();
  OwnFd first = Connect(*console);
  console->Write(kUart, 0, 1, '1');
  console->Flush();
  EXPECT_EQ(Take(first), "1") << "what was written to nobody is gone";
  OwnFd second = Connect(*console);
  console->Write(kUart, 0, 1, '2');
  console->Flush();
  EXPECT_EQ(Take(first), "");
  EXPECT_EQ(Take(second), "2");
}

TEST_F(ConsoleTest, AttachedPeerTypesIntoTheSerialPort) {
  auto console = Make(false);
  console->Resume();
  console->Write(kUart, 4, 1, 0x0B);
  OwnFd peer = Connect(*console);
  ASSERT_EQ(::write(peer.get(), "k", 1), 1);
  loop_.Stop();
  loop_.Run();
  EXPECT_EQ(console->Read(kUart, 5, 1) & 1, 1u);
  EXPECT_EQ(console->Read(kUart, 0, 1), uint64_t{'k'});
}

TEST_F(ConsoleTest, RegionsBeyondTheSerialPortAreTheVirtioFunctions) {
  auto console = Make(true);
  EXPECT_EQ(console->Read(1, 4, 4), 4u);
  EXPECT_EQ(console->Read(2, 8, 4), 0x1008u);
  EXPECT_EQ(console->Read(3, 0, 2), 0xFFFFu);
  const WriteEffect effect = console->Write(1, 0x10, 4, 0xC000'0000);
  ASSERT_TRUE(effect.decode.has_value());
  EXPECT_EQ(effect.decode->bar0_address, 0xC000'0000u);
  console->Resume();
  console->Flush();
  console->Pause();
  EXPECT_EQ(calls_, (std::vector<std::string>{"write 0", "resume", "flush", "pause"}));
}

TEST_F(ConsoleTest, WithoutVirtioConsoleItsRegionsReadAllOnes) {
  auto console = Make(false);
  EXPECT_EQ(console->Read(1, 0, 4), 0xFFFF'FFFFu);
  EXPECT_FALSE(console->Write(1, 0, 4, 0).decode.has_value());
}

TEST_F(ConsoleTest, StateCarriesBothParts) {
  auto console = Make(true);
  console->Write(kUart, 7, 1, 0x5C);
  console->Write(kUart, 0, 1, 'u');
  capnp::MallocMessageBuilder message;
  auto root = message.getRoot<capnp::AnyPointer>();
  console->Save(root);
  auto other = Make(true);
  ASSERT_TRUE(other->Restore(root.asReader()).ok());
  EXPECT_EQ(calls_.back(), "restore function");
  EXPECT_EQ(other->Read(kUart, 7, 1), 0x5Cu);
  OwnFd peer = Connect(*other);
  other->Resume();
  EXPECT_EQ(Take(peer), "u");
  EXPECT_FALSE(Make(false)->Restore(root.asReader()).ok()) << "another set of devices";
}

TEST_F(ConsoleTest, RefusesForeignStates) {
  auto console = Make(false);
  capnp::MallocMessageBuilder text;
  text.getRoot<capnp::AnyPointer>().setAs<capnp::Text>("not a struct");
  EXPECT_FALSE(console->Restore(text.getRoot<capnp::AnyPointer>().asReader()).ok());
  capnp::MallocMessageBuilder later;
  later.getRoot<capnp::AnyPointer>().initAs<state::ConsoleState>().setVersion(2);
  EXPECT_FALSE(console->Restore(later.getRoot<capnp::AnyPointer>().asReader()).ok());
}

}  // namespace
}  // namespace bulkhead::device
