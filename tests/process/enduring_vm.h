// SPDX-License-Identifier: Apache-2.0
// A VM whose guest is under load and checks all that it gets (tests/payload/endure.cc), for tests that do things to its
// devices' processes. Its console and, where the test may make a tap, its frames are looked at from outside.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/process/harness.h"
#include "tests/process/tap_network.h"
#include "tests/process/wire.h"

namespace bulkhead::test {

enum class Disk { kRaw, kQcow2 };

class EnduringVm {
 public:
  struct Options {
    std::vector<std::string> more = {"--device-restarts", "1000000"};  // words of the command line
    Disk disk = Disk::kRaw;
    std::string build_dir = {};  // of another `bulkhead` than the built one
    std::string name = {};
    // In the place of the entropy device, which the guest does not use then, nor does anybody expect it to go on.
    bool stranger = false;
  };
  EnduringVm() : EnduringVm(Options()) {}
  explicit EnduringVm(const Options& options);

  bool started() const { return started_; }
  const std::string& name() const { return name_; }
  const std::vector<std::string>& devices() const { return devices_; }
  // Of Disk::kQcow2, which lies on the raw one: what the guest wrote.
  std::string top() const { return dir_.Path("top.qcow2"); }
  Command& command() { return *command_; }
  const TapNetwork* network() const { return network_ ? &*network_ : nullptr; }
  // All that it and its guest said.
  std::string said() const { return command_->output() + command_->errors(); }

  // `bulkhead` as the VM was started.
  Finished Run(const std::vector<std::string>& arguments) const;

  // Each wait takes what the VM says meanwhile: it would wait for room, else.
  // How many rounds it has told of.
  uint64_t Rounds() const;
  // Rounds go on, and frames arrive both ways that were not sent before.
  bool GoesOn() const { return RoundsGoOn() && FramesGoOn(); }
  bool RoundsGoOn() const;
  bool FramesGoOn() const;
  // Another process than that serves the device.
  bool Replaced(const std::string& device, pid_t before) const;
  // Sends the signal to the device's process, and waits for another one.
  void Lose(const std::string& device, int signal) const;
  // Ends it and looks at all that it said.
  void Stop();
  // Each line is there, once and in its order.
  void ExpectConsoleComplete() const;

 private:
  std::string DiskOf(Disk disk) const;
  Prepare Preparation() const;

  TempDir dir_;
  const std::string name_;
  const std::string build_dir_;
  const std::string image_;
  const std::string console_;
  std::vector<std::string> devices_{"disk0", "console", "chipset"};
  std::optional<TapNetwork> network_;
  std::optional<Wire> wire_;
  std::unique_ptr<Command> command_;
  bool started_ = false;
};

}  // namespace bulkhead::test
