// SPDX-License-Identifier: Apache-2.0
// A device process that an attacker owns, in a whole VM: it has the grants, the ring and the filter of rng, and lies to
// the runner and the broker as the VM's name says: "NAME-LIE". Its bombs go off as if there were no filter, while it
// serves the guest as it should.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <map>
#include <thread>

#include "device-procs/rng/policy.h"
#include "ipc/broker.capnp.h"
#include "ipc/child.h"
#include "ipc/exit_codec.h"
#include "ipc/rpc.h"
#include "tests/jail/no_policy.h"

namespace bulkhead::jail {
namespace {

constexpr rlim_t kMaxDescriptors = 512;
// Longer than a VM takes to start on the slowest of hosts: a full ring is emptied when its guest first asks something.
constexpr int64_t kDeadlineNs = int64_t{60'000'000'000};
constexpr int kMany = 100'000;

// The liar's end of the exit channel: everything in it is its to write.
struct Channel {
  ChannelMemory* memory;
  RingConsumer requests;
  RingProducer replies;

  explicit Channel(ChannelMemory* shared) : memory(shared), requests(&shared->requests), replies(&shared->replies) {}
  ExitRequest Next() {
    Frame frame;
    while (!OrThrow(requests.Pop(frame))) ::usleep(100);
    return OrThrow(DecodeRequest(frame));
  }
  void Push(const ExitReply& reply) {
    Frame frame;
    EncodeReply(reply, frame);
    PushBytes(std::span(frame.bytes).first(frame.length_bytes));
  }
  void PushBytes(std::span<const std::byte> bytes) {
    OrThrow(replies.Push(bytes, Deadline::After(kDeadlineNs)));
    replies.WakeFutex();
  }
  // Makes the runner look, whatever is there.
  void Wake() { replies.WakeFutex(); }
};

using Lie = std::function<void(Channel&)>;

// Answers honestly until the first read, which is answered by `answer`.
Lie OnRead(std::function<void(Channel&, const ExitRequest&)> answer) {
  return [answer](Channel& channel) {
    for (;;) {
      const ExitRequest request = channel.Next();
      if (request.kind == exit::Request::Kind::READ) answer(channel, request);
      if (request.kind == exit::Request::Kind::WRITE) channel.Push({.sequence = request.sequence});
    }
  };
}
Lie RawReply(uint32_t length_bytes, uint8_t fill) {
  return OnRead([=](Channel& channel, const ExitRequest&) {
    RingMemory& ring = channel.memory->replies;
    const uint32_t head = ring.head.load();
    RingSlot& slot = ring.slots[head % kRingSlots];
    slot.length_bytes = length_bytes;
    slot.bytes.fill(std::byte{fill});
    ring.head.store(head + 1);
    channel.Wake();
  });
}
Lie MoveHead(int32_t by) {
  return OnRead([=](Channel& channel, const ExitRequest&) {
    channel.memory->replies.head.fetch_add(static_cast<uint32_t>(by));
    channel.Wake();
  });
}
Lie Reply(ExitReply reply) {
  return OnRead([reply](Channel& channel, const ExitRequest& request) {
    ExitReply sent = reply;
    sent.sequence += request.sequence;
    channel.Push(sent);
  });
}
// Every effect that a write may have, in answer to each write; reads get the sequence they asked for.
Lie Effects(ExitReply effect) {
  return [effect](Channel& channel) {
    for (;;) {
      const ExitRequest request = channel.Next();
      ExitReply sent = request.kind == exit::Request::Kind::WRITE ? effect : ExitReply{};
      sent.sequence = request.sequence;
      if (request.kind != exit::Request::Kind::POSTED_WRITE) channel.Push(sent);
    }
  };
}

const std::map<std::string, Lie>& RingLies() {
  static const std::map<std::string, Lie> lies{
      {"length", RawReply(~uint32_t{0}, 0)},
      {"odd_length", RawReply(13, 0)},
      {"empty", RawReply(0, 0)},
      {"pointers", RawReply(64, 0xFF)},
      {"far_pointers", RawReply(120, 0x02)},
      {"sequence", Reply({.sequence = 1})},
      {"backward", MoveHead(-1)},
      {"forward", MoveHead(1'000'000)},
      {"decode_for_a_read", Reply({.has_decode = true, .memory_enabled = true, .bar0_address = 0})},
      {"bar_over_memory", Effects({.has_decode = true, .memory_enabled = true, .bar0_address = 0x1000})},
      {"bar_over_apic", Effects({.has_decode = true, .memory_enabled = true, .bar0_address = 0xFEE0'0000})},
      {"bar_beyond", Effects({.has_decode = true, .memory_enabled = true, .bar0_address = ~uint64_t{0x7FFF}})},
      {"route_of_others",
       Effects({.has_route = true, .vector = 0xFFFF, .route_address = 0xFEE0'0000, .deliver = true})},
      {"unasked",
       [](Channel& channel) {
         for (int i = 0; i < kMany; ++i) channel.Push({.sequence = static_cast<uint32_t>(i)});
       }},
      {"silent", [](Channel&) {}},
      {"garbage", OnRead([](Channel&, const ExitRequest&) {
         const std::string garbage(4096, '\xFF');
         (void)!::write(kControlFd, garbage.data(), garbage.size());
       })},
      {"forbidden_call", OnRead([](Channel&, const ExitRequest&) { ::syscall(SYS_socket, 1, 1, 0); })},
  };
  return lies;
}

// Interrupts that nobody asked for, as fast as they go, while reads are answered.
void StormInterrupts(const std::vector<OwnFd>& interrupts) {
  for (int i = 0; i < kMany; ++i) {
    for (const OwnFd& interrupt : interrupts) SignalEventFd(interrupt.get());
  }
}

// Every descendant forks on.
[[noreturn]] void ForkWithoutEnd() {
  for (;;) ::fork();
}
// Memory is only had once it is written.
[[noreturn]] void FillMemoryWithoutEnd() {
  constexpr size_t kBytes = size_t{64} << 20;
  for (;;) {
    void* memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) ::usleep(1000);
  }
}

// What a liar needs beside rng's own calls is for its own sleep and says nothing of the wall, which the attempts try. A
// bomb has lost its filter: what ends it is to be the wall behind.
SyscallPolicy PolicyFor(const std::string& lie) {
  if (lie.ends_with("_bomb")) return NoPolicy();
  SyscallPolicy policy = device::RngPolicy();
  policy.Allow(SYS_clock_nanosleep, "waiting for requests");
  policy.Allow(SYS_pause, "having lied");
  return policy;
}

// Calls that are allowed, without end; those that are not; and then bytes that are no call at all.
void FloodRpc(control::DeviceHost::Client& host, kj::WaitScope& wait) {
  for (int i = 0; i < 1000; ++i) {
    host.grantsRequest().send().ignoreResult().catch_([](kj::Exception&&) {}).wait(wait);
    host.readyRequest().send().ignoreResult().catch_([](kj::Exception&&) {}).wait(wait);
    host.castAs<control::VmControl>().killRequest().send().ignoreResult().catch_([](kj::Exception&&) {}).wait(wait);
    host.castAs<control::Broker>().createVmRequest().send().ignoreResult().catch_([](kj::Exception&&) {}).wait(wait);
    host.castAs<control::MachineControl>()
        .powerOffRequest()
        .send()
        .ignoreResult()
        .catch_([](kj::Exception&&) {})
        .wait(wait);
  }
  const std::string garbage(4096, '\xFF');
  for (int i = 0; i < 16; ++i) {
    if (::write(kControlFd, garbage.data(), garbage.size()) < 0) break;
  }
}

// Calls without end and without waiting for answers, so that some have always come in and not been carried out.
void FloodRpcToTheEnd(control::DeviceHost::Client& host, kj::WaitScope& wait) {
  for (;;) {
    kj::Vector<kj::Promise<void>> calls;
    for (int i = 0; i < 100; ++i) {
      calls.add(host.readyRequest().send().ignoreResult().catch_([](kj::Exception&&) {}));
      calls.add(host.grantsRequest().send().ignoreResult().catch_([](kj::Exception&&) {}));
    }
    kj::joinPromises(calls.releaseAsArray()).wait(wait);
  }
}

class LyingDevice final : public control::Device::Server {
 public:
  explicit LyingDevice(kj::Own<kj::PromiseFulfiller<void>> running) : running_(kj::mv(running)) {}

 private:
  kj::Promise<void> load(LoadContext) override { return kj::READY_NOW; }
  kj::Promise<void> resume(ResumeContext) override {
    running_->fulfill();
    return kj::READY_NOW;
  }
  // And never finishes what it has in hand.
  kj::Promise<void> pause(PauseContext) override { return kj::NEVER_DONE; }

  kj::Own<kj::PromiseFulfiller<void>> running_;
};

void Serve(const std::string& lie, kj::AsyncIoContext& io, ChildSandbox& sandbox) {
  RpcConnection broker(*io.lowLevelProvider, OwnFd(kControlFd));
  auto host = broker.Bootstrap<control::DeviceHost>();
  auto response = host.grantsRequest().send().wait(io.waitScope);
  const auto grants = response.getGrants();
  Channel channel(OrThrow(MapChannel(TakeFile(grants.getWiring().getChannel().getMemory(), io.waitScope).get())));
  const std::vector<OwnFd> interrupts = TakeFiles(grants.getWiring().getFunctions()[0].getInterrupts(), io.waitScope);
  const auto ring_lie = RingLies().find(lie);
  // Both are past their start-up calls before the filter closes.
  std::atomic<int> started = 0;
  std::atomic<bool> walled = false;
  std::thread device([&] {
    ++started;
    if (ring_lie != RingLies().end()) {
      ring_lie->second(channel);
    } else {
      Effects({})(channel);
    }
    for (;;) ::pause();
  });
  device.detach();
  std::thread storm([&] {
    ++started;
    if (lie == "storm") StormInterrupts(interrupts);
    while (!walled) ::usleep(100);
    if (lie == "fork_bomb") ForkWithoutEnd();
    if (lie == "memory_bomb") FillMemoryWithoutEnd();
    for (;;) ::pause();
  });
  storm.detach();
  while (started < 2) ::usleep(100);

  sandbox.Close(grants.getSandbox(), {{RLIMIT_NOFILE, kMaxDescriptors}}, PolicyFor(lie));
  auto ready = host.readyRequest();
  auto running = kj::newPromiseAndFulfiller<void>();
  ready.setDevice(kj::heap<LyingDevice>(kj::mv(running.fulfiller)));
  sandbox.Report(ready.initSandbox());
  ready.send().wait(io.waitScope);
  sandbox.Reported();
  walled = true;
  if (lie.ends_with("flood")) {
    // Whoever goes before the VM runs ends it.
    running.promise.wait(io.waitScope);
    if (lie == "endless_flood") FloodRpcToTheEnd(host, io.waitScope);
    FloodRpc(host, io.waitScope);
  }
  broker.OnDisconnect().wait(io.waitScope);
  ::_exit(0);
}

}  // namespace
}  // namespace bulkhead::jail

// "bulkhead:NAME-LIE rng".
int main(int argc, char** argv) {
  using namespace bulkhead;
  const std::string title = argc > 0 ? argv[0] : "";
  const size_t dash = title.rfind('-'), space = title.rfind(' ');
  const std::string lie = dash != std::string::npos && space > dash ? title.substr(dash + 1, space - dash - 1) : "";
  return RunChild(argc, argv, SyscallPolicy(),
                  [&](kj::AsyncIoContext& io, ChildSandbox& sandbox) { jail::Serve(lie, io, sandbox); });
}
