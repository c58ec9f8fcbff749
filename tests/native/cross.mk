# The library and its checks for other platforms, by zig cc, which brings every platform's headers: make cross | cross-run

ZIG ?= $(CURDIR)/$(BIN)/python -m ziglang
CROSS := $(CHECKS)/cross
CROSS_TARGETS := aarch64-macos x86_64-macos aarch64-windows-gnu x86_64-windows-gnu aarch64-linux-musl x86_64-linux-musl riscv64-linux-gnu
comma := ,

.PHONY: cross cross-run cross-musl cross-qemu cross-wine

# Of a target: compiler, what leaves no name of a library open, libraries, ends of names.
cross_compiler = $(ZIG) cc -target $(1) -O1 -g0 $(if $(findstring linux,$(1)),-fPIC)
cross_defined = $(if $(findstring linux,$(1)),-Wl$(comma)-z$(comma)defs)
cross_libraries = $(if $(findstring windows,$(1)),-lkernel32,-lm -lpthread)
cross_suffix = $(if $(findstring windows,$(1)),bj)
cross_library = $(if $(findstring windows,$(1)),elutq.dll,$(if $(findstring macos,$(1)),libelutq.dylib,libelutq.so))
cross_programs = kernels_check runtime_check $(if $(findstring windows,$(1)),windows_check)

define CROSS_BUILD
$(call CHECK_BUILD,cross/$(1),$(call cross_compiler,$(1)),$(CHECK_SOURCES),,$(call cross_libraries,$(1)),$(call cross_suffix,$(1)))

$(CROSS)/$(1)/$(call cross_library,$(1)): $(CROSS)/$(1)/.objects
	$(call cross_compiler,$(1)) -shared $(call cross_defined,$(1)) $$(@D)/*.o$(call cross_suffix,$(1)) -o $$@ $(call cross_libraries,$(1))

cross: $(addprefix $(CROSS)/$(1)/,$(call cross_library,$(1)) $(call cross_programs,$(1)))
endef

$(foreach target,$(CROSS_TARGETS),$(eval $(call CROSS_BUILD,$(target))))
$(CROSS_TARGETS:%=$(CROSS)/%/.objects): | $(CROSS)/.zig

$(CROSS)/.zig:
	$(MAKE) install
	mkdir -p $(@D)
	$(ZIG) version > $@

# ---- those that run here: as they are, under an emulator, under Wine ----

CROSS_MODELS ?= $(addprefix $(CHECK_MODELS)/,2bit-g64.gguf 4bit-g128.gguf qwen3-biases.gguf)
WINE ?= $(firstword $(shell command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || command -v wine) wine64)

cross-run: cross-musl cross-qemu cross-wine

# What the scalar kernels of a target gave, to be the same everywhere.
cross_bits = $$(tr -d '\r' < $(CROSS)/$(1)/kernels.txt | sed -n 's/^scalar.*bits //p')

# Runs the programs of a target by a command; the kernels' bits are to be those of x86-64 under Linux.
define CROSS_RUN
	$(2) $(CROSS)/$(1)/kernels_check 1 > $(CROSS)/$(1)/kernels.txt || { cat $(CROSS)/$(1)/kernels.txt; exit 1; }
	cat $(CROSS)/$(1)/kernels.txt
	test -n "$(call cross_bits,$(1))" && test "$(call cross_bits,$(1))" = "$(call cross_bits,x86_64-linux-musl)"
	$(2) $(CROSS)/$(1)/runtime_check $(CROSS_MODELS)
endef

cross-musl: cross $(CHECK_MODELS)
	$(call CROSS_RUN,x86_64-linux-musl)

cross-qemu: cross-musl
	command -v $(QEMU) > /dev/null || { echo "make cross-qemu needs an emulator: apt-get install qemu-user-static" >&2; exit 1; }
	$(call CROSS_RUN,aarch64-linux-musl,$(QEMU))

# In another locale Wine has no names beyond ASCII.
cross-wine: export LC_ALL := C.UTF-8
cross-wine: export WINEDEBUG := -all
cross-wine: export WINEPREFIX := $(abspath $(CROSS)/wine)
cross-wine: cross-musl
	$(WINE) --version > /dev/null || { echo "make cross-wine needs Wine: apt-get install wine64" >&2; exit 1; }
	$(call CROSS_RUN,x86_64-windows-gnu,$(WINE))
	$(WINE) $(CROSS)/x86_64-windows-gnu/windows_check $(firstword $(CROSS_MODELS))
