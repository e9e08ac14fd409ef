// SPDX-License-Identifier: Apache-2.0
// Everything a VM gets from the user's host: opened and locked once, with the user's rights, and handed to the broker
// of each boot. Launcher, main thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "broker/launcher/host_files.h"
#include "broker/launcher/options.h"
#include "broker/launcher/runtime_dir.h"
#include "broker/launcher/stdio_console.h"
#include "broker/launcher/tap.h"
#include "ipc/broker.capnp.h"

namespace bulkhead::launcher {

class VmResources {
 public:
  // Opens all that the user named, so that a mistake costs nothing yet. Throws FatalError.
  explicit VmResources(const RunOptions& options);
  ~VmResources();
  VmResources(const VmResources&) = delete;
  VmResources& operator=(const VmResources&) = delete;

  // What the broker needs for one boot. `options` as before.
  void Fill(const RunOptions& options, const RuntimeDir& directory, control::VmConfig::Builder out) const;
  // This process's ends of what a guest writes to: after the last boot, so that the consoles see the end of it.
  void CloseGuestEnds();

  // The console on this terminal, and the debug console's output: a child gets no descriptor of the user's own.
  std::optional<StdioConsole>& terminal() { return terminal_; }
  std::optional<StdioConsole>& debug() { return debug_; }

 private:
  struct Stream {
    OwnFd input_output;
    OwnFd output;
    OwnFd listener;
    void Fill(control::StreamConfig::Builder out) const;
  };
  Stream OpenStream(const char* what, const StreamOption& option);

  OwnFd kernel_;
  OwnFd initrd_;  // invalid: none
  std::vector<OpenDisk> disks_;
  std::optional<OpenDisk> cloud_init_;
  DiskLocks locks_;
  std::vector<OpenNet> nets_;
  std::optional<StdioConsole> terminal_;
  std::optional<StdioConsole> debug_;
  std::vector<Pty> ptys_;
  std::vector<std::string> socket_paths_;
  Stream serial_;
  Stream virtio_console_;
  OwnFd debug_output_;
};

void FillThrottle(const ThrottleOption& option, control::DiskThrottle::Builder out);

}  // namespace bulkhead::launcher
