// SPDX-License-Identifier: Apache-2.0
// The virtio console: sends "ready" on it, then echoes each line received until one is "quit".
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr unsigned kReceive = 0, kTransmit = 1;
constexpr uint32_t kForever = ~0u;
VirtioDevice g_device;
VirtioQueue g_queues[2];
char g_line[512];
unsigned g_used;

bool Send(const char* text, unsigned bytes) {
  const Buffer buffer{const_cast<char*>(text), bytes, false};
  uint32_t used;
  return bytes == 0 || Transact(&g_queues[kTransmit], &buffer, 1, &used);
}

bool EchoLine() { return Send("echo ", 5) && Send(g_line, g_used) && Send("\n", 1); }

// False once the line is "quit".
bool Take(const char* bytes, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    if (bytes[i] != '\n' && bytes[i] != '\r') {
      if (g_used + 1 < sizeof g_line) g_line[g_used++] = bytes[i];
      continue;
    }
    g_line[g_used] = 0;
    if (TextEquals(g_line, "quit")) return false;
    if (!EchoLine()) {
      Fail("vconsole", "sending is not answered");
      Done();
    }
    g_used = 0;
  }
  return true;
}

}  // namespace

void Main() {
  static char bytes[64];
  if (!g_device.Find(kVirtioConsole)) {
    Fail("vconsole", "no virtio console");
    return;
  }
  if (!Expect("vconsole", "features refused", g_device.Start(0))) return;
  for (uint16_t i = 0; i < 2; ++i) {
    if (!Expect("vconsole", "queue refused", g_device.SetUpQueue(i, &g_queues[i]))) return;
  }
  g_device.Ready();
  if (!Expect("vconsole", "sending is not answered", Send("ready\n", 6))) return;
  Print("ready\n");
  uint16_t head;
  uint32_t used;
  do {
    const Buffer buffer{bytes, sizeof bytes, true};
    g_queues[kReceive].Add(&buffer, 1);
    g_queues[kReceive].Notify();
    while (!Await([&] { return g_queues[kReceive].TakeUsed(&head, &used); }, kForever)) Pause();
    if (!Expect("vconsole", "more received than there is room", used <= sizeof bytes)) return;
  } while (Take(bytes, used));
  Pass("vconsole");
}
