# SPDX-License-Identifier: Apache-2.0
# Bulkhead. `make` builds into build/, `make run` boots a Debian guest, `make check` runs every test; `make help` lists
# the rest.
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules --no-print-directory
# All processors, unless -j says otherwise; a make that this one starts shares its jobs.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif
SHELL := /bin/bash

CXX ?= g++
ifeq ($(origin CXX),default)
CXX := g++
endif
SAN ?=
PREFIX ?= /usr/local
DESTDIR ?=
VERSION := 0.1.0

comma := ,
BUILD := build$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
# SAN=asan,ubsan and the like, in the compiler's words.
SANITIZERS := $(subst tsan,thread,$(subst ubsan,undefined,$(patsubst asan%,address%,$(subst $(comma)asan,$(comma)address,$(SAN)))))
GEN := build/gen

# Flags. Children run in an empty root, so they are static: nothing is left to be loaded there. -static-pie keeps
# address-space randomization.
WARNINGS := -Wall -Wextra
HARDENING := -fPIE -fstack-protector-strong -fcf-protection -D_FORTIFY_SOURCE=2 -D_GLIBCXX_ASSERTIONS
CXXFLAGS ?= -O2 -g1
ALL_CXXFLAGS := -std=c++20 $(WARNINGS) $(HARDENING) $(CXXFLAGS) -ffunction-sections -fdata-sections \
  -I. -isystem $(GEN) -DFMT_HEADER_ONLY -DBULKHEAD_VERSION='"$(VERSION)"' -pthread
LINK_HARDENING := -Wl,-z,relro,-z,now,-z,noexecstack,--gc-sections
LINK := -static-pie $(LINK_HARDENING) -pthread
# Dynamic as far as it has to be.
DYNAMIC_LINK := -pie -static-libstdc++ -static-libgcc $(LINK_HARDENING) -pthread
ifneq ($(SAN),)
ALL_CXXFLAGS := $(filter-out -D_FORTIFY_SOURCE=2,$(ALL_CXXFLAGS)) -U_FORTIFY_SOURCE -fsanitize=$(SANITIZERS) -fno-sanitize=vptr \
  -fno-sanitize-recover=all -fno-omit-frame-pointer
LINK := -pie $(LINK_HARDENING) -pthread -fsanitize=$(SANITIZERS) -fno-sanitize=vptr
DYNAMIC_LINK := $(LINK)
endif
RPC_LIBS := -lcapnp-rpc -lcapnp -lkj-async -lkj
CHILD_LIBS := $(RPC_LIBS) -lseccomp
LAUNCHER_LIBS := $(CHILD_LIBS) -lcap-ng
BLOCK_LIBS := -luring -lz -lzstd
SLIRP_LIBS := -Wl,-Bstatic $(CHILD_LIBS) -Wl,-Bdynamic -lslirp -lglib-2.0

SLIRP_FLAGS = $(shell pkg-config --cflags slirp)

