// SPDX-License-Identifier: Apache-2.0
// The first serial port: loopback, the transmitter-empty interrupt at IRQ 4, and then an echo of each line
// received
// ("ready" is printed on it first) until one is "quit". echo=0 leaves that out.
#include "tests/payload/lib/apic.h"

using namespace payload;

namespace {

constexpr uint16_t kPort = 0x3F8;
constexpr uint16_t kInterruptEnable = kPort + 1;
constexpr uint16_t kIdentification = kPort + 2;
constexpr uint16_t kModemControl = kPort + 4;
constexpr uint16_t kLineStatus = kPort + 5;
constexpr uint16_t kModemStatus = kPort + 6;
constexpr uint8_t kDataReady = 0x01;
constexpr uint8_t kTransmitterEmpty = 0x20;
constexpr uint8_t kOut2AndReady = 0x0B;  // OUT2 connects the interrupt on a PC
constexpr uint8_t kLoop = 0x10;
constexpr unsigned kIrq = 4;
constexpr uint8_t kVector = kFirstVector;

volatile unsigned g_received;
volatile unsigned g_empty;

// Edge-triggered: reads causes until there is none, so that the line falls (16550 data sheet, IIR).
void OnSerial(uint8_t) {
  for (unsigned i = 0; i < 100; ++i) {
    const uint8_t cause = In8(kIdentification) & 0x0F;
    if ((cause & 1) != 0) return;
    if (cause == 2) g_empty = g_empty + 1;
    if (cause == 4 || cause == 0xC) {
      g_received = g_received + 1;
      Out8(kInterruptEnable, 0);  // the byte is read elsewhere
      return;
    }
  }
}

void Loopback() {
  Out8(kInterruptEnable, 0);
  Out8(kIdentification, 0x07);  // queues on and empty
  Out8(kModemControl, kLoop | 0x0F);
  // In loop mode DTR, RTS, OUT1, OUT2 are seen as DSR, CTS, RI, DCD.
  if (!ExpectEqual("serial-loopback", "modem status", In8(kModemStatus) & 0xF0, 0xF0)) return;
  for (unsigned value = 1; value < 256; value += 23) {
    Out8(kPort, static_cast<uint8_t>(value));
    if (!Expect("serial-loopback", "nothing received", Await([] { return (In8(kLineStatus) & kDataReady) != 0; })))
      return;
    if (!ExpectEqual("serial-loopback", "byte", In8(kPort), value)) return;
  }
  if (ExpectEqual("serial-loopback", "data left", In8(kLineStatus) & kDataReady, 0)) Pass("serial-loopback");
}

void TransmitterInterrupt() {
  SetHandler(kVector, OnSerial);
  RoutePin(kIrq, kVector, false);
  Out8(kModemControl, kOut2AndReady);
  InterruptsOn();
  Out8(kInterruptEnable, 2);
  if (!Expect("serial-interrupt", "none on enabling it", Await([] { return g_empty > 0; }))) return;
  for (const char* c = "interrupt\r\n"; *c != 0; ++c) {
    const unsigned before = g_empty;
    Out8(kPort, static_cast<uint8_t>(*c));
    if (!Expect("serial-interrupt", "none after a byte", Await([before] { return g_empty > before; }))) return;
  }
  Out8(kInterruptEnable, 0);
  Pass("serial-interrupt");
}

void Put(const char* text) {
  for (; *text != 0; ++text) {
    while ((In8(kLineStatus) & kTransmitterEmpty) == 0) Pause();
    Out8(kPort, static_cast<uint8_t>(*text));
  }
}

// Waits for the receive interrupt, as long as it takes: input comes when it comes.
char Get() {
  for (;;) {
    if ((In8(kLineStatus) & kDataReady) != 0) return static_cast<char>(In8(kPort));
    const unsigned before = g_received;
    Out8(kInterruptEnable, 1);
    while (g_received == before) Pause();
  }
}

void Echo() {
  Put("ready\n");
  Print("ready\n");
  for (;;) {
    static char line[256];
    unsigned used = 0;
    for (;;) {
      const char c = Get();
      if (c == '\n' || c == '\r') break;
      if (used + 1 < sizeof line) line[used++] = c;
    }
    line[used] = 0;
    if (TextEquals(line, "quit")) break;
    Put("echo ");
    Put(line);
    Put("\n");
  }
  Pass("serial-echo");
}

}  // namespace

void Main() {
  Loopback();
  TransmitterInterrupt();
  if (Parameter("echo", 1) != 0) Echo();
}
