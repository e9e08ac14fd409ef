# SPDX-License-Identifier: Apache-2.0
# Payload guests: one freestanding ELF kernel for each tests/payload/*.cc, with the library in
# tests/payload/lib. Never sanitized: no runtime exists there.
PAYLOAD_DIR := tests/payload
PAYLOAD_NAMES := $(patsubst $(PAYLOAD_DIR)/%.cc,%,$(wildcard $(PAYLOAD_DIR)/*.cc))
PAYLOADS := $(PAYLOAD_NAMES:%=$(BUILD)/payload/%.elf)
PAYLOAD_FLAGS := -m64 -ffreestanding -mno-red-zone -mno-sse -mgeneral-regs-only -fno-stack-protector \
  -fcf-protection=none -fno-pic -fno-pie -mcmodel=small -I.
PAYLOAD_CXXFLAGS := $(PAYLOAD_FLAGS) -std=c++20 -O2 -Wall -Wextra -fno-exceptions -fno-rtti \
  -fno-threadsafe-statics -fno-asynchronous-unwind-tables -ffunction-sections -fdata-sections
PAYLOAD_LIB := $(patsubst %.S,$(BUILD)/payload/obj/%.o,$(wildcard $(PAYLOAD_DIR)/lib/*.S)) \
  $(patsubst %.cc,$(BUILD)/payload/obj/%.o,$(wildcard $(PAYLOAD_DIR)/lib/*.cc))

.PHONY: payloads
payloads: $(PAYLOADS)

$(BUILD)/payload/obj/%.o: %.cc $(PAYLOAD_DIR)/payload.mk
	@mkdir -p $(@D)
	@echo "  PAYLOAD $<"
	@$(CXX) $(PAYLOAD_CXXFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/payload/obj/%.o: %.S $(PAYLOAD_DIR)/payload.mk
	@mkdir -p $(@D)
	@echo "  PAYLOAD $<"
	@$(CXX) $(PAYLOAD_FLAGS) -MMD -MP -c $< -o $@
$(BUILD)/payload/%.elf: $(BUILD)/payload/obj/$(PAYLOAD_DIR)/%.o $(PAYLOAD_LIB) $(PAYLOAD_DIR)/payload.ld
	@$(CXX) -m64 -nostdlib -static -Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,max-page-size=4096 \
	  -Wl,--no-warn-rwx-segments -Wl,-T,$(PAYLOAD_DIR)/payload.ld -o $@ $(filter %.o,$^)

-include $(wildcard $(BUILD)/payload/obj/$(PAYLOAD_DIR)/*.d $(BUILD)/payload/obj/$(PAYLOAD_DIR)/lib/*.d)
