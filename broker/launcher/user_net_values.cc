// SPDX-License-Identifier: Apache-2.0
// The words of --net user.
#include <arpa/inet.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "broker/launcher/option_words.h"
#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr size_t kMaxForwards = 64;
constexpr size_t kMaxRules = 256;
constexpr size_t kMaxHostnameBytes = 32;  // that libslirp's DHCP gives
constexpr uint64_t kMinPrefix = 8;
constexpr uint64_t kMaxPrefix = 27;
// Where in its network the guest finds what.
constexpr uint8_t kGateway = 2, kResolver = 3, kFirstGuest = 15;

[[noreturn]] void Refuse(const std::string& key, const std::string& value, const std::string& why) {
  throw UsageError("--net user: " + key + "='" + value + "' " + why);
}

bool IsIp6(const AddressBytes& address) { return address.size() == sizeof(in6_addr); }

// False where it is no address of IPv4 or IPv6.
bool ParseAddress(const std::string& text, AddressBytes& address) {
  const bool ip6 = text.find(':') != std::string::npos;
  address.assign(ip6 ? sizeof(in6_addr) : sizeof(in_addr), 0);
  return ::inet_pton(ip6 ? AF_INET6 : AF_INET, text.c_str(), address.data()) == 1;
}

bool ParsePort(std::string_view text, uint16_t& port) {
  uint64_t number = 0;
  if (!ParseNumber(text, number) || number == 0 || number > UINT16_MAX) return false;
  port = static_cast<uint16_t>(number);
  return true;
}

// "ADDRESS:PORT", with IPv6 in brackets, and no address if it may be left away.
bool ParseEndpoint(const std::string& text, AddressBytes& address, uint16_t& port, bool may_lack_address) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || !ParsePort(std::string_view(text).substr(colon + 1), port)) return false;
  std::string host = text.substr(0, colon);
  address.clear();
  if (host.empty()) return may_lack_address;
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  return ParseAddress(host, address) && IsIp6(address) == bracketed;
}

bool TakePrefix(std::string& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.erase(0, prefix.size());
  return true;
}

UserNetOption::HostForward ParseHostForward(const std::string& value) {
  UserNetOption::HostForward forward;
  std::string text = value;
  const auto wrong = [&](const char* why) { Refuse("hostfwd", value, why); };
  if (TakePrefix(text, "udp:")) {
    forward.udp = true;
  } else if (!TakePrefix(text, "tcp:")) {
    wrong("is no forward; write it like tcp::2222-:22, or tcp:ADDRESS:PORT-ADDRESS:PORT, or udp:..");
  }
  const size_t dash = text.find('-');
  if (dash == std::string::npos ||
      !ParseEndpoint(text.substr(0, dash), forward.host_address, forward.host_port, true) ||
      !ParseEndpoint(text.substr(dash + 1), forward.guest_address, forward.guest_port, true)) {
    wrong("is no forward; write it like tcp::2222-:22, tcp:192.0.2.1:2222-:22 or tcp:[::1]:2222-[fec0::15]:22");
  }
  if (forward.host_address.empty()) forward.host_address = {127, 0, 0, 1};
  if (IsIp6(forward.host_address) ? !IsIp6(forward.guest_address) : IsIp6(forward.guest_address)) {
    wrong("leads from one kind of addresses to the other; name an IPv6 address on both sides or on none");
  }
  return forward;
}

UserNetOption::GuestForward ParseGuestForward(const std::string& value) {
  UserNetOption::GuestForward forward;
  std::string text = value;
  const bool tcp = TakePrefix(text, "tcp:");
  const size_t dash = text.find('-');
  std::string host = dash == std::string::npos ? "" : text.substr(dash + 1);
  if (!tcp || !TakePrefix(host, "tcp:") ||
      !ParseEndpoint(text.substr(0, dash), forward.guest_address, forward.guest_port, false) ||
      !ParseEndpoint(host, forward.host_address, forward.host_port, false) || IsIp6(forward.guest_address) ||
      IsIp6(forward.host_address)) {
    Refuse("guestfwd", value, "is no forward; write it like tcp:10.0.2.100:80-tcp:127.0.0.1:8080");
  }
  return forward;
}

// "ADDRESS[/LENGTH][:PORT]", with IPv6 in brackets if there is a port.
UserNetOption::Rule ParseRule(const std::string& key, const std::string& value) {
  UserNetOption::Rule rule{.allow = key == "allow", .address = {}};
  const auto wrong = [&] {
    Refuse(key, value, "is no rule; write it like 192.0.2.7, 192.0.2.0/24:443, 2001:db8::/32 or [2001:db8::]/32:443");
  };
  std::string text = value, host;
  bool has_port = true;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == std::string::npos) wrong();
    host = text.substr(1, end - 1);
    text.erase(0, end + 1);
  } else {
    has_port = std::ranges::count(text, ':') <= 1;
    const size_t end = std::min(text.find_first_of(has_port ? "/:" : "/"), text.size());
    host = text.substr(0, end);
    text.erase(0, end);
  }
  if (!ParseAddress(host, rule.address)) wrong();
  const size_t colon = has_port ? std::min(text.find(':'), text.size()) : text.size();
  if (colon != text.size() && !ParsePort(std::string_view(text).substr(colon + 1), rule.port)) wrong();
  text.erase(colon);
  uint64_t prefix = 8 * rule.address.size();
  if (!text.empty() && (text[0] != '/' || !ParseNumber(std::string_view(text).substr(1), prefix))) wrong();
  if (prefix > 8 * rule.address.size()) wrong();
  rule.prefix = static_cast<uint8_t>(prefix);
  return rule;
}

