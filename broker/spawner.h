// SPDX-License-Identifier: Apache-2.0
// Who starts a VM's processes and keeps what outlives a broker: for the broker an interface, behind it a process of its
// own (broker/spawner/). Broker, main thread.
#pragma once

#include <kj/async-io.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "broker/child.h"
#include "broker/spawn.h"
#include "broker/spawner/protocol.h"

namespace bulkhead::broker {

// What is kept of a VM for the next broker, by what it is of.
enum class Kept : uint8_t {
  kVm,         // guest memory, record, control socket; see VmService
  kCgroup,     // see VmCgroup
  kUids,       // the file in which user ids are locked
  kDevice,     // of the device of that index: wiring, journal, stages of outputs, packet link, pulse line; see VmRun
  kAttached,   // to the device of that index, at a port: a console's connection
  kDirtyLogs,  // see DirtyLogs
};

class Spawner {
 public:
  virtual ~Spawner() noexcept(false) = default;
  // Before lock-down: the program that stands for the next number, from 0 on.
  virtual void Enroll(const std::string& executable, const std::string& title, const Birthplace& place) = 0;
  // No more can be enrolled.
  virtual void Seal() = 0;
  // Starts it; `anew`: as it is installed now, not as it was. Whether its violations are reported is up to the caller.
  // A failure is one line.
  virtual kj::Promise<Newborn> Spawn(uint32_t number, bool anew) = 0;
  // A new connection to the process that was started last under the number, by another broker; it may have ended.
  virtual kj::Promise<Newborn> Adopt(uint32_t number) = 0;
  // From now on it is as it was when it was last started anew.
  virtual void Keep(uint32_t number) = 0;
  // The number of the next process that a signal stops.
  virtual kj::Promise<uint32_t> NextStopped() = 0;
  // Keeps duplicates of these instead of those before. They stay open until that is done.
  virtual kj::Promise<void> Store(Kept kind, size_t index, uint8_t port, std::vector<int> fds) = 0;
  // Empty: there is nothing.
  virtual kj::Promise<std::vector<OwnFd>> Fetch(Kept kind, size_t index, uint8_t port) = 0;
};

class SpawnerProcess final : public Spawner {
 public:
  // Starts it. Throws FatalError. `vm` is for its name in process lists.
  SpawnerProcess(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm);
  // One that another broker started.
  SpawnerProcess(kj::AsyncIoContext& io, OwnFd socket);

  void Enroll(const std::string& executable, const std::string& title, const Birthplace& place) override;
  // It lives as long as somebody has this.
  const OwnFd& socket() const { return socket_; }
  // -1: another broker started it.
  pid_t pid() const { return pid_; }
  void Seal() override;
  // The VM runs.
  void Settle();
  kj::Promise<Newborn> Spawn(uint32_t number, bool anew) override;
  kj::Promise<Newborn> Adopt(uint32_t number) override;
  void Keep(uint32_t number) override;
  kj::Promise<uint32_t> NextStopped() override;
  kj::Promise<void> Store(Kept kind, size_t index, uint8_t port, std::vector<int> fds) override;
  kj::Promise<std::vector<OwnFd>> Fetch(Kept kind, size_t index, uint8_t port) override;

 private:
  struct Answer {
    SpawnerReply reply;
    std::vector<OwnFd> fds;
  };
  struct Question {
    SpawnerRequest request;
    std::vector<int> fds;
    size_t fds_at_least;
    kj::Own<kj::PromiseFulfiller<Answer>> fulfiller;
  };
  struct Ignore final : kj::TaskSet::ErrorHandler {
    void taskFailed(kj::Exception&&) override {}
  };
  kj::Promise<Answer> Ask(SpawnerRequest request, size_t fds_at_least, std::vector<int> fds = {});
  void SendNext();
  kj::Promise<Answer> Receive(uint64_t id, size_t fds_at_least);
  kj::Promise<Newborn> AskForProcess(const SpawnerRequest& request, size_t fds_at_least);
  kj::Promise<uint32_t> LookForStopped();

  kj::UnixEventPort& port_;
  OwnFd socket_;
  pid_t pid_ = -1;
  std::optional<kj::UnixEventPort::FdObserver> answers_;
  std::deque<Question> questions_;  // the first has been sent
  uint64_t next_id_;
  OwnFd changes_;
  std::optional<kj::UnixEventPort::FdObserver> changes_observer_;
  Ignore ignore_;
  kj::TaskSet tasks_{ignore_};
};

}  // namespace bulkhead::broker
