// SPDX-License-Identifier: Apache-2.0
#include "broker/revoker.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <optional>

#include "ipc/broker.capnp.h"

namespace bulkhead::broker {
namespace {

struct Machine {
  int kills = 0;
  Revoker<Machine> self{*this};
};

class Control final : public control::VmControl::Server {
 public:
  explicit Control(Revocable<Machine> machine) : machine_(std::move(machine)) {}
  kj::Promise<void> kill(KillContext) override {
    ++machine_->kills;
    return kj::READY_NOW;
  }

 private:
  Revocable<Machine> machine_;
};

class RevokerTest : public testing::Test {
 protected:
  RevokerTest() : io_(std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo())), machine_(std::in_place) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    server_.emplace(*io_->lowLevelProvider, OwnFd(ends[0]), kj::heap<Control>(machine_->self.Get()),
                    Descriptors::kRefused);
    client_.emplace(*io_->lowLevelProvider, OwnFd(ends[1]));
  }
  std::string Kill() {
    try {
      client_->Bootstrap<control::VmControl>().killRequest().send().wait(io_->waitScope);
    } catch (const kj::Exception& error) {
      return ReasonOf(error);
    }
    return "";
  }

  const std::unique_ptr<kj::AsyncIoContext> io_;
  std::optional<Machine> machine_;
  std::optional<RpcConnection> server_;
  std::optional<RpcConnection> client_;
};

TEST_F(RevokerTest, CallsReachTheObject) {
  EXPECT_EQ(Kill(), "");
  EXPECT_EQ(machine_->kills, 1);
}

TEST_F(RevokerTest, CallsOnAnObjectThatIsGoneFail) {
  machine_.reset();
  EXPECT_EQ(Kill(), "it has ended");
}

TEST_F(RevokerTest, CallsThatHaveComeInFail) {
  control::VmControl::Client control = kj::heap<Control>(machine_->self.Get());
  auto call = control.killRequest().send();
  machine_.reset();
  EXPECT_ANY_THROW(call.wait(io_->waitScope));
}

}  // namespace
}  // namespace bulkhead::broker
