// SPDX-License-Identifier: Apache-2.0
// libslirp between a packet link and the host's sockets: gives it the guest's frames and puts its own into the ring,
// keeps its timers and waits for its sockets. While half of the ring towards the guest is taken up, nothing is read
// from the host, so that what the guest does not take in waits where it came from. Usernet process: main thread before
// lock-down, then the device thread. Frames are the guest's, and the rings' other end may be an attacker's: hostile.
#pragma once

#include <libslirp.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "device-procs/common/runtime.h"
#include "device-procs/usernet/slirp/socket_calls.h"
#include "ipc/packet_ring.h"

namespace bulkhead::usernet {

class Stack final : private device::Poller {
 public:
  // Called once, when the peer broke the packet ring; does not return.
  using Broken = std::function<void(const Error&)>;

  // `loop` outlives it; `listeners` are the sockets of settings.hostForwards. Throws FatalError.
  Stack(device::EventLoop& loop, control::UserNet::Reader settings, device::PacketResources packets,
        std::vector<OwnFd> listeners, Broken broken);

  void Resume() { running_ = true; }
  // Nothing is read from guest or host until then.
  void Pause();

 private:
  struct Timer {
    SlirpTimerId id;
    void* argument;
    int64_t expires_ms = -1;  // -1: not set
  };
  struct Library {
    void operator()(Slirp* slirp) const { ::slirp_cleanup(slirp); }
  };

  void Drain() override;
  bool PrepareToSleep() override;
  int SleepMs() override { return sleep_ms_; }

  static SlirpCb Callbacks();
  void AddForwards(control::UserNet::Reader settings);
  int AddPoll(int fd, int events);
  void Watch();
  void AskLibrary();
  void ServeSockets();
  bool Round();
  bool TakeEvents();
  void RunTimers();
  void TakeFrames();
  void SendFrame(const void* frame, size_t bytes);

  SocketCalls calls_;
  const std::vector<OwnFd> listeners_;
  const OwnFd doorbell_;
  const OwnFd peer_;
  const Broken broken_;
  PacketLinkMemory* const memory_;
  PacketProducer to_guest_;
  PacketConsumer from_guest_;
  std::vector<std::byte> frame_;

  OwnFd epoll_;  // of the library's sockets
  struct Polled {
    int fd;
    uint32_t wanted;
    uint32_t seen;
  };
  std::vector<Polled> polled_;       // in this round
  std::map<int, uint32_t> watched_;  // what epoll_ waits for
  std::map<int, size_t> polled_by_fd_;
  std::vector<std::unique_ptr<Timer>> timers_;
  int sleep_ms_ = -1;
  uint32_t timeout_ms_ = UINT32_MAX;  // the library's own
  int64_t accepts_at_ms_ = 0;         // no connection is looked for before
  bool running_ = false;
  bool congested_ = false;
  bool more_frames_ = false;
  bool gathers_ = false;  // what the sockets have, before the guest is told of it
  uint32_t single_rounds_ = 0;
  std::unique_ptr<Slirp, Library> slirp_;
};

}  // namespace bulkhead::usernet
