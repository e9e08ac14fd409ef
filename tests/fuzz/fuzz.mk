# SPDX-License-Identifier: Apache-2.0
# libFuzzer targets: every *_fuzz.cc beside the code, its name without _fuzz is the target's. Built with clang whatever
# CXX is, and dynamic, since the sanitizers' runtime wants that.
#
#   make fuzz                     lists the targets
#   make fuzz T=name [S=seconds]  runs one, from its committed corpus; what it finds goes to build/fuzz/
#   make fuzz-merge T=name        puts what was found into the committed corpus, as few files as reach as much
FUZZ_CXX ?= clang++
FUZZ := build/fuzz
FUZZ_SAN := address,undefined
FUZZ_CXXFLAGS := -std=c++20 $(WARNINGS) -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS \
  -I. -isystem $(GEN) -DFMT_HEADER_ONLY -DBULKHEAD_VERSION='"$(VERSION)"' -pthread
# UBSan's vptr needs type information of every class, which the installed libraries do not give. Its function check puts
# data before each function that clang cannot place for the parts of a coroutine.
FUZZ_INSTRUMENT := -fsanitize=$(FUZZ_SAN) -fno-sanitize=vptr,function

FUZZ_SRC := $(wildcard $(addsuffix /*_fuzz.cc,ipc broker broker/* vcpu-runner vcpu-runner/* device-procs/* \
  device-procs/common/* device-procs/common/*/*))
FUZZ_NAMES := $(sort $(patsubst %_fuzz,%,$(basename $(notdir $(FUZZ_SRC)))))
ifneq ($(words $(FUZZ_NAMES)),$(words $(FUZZ_SRC)))
$(error two fuzz targets have the same name: $(FUZZ_SRC))
endif
FUZZ_PROJECT_SRC := $(filter-out %/main.cc $(LAUNCHER_SRC) $(PROBE_SRC),$(ALL_SRC))
FUZZ_PROJECT_OBJ := $(FUZZ_PROJECT_SRC:%.cc=$(FUZZ)/obj/%.o) $(SCHEMAS:%=$(FUZZ)/obj/gen/%.o)

$(FUZZ)/obj/%.o: %.cc Makefile tests/fuzz/fuzz.mk | $(GENERATED)
	@mkdir -p $(@D)
	@echo "  FUZZCXX $<"
	@$(FUZZ_CXX) $(FUZZ_CXXFLAGS) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer-no-link -MD -MP -c $< -o $@
$(FUZZ)/obj/gen/%.o: $(GEN)/%.c++ tests/fuzz/fuzz.mk | $(SCHEMA_HEADERS)
	@mkdir -p $(@D)
	@echo "  FUZZCXX $<"
	@$(FUZZ_CXX) $(FUZZ_CXXFLAGS) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer-no-link -MD -MP -c $< -o $@

# An archive, so that each target gets no more of the project than it reaches.
$(FUZZ)/obj/project.a: $(FUZZ_PROJECT_OBJ)
	@rm -f $@
	@ar rcs $@ $^

define fuzz_rule
$(FUZZ)/$(patsubst %_fuzz,%,$(basename $(notdir $(1)))): $(FUZZ)/obj/$(1:%.cc=%.o) $(FUZZ)/obj/project.a
	@echo "  LINK    $$@"
	@$(FUZZ_CXX) $(FUZZ_INSTRUMENT) -fsanitize=fuzzer -Wl,--as-needed,--gc-sections -pthread -o $$@ $$^ $(CHILD_LIBS) $(BLOCK_LIBS)
endef
$(foreach f,$(FUZZ_SRC),$(eval $(call fuzz_rule,$(f))))

.PHONY: fuzz-targets
fuzz-targets: $(FUZZ_NAMES:%=$(FUZZ)/%)

S ?= 60
ifdef T
.PHONY: fuzz fuzz-merge
fuzz: $(FUZZ)/$(T)
	@tests/fuzz/run $(T) $(S)
fuzz-merge: $(FUZZ)/$(T)
	@tests/fuzz/run --merge $(T)
else
.PHONY: fuzz
fuzz:
	@printf '%s\n' $(FUZZ_NAMES)
endif

-include $(shell find $(FUZZ)/obj -name '*.d' 2>/dev/null)