# Sources. A file's folder says which executable it belongs to; main.cc is its entry.
sources = $(filter-out %_test.cc %_fuzz.cc,$(wildcard $(addsuffix /*.cc,$(1))))
objects = $(patsubst %.cc,$(BUILD)/obj/%.o,$(1))
SCHEMAS := $(wildcard ipc/*.capnp broker/*.capnp device-procs/*/*.capnp)
SCHEMA_HEADERS := $(SCHEMAS:%=$(GEN)/%.h)
SCHEMA_OBJECTS := $(SCHEMAS:%=$(BUILD)/obj/gen/%.o)
schema_objects = $(patsubst %,$(BUILD)/obj/gen/%.o,$(wildcard $(addsuffix /*.capnp,$(1))))

DEVICES := chipset console disk img net rng usernet
IPC_SRC := $(call sources,ipc)
COMMON_SRC := $(call sources,device-procs/common)
# Image formats: only in the processes that read images.
BLOCK_SRC := $(call sources,device-procs/common/block device-procs/common/block/qcow2)
BLOCK_DEVICES := disk img
# User-mode networking: Debian has libslirp as a shared library only, so this one executable is dynamic. Its libraries are
# there when it starts, before it enters its empty root. Its file that defines calls of the C library is no one else's.
SLIRP_SRC := $(call sources,device-procs/usernet/slirp)
BROKER_SRC := $(call sources,broker broker/plans)
SPAWNER_SRC := $(call sources,broker/spawner) broker/spawn.cc broker/violations.cc
LAUNCHER_SRC := $(call sources,broker/launcher)
RUNNER_SRC := $(call sources,vcpu-runner vcpu-runner/boot vcpu-runner/kvm)
PROBE_SRC := $(call sources,vcpu-runner/probe vcpu-runner/kvm)
DEVICE_SRC := $(foreach d,$(DEVICES),$(call sources,device-procs/$(d)))
TEST_SRC := $(wildcard ipc/*_test.cc broker/*_test.cc broker/*/*_test.cc vcpu-runner/*_test.cc vcpu-runner/*/*_test.cc \
  device-procs/*/*_test.cc device-procs/common/*/*_test.cc device-procs/common/*/*/*_test.cc)
ALL_SRC := $(sort $(SPAWNER_SRC) $(IPC_SRC) $(COMMON_SRC) $(BLOCK_SRC) $(BROKER_SRC) $(LAUNCHER_SRC) $(RUNNER_SRC) $(PROBE_SRC) $(DEVICE_SRC))

HELPERS := $(addprefix $(BUILD)/libexec/bulkhead-,broker spawner vcpu-runner probe $(DEVICES))
PROGRAMS := $(BUILD)/bulkhead $(HELPERS)

.PHONY: all
all: $(PROGRAMS) payloads

# Generated code: schemas and ACPI tables. Order-only for objects, since a first build knows no header dependencies.
$(GEN)/%.capnp.h $(GEN)/%.capnp.c++: %.capnp
	@mkdir -p $(GEN)
	@echo "  CAPNP   $<"
	@capnp compile -oc++:$(GEN) --src-prefix=. -I. $<
$(GEN)/ipc/broker.capnp.h: ipc/control.capnp
$(GEN)/broker/vm_record.capnp.h: ipc/control.capnp ipc/broker.capnp
$(GEN)/device-procs/disk/disk_settings.capnp.h $(GEN)/device-procs/net/net_settings.capnp.h: ipc/control.capnp

$(GEN)/vcpu-runner/boot/dsdt_aml.h: vcpu-runner/boot/dsdt.asl
	@mkdir -p $(@D)
	@echo "  IASL    $<"
	@iasl -p $(@D)/dsdt $< >$(@D)/iasl.log 2>&1 || { cat $(@D)/iasl.log; exit 1; }
	@{ echo '// Generated from $<.'; echo '#pragma once'; \
	   echo 'inline constexpr unsigned char kDsdtAml[] = {'; \
	   od -An -v -tx1 $(@D)/dsdt.aml | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'; echo '};'; } >$@.new && mv $@.new $@

GENERATED := $(SCHEMA_HEADERS) $(GEN)/vcpu-runner/boot/dsdt_aml.h

$(BUILD)/obj/device-procs/usernet/slirp/%.o: ALL_CXXFLAGS += $(SLIRP_FLAGS)
$(BUILD)/obj/%.o: %.cc Makefile | $(GENERATED)
	@mkdir -p $(@D)
	@echo "  CXX     $<"
	@$(CXX) $(ALL_CXXFLAGS) -MD -MP -c $< -o $@
$(BUILD)/obj/gen/%.o: $(GEN)/%.c++ | $(SCHEMA_HEADERS)
	@mkdir -p $(@D)
	@echo "  CXX     $<"
	@$(CXX) $(ALL_CXXFLAGS) -MD -MP -c $< -o $@
.SECONDARY:

# link(objects, libraries)
# The linker warns of getaddrinfo and the like of KJ's in static programs; nothing here calls them. To switch warnings off
# (--no-warnings) would hide undefined symbols, too.
define link
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	@$(CXX) $(LINK) -o $@ $(filter %.o,$^) $(1) 2>$@.ld || { cat $@.ld >&2; rm $@.ld; exit 1; }
	@grep -v -e ' in statically linked applications ' -e ': in function ' $@.ld >&2; rm $@.ld
endef

IPC_OBJ := $(call objects,$(IPC_SRC)) $(call schema_objects,ipc)
COMMON_OBJ := $(call objects,$(COMMON_SRC)) $(call schema_objects,device-procs/common)
BLOCK_OBJ := $(call objects,$(BLOCK_SRC))

$(BUILD)/bulkhead: $(call objects,$(LAUNCHER_SRC)) $(IPC_OBJ)
	$(call link,$(LAUNCHER_LIBS))
$(BUILD)/libexec/bulkhead-broker: $(call objects,$(BROKER_SRC)) $(call schema_objects,broker) $(IPC_OBJ) \
  $(filter %_settings.capnp.o,$(SCHEMA_OBJECTS))
	$(call link,$(CHILD_LIBS))
$(BUILD)/libexec/bulkhead-spawner: $(call objects,$(SPAWNER_SRC)) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))
$(BUILD)/libexec/bulkhead-vcpu-runner: $(call objects,$(RUNNER_SRC)) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))
$(BUILD)/libexec/bulkhead-probe: $(call objects,$(PROBE_SRC)) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))
STATIC_DEVICES := $(filter-out usernet,$(DEVICES))
define device_rule
$(BUILD)/libexec/bulkhead-$(1): $(call objects,$(call sources,device-procs/$(1))) \
  $(call schema_objects,device-procs/$(1)) $(if $(filter $(BLOCK_DEVICES),$(1)),$(BLOCK_OBJ)) $(COMMON_OBJ) $(IPC_OBJ)
	$$(call link,$(CHILD_LIBS) $(if $(filter $(BLOCK_DEVICES),$(1)),$(BLOCK_LIBS)))
