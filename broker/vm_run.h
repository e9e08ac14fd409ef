// SPDX-License-Identifier: Apache-2.0
// One boot of a VM: its memory, its children, and how it ends. A reset of the machine is a new VmRun from the same
// settings: every process fresh, nothing of the old guest left. Broker, main thread.
#pragma once

#include <kj/async.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "broker/child.h"
#include "broker/dirty_logs.h"
#include "broker/net_inquiry.h"
#include "broker/revoker.h"
#include "broker/spawner.h"
#include "broker/vm_end.h"
#include "broker/vm_record.capnp.h"
#include "broker/vm_settings.h"
#include "broker/wiring.h"
#include "ipc/pulse_line.h"
#include "ipc/restraint.h"

namespace bulkhead::broker {

class VmRun {
 public:
  // Where a process of this name is born.
  using PlaceFor = std::function<Birthplace(const std::string& process)>;

  // The settings and the spawner, whose programs are the devices in the order of the settings and then the runner,
  // outlive it. `changed` is called when the record would be another one.
  VmRun(kj::AsyncIoContext& io, const VmSettings& settings, const OwnFd& memory, Spawner& spawner,
        std::function<void()> changed);
  ~VmRun();

  // Starts all processes, and has the spawner keep what another broker would need. `helpers` is the directory of their
  // executables; `kvm` is needed until the VM is prepared. Throws FatalError.
  void Start(const std::string& helpers, const OwnFd& kvm, const PlaceFor& place_for);
  // What another broker had the spawner keep and is to be mapped. Before lock-down.
  void Fetch();
  // Takes over the processes that another broker started and wrote down; those that do not go on are dealt with as in
  // any VM that runs. They may be hostile by now: after lock-down. Waits for them, but not for long, and not beyond
  // `enough`. Throws.
  void Adopt(record::VmRecord::Reader record, kj::Promise<void> enough);
  // After that: carries out what the other broker had begun.
  void GoOn(record::VmRecord::Reader record);
  // For another broker.
  void WriteDown(record::VmRecord::Builder out) const;

  // Waits until every process is locked down, the kernel is loaded and the devices have read what they were given; the
  // guest is paused then. Throws a Failure with the one line that the user sees: a child's reason, or why the kernel or
  // an image cannot be used.
  void Prepare();
  // Resumes; whether that went well shows in how the VM ends.
  void Go();
  // Resolves with the first reason to end.
  kj::Promise<VmEnd> WhenEnded() { return ended_.addBranch(); }
  void End(VmEnd end);
  // Stops the guest, lets the devices finish what they have in hand unless it was killed, and ends all processes.
  void Finish(const VmEnd& end);

  void PressPowerButton();
  kj::Promise<void> Pause();
  kj::Promise<void> Resume();
  // Hands a device a new outside.
  void Attach(size_t device, uint8_t port, OwnFd connection);
  // New limits for a disk, by its process's name.
  kj::Promise<void> Throttle(const std::string& device, control::DiskThrottle::Reader limits);
  // Takes an interface's link down or up; fails where it cannot come up.
  kj::Promise<void> SetLink(const std::string& interface, bool up);

  // Replaces the process of a device, or those of all that can be, by one of the program that is installed now.
  struct Upgraded {
    std::string name;
    int64_t pause_ns = 0;
  };
  kj::Promise<std::vector<Upgraded>> Upgrade(const std::string& device);

  // What was written to guest memory since the last time, or since the log began.
  struct Writes {
    std::vector<std::string> writers;
    DirtyLogs::Count count;
    int64_t duration_ns = 0;
  };
  // From now on writes are logged, until StopLog of the same id. One log at a time; with the id of one that another
  // broker began it is that one.
  kj::Promise<void> BeginLog(uint64_t id);
  kj::Promise<Writes> TakeLog(uint64_t id);
  void StopLog(uint64_t id);

  struct Interface {
    std::string name;
    NetInquiry::Answer figures;  // none: its process has ended, or does not answer
  };
  // What each network interface has carried; takes no longer than a moment.
  kj::Promise<kj::Array<Interface>> AskInterfaces();

  void Describe(capnp::List<control::ProcessReport>::Builder out) const;
  // Which walls of the sandbox this host does not have for the children, a line each. Known once prepared.
  std::vector<std::string> MissingWalls() const;
  unsigned process_count() const { return static_cast<unsigned>(devices_.size() + 1); }

 private:
  class DeviceHostServer;
  class RunnerHostServer;
  class MachineControlServer;
  // Whether a process is told what it gets, or has been.
  enum class Grants { kDue, kGiven };
  struct DeviceProcess {
    DevicePlan* plan = nullptr;
    std::unique_ptr<Wiring> wiring;
    std::unique_ptr<Child> child;
    std::optional<control::Device::Client> device;  // while it serves
    std::unique_ptr<NetInquiry> inquiry;            // of a network interface
    bool dead = false;                              // given up

    // What another process in its place needs to go on.
    OwnFd journal;  // invalid: there will be none
    std::vector<OwnFd> stages;
    Restraint restraint;
    std::string cause;  // why it was killed by this process; empty: it was not
    unsigned generation = 0;
    std::unique_ptr<capnp::MallocMessageBuilder> throttle;  // as the user set it last
    std::optional<bool> link_up;                            // the same
    std::map<uint8_t, OwnFd> attached;                      // by port
    bool power_button = false;                              // was pressed while nobody served
    // The one that is to serve next, from its start until it does.
    std::optional<control::Device::Client> successor;
    kj::Own<kj::PromiseFulfiller<void>> successor_ready;
    kj::Promise<void> replacement = nullptr;
    bool upgrading = false;
    kj::Own<kj::PromiseFulfiller<void>> end_awaited;  // by an upgrade; null: it is not
    bool was_late = false;  // the last successor was not ready in time, and none has served since
    // Whether it is asked for signs of life, and what came of that.
    PulseLine pulse;  // invalid: it is of a version that gives none
    bool asked = false;
    unsigned periods_unanswered = 0;
  };

