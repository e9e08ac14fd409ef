// SPDX-License-Identifier: Apache-2.0
// A VM that tests let run, and what they do to it. Test's main thread.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "ipc/broker.capnp.h"
#include "ipc/rpc.h"
#include "tests/process/harness.h"

namespace bulkhead::test {

// -1: it does not answer.
inline pid_t BrokerOf(const std::string& vm) {
  const std::string pids = RunBulkhead({"inspect", vm, "--json"}).output;
  const size_t at = pids.find("\"broker_pid\"");
  return at == std::string::npos ? -1 : std::stoi(pids.substr(pids.find(':', at) + 1));
}

class RunningVm {
 public:
  explicit RunningVm(std::vector<std::string> more = {}, const std::string& payload = "idle") : name_(UniqueName()) {
    std::vector<std::string> arguments{"run",  "--name",          name_,  "--kernel", Payload(payload), "--console",
                                       "none", "--debug-console", "stdio"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    command_ = std::make_unique<Command>(arguments);
    const std::string sign = payload == "idle" ? "idle" : "ready";
    started_ = command_->WaitForOutput(sign);
  }
  bool started() const { return started_; }
  Command& command() { return *command_; }
  const std::string& name() const { return name_; }
  pid_t broker() const { return BrokerOf(name_); }
  void KillBroker() const {
    const pid_t pid = broker();
    ASSERT_GT(pid, 0);
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
  }
  // Kills it and waits for another one.
  void LoseBroker() const {
    const pid_t before = broker();
    KillBroker();
    EXPECT_TRUE(Eventually([&] { return broker() > 0 && broker() != before; })) << command_->errors();
  }
  // The guest writes something new.
  bool GoesOn() const {
    const size_t then = command_->output().size();
    return command_->WaitUntil([&] { return command_->output().size() > then; });
  }

 private:
  std::string name_;
  std::unique_ptr<Command> command_;
  bool started_ = false;
};

// No process with the VM's name, and no file in the runtime directory.
inline void ExpectNothingLeft(const std::string& name) {
  EXPECT_TRUE(Eventually([&] { return ProcessesOf(name).empty(); }));
  for (const std::string& file : RuntimeFiles()) EXPECT_EQ(file.find(name + "."), std::string::npos) << file;
}

// Kills the launcher: nobody may be left then.
inline void ExpectLauncherTakesAllWithIt(RunningVm& vm) {
  vm.command().Signal(SIGKILL);
  EXPECT_EQ(vm.command().Wait(), 128 + SIGKILL);
  EXPECT_TRUE(Eventually([&] { return ProcessesOf(vm.name()).empty(); }));
  // The lock file of a launcher that was killed is stale; the next command removes it.
  RunBulkhead({"ps"});
  ExpectNothingLeft(vm.name());
}

// The socket that `bulkhead stop` and the like use.
class ControlConnection {
 public:
  explicit ControlConnection(const std::string& vm)
      : io_(kj::setupAsyncIo()), rpc_(*io_.lowLevelProvider, ConnectTo(RuntimeDirectory() + "/" + vm + ".sock")) {}
  control::VmControl::Client vm() { return rpc_.Bootstrap<control::VmControl>(); }
  kj::WaitScope& wait() { return io_.waitScope; }
  void Pause() { vm().pauseRequest().send().wait(wait()); }

 private:
  kj::AsyncIoContext io_;
  RpcConnection rpc_;
};

}  // namespace bulkhead::test
