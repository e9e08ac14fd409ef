// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/options.h"

#include <gtest/gtest.h>

#include "broker/launcher/suggestion.h"

namespace bulkhead::launcher {
namespace {

using Kind = StreamOption::Kind;
using Command = CommandLine::Command;

CommandLine RunWith(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"run", "--kernel", "vmlinuz"});
  return ParseCommandLine(arguments);
}

// The one line that a wrong command line gets.
std::string ErrorOf(const std::vector<std::string>& arguments) {
  try {
    ParseCommandLine(arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

bool Has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(MemorySize, ANumberAloneIsMebibytes) { EXPECT_EQ(ParseMemory("512"), uint64_t{512} << 20); }

TEST(MemorySize, SuffixesAreBinaryAndOfEitherCase) {
  EXPECT_EQ(ParseMemory("32768K"), uint64_t{32} << 20);
  EXPECT_EQ(ParseMemory("128M"), uint64_t{128} << 20);
  EXPECT_EQ(ParseMemory("2g"), uint64_t{2} << 30);
  EXPECT_EQ(ParseMemory("1T"), uint64_t{1} << 40);
}

TEST(MemorySize, LeastIsSixteenMebibytes) {
  EXPECT_EQ(ParseMemory("16"), uint64_t{16} << 20);
  EXPECT_THROW(ParseMemory("15"), UsageError);
  EXPECT_THROW(ParseMemory("0"), UsageError);
}

TEST(MemorySize, IsWholePages) {
  EXPECT_EQ(ParseMemory("16388K"), uint64_t{16388} << 10);
  EXPECT_THROW(ParseMemory("16385K"), UsageError);
}

TEST(MemorySize, NonsenseIsRefused) {
  for (const char* text :
       {"", "M", "-1", "+512", "1.5G", "512MB", " 512", "512 ", "0x200", "99999999999999999999", "17592186044416T"}) {
    EXPECT_THROW(ParseMemory(text), UsageError) << text;
  }
}

TEST(CpuCount, IsOneToSixtyFour) {
  EXPECT_EQ(ParseCpus("1"), 1u);
  EXPECT_EQ(ParseCpus("64"), 64u);
  EXPECT_EQ(ParseCpus("cpus=2"), 2u);
  for (const char* text : {"", "0", "65", "-1", "4294967297", "two", "cores=2", "2,cores=2"}) {
    EXPECT_THROW(ParseCpus(text), UsageError) << text;
  }
}

TEST(DiskOption, APathAloneIsWritableWithDirectIo) {
  const DiskOption disk = ParseDisk("disk.img");
  EXPECT_EQ(disk.path, "disk.img");
  EXPECT_FALSE(disk.read_only);
  EXPECT_TRUE(disk.direct);
  EXPECT_EQ(disk.id, "");
}

TEST(DiskOption, WordsFollowCommas) {
  const DiskOption disk = ParseDisk("d.img,format=raw,readonly,id=DATA-1,direct=off,queues=3");
  EXPECT_EQ(disk.path, "d.img");
  EXPECT_TRUE(disk.read_only);
  EXPECT_FALSE(disk.direct);
  EXPECT_EQ(disk.id, "DATA-1");
  EXPECT_EQ(disk.queues, 3u);
  EXPECT_FALSE(ParseDisk("d.img,readonly=off").read_only);
}

TEST(DiskOption, ADoubleCommaIsPartOfThePath) {
  EXPECT_EQ(ParseDisk("a,,b.img,readonly").path, "a,b.img");
  EXPECT_TRUE(ParseDisk("a,,b.img,readonly").read_only);
  EXPECT_EQ(ParseDisk(DoubleCommas(",a,,b,")).path, ",a,,b,");
}

TEST(DiskOption, MistakesAreRefused) {
  for (const char* text : {"", ",readonly", "d,readonly=maybe", "d,colour=red", "d,id=", "d,id=123456789012345678901",
                           "d,id=a b", "d,queues=0", "d,queues=17", "d,"}) {
    EXPECT_THROW(ParseDisk(text), UsageError) << text;
  }
  EXPECT_NO_THROW(ParseDisk("d,id=12345678901234567890"));
  for (const char* text :
       {"d,bps=fast", "d,iops=", "d,bps-burst=1M", "d,iops-burst=5,bps=1M", "d,backing=b,backing-from-header"}) {
    EXPECT_THROW(ParseDisk(text), UsageError) << text;
  }
}

TEST(DiskOption, FormatIsWhatIsSaidOrWhatTheNameEndsIn) {
  EXPECT_EQ(ParseDisk("d.img").format, DiskFormat::kRaw);
  EXPECT_EQ(ParseDisk("d.qcow2").format, DiskFormat::kQcow2);
  EXPECT_EQ(ParseDisk("d.qcow,readonly").format, DiskFormat::kQcow);
  EXPECT_EQ(ParseDisk("qcow2").format, DiskFormat::kRaw);
  EXPECT_EQ(ParseDisk("d.qcow2.bak").format, DiskFormat::kRaw);
  EXPECT_EQ(ParseDisk("d.qcow2,format=raw").format, DiskFormat::kRaw);
  EXPECT_EQ(ParseDisk("d,format=qcow2").format, DiskFormat::kQcow2);
  EXPECT_EQ(RunWith({"-hda", "d.qcow2"}).run.disks[0].format, DiskFormat::kQcow2);
}

TEST(DiskOption, AnOldQcowCanOnlyBeRead) {
  EXPECT_TRUE(Has(ErrorOf({"run", "--kernel", "k", "--disk", "d.qcow"}), "readonly"));
  EXPECT_TRUE(Has(ErrorOf({"run", "--kernel", "k", "--disk", "d,format=qcow"}), "readonly"));
  EXPECT_NO_THROW(ParseDisk("d.qcow2,backing=old.qcow"));
}

TEST(DiskOption, BackingFilesKeepTheirOrderAndHaveAFormatEach) {
  const DiskOption disk = ParseDisk(
      "top.qcow2,backing=a.qcow2,backing=b,,c.img,backing-format=qcow2,id=X,backing=d.qcow2,backing-format=raw");
  ASSERT_EQ(disk.backing.size(), 3u);
  EXPECT_EQ(disk.backing[0].path, "a.qcow2");
  EXPECT_EQ(disk.backing[0].format, DiskFormat::kQcow2);
  EXPECT_EQ(disk.backing[1].path, "b,c.img");
  EXPECT_EQ(disk.backing[1].format, DiskFormat::kQcow2);
  EXPECT_EQ(disk.backing[2].path, "d.qcow2");
  EXPECT_EQ(disk.backing[2].format, DiskFormat::kRaw);
  EXPECT_EQ(disk.format, DiskFormat::kQcow2);
  EXPECT_EQ(disk.id, "X");
}

TEST(DiskOption, MistakesInFormatsAndBackingFilesAreRefused) {
  for (const char* text :
       {"d,format=", "d,format=vmdk", "d,format=QCOW2", "d,backing=", "d,backing", "d,backing-format=raw",
        "d,backing=b,backing-format=vhd", "d,backing-format=raw,backing=b"}) {
    EXPECT_THROW(ParseDisk(text), UsageError) << text;
  }
  std::string many = "d";
  for (int i = 0; i < 15; ++i) many += ",backing=b" + std::to_string(i);
  EXPECT_EQ(ParseDisk(many).backing.size(), 15u);
  EXPECT_THROW(ParseDisk(many + ",backing=c"), UsageError);
}

TEST(CloudInitOption, IsAFolderOrFiles) {
  EXPECT_EQ(ParseCloudInit("seed").directory, "seed");
  const CloudInitOption files = ParseCloudInit("user-data=a,,b,network-config=net.yaml,hostname=web1");
  EXPECT_TRUE(files.directory.empty());
  EXPECT_EQ(files.files, (std::map<std::string, std::string>{{"user-data", "a,b"}, {"network-config", "net.yaml"}}));
  EXPECT_EQ(files.hostname, "web1");
  const CloudInitOption both = ParseCloudInit("seed,network-config=other.yaml");
  EXPECT_EQ(both.directory, "seed");
  EXPECT_EQ(both.files.size(), 1u);
}

TEST(CloudInitOption, MistakesAreRefused) {
  for (const char* text : {"", "meta-data=x", "user-data=", "seed,other", "hostname=web1", "user-data=x,disk=y"}) {
    EXPECT_THROW(ParseCloudInit(text), UsageError) << text;
  }
}

TEST(CloudInitOption, TheHostIsNamedAsTheVmUnlessItHasNone) {
  const auto hostname = [](std::vector<std::string> words) {
    words.insert(words.begin(), {"run", "--kernel", "k", "--cloud-init"});
    return ParseCommandLine(words).run.cloud_init->hostname;
  };
  EXPECT_EQ(hostname({"seed", "--name", "web1"}), "web1");
  EXPECT_EQ(hostname({"seed,hostname=other", "--name", "web1"}), "other");
  EXPECT_EQ(hostname({"seed"}), "") << "a name made up for each run would make each one a new instance";
}

TEST(StreamOption, KnowsItsWords) {
  EXPECT_EQ(ParseStream("--console", "none").kind, Kind::kNone);
  EXPECT_EQ(ParseStream("--console", "stdio").kind, Kind::kStdio);
  EXPECT_EQ(ParseStream("--console", "pty").kind, Kind::kPty);
  EXPECT_EQ(ParseStream("--console", "unix=/run/c").path, "/run/c");
  EXPECT_EQ(ParseStream("--console", "file=out.log").kind, Kind::kFile);
  for (const char* text : {"", "file=", "unix=", "tty", "file", "STDIO"}) {
    EXPECT_THROW(ParseStream("--console", text), UsageError) << text;
  }
}

TEST(VmName, IsAFileNameAndNeverAnOptionOrHidden) {
  for (const char* name : {"a", "web1", "A.b_c-9"}) EXPECT_NO_THROW(CheckName(name)) << name;
  EXPECT_NO_THROW(CheckName(std::string(48, 'n')));
  for (const char* name : {"", ".", "..", ".a", "-a", "a/b", "../x", "a b", "a\n", "ä"}) {
    EXPECT_THROW(CheckName(name), UsageError) << name;
  }
  EXPECT_THROW(CheckName(std::string(49, 'n')), UsageError);
}

TEST(RunOptions, DefaultsAreTheDocumentedOnes) {
  const RunOptions run = RunWith({}).run;
  EXPECT_EQ(run.memory_bytes, uint64_t{128} << 20);
  EXPECT_EQ(run.cpus, 1u);
  EXPECT_EQ(run.console.kind, Kind::kStdio);
  EXPECT_FALSE(run.virtio_console.has_value());
  EXPECT_EQ(run.debug_console.kind, Kind::kNone);
  EXPECT_FALSE(run.reboot);
  EXPECT_TRUE(run.keep_on_device_failure);
  EXPECT_TRUE(run.name.starts_with("vm-")) << run.name;
}

TEST(RunOptions, LongAndShortFormsMeanTheSame) {
  for (const auto& words :
       {std::vector<std::string>{"-m", "64", "-c", "3"}, {"--memory=64M", "--cpus=3"}, {"-m64", "-c3"}}) {
    const RunOptions run = RunWith(words).run;
    EXPECT_EQ(run.memory_bytes, uint64_t{64} << 20);
    EXPECT_EQ(run.cpus, 3u);
  }
}

TEST(RunOptions, DisksKeepTheirOrder) {
  const RunOptions run = RunWith({"--disk", "a", "--disk", "b,readonly", "--disk", "c"}).run;
  ASSERT_EQ(run.disks.size(), 3u);
  EXPECT_EQ(run.disks[0].path + run.disks[1].path + run.disks[2].path, "abc");
  EXPECT_TRUE(run.disks[1].read_only);
}

TEST(RunOptions, WithoutAKernelTheReasonIsGiven) { EXPECT_TRUE(Has(ErrorOf({"run"}), "firmware")); }

TEST(RunOptions, TheTerminalServesOneConsole) {
  EXPECT_TRUE(Has(ErrorOf({"run", "--kernel", "k", "--virtio-console", "stdio"}), "--console none"));
  EXPECT_EQ(RunWith({"--virtio-console", "stdio", "--console", "none"}).run.virtio_console->kind, Kind::kStdio);
}

TEST(RunOptions, WhatThisVersionLacksIsSaid) {
  EXPECT_TRUE(Has(ErrorOf({"run", "--kernel", "k", "--display", "vnc=:1"}), "no display"));
  EXPECT_TRUE(Has(ErrorOf({"run", "-cdrom", "d.iso"}), "not supported by this version"));
  EXPECT_TRUE(Has(ErrorOf({"run", "-boot", "d"}), "not supported by this version"));
}

TEST(QemuHabits, BecomeThisCommandsOptions) {
  const RunOptions run =
      ParseCommandLine({"run", "-kernel", "k", "-initrd", "i", "-append", "quiet", "-m", "512", "-smp", "cpus=2",
                        "-hda", "a,b.img", "-hdd", "d.img", "-nographic", "-name", "web1"})
          .run;
  EXPECT_EQ(run.kernel + run.initrd + run.append + run.name, "kiquietweb1");
  EXPECT_EQ(run.memory_bytes, uint64_t{512} << 20);
  EXPECT_EQ(run.cpus, 2u);
  ASSERT_EQ(run.disks.size(), 2u);
  EXPECT_EQ(run.disks[0].path, "a,b.img");
  EXPECT_EQ(run.disks[1].path, "d.img");
}

TEST(QemuHabits, AValueThatLooksLikeAnOptionStaysAValue) {
  EXPECT_EQ(RunWith({"--append", "-nographic"}).run.append, "-nographic");
  EXPECT_EQ(RunWith({"-append", "-boot"}).run.append, "-boot");
}

TEST(QemuHabits, LongOptionsThatStartLikeShortOnesAreNotTakenApart) {
  EXPECT_TRUE(Has(ErrorOf({"run", "-cpu", "host"}), "unknown option '-cpu'"));
  EXPECT_TRUE(Has(ErrorOf({"run", "-machine", "q35"}), "unknown option '-machine'"));
}

TEST(UnknownWords, GetOneLineWithASuggestion) {
  EXPECT_TRUE(Has(ErrorOf({"run", "--konsole", "pty"}), "unknown option '--konsole'; did you mean --console?"));
  EXPECT_TRUE(Has(ErrorOf({"run", "--memroy=2G"}), "did you mean --memory?"));
  EXPECT_TRUE(Has(ErrorOf({"runn"}), "unknown command 'runn'; did you mean run?"));
  EXPECT_FALSE(Has(ErrorOf({"run", "--no-such-option"}), "did you mean"));
  EXPECT_TRUE(Has(ErrorOf({"run", "--kernel", "k", "stray"}), "'stray'"));
  for (const auto& words : {std::vector<std::string>{"run", "--konsole"}, {"fly"}, {"stop"}, {"run", "-m"}}) {
    EXPECT_FALSE(Has(ErrorOf(words), "\n")) << ErrorOf(words);
  }
}

LimitOptions LimitsOf(const std::string& text) { return RunWith({"--limit", text}).run.limits; }

TEST(Limits, AreNoneUnlessGiven) {
  const LimitOptions limits = RunWith({}).run.limits;
  EXPECT_EQ(limits.memory_bytes, 0U);
  EXPECT_EQ(limits.cpu_thousandths, 0U);
  EXPECT_EQ(limits.tasks, 0U);
  EXPECT_EQ(limits.io_bytes_per_second, 0U);
}

TEST(Limits, TakeAnyOfTheirWords) {
  const LimitOptions limits = LimitsOf("memory=4G,cpu=1.5,pids=500,io=10M");
  EXPECT_EQ(limits.memory_bytes, uint64_t{4} << 30);
  EXPECT_EQ(limits.cpu_thousandths, 1500U);
  EXPECT_EQ(limits.tasks, 500U);
  EXPECT_EQ(limits.io_bytes_per_second, uint64_t{10} << 20);
  EXPECT_EQ(LimitsOf("memory=512").memory_bytes, uint64_t{512} << 20);
  EXPECT_EQ(LimitsOf("io=1000000").io_bytes_per_second, 1000000U);
}

TEST(Limits, OfProcessorsAreANumberOrPercent) {
  EXPECT_EQ(LimitsOf("cpu=2").cpu_thousandths, 2000U);
  EXPECT_EQ(LimitsOf("cpu=150%").cpu_thousandths, 1500U);
  EXPECT_EQ(LimitsOf("cpu=0.125").cpu_thousandths, 125U);
  EXPECT_EQ(LimitsOf("cpu=0.05").cpu_thousandths, 50U);
  EXPECT_EQ(LimitsOf("cpu=12.5%").cpu_thousandths, 125U);
  EXPECT_EQ(LimitsOf("cpu=1%").cpu_thousandths, 10U);
}

TEST(Limits, OfSeveralOptionsAddUpAndTheLastOfAWordCounts) {
  const LimitOptions limits = RunWith({"--limit", "memory=4G,cpu=2", "--limit", "cpu=1"}).run.limits;
  EXPECT_EQ(limits.memory_bytes, uint64_t{4} << 30);
  EXPECT_EQ(limits.cpu_thousandths, 1000U);
}

TEST(Limits, NonsenseIsRefusedInOneLine) {
  for (const char* text : {"",
                           "memory",
                           "memory=",
                           "memory=1M",
                           "memory=9T",
                           "memory=-1",
                           "cpu=0",
                           "cpu=0.5%",
                           "cpu=0.009",
                           "cpu=1.",
                           "cpu=.5",
                           "cpu=1.2345",
                           "cpu=%",
                           "cpu=two",
                           "cpu=-1",
                           "cpu=99999999999999999999",
                           "pids=0",
                           "pids=4194305",
                           "pids=1.5",
                           "io=0",
                           "io=1K",
                           "io=fast",
                           "disk=1",
                           "memory=4G,",
                           "memory=4G cpu=2"}) {
    const std::string error = ErrorOf({"run", "--kernel", "k", "--limit", text});
    EXPECT_TRUE(error.starts_with("--limit: ")) << text << ": " << error;
    EXPECT_FALSE(Has(error, "\n"));
  }
}

TEST(NearestWord, IsNearOrNothing) {
  const std::vector<std::string> known{"--console", "--cpus", "--kernel"};
  EXPECT_EQ(NearestWord("--kernle", known), "--kernel");
  EXPECT_EQ(NearestWord("-kernl", known), "--kernel");
  EXPECT_EQ(NearestWord("--initrd", known), "");
  EXPECT_EQ(NearestWord("--x", known), "");
  EXPECT_EQ(NearestWord("--" + std::string(5000, 'k'), known), "");
}

TEST(Commands, TakeTheirNamesAndWords) {
  const CommandLine stop = ParseCommandLine({"stop", "web1", "--timeout", "5", "--force"});
  EXPECT_EQ(stop.command, Command::kStop);
  EXPECT_EQ(stop.vm.name, "web1");
  EXPECT_EQ(stop.vm.timeout_s, 5u);
  EXPECT_TRUE(stop.vm.force);
  EXPECT_EQ(ParseCommandLine({"kill", "web1"}).command, Command::kKill);
  EXPECT_TRUE(ParseCommandLine({"ps", "--json"}).vm.json);
  EXPECT_TRUE(ParseCommandLine({"inspect", "web1", "--json"}).vm.json);
  EXPECT_TRUE(ParseCommandLine({"check", "--stock-kernels"}).check.stock_kernels);
  EXPECT_THROW(ParseCommandLine({"kill"}), UsageError);
}

TEST(Help, TeachesByExamples) {
  for (const auto& words : {std::vector<std::string>{}, {"--help"}, {"help"}, {"run", "--help"}, {"help", "run"}}) {
    const CommandLine line = ParseCommandLine(words);
    EXPECT_EQ(line.command, Command::kHelp);
    EXPECT_TRUE(Has(line.help, "bulkhead run --kernel vmlinuz")) << line.help;
  }
  EXPECT_TRUE(Has(ParseCommandLine({"stop", "--help"}).help, "Usage: bulkhead stop"));
  EXPECT_EQ(ParseCommandLine({"--version"}).help, "bulkhead " BULKHEAD_VERSION "\n");
}

TEST(Options, UidsAreARange) {
  RunOptions run;
  ParseUids("2000000-2065535", run);
  EXPECT_EQ(run.first_uid, 2000000u);
  EXPECT_EQ(run.uid_count, 65536u);
  for (const char* wrong : {"", "5", "5-", "-5", "9-5", "0-5", "1-4294967295", "a-b", "1-2-3"}) {
    EXPECT_THROW(ParseUids(wrong, run), UsageError) << wrong;
  }
}

TEST(Options, LimitsOfADisk) {
  const ThrottleOption given = ParseDisk("d.img,bps=10M,bps-burst=1G,iops=500,iops-burst=2K").throttle;
  EXPECT_EQ(given.bytes_per_second, 10u << 20);
  EXPECT_EQ(given.bytes_burst, 1u << 30);
  EXPECT_EQ(given.operations_per_second, 500u);
  EXPECT_EQ(given.operations_burst, 2048u);
  const CommandLine line = ParseCommandLine({"throttle", "web1", "disk1", "iops=7"});
  EXPECT_EQ(line.command, Command::kThrottle);
  EXPECT_EQ(line.vm.name, "web1");
  EXPECT_EQ(line.vm.device, "disk1");
  EXPECT_EQ(line.vm.throttle.operations_per_second, 7u);
  EXPECT_EQ(ParseThrottle("off").operations_per_second, 0u);
  for (const char* text : {"", "on", "iops", "iops=x", "bps-burst=5", "speed=9"}) {
    EXPECT_THROW(ParseThrottle(text), UsageError) << text;
  }
}

TEST(Options, UpgradeTakesOneDeviceOrAll) {
  const CommandLine one = ParseCommandLine({"upgrade", "web1", "disk0"});
  EXPECT_EQ(one.command, CommandLine::Command::kUpgrade);
  EXPECT_EQ(one.vm.name, "web1");
  EXPECT_EQ(one.vm.device, "disk0");
  EXPECT_EQ(ParseCommandLine({"upgrade", "web1"}).vm.device, "");
  EXPECT_THROW(ParseCommandLine({"upgrade"}), UsageError);
}

TEST(Options, DevicesAreStartedAgainUnlessThatIsNotWanted) {
  EXPECT_EQ(ParseCommandLine({"run", "--kernel", "k"}).run.device_restarts, 10u);
  EXPECT_EQ(ParseCommandLine({"run", "--kernel", "k", "--device-restarts", "0"}).run.device_restarts, 0u);
}

TEST(Options, ALinkIsSetOnOrOff) {
  const CommandLine off = ParseCommandLine({"set-link", "web1", "net0", "off"});
  EXPECT_EQ(off.command, Command::kSetLink);
  EXPECT_EQ(off.vm.name, "web1");
  EXPECT_EQ(off.vm.device, "net0");
  EXPECT_FALSE(off.vm.link_up);
  EXPECT_TRUE(ParseCommandLine({"set-link", "web1", "net0", "on"}).vm.link_up);
  EXPECT_THROW(ParseCommandLine({"set-link", "web1", "net0", "up"}), UsageError);
  EXPECT_THROW(ParseCommandLine({"set-link", "web1", "net0"}), UsageError);
  try {
    ParseCommandLine({"set_link", "web1", "net0", "off"});
    ADD_FAILURE();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean set-link?"), std::string::npos) << error.what();
  }
}

TEST(Options, ADirtyRateIsOfSomeSeconds) {
  const CommandLine rate = ParseCommandLine({"dirty-rate", "web1", "--seconds", "10", "--json"});
  EXPECT_EQ(rate.command, Command::kDirtyRate);
  EXPECT_EQ(rate.vm.name, "web1");
  EXPECT_EQ(rate.vm.seconds, 10u);
  EXPECT_TRUE(rate.vm.json);
  EXPECT_EQ(ParseCommandLine({"dirty-rate", "web1"}).vm.seconds, 1u);
  for (const char* seconds : {"0", "3601", "-1", "soon"}) {
    EXPECT_THROW(ParseCommandLine({"dirty-rate", "web1", "--seconds", seconds}), UsageError) << seconds;
  }
  EXPECT_THROW(ParseCommandLine({"dirty-rate"}), UsageError);
}

}  // namespace
}  // namespace bulkhead::launcher
