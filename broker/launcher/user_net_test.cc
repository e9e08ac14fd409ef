// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/user_net.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace bulkhead::launcher {
namespace {

// A port that is free, or was a moment ago.
uint16_t FreePort() {
  const OwnFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
  return ntohs(address.sin_port);
}

UserNetOption Forward(bool udp, AddressBytes address, uint16_t port) {
  UserNetOption option;
  option.host_forwards.push_back({.udp = udp,
                                  .host_address = std::move(address),
                                  .host_port = port,
                                  .guest_address = {10, 0, 2, 15},
                                  .guest_port = 22});
  return option;
}

std::string ErrorOf(const UserNetOption& option) {
  try {
    OpenUserNetwork(option);
  } catch (const FatalError& error) {
    return error.what();
  }
  return "";
}

TEST(UserNetwork, APortInUseIsSaidBeforeAnythingStarts) {
  for (const bool udp : {false, true}) {
    const uint16_t port = FreePort();
    const OpenUserNet first = OpenUserNetwork(Forward(udp, {127, 0, 0, 1}, port));
    ASSERT_EQ(first.listeners.size(), 1u);
    const std::string error = ErrorOf(Forward(udp, {127, 0, 0, 1}, port));
    EXPECT_TRUE(error.starts_with("hostfwd: cannot listen on 127.0.0.1:" + std::to_string(port))) << error;
    EXPECT_NE(error.find("address in use"), std::string::npos) << error;
  }
}

TEST(UserNetwork, AnAddressOfAnotherHostIsRefused) {
  const std::string error = ErrorOf(Forward(false, {192, 0, 2, 1}, 2222));
  EXPECT_NE(error.find("192.0.2.1:2222: this host has no such address"), std::string::npos) << error;
}

TEST(UserNetwork, TheFirstResolverOfEachFamilyIsTaken) {
  OpenUserNet net;
  FindResolvers(
      "# nameserver 192.0.2.1\nsearch example.org\nnameserver fe80::1%eth0\nnameserver\t192.0.2.53\n"
      "nameserver 192.0.2.54\n nameserver 2001:db8::53\nnameserver\nnameserver x\n",
      net);
  EXPECT_EQ(net.dns4, (AddressBytes{192, 0, 2, 53}));
  ASSERT_EQ(net.dns6.size(), 16u);
  EXPECT_EQ(net.dns6[15], 0x53);
  OpenUserNet none;
  FindResolvers("", none);
  EXPECT_TRUE(none.dns4.empty() && none.dns6.empty());
}

TEST(UserNetwork, ResolversThatAreGivenCount) {
  UserNetOption option;
  option.resolvers = {{192, 0, 2, 9}};
  const OpenUserNet net = OpenUserNetwork(option);
  EXPECT_EQ(net.dns4, (AddressBytes{192, 0, 2, 9}));
  EXPECT_TRUE(net.dns6.empty());
}

}  // namespace
}  // namespace bulkhead::launcher
