// SPDX-License-Identifier: Apache-2.0
// Freestanding guests on this machine's KVM, through the real command and every real process.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <sstream>

#include "tests/process/harness.h"
#include "tests/process/vhost.h"

namespace bulkhead::test {
namespace {

std::vector<std::string> RunArguments(const std::string& payload, const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{"run",       "--name", UniqueName(),      "--kernel", Payload(payload),
                                     "--console", "none",   "--debug-console", "stdio"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// Every line of the payload's report must be a PASS, and it must have got to its end.
void ExpectAllPassed(const Finished& run) {
  EXPECT_EQ(run.status, 0) << run.errors << run.output;
  std::istringstream lines(run.output);
  std::string line, last;
  int passed = 0;
  while (std::getline(lines, line)) {
    if (line.ends_with('\r')) line.pop_back();
    EXPECT_FALSE(line.starts_with("FAIL")) << line;
    if (line.starts_with("PASS")) ++passed;
    if (!line.empty()) last = line;
  }
  EXPECT_GT(passed, 0) << run.output;
  EXPECT_EQ(last, "DONE") << run.output << run.errors;
}

TEST(PayloadGuest, SaysHelloAndPowersOff) {
  const Finished run = RunBulkhead(RunArguments("hello"));
  EXPECT_EQ(run.status, 0) << run.errors;
  EXPECT_NE(run.output.find("hello"), std::string::npos);
}

TEST(PayloadGuest, SerialOutputArrivesWholeOnStdout) {
  const Finished run = RunBulkhead({"run", "--name", UniqueName(), "--kernel", Payload("hello"), "--console", "stdio"});
  EXPECT_EQ(run.status, 0) << run.errors;
  EXPECT_NE(run.output.find("hello"), std::string::npos) << run.output;
}

TEST(PayloadGuest, PortAccessesOfAllWidthsReachTheirDevices) { ExpectAllPassed(RunBulkhead(RunArguments("pio"))); }

TEST(PayloadGuest, MemoryMappedAccessesReachTheirDevicesAndBarsMove) {
  ExpectAllPassed(RunBulkhead(RunArguments("mmio")));
}

TEST(PayloadGuest, ReadsAndWritesADisk) {
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", 16 << 20);
  ExpectAllPassed(RunBulkhead(RunArguments("blk", {"--disk", image + ",id=disk-one", "--append", "sectors=32768"})));
}

TEST(PayloadGuest, ReadsAndWritesADiskByManyQueues) {
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", 16 << 20);
  ExpectAllPassed(RunBulkhead(RunArguments("blk", {"--disk", image, "-c", "4", "--append", "sectors=32768"})));
}

TEST(PayloadGuest, AHeaderNamesTheFilesBelowOnlyIfItsUserLetsIt) {
  const TempDir dir;
  const std::string base = dir.MakeImage("base.img", 16 << 20);
  const std::string middle = dir.path() + "/middle.qcow2";
  const std::string top = dir.path() + "/top.qcow2";
  ASSERT_EQ(RunBulkhead({"img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle}).status, 0);
  ASSERT_EQ(RunBulkhead({"img", "create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", top, "16M"}).status,
            0);
  const auto with = [&](const std::string& words) {
    return RunBulkhead(RunArguments("blk", {"--disk", top + words, "--append", "sectors=32768"}));
  };
  const Finished silent = with("");
  EXPECT_EQ(silent.status, 1);
  EXPECT_NE(silent.errors.find("backing-from-header"), std::string::npos) << silent.errors;
  ExpectAllPassed(with(",backing-from-header"));
}

// At 512 bytes a second it would take the guest hours: longer than it waits for a disk.
TEST(PayloadGuest, ReadsAndWritesADiskWhoseLimitsChangeMeanwhile) {
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", 16 << 20);
  const std::string name = UniqueName();
  Command vm({"run", "--name", name, "--kernel", Payload("blk"), "--append", "sectors=32768", "--console", "none",
              "--debug-console", "stdio", "--disk", image + ",bps=512,iops=1000000"});
  ASSERT_TRUE(vm.WaitForOutput("PASS")) << vm.errors();
  const Finished unknown = RunBulkhead({"throttle", name, "disk7", "off"});
  EXPECT_EQ(unknown.status, 1);
  EXPECT_NE(unknown.errors.find("it has disk0"), std::string::npos) << unknown.errors;
  EXPECT_EQ(RunBulkhead({"throttle", name, "disk0", "bps=1G,bps-burst=2G"}).status, 0);
  EXPECT_EQ(vm.Wait(), 0) << vm.errors();
  EXPECT_EQ(vm.output().find("FAIL"), std::string::npos) << vm.output();
  EXPECT_NE(vm.output().find("DONE"), std::string::npos) << vm.output();
}

// The benchmark's guest, which other VMMs enter by PVH too.
TEST(PayloadGuest, EnteredByPvhRunsLoadsOnADisk) {
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", 16 << 20);
  const std::string loads = "load0=write,4096,32,100,4096 load1=read,1048576,32,40,1048576";
  Command command(RunArguments("bench-blk", {"--disk", image, "--append", loads}));
  EXPECT_TRUE(command.WaitForOutput("\nend ")) << command.output() << command.errors();
  EXPECT_EQ(command.output().find("FAIL"), std::string::npos) << command.output();
}

TEST(PayloadGuest, GetsEntropy) { ExpectAllPassed(RunBulkhead(RunArguments("rng"))); }

// A network of its own for the command, with a bridge.
bool MakeBridge() {
  if (::unshare(CLONE_NEWNET) != 0) return false;
  const OwnFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "br0");
  request.ifr_flags = IFF_UP;
  return ::ioctl(socket.get(), SIOCBRADDBR, request.ifr_name) == 0 &&
         ::ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0;
}

TEST(PayloadGuest, CarriesFramesBetweenInterfacesOnABridge) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a bridge";
  const Finished run = RunBulkhead(RunArguments("net", {"--net", "bridge=br0", "--net", "bridge=br0,id=second"}), "",
                                   [](Launch&) { return MakeBridge(); });
  if (run.status == kNotPrepared) GTEST_SKIP() << "this host has no bridges";
  ExpectAllPassed(run);
}

TEST(PayloadGuest, CarriesFramesByVhost) {
  if (const std::string why = WhyNoVhost(); !why.empty()) GTEST_SKIP() << why;
  const std::string words = "bridge=br0,vhost=on,mac-spoofing=allow";
  const Finished run =
      RunBulkhead(RunArguments("net", {"--net", words, "--net", words + ",id=second", "--append", "spoofing=1"}), "",
                  [](Launch&) { return MakeBridge(); });
  if (run.status == kNotPrepared) GTEST_SKIP() << "this host has no bridges";
  ExpectAllPassed(run);
}

TEST(PayloadGuest, GetsMessageSignalledInterrupts) { ExpectAllPassed(RunBulkhead(RunArguments("msix"))); }

TEST(PayloadGuest, StartsItsOtherProcessors) {
  for (const int cpus : {1, 2, 4}) {
    const std::string count = std::to_string(cpus);
    ExpectAllPassed(RunBulkhead(RunArguments("smp", {"-c", count, "--append", "cpus=" + count})));
  }
}

TEST(PayloadGuest, SeesItsMemoryBelowAndAboveTheHole) {
  for (const std::string megabytes : {"128", "3072", "6144"}) {
    ExpectAllPassed(RunBulkhead(RunArguments("memory", {"-m", megabytes, "--append", "memory=" + megabytes})));
  }
}

TEST(PayloadGuest, ReadsTheClockAndGetsItsInterrupts) { ExpectAllPassed(RunBulkhead(RunArguments("rtc"))); }

TEST(PayloadGuest, EchoesOnTheSerialPort) {
  Command command({"run", "--name", UniqueName(), "--kernel", Payload("serial")});
  ASSERT_TRUE(command.WaitForOutput("ready")) << command.output() << command.errors();
  command.SendInput("one line\nquit\n");
  EXPECT_EQ(command.Wait(), 0) << command.errors();
  EXPECT_NE(command.output().find("echo one line"), std::string::npos) << command.output();
  EXPECT_EQ(command.output().find("FAIL"), std::string::npos) << command.output();
}

// Where the processor does it, it is no failure; where KVM cannot emulate it, the line says so, where and which bytes.
TEST(PayloadGuest, InstructionThatKvmCannotEmulateIsNamed) {
  const Finished run = RunBulkhead(RunArguments("unemulated"));
  EXPECT_EQ(run.output.find("PASS executed"), std::string::npos);
  EXPECT_EQ(run.status, 1);
  for (const char* word : {"cannot emulate", "rip 0x", "bytes", "bulkhead check"}) {
    EXPECT_NE(run.errors.find(word), std::string::npos) << word << " in " << run.errors;
  }
}

TEST(PayloadGuest, ResetEndsTheVmWithoutBeingAFailure) {
  for (const std::string how : {"cf9", "i8042", "triple"}) {
    const Finished run = RunBulkhead(RunArguments("reset", {"--append", "how=" + how}));
    EXPECT_EQ(run.status, 0) << how << ": " << run.errors;
    // Nobody asked for this one: it is told of.
    EXPECT_EQ(run.errors.find("triple fault") != std::string::npos, how == "triple") << run.errors;
  }
}

TEST(PayloadGuest, ResetBootsAgainWhereAsked) {
  Command command(RunArguments("reset", {"--append", "how=cf9", "--reboot"}));
  const auto boots = [&] {
    size_t count = 0;
    for (size_t at = 0; (at = command.output().find("resetting", at)) != std::string::npos; ++at) ++count;
    return count;
  };
  EXPECT_TRUE(command.WaitUntil([&] { return boots() >= 3; })) << command.output() << command.errors();
}

TEST(PayloadGuest, EchoesOnTheVirtioConsole) {
  Command command({"run", "--name", UniqueName(), "--kernel", Payload("vconsole"), "--console", "none",
                   "--virtio-console", "stdio"});
  ASSERT_TRUE(command.WaitForOutput("ready")) << command.output() << command.errors();
  command.SendInput("one line\nquit\n");
  EXPECT_EQ(command.Wait(), 0) << command.errors();
  EXPECT_NE(command.output().find("echo one line"), std::string::npos) << command.output();
}

// Each console on a socket of its own; a second peer takes the place of the first.
void ExpectEchoOverSockets(const std::string& payload, const std::vector<std::string>& consoles,
                           const std::string& at) {
  std::vector<std::string> arguments{"run", "--name", UniqueName(), "--kernel", Payload(payload)};
  arguments.insert(arguments.end(), consoles.begin(), consoles.end());
  Command command(arguments);
  ASSERT_TRUE(Eventually([&] { return ConnectTo(at).valid(); })) << command.errors();
  const OwnFd peer = ConnectTo(at);
  ASSERT_TRUE(peer.valid());
  const std::string input = "one line\nquit\n";
  ASSERT_EQ(::write(peer.get(), input.data(), input.size()), static_cast<ssize_t>(input.size()));
  EXPECT_NE(ReadToEnd(peer.get()).find("echo one line"), std::string::npos);
  EXPECT_EQ(command.Wait(), 0) << command.errors();
  EXPECT_FALSE(ConnectTo(at).valid());
}

TEST(PayloadGuest, ConsolesAnswerOnUnixSockets) {
  const TempDir dir;
  const std::string serial = dir.Path("serial"), virtio = dir.Path("virtio");
  const std::vector<std::string> consoles{"--console", "unix=" + serial, "--virtio-console", "unix=" + virtio};
  ExpectEchoOverSockets("serial", consoles, serial);
  ExpectEchoOverSockets("vconsole", consoles, virtio);
}

TEST(PayloadGuest, SerialPortIsAPseudoTerminalWhereAsked) {
  Command command({"run", "--name", UniqueName(), "--kernel", Payload("serial"), "--console", "pty"});
  ASSERT_TRUE(command.WaitUntil([&] { return command.errors().find("/dev/pts/") != std::string::npos; }));
  const std::string line = command.errors().substr(command.errors().find("/dev/pts/"));
  const OwnFd terminal(::open(line.substr(0, line.find('\n')).c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal.valid()) << line;
  ASSERT_EQ(::write(terminal.get(), "one line\nquit\n", 14), 14);
  EXPECT_EQ(command.Wait(), 0) << command.errors();
}

TEST(PayloadGuest, DeadDeviceReadsAllOnesAndTheVmGoesOn) {
  const std::string name = UniqueName();
  Command command({"run", "--name", name, "--kernel", Payload("deaddev"), "--console", "none", "--debug-console",
                   "stdio", "--device-restarts", "0"});
  ASSERT_TRUE(command.WaitForOutput("alive")) << command.errors();
  ASSERT_EQ(SignalTo(name, "console", SIGKILL), 0);
  EXPECT_EQ(command.Wait(), 0) << command.errors();
  EXPECT_NE(command.output().find("PASS dead-device-reads-all-ones"), std::string::npos) << command.output();
}

TEST(PayloadGuest, HungDeviceReadsAllOnesAfterItsDeadline) {
  const std::string name = UniqueName();
  Command command({"run", "--name", name, "--kernel", Payload("deaddev"), "--console", "none", "--debug-console",
                   "stdio", "--device-restarts", "0", "--exit-deadline", "50"});
  ASSERT_TRUE(command.WaitForOutput("alive")) << command.errors();
  ASSERT_EQ(SignalTo(name, "console", SIGSTOP), 0);
  EXPECT_EQ(command.Wait(), 0) << command.errors();
  EXPECT_NE(command.output().find("PASS dead-device-reads-all-ones"), std::string::npos) << command.output();
}

}  // namespace
}  // namespace bulkhead::test
