// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/runtime.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "device-procs/common/device_thread.h"
#include "device-procs/common/exit_server.h"
#include "ipc/broker_link.h"
#include "ipc/child.h"
#include "ipc/mailbox.h"
#include "ipc/pulse_line.h"
#include "ipc/rpc.h"
#include "ipc/start_up_memory.h"

namespace bulkhead::device {
namespace {

// The most descriptors a device process can need: grants of every kind fit, a leak of them does not.
constexpr rlim_t kMaxDescriptors = 512;

class DeviceServer final : public control::Device::Server {
 public:
  // `exits` is null where the guest does not reach the process.
  DeviceServer(DeviceThread& thread, DeviceModel& device, Recorder& recorder, ExitServer* exits, kj::Timer& timer)
      : thread_(thread), device_(device), recorder_(recorder), exits_(exits), start_up_(timer) {}

  kj::Promise<void> load(LoadContext) override {
    Result<void> read;
    thread_.Call([&] { read = device_.ReadInput(); });
    if (!read.ok()) throw Failure(read.error().message);
    return kj::READY_NOW;
  }
  kj::Promise<void> resume(ResumeContext) override {
    thread_.Call([&] { device_.Resume(); });
    start_up_.ForgetSoon();
    return kj::READY_NOW;
  }
  kj::Promise<void> pause(PauseContext) override {
    thread_.Call([&] { device_.Pause(); });
    return kj::READY_NOW;
  }
  kj::Promise<void> save(SaveContext context) override {
    thread_.Call([&] { device_.Save(context.getResults().initState()); });
    return kj::READY_NOW;
  }
  kj::Promise<void> restore(RestoreContext context) override {
    Result<void> restored;
    thread_.Call([&] { restored = device_.Restore(context.getParams().getState()); });
    if (!restored.ok()) throw Failure(restored.error().message);
    return kj::READY_NOW;
  }
  kj::Promise<void> pressPowerButton(PressPowerButtonContext) override {
    thread_.Call([&] { device_.PressPowerButton(); });
    return kj::READY_NOW;
  }
  kj::Promise<void> throttle(ThrottleContext context) override {
    thread_.Call([&] { device_.SetThrottle(context.getParams().getLimits()); });
    return kj::READY_NOW;
  }
  kj::Promise<void> loseOutside(LoseOutsideContext) override {
    thread_.Call([&] { device_.LoseOutside(); });
    return kj::READY_NOW;
  }
  kj::Promise<void> setLink(SetLinkContext context) override {
    thread_.Call([&] { context.getResults().setLink(device_.SetLink(context.getParams().getUp())); });
    return kj::READY_NOW;
  }
  kj::Promise<void> reportNet(ReportNetContext context) override {
    thread_.Call([&] { device_.ReportNet(context.getResults().initReport()); });
    return kj::READY_NOW;
  }
  kj::Promise<void> followLog(FollowLogContext) override {
    thread_.Call([&] { device_.FollowLog(); });
    return kj::READY_NOW;
  }
  kj::Promise<void> takeOver(TakeOverContext) override {
    Result<void> taken;
    thread_.Call([&] {
      auto inheritance = recorder_.TakeOver(device_);
      if (!inheritance.ok()) {
        taken = inheritance.error();
      } else if (exits_ != nullptr) {
        exits_->StartAt(*inheritance);
      }
    });
    if (!taken.ok()) throw Failure(taken.error().message);
    return kj::READY_NOW;
  }
  kj::Promise<void> attach(AttachContext context) override {
    auto params = context.getParams();
    auto input = params.getInput().getFd();
    auto output = params.getOutput().getFd();
    // The capabilities, and with them the descriptors, live as long as `params`.
    return input.then([this, output = kj::mv(output), params](kj::Maybe<int> in) mutable {
      return output.then([this, in, params](kj::Maybe<int> out) {
        const uint8_t port = params.getPort();
        OwnFd in_fd = OrThrow(DuplicateFd(KJ_REQUIRE_NONNULL(in)));
        OwnFd out_fd = OrThrow(DuplicateFd(KJ_REQUIRE_NONNULL(out)));
        thread_.Call([&] { device_.Attach(port, std::move(in_fd), std::move(out_fd)); });
      });
    });
  }