endef
$(foreach d,$(STATIC_DEVICES),$(eval $(call device_rule,$(d))))
$(BUILD)/libexec/bulkhead-usernet: LINK := $(DYNAMIC_LINK)
$(BUILD)/libexec/bulkhead-usernet: $(call objects,$(call sources,device-procs/usernet) $(SLIRP_SRC)) \
  $(call schema_objects,device-procs/usernet) $(COMMON_OBJ) $(IPC_OBJ)
	$(call link,$(SLIRP_LIBS))

# Payload guests: freestanding, entered by the Linux 64-bit boot protocol.
-include tests/payload/payload.mk
include tests/fuzz/fuzz.mk

# Unit tests: every object but the entries, in one program.
UNIT_OBJ := $(call objects,$(filter-out %/main.cc,$(ALL_SRC)) $(TEST_SRC)) $(SCHEMA_OBJECTS)
$(BUILD)/tests/unit: $(UNIT_OBJ)
	$(call link,-lgtest_main -lgtest $(LAUNCHER_LIBS) $(BLOCK_LIBS))
PROCESS_TEST_SRC := $(wildcard tests/process/*.cc)
# Started as the broker starts them, spoken to as the runner does.
DEVICE_DRIVER_OBJ := $(call objects,$(filter-out broker/main.cc,$(BROKER_SRC)) vcpu-runner/device_channel.cc) \
  $(filter %_settings.capnp.o,$(SCHEMA_OBJECTS)) $(IPC_OBJ)
$(BUILD)/tests/process: $(call objects,$(PROCESS_TEST_SRC) broker/launcher/vhost_net.cc) $(DEVICE_DRIVER_OBJ) $(BLOCK_OBJ) \
  $(filter %_state.capnp.o,$(SCHEMA_OBJECTS))
	$(call link,-lgtest_main -lgtest $(CHILD_LIBS) $(BLOCK_LIBS))

# A hostile program in the place of each child, and what becomes of it.
JAIL_TEST_SRC := $(wildcard tests/jail/*_test.cc) tests/jail/attempts.cc tests/process/harness.cc tests/process/device_process.cc
$(BUILD)/tests/jail: $(call objects,$(JAIL_TEST_SRC)) $(DEVICE_DRIVER_OBJ)
	$(call link,-lgtest_main -lgtest $(CHILD_LIBS))
$(BUILD)/tests/rogue: $(call objects,tests/jail/rogue.cc tests/jail/attempts.cc vcpu-runner/policy.cc \
  $(foreach d,$(DEVICES),device-procs/$(d)/policy.cc)) $(COMMON_OBJ) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))

# Under the name by which the broker starts the real one.
$(BUILD)/tests/rogue-img/bulkhead-img: $(call objects,tests/jail/rogue_img.cc tests/jail/attempts.cc \
  device-procs/img/policy.cc device-procs/img/worker_thread.cc) $(BLOCK_OBJ) $(COMMON_OBJ) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS) $(BLOCK_LIBS))

$(BUILD)/tests/liar: $(call objects,tests/jail/liar.cc device-procs/rng/policy.cc) $(COMMON_OBJ) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))

# Faults of a stock guest's VM.
$(BUILD)/tests/faults: $(call objects,tests/guest/faults.cc $(addprefix tests/process/,faults.cc process_cgroup.cc harness.cc)) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS))

# What images cost, without a guest.
$(BUILD)/tests/image-bench: $(call objects,tests/bench/image_bench.cc) $(BLOCK_OBJ) $(IPC_OBJ)
	$(call link,$(CHILD_LIBS) $(BLOCK_LIBS))

# What frames cost the net process, without a guest.
$(BUILD)/tests/net-device-bench: $(call objects,tests/bench/net_device.cc tests/process/device_process.cc \
  tests/process/harness.cc tests/process/tap_network.cc) $(DEVICE_DRIVER_OBJ)
	$(call link,-lgtest $(CHILD_LIBS))
# The other end of the network benchmark's guest.
$(BUILD)/tests/net-peer: $(call objects,tests/bench/net_peer.cc)
	$(call link)
# What frames cost where there is no VMM.
$(BUILD)/tests/bare-tap: $(call objects,tests/bench/bare_tap.cc)
	$(call link)
# What KVM alone costs.
$(BUILD)/tests/bare-vm: $(call objects,tests/bench/bare_vm.cc)
	$(call link)
# What it costs to wake somebody.
$(BUILD)/tests/wakeups: $(call objects,tests/bench/wakeups.cc)
	$(call link)

.PHONY: tests
tests: all $(addprefix $(BUILD)/tests/,unit process faults jail rogue rogue-img/bulkhead-img liar image-bench net-device-bench net-peer bare-tap bare-vm wakeups)

.PHONY: deps
deps:
	@scripts/deps all

.PHONY: run
run:
	@scripts/deps build run
	@$(MAKE) all
	@scripts/run-guest

.PHONY: check
check:
	@scripts/deps build run check
	@$(MAKE) tests fuzz-targets
	@scripts/check

.PHONY: bench
bench: all $(addprefix $(BUILD)/tests/,image-bench net-peer bare-tap bare-vm wakeups)
	@scripts/deps build run bench
	@tests/bench/bench $(if $(ROWS),--rows $(ROWS))

.PHONY: chaos
chaos: tests
	@scripts/deps build run
	@tests/chaos $(or $(SEED),1) $(or $(N),1000)

.PHONY: chaos-stock
chaos-stock: tests
	@scripts/deps build run check
	@BULKHEAD_CHAOS_SEED=$(or $(SEED),1) BULKHEAD_CHAOS_FAULTS=$(or $(N),500) tests/guest/run chaos

.PHONY: bench-contain
bench-contain: tests
	@scripts/deps build run bench
	@tests/bench/contain

.PHONY: bench-images
bench-images: tests
	@scripts/deps build run bench
	@tests/bench/images

.PHONY: bench-net
bench-net: tests
	@scripts/deps build run bench
	@$(BUILD)/tests/net-device-bench
	@tests/bench/net

.PHONY: install
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/bulkhead $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(BUILD)/bulkhead $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(HELPERS) $(DESTDIR)$(PREFIX)/libexec/bulkhead/
	install -m 644 docs/bulkhead.1 docs/bulkhead-img.1 $(DESTDIR)$(PREFIX)/share/man/man1/

.PHONY: clean
clean:
	rm -rf build

.PHONY: help
help:
	@echo 'make                    build into build/'
	@echo 'make run                boot a Debian guest to a shell on this terminal'
	@echo 'make check              install what is missing, build, run every test'
	@echo 'make fuzz T=name S=60   fuzz one decoder for so many seconds; without T, list them'
	@echo 'make bench              time, memory and CPU time beside QEMU, in one table (as root); ROWS=name,name for some'
	@echo 'make chaos SEED=1 N=1000 faults of device processes and their files, under load that checks what it gets'
	@echo 'make chaos-stock SEED=1 N=500 of all processes beside a stock kernel, which does not notice'
	@echo 'make bench-contain      what a hung or hostile device process costs the others'
	@echo 'make bench-images       what disk images cost, beside QEMU'
	@echo 'make bench-net          what network interfaces carry, beside QEMU (as root)'
	@echo 'make deps               install the Debian packages that building, running and testing need'
	@echo 'make install            install to PREFIX ($(PREFIX)) under DESTDIR'
	@echo 'make SAN=asan,ubsan     build with sanitizers into build/san-asan-ubsan/'
	@echo 'make clean              remove build/'

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