  DeviceProcess& Named(const std::string& name, bool DevicePlan::*is_one, const char* what);
  void FillMemory(control::MemoryGrant::Builder out, int dirty_log) const;
  void FillDeviceGrants(size_t index, control::DeviceGrants::Builder out);
  void FillRunnerGrants(control::RunnerGrants::Builder out) const;
  kj::Promise<void> TakeReport(Child& child, control::SandboxReport::Reader report);
  void Supervise();
  void Load();
  void LoadWith(kj::Promise<void> call, control::ExitReport::Kind kind);
  kj::Promise<void> WatchStops();
  // vm_run_replace.cc.
  void DeviceReady(size_t index, control::Device::Client device);
  capnp::Capability::Client MakeHost(size_t index, Grants grants = Grants::kDue);
  capnp::Capability::Client MakeRunnerHost(Grants grants);
  kj::Promise<void> KeepDevice(size_t index);
  // vm_run_adopt.cc.
  void AdoptDevice(size_t index, record::Device::Reader record);
  void AdoptRunner(pid_t pid);
  void NoLongerAwaited(size_t index);
  void DeviceGoesOn(size_t index, control::Device::Client device);
  void RunnerGoesOn(control::Runner::Client runner);
  void EndThoseThatDoNotGoOn();
  // vm_run_pulse.cc.
  kj::Promise<void> WatchPulses();
  void TakePulse(size_t index, bool guest_idles);
  void EndHung(size_t index);
  // vm_run_dirty.cc.
  struct WriteLog {
    uint64_t id = 0;
    int64_t since_ns = 0;
    kj::Promise<void> unclaimed = nullptr;  // its end, where nobody has asked this broker for it
    bool claimed = false;
  };
  std::vector<std::string> Writers() const;
  kj::Promise<void> SwitchLog(bool on);
  kj::Promise<void> NoAnswer();
  void WriteLogDown(record::VmRecord::Builder out) const;
  void KeepLog(record::VmRecord::Reader record);
  static kj::Promise<void> SendAttach(control::Device::Client& device, uint8_t port, int connection);
  void DeviceEnded(size_t index, const std::string& how);
  void EndDevice(size_t index, const std::string& cause);
  bool CanReplace(const DeviceProcess& process) const;
  void SuccessorFailed(size_t index, const kj::Exception& error);
  kj::Promise<void> StartSuccessor(size_t index, bool anew);
  kj::Promise<void> TakeOver(size_t index);
  kj::Promise<void> WhenLate(size_t index);
  static kj::Promise<void> TellWishes(const DeviceProcess& process, control::Device::Client device);
  kj::Promise<void> EndForUpgrade(size_t index);
  kj::Promise<Upgraded> UpgradeOne(size_t index);
  kj::Promise<std::vector<Upgraded>> UpgradeAll(std::vector<size_t> wanted, std::vector<Upgraded> done);
  void WatchDevice(size_t index);
  void GiveUp(size_t index, const std::string& how);
  void Settled();
  void TellRunnerDead(size_t index);
  void TellPartner(const DevicePlan& dead);
  // The devices that the runner knows; they come first.
  size_t RunnersDevices() const;
  kj::Promise<void> ResumeDevices();
  kj::Promise<void> QuiesceDevices();

  kj::AsyncIoContext& io_;
  Spawner& spawner_;
  const VmSettings& settings_;
  const OwnFd& memory_;
  const std::function<void()> changed_;
  const OwnFd* kvm_ = nullptr;
  std::vector<DeviceProcess> devices_;
  std::unique_ptr<Child> runner_process_;
  std::optional<control::Runner::Client> runner_;
  unsigned not_ready_ = 0;
  unsigned not_loaded_ = 0;
  kj::PromiseFulfillerPair<void> all_ready_;
  kj::PromiseFulfillerPair<void> all_loaded_;
  kj::PromiseFulfillerPair<VmEnd> end_;
  kj::ForkedPromise<VmEnd> ended_;
  bool running_ = false;      // the guest has been started, and not been ended
  bool serving_ = false;      // the devices have been resumed, and not been paused
  bool settled_ = true;       // neither is under way, and no upgrade
  std::set<size_t> awaited_;  // processes, by the spawner's number, that have yet to go on with this broker
  std::optional<int64_t> runner_used_ns_;  // of processors, when it was last time to ask for signs of life
  bool guest_idled_ = true;                // in the period before that
  bool has_landlock_ = true;
  std::optional<DirtyLogs> dirty_logs_;  // none: the processes are of a version that does not log
  std::unique_ptr<WriteLog> write_log_;
  kj::Canceler calls_;  // of the VM's user, who may wait for one as this ends
  std::optional<kj::TaskSet> tasks_;
  struct TaskErrors final : kj::TaskSet::ErrorHandler {
    void taskFailed(kj::Exception&&) override {}  // a dead peer is reported by its process's end
  } task_errors_;
  Revoker<VmRun> self_{*this};  // last, so that it goes first
};

}  // namespace bulkhead::broker