 private:
  DeviceThread& thread_;
  DeviceModel& device_;
  Recorder& recorder_;
  ExitServer* exits_;
  StartUpMemory start_up_;
};

DeviceContext TakeContext(control::DeviceGrants::Reader grants, kj::WaitScope& wait) {
  DeviceContext context;
  const auto wiring = grants.getWiring();
  context.name = wiring.getName().cStr();
  for (auto function : wiring.getFunctions()) {
    context.functions.push_back({.slot = function.getSlot(),
                                 .bar0_address = function.getBar0(),
                                 .kicks = TakeFiles(function.getKicks(), wait),
                                 .interrupts = TakeFiles(function.getInterrupts(), wait)});
  }
  for (auto line : wiring.getLines()) {
    context.lines.push_back({.signal = TakeFile(line.getSignal(), wait),
                             .resample = line.hasResample() ? TakeFile(line.getResample(), wait) : OwnFd()});
  }
  context.files = TakeFiles(grants.getFiles(), wait);
  for (OwnFd& stage : TakeFiles(grants.getStages(), wait)) {
    context.stages.push_back({.file = std::move(stage), .successor = grants.getSuccessor()});
  }
  if (grants.hasPackets()) {
    const auto packets = grants.getPackets();
    context.packets = {.memory = TakeFile(packets.getMemory(), wait),
                       .doorbell = TakeFile(packets.getDoorbell(), wait),
                       .peer = TakeFile(packets.getPeer(), wait)};
  }
  context.settings = grants.getSettings();
  return context;
}

Recorder TakeRecorder(control::DeviceGrants::Reader grants, kj::WaitScope& wait) {
  if (!grants.hasJournal()) return Recorder();
  size_t queues = 0;
  for (auto function : grants.getWiring().getFunctions()) queues += function.getKicks().size();
  return Recorder(OrThrow(Journal::Map(TakeFile(grants.getJournal(), wait).get(), queues)), grants.getSuccessor());
}

[[noreturn]] void EndBroken(const Error& error) {
  LogLine("the vcpu-runner broke the exit protocol: " + error.message);
  ::_exit(1);
}

void Serve(const DeviceKind& kind, kj::AsyncIoContext& io, ChildSandbox& sandbox) {
  BrokerLink broker(io);
  auto host = broker.Host<control::DeviceHost>();
  auto response = host.grantsRequest().send().wait(io.waitScope);
  const auto grants = response.getGrants();

  EventLoop loop;
  Mailbox mailbox(io.unixEventPort);
  DeviceContext context = TakeContext(grants, io.waitScope);
  context.loop = &loop;
  std::optional<GuestMemory> memory;
  if (grants.getMemory().hasFile()) memory = MapGrantedMemory(grants.getMemory(), io.waitScope);
  context.memory = memory ? &*memory : nullptr;
  Recorder recorder = TakeRecorder(grants, io.waitScope);
  context.recorder = &recorder;
  if (grants.getControlsMachine()) {
    const auto machine = [&] { return broker.Host<control::DeviceHost>().machineRequest().send().getMachine(); };
    const BrokerLink::Call power_off = [machine] { return machine().powerOffRequest().send().ignoreResult(); };
    const BrokerLink::Call reset = [machine] { return machine().resetRequest().send().ignoreResult(); };
    context.power_off = [&broker, &mailbox, power_off] {
      mailbox.Post([&broker, power_off] { broker.Tell(power_off); });
    };
    context.reset = [&broker, &mailbox, reset] { mailbox.Post([&broker, reset] { broker.Tell(reset); }); };
  }

  const std::unique_ptr<DeviceModel> device = kind.create(std::move(context));
  recorder.Attach(*device);
  OwnFd doorbell;
  std::optional<ExitServer> server;
  if (const auto wiring = grants.getWiring(); wiring.hasChannel()) {
    ChannelMemory* channel = OrThrow(MapChannel(TakeFile(wiring.getChannel().getMemory(), io.waitScope).get()));
    doorbell = TakeFile(wiring.getChannel().getDoorbell(), io.waitScope);
    // Edge-triggered: the ring says what there is to do, so the count is never read.
    loop.Watch(doorbell.get(), EPOLLIN | EPOLLET, {});
    std::vector<uint64_t> region_sizes;
    for (auto region : wiring.getRegions()) region_sizes.push_back(region.getSize());
    server.emplace(channel, *device, recorder, std::move(region_sizes), grants.getSpinNs(), EndBroken);
    loop.SetPoller(&*server);
  }
  OwnFd pulse;
  if (grants.hasPulse()) {
    pulse = TakeFile(grants.getPulse(), io.waitScope);
    // Edge-triggered, so that an end of it wakes nobody for good.
    loop.Watch(pulse.get(), EPOLLIN | EPOLLET, [&] { AnswerPulse(pulse, device->AskPulse()); });
  }
  DeviceThread thread(loop);
  thread.Start();

  sandbox.Close(grants.getSandbox(), {{RLIMIT_NOFILE, kMaxDescriptors}, {RLIMIT_MEMLOCK, 0}}, kind.policy,
                kind.heap_bytes);

  const auto make_server = [&]() -> control::Device::Client {
    return kj::heap<DeviceServer>(thread, *device, recorder, server ? &*server : nullptr, io.provider->getTimer());
  };
  auto ready = host.readyRequest();
  ready.setDevice(make_server());
  sandbox.Report(ready.initSandbox());
  ready.send().wait(io.waitScope);
  sandbox.Reported();

  const auto letters = mailbox.Serve().eagerlyEvaluate(nullptr);
  broker.Serve([&] {
    auto go_on = broker.Host<control::DeviceHost>().goOnRequest();
    go_on.setDevice(make_server());
    return go_on.send().ignoreResult();
  });
  // Without a broker there is nothing to serve; the kernel takes back the rest.
  ::_exit(0);
}

}  // namespace

SyscallPolicy RuntimePolicy() {
  SyscallPolicy policy;
  policy.Allow(SYS_epoll_wait, "both event loops sleep here");
  policy.Allow(SYS_recvmsg, "RPC, with descriptors; another broker's connection");
  policy.Allow(SYS_epoll_ctl, "what to wait for: another broker's connection, streams");
  policy.Allow(SYS_read, "eventfds, streams");
  policy.Allow(SYS_write, "eventfds: interrupts, wake-ups; the log, streams");
  policy.Allow(SYS_writev, "RPC");
  policy.Allow(SYS_futex, "exit ring, mailbox, the two threads' locks");
  policy.Allow(SYS_close, "descriptors that came with RPC messages");
  policy.Allow(SYS_exit_group, "the end, with the broker or a peer that broke the protocol");
  policy.Allow(SYS_clock_gettime, "where the vDSO has no fast clock");
  AllowForgetting(policy);
  return policy;
}

void SetNonBlocking(const OwnFd& fd) {
  if (!fd.valid()) return;
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) ThrowErrno("make a stream non-blocking");
}

int RunDeviceProcess(const DeviceKind& kind, int argc, char** argv) {
  return RunChild(
      argc, argv, kind.policy, [&](kj::AsyncIoContext& io, ChildSandbox& sandbox) { Serve(kind, io, sandbox); },
      kind.scope);
}

}  // namespace bulkhead::device