void ParseNetwork(const std::string& value, UserNetOption& user) {
  const size_t slash = value.find('/');
  uint64_t prefix = 24;
  const bool good = ParseAddress(value.substr(0, slash), user.network) && !IsIp6(user.network) &&
                    (slash == std::string::npos || ParseNumber(std::string_view(value).substr(slash + 1), prefix)) &&
                    prefix >= kMinPrefix && prefix <= kMaxPrefix;
  if (!good) Refuse("net", value, "is no network; write it like 10.0.2.0/24, with a length from 8 to 27");
  user.prefix = static_cast<uint8_t>(prefix);
  for (unsigned bit = 0; bit < 32 - prefix; ++bit) {
    if ((user.network[3 - bit / 8] >> bit % 8 & 1) != 0) Refuse("net", value, "has bits behind its length");
  }
}

void ParseResolver(const std::string& value, UserNetOption& user) {
  if (value == "off") {
    user.serves_dns = false;
    return;
  }
  AddressBytes address;
  if (!ParseAddress(value, address)) Refuse("dns", value, "is no IP address, nor off");
  const auto same = [&](const AddressBytes& other) { return other.size() == address.size(); };
  if (std::ranges::any_of(user.resolvers, same)) Refuse("dns", value, "is a second one of its kind");
  user.resolvers.push_back(std::move(address));
}

std::string ParseHostname(const std::string& value) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
  };
  if (value.empty() || value.size() > kMaxHostnameBytes || value.front() == '-' || value.back() == '-' ||
      !std::ranges::all_of(value, fits)) {
    Refuse("hostname", value, "is no host name; they have 1 to 32 letters, digits and inner '-'");
  }
  return value;
}

bool ParseSwitch(const std::string& key, const std::string& value) {
  if (value != "on" && value != "off") Refuse(key, value, "is neither on nor off");
  return value == "on";
}

bool InNetwork(const UserNetOption& user, const AddressBytes& address) {
  const auto number = [](const AddressBytes& bytes) {
    return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
  };
  return (number(user.network) ^ number(address)) >> (32 - user.prefix) == 0;
}

AddressBytes HostOf(const UserNetOption& user, uint8_t number) {
  AddressBytes address = user.network;
  address.back() |= number;
  return address;
}

}  // namespace

bool SetUserNetWord(UserNetOption& user, const std::string& key, const std::string& value) {
  if (key == "hostfwd") {
    user.host_forwards.push_back(ParseHostForward(value));
  } else if (key == "guestfwd") {
    user.guest_forwards.push_back(ParseGuestForward(value));
  } else if (key == "allow" || key == "deny") {
    user.rules.push_back(ParseRule(key, value));
  } else if (key == "restrict") {
    user.restricted = ParseSwitch(key, value);
  } else if (key == "dns") {
    ParseResolver(value, user);
  } else if (key == "hostname") {
    user.hostname = ParseHostname(value);
  } else if (key == "net") {
    ParseNetwork(value, user);
  } else if (key == "ipv4") {
    user.ip4 = ParseSwitch(key, value);
  } else if (key == "ipv6") {
    user.ip6 = ParseSwitch(key, value);
  } else {
    return false;
  }
  return true;
}

void CheckUserNet(UserNetOption& user) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw UsageError(std::string("--net user: ") + what);
  };
  require(user.ip4 || user.ip6, "leave it ipv4, ipv6 or both");
  require(user.serves_dns || user.resolvers.empty(), "give either dns=off or an address");
  require(user.host_forwards.size() <= kMaxForwards && user.guest_forwards.size() <= kMaxForwards,
          "there are more than 64 forwards");
  require(user.rules.size() <= kMaxRules, "there are more than 256 rules");
  for (UserNetOption::HostForward& forward : user.host_forwards) {
    require(IsIp6(forward.host_address) ? user.ip6 : user.ip4, "a hostfwd is of a kind of addresses that is off");
    if (IsIp6(forward.host_address)) continue;
    if (forward.guest_address.empty()) forward.guest_address = HostOf(user, kFirstGuest);
    require(InNetwork(user, forward.guest_address), "a hostfwd leads to an address outside of the guest's network");
  }
  for (const UserNetOption::GuestForward& forward : user.guest_forwards) {
    require(user.ip4, "a guestfwd needs ipv4");
    require(InNetwork(user, forward.guest_address), "a guestfwd begins outside of the guest's network");
    require(forward.guest_address != HostOf(user, kGateway) && forward.guest_address != HostOf(user, kResolver),
            "a guestfwd begins at the address of the host or the resolver; take another of the network");
  }
}

}  // namespace bulkhead::launcher
