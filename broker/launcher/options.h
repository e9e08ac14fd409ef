// SPDX-License-Identifier: Apache-2.0
// The command line of `bulkhead`, as checked values. Launcher, main thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "broker/launcher/img_options.h"

namespace bulkhead::launcher {

// A wrong command line: one line, exit status 2.
class UsageError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct StreamOption {
  enum class Kind { kNone, kStdio, kPty, kUnix, kFile };
  Kind kind = Kind::kNone;
  std::string path;  // kUnix, kFile
};

enum class DiskFormat { kRaw, kQcow2, kQcow };

// A file below a disk's own; opened for reading only.
struct BackingOption {
  std::string path;
  DiskFormat format = DiskFormat::kRaw;
};

// What a guest may ask of a disk; 0: no limit, and of a burst the default.
struct ThrottleOption {
  uint64_t bytes_per_second = 0;
  uint64_t bytes_burst = 0;
  uint64_t operations_per_second = 0;
  uint64_t operations_burst = 0;
};

struct DiskOption {
  std::string path;
  DiskFormat format = DiskFormat::kRaw;  // as said, or by the path's ending; never by what is in the file
  std::vector<BackingOption> backing;    // the file below this one, then the one below that
  bool backing_from_header = false;      // those that the headers name, found when the VM starts
  bool read_only = false;
  bool direct = true;   // try O_DIRECT
  std::string id;       // at most 20 bytes; empty: the device's name
  uint16_t queues = 0;  // 0: one for each vCPU
  ThrottleOption throttle;
};

using AddressBytes = std::vector<uint8_t>;  // 4 or 16

// User-mode networking.
struct UserNetOption {
  struct Rule {
    bool allow = false;
    AddressBytes address;
    uint8_t prefix = 0;
    uint16_t port = 0;  // 0: any
  };
  struct HostForward {
    bool udp = false;
    AddressBytes host_address;
    uint16_t host_port = 0;
    AddressBytes guest_address;
    uint16_t guest_port = 0;
  };
  struct GuestForward {
    AddressBytes guest_address;
    uint16_t guest_port = 0;
    AddressBytes host_address;
    uint16_t host_port = 0;
  };
  bool ip4 = true;
  bool ip6 = true;
  AddressBytes network{10, 0, 2, 0};
  uint8_t prefix = 24;
  std::string hostname;  // empty: DHCP gives none
  bool serves_dns = true;
  std::vector<AddressBytes> resolvers;  // at most one of each family; none: the host's
  bool restricted = false;
  std::vector<Rule> rules;
  std::vector<HostForward> host_forwards;
  std::vector<GuestForward> guest_forwards;
};

struct NetOption {
  enum class Kind { kTap, kBridge, kUser };
  Kind kind = Kind::kTap;
  std::string interface;  // the tap, or the bridge that gets a new one
  std::string id;         // empty: the interface's number; the default MAC address is made from it
  std::vector<uint8_t> mac;
  uint16_t queues = 0;  // pairs; 0: one for each vCPU
  uint16_t mtu = 0;     // 0: as the tap has it
  bool vhost = false;   // the kernel carries the packets
  bool any_mac = false;
  bool link_on = true;                          // at the start
  std::vector<std::vector<uint8_t>> addresses;  // of IPv4 or IPv6: all that the guest may send from; none: any
  ThrottleOption throttle;                      // of each direction
  UserNetOption user;                           // kUser
};

// Of all processes of a VM together; 0: the default.
struct LimitOptions {
  uint64_t memory_bytes = 0;
  uint32_t cpu_thousandths = 0;  // of a processor
  uint32_t tasks = 0;
  uint64_t io_bytes_per_second = 0;
};

inline constexpr std::array<std::string_view, 4> kCloudInitFiles{"user-data", "meta-data", "network-config",
                                                                 "vendor-data"};

// What cloud-init in the guest is told, as files of the names that its NoCloud source knows.
struct CloudInitOption {
  std::string directory;                     // with files of those names; empty: none
  std::map<std::string, std::string> files;  // name to path, instead of the directory's
  std::string hostname;                      // empty: the VM's name if it was given one
};

struct RunOptions {
  std::string name;
  uint64_t memory_bytes = uint64_t{128} << 20;
  uint32_t cpus = 1;
  std::string kernel;
  std::string initrd;  // empty: none
  std::string append;
  std::vector<DiskOption> disks;
  std::optional<CloudInitOption> cloud_init;
  std::vector<NetOption> nets;
  StreamOption console{StreamOption::Kind::kStdio, ""};
  std::optional<StreamOption> virtio_console;
  StreamOption debug_console;
  bool reboot = false;
  bool keep_on_device_failure = true;
  uint32_t exit_deadline_ms = 0;  // 0: the broker's default
  uint32_t device_restarts = 10;  // of each device within a minute
  LimitOptions limits;
  uint32_t first_uid = 0;  // with uid_count, what --uids names
  uint32_t uid_count = 0;  // 0: the broker's default
  bool require_full_sandbox = false;
};

struct VmCommandOptions {
  std::string name;
  bool json = false;
  bool verify = false;
  bool force = false;
  uint32_t timeout_s = 30;
  std::string device;       // throttle, set-link; upgrade: empty for all
  ThrottleOption throttle;  // throttle
  bool link_up = false;     // set-link
  uint32_t seconds = 1;     // dirty-rate
};

struct CheckOptions {
  bool json = false;
  bool stock_kernels = false;
};

struct CommandLine {
  enum class Command {
    kHelp,
    kRun,
    kCheck,
    kPs,
    kStop,
    kKill,
    kThrottle,
    kSetLink,
    kUpgrade,
    kInspect,
    kDirtyRate,
    kImg
  };
  Command command = Command::kHelp;
  std::string help;  // kHelp: what to print
  RunOptions run;
  CheckOptions check;
  VmCommandOptions vm;
  ImgOptions img;
};

// Throws UsageError.
CommandLine ParseCommandLine(std::vector<std::string> arguments);

// Pieces of it, for the configuration file and tests. `what` names the option in errors.
uint64_t ParseMemory(const std::string& text);            // "512" is MiB; K, M, G, T
uint32_t ParseCpus(const std::string& text);              // "4", and QEMU's "cpus=4"
DiskOption ParseDisk(const std::string& text);            // "FILE,word,word=value"; a comma in FILE is written twice
CloudInitOption ParseCloudInit(const std::string& text);  // "DIR" or "user-data=FILE,..", with hostname=NAME
NetOption ParseNet(const std::string& text);  // "tap=NAME,word=value", "bridge=NAME,word=value", "user,word=value"
// The address of a VM's interface that was given none: the same each time, and a locally administered one.
std::vector<uint8_t> DefaultMac(const std::string& vm, const std::string& interface);
// "memory=SIZE,cpu=PERCENT%|PROCESSORS,pids=N,io=BYTES", any of them, into what it names.
void ParseUids(const std::string& text, RunOptions& run);  // "FIRST-LAST"
void ParseLimits(const std::string& text, LimitOptions& limits);
ThrottleOption ParseThrottle(const std::string& text);  // "bps=10M,bps-burst=..,iops=500,iops-burst=..", or "off"
StreamOption ParseStream(const std::string& what, const std::string& text);
void CheckName(const std::string& name);
std::string DoubleCommas(std::string path);
// QEMU's single-dash habits as this command's own words.
std::vector<std::string> TranslateHabits(const std::vector<std::string>& arguments);

}  // namespace bulkhead::launcher
