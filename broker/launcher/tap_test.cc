// SPDX-License-Identifier: Apache-2.0
// Taps and bridges in a network namespace of each test's own; only root can make those.
#include "broker/launcher/tap.h"

#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <thread>

namespace bulkhead::launcher {
namespace {

class TapTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 || ::access("/dev/net/tun", R_OK | W_OK) != 0) {
      GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
    }
  }
  // On a thread of its own, in a network of its own.
  static void InOwnNetwork(const std::function<void()>& body) {
    std::thread([&] {
      ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
      body();
    }).join();
  }
  static short FlagsOf(const std::string& name) {
    const OwnFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, name.c_str());
    return ::ioctl(socket.get(), SIOCGIFFLAGS, &request) == 0 ? request.ifr_flags : short{-1};
  }
  static void MakeBridge(const char* name) {
    const OwnFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::ioctl(socket.get(), SIOCBRADDBR, name), 0);
  }
  // A tap that is there to stay, with one queue.
  static void MakeTap(const std::string& name) {
    const OpenNet made = OpenTap(ParseNet("tap=" + name + ",queues=1"), 1);
    ASSERT_EQ(::ioctl(made.queues.at(0).get(), TUNSETPERSIST, 1), 0);
  }
  static std::string ErrorOf(const std::string& words) {
    try {
      OpenTap(ParseNet(words), 4);
    } catch (const FatalError& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(TapTest, OneThatIsNotThereIsMadeTurnedOnAndGoneAgain) {
  InOwnNetwork([] {
    {
      const OpenNet net = OpenTap(ParseNet("tap=tap0,mtu=9000"), 4);
      EXPECT_EQ(net.queues.size(), 4u);
      EXPECT_EQ(net.mtu, 9000);
      EXPECT_NE(FlagsOf("tap0") & IFF_UP, 0);
    }
    EXPECT_EQ(FlagsOf("tap0"), -1);
  });
}

TEST_F(TapTest, OneThatHasOneQueueIsUsedWithOne) {
  InOwnNetwork([] {
    MakeTap("tap0");
    EXPECT_EQ(OpenTap(ParseNet("tap=tap0"), 4).queues.size(), 1u);
    EXPECT_NE(ErrorOf("tap=tap0,queues=2").find("multi_queue"), std::string::npos);
  });
}

TEST_F(TapTest, OneThatIsInUseIsRefused) {
  InOwnNetwork([] {
    const OpenNet net = OpenTap(ParseNet("tap=tap0"), 4);
    EXPECT_NE(ErrorOf("tap=tap0").find("is in use"), std::string::npos);
  });
}

TEST_F(TapTest, WhatIsNoTapAndNoBridgeIsNamed) {
  InOwnNetwork([] {
    EXPECT_EQ(ErrorOf("tap=lo").find("tap 'lo': is no tap"), 0u);
    EXPECT_EQ(ErrorOf("bridge=br0").find("bridge 'br0': there is no such interface; make it with"), 0u);
    EXPECT_EQ(ErrorOf("bridge=lo").find("bridge 'lo': is no bridge"), 0u) << ErrorOf("bridge=lo");
    EXPECT_EQ(FlagsOf("bulkhead0"), -1) << "left behind";
  });
}

TEST_F(TapTest, ABridgeGetsANewTapWithItsMtu) {
  InOwnNetwork([] {
    MakeBridge("br0");
    const OpenNet first = OpenTap(ParseNet("bridge=br0"), 1), second = OpenTap(ParseNet("bridge=br0"), 1);
    EXPECT_EQ(first.name, "bulkhead0");
    EXPECT_EQ(second.name, "bulkhead1");
    EXPECT_EQ(first.mtu, 1500);
    EXPECT_NE(FlagsOf("bulkhead1") & IFF_UP, 0);
  });
}

}  // namespace
}  // namespace bulkhead::launcher
