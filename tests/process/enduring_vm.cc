// SPDX-License-Identifier: Apache-2.0
#include "tests/process/enduring_vm.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

namespace bulkhead::test {
namespace {

constexpr uint64_t kDiskBytes = 2 << 20;

}  // namespace

EnduringVm::EnduringVm(const Options& options)
    : name_(options.name.empty() ? UniqueName() : options.name),
      build_dir_(options.build_dir.empty() ? BuildDir() : options.build_dir),
      image_(dir_.MakeImage("disk.img", kDiskBytes)),
      console_(dir_.Path("console.log")) {
  std::vector<std::string> arguments{"run",
                                     "--name",
                                     name_,
                                     "--kernel",
                                     Payload("endure"),
                                     "--disk",
                                     DiskOf(options.disk),
                                     "--console",
                                     "file=" + console_,
                                     "--debug-console",
                                     "stdio"};
  if (options.stranger) {
    arguments.insert(arguments.end(), {"--append", "stranger=1"});
  } else {
    devices_.emplace_back("rng");
  }
  if (TapNetwork::Possible()) {
    network_.emplace(1);
    network_->LeaveToOthers();
    wire_.emplace(*network_);
    // The guest drives the first one only.
    arguments.insert(arguments.end(), {"--net", "tap=tap0", "--net", "user"});
    for (const char* device : {"net0", "net1", "usernet1"}) devices_.emplace_back(device);
  }
  arguments.insert(arguments.end(), options.more.begin(), options.more.end());
  command_ = std::make_unique<Command>(arguments, Preparation());
  started_ = command_->WaitForOutput("enduring");
}

Prepare EnduringVm::Preparation() const {
  return [this](Launch& launch) {
    launch.build_dir = build_dir_;
    return !network_ || network_->Enter();
  };
}

Finished EnduringVm::Run(const std::vector<std::string>& arguments) const {
  return RunBulkhead(arguments, "", Preparation());
}

// The guest never writes where Stop does, so that comes through from below.
std::string EnduringVm::DiskOf(Disk disk) const {
  if (disk == Disk::kRaw) return image_;
  const Finished made =
      RunBulkhead({"img", "create", "-f", "qcow2", "-b", image_, "-F", "raw", "-o", "cluster_size=4k", top()});
  EXPECT_EQ(made.status, 0) << made.errors;
  return top() + ",format=qcow2,backing=" + image_ + ",backing-format=raw";
}

uint64_t EnduringVm::Rounds() const {
  const std::string text = ReadFile(console_);
  return static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n'));
}

bool EnduringVm::RoundsGoOn() const {
  const uint64_t before = Rounds();
  return command_->WaitUntil([&] { return Rounds() > before + 1; });
}

bool EnduringVm::FramesGoOn() const {
  if (!wire_) return true;
  const uint32_t heard = wire_->heard(), sent = wire_->sent();
  return command_->WaitUntil([&] { return wire_->heard() > heard && wire_->arrived() > sent; });
}

bool EnduringVm::Replaced(const std::string& device, pid_t before) const {
  return command_->WaitUntil([&] {
    const pid_t now = ProcessOf(name_, device);
    return now > 0 && now != before;
  });
}

void EnduringVm::Lose(const std::string& device, int signal) const {
  const pid_t before = ProcessOf(name_, device);
  ASSERT_EQ(SignalTo(name_, device, signal), 0) << device;
  EXPECT_TRUE(Replaced(device, before)) << device;
}

void EnduringVm::Stop() {
  const OwnFd image(::open(image_.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::pwrite(image.get(), "stop", 4, kDiskBytes - 512), 4);
  ASSERT_EQ(::fsync(image.get()), 0);
  EXPECT_EQ(command_->Wait(), 0) << command_->errors();
  EXPECT_NE(command_->output().find("PASS endure"), std::string::npos) << said();
  for (const std::string& device : devices_) {
    EXPECT_EQ(command_->errors().find("given up: " + device + " "), std::string::npos) << command_->errors();
  }
  EXPECT_EQ(wire_ ? wire_->Fault() : "", "");
}

void EnduringVm::ExpectConsoleComplete() const {
  constexpr char kTold[] = "rounds ";
  const size_t told = command_->output().rfind(kTold);
  ASSERT_NE(told, std::string::npos) << said();
  const uint64_t rounds = std::stoull(command_->output().substr(told + sizeof kTold - 1));
  std::string lines;
  for (uint64_t round = 1; round <= rounds; ++round) lines += std::to_string(round) + "\n";
  EXPECT_EQ(ReadFile(console_), lines);
}

}  // namespace bulkhead::test
