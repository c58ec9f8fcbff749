# Checks of the C code by other compilers, sanitizers and machines: make aarch64 | sanitize | tsan | fuzz
CHECKS := build/checks
CHECK_MODELS ?= $(CHECKS)/models
CHECK_FLAGS := -std=gnu11 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -I$(CURDIR)/native/include -I$(CURDIR)/native/src
CHECK_SOURCES := $(wildcard native/src/*.c native/src/*/*.c)
CHECK_HEADERS := $(wildcard native/include/*.h native/src/*.h native/src/*/*.h tests/native/*.h)
CORES := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: aarch64 aarch64-cortex-a72 aarch64-max sanitize tsan fuzz fuzz-needs

$(CHECKS)/models: tests/native/make_models.py
	$(MAKE) install
	$(BIN)/python tests/native/make_models.py $@
	touch $@

# A folder of $(CHECKS) with the library's objects and the programs linked with them: folder, compiler and flags, sources,
# and, where they are not what they are here: what is needed first, libraries, the end of objects' names.
define CHECK_BUILD
$(CHECKS)/$(1)/.objects: $(3) $(CHECK_HEADERS)
	@$(or $(4),true)
	mkdir -p $$(@D)
	cd $$(@D) && rm -f *.o *.obj && printf '%s\n' $(abspath $(3)) | xargs -n 1 -P $(CORES) $(2) $(CHECK_FLAGS) -c
	touch $$@

$(CHECKS)/$(1)/%: tests/native/%.c $(CHECKS)/$(1)/.objects
	$(2) $(CHECK_FLAGS) $$(LINK_$$*) $$< $$(@D)/*.o$(6) -o $$@ $(or $(5),-lm -lpthread)
endef

LINK_allocation_check := -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc,--wrap=free,--wrap=pthread_create

# ---- AArch64 under an emulator: without SDOT as on a Cortex-A72, and with everything that the emulator knows ----

AARCH64_CC ?= aarch64-linux-gnu-gcc
QEMU ?= $(firstword $(shell command -v qemu-aarch64-static qemu-aarch64) qemu-aarch64-static)
AARCH64_NEEDS := { command -v $(AARCH64_CC) && command -v $(QEMU); } >/dev/null || { echo "make aarch64 needs a cross compiler and an emulator: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static" >&2; exit 1; }

$(eval $(call CHECK_BUILD,aarch64,$(AARCH64_CC) -O2 -static,$(CHECK_SOURCES),$(AARCH64_NEEDS)))

aarch64: aarch64-cortex-a72 aarch64-max

aarch64-cortex-a72: $(addprefix $(CHECKS)/aarch64/,kernels_check runtime_check) $(CHECK_MODELS)
	$(QEMU) -cpu cortex-a72 $(CHECKS)/aarch64/kernels_check 1 neon scalar
	$(QEMU) -cpu cortex-a72 $(CHECKS)/aarch64/runtime_check $(CHECK_MODELS)/*.gguf

aarch64-max: $(addprefix $(CHECKS)/aarch64/,kernels_check runtime_check fault_check) $(CHECK_MODELS)
	$(QEMU) -cpu max $(CHECKS)/aarch64/kernels_check 3 neon-i8mm neon-dotprod neon scalar
	$(QEMU) -cpu max $(CHECKS)/aarch64/runtime_check $(CHECK_MODELS)/*.gguf
	$(QEMU) -cpu max $(CHECKS)/aarch64/fault_check $(CHECK_MODELS)/2bit-g64.gguf

# ---- AddressSanitizer and UndefinedBehaviorSanitizer: C programs, which also find leaks, then the tests ----

SANITIZE := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g1
# Everything native, and every command; left out are minutes of Python over C that the rest runs too, waits with a limit, and bounds on
# memory, which sanitizers multiply.
SANITIZE_TESTS ?= tests/native --ignore tests/native/test_aarch64.py \
	$(foreach name,bad_input bench chat eval info quantize run serve serve_clients,tests/cli/test_$(name).py) \
	-k 'not two_percent and not transformers_gives and not stays_below and not fifty and not leaves_frees and not full_queue and not ctrl_c_stops_a_reply'

# make test has taken the way of asking for memory that this processor takes; here goes the other.
$(eval $(call CHECK_BUILD,sanitize,$(CC) -O1 -fPIC -DELUTQ_ASK_THE_OTHER_WAY=1 $(SANITIZE),$(CHECK_SOURCES)))

# The Python package over the same objects, to be found before the installed one.
PACKAGE := $(CHECKS)/sanitize/package
$(PACKAGE)/elutq_native/_elutq.abi3.so: $(CHECKS)/sanitize/.objects $(wildcard native/elutq_native/*.py) native/build_ffi.py
	$(MAKE) install
	mkdir -p $(@D)
	cp native/elutq_native/*.py $(@D)
	$(BIN)/python -c 'import runpy; runpy.run_path("native/build_ffi.py")["builder"].emit_c_code("$(PACKAGE)/_elutq.c")'
	$(CC) -shared -O1 -fPIC $(SANITIZE) -Inative/include $$($(BIN)/python -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))') \
		$(PACKAGE)/_elutq.c $(CHECKS)/sanitize/*.o -o $@ -lm -lpthread

sanitize: $(addprefix $(CHECKS)/sanitize/,kernels_check runtime_check allocation_check fault_check) $(CHECK_MODELS) $(PACKAGE)/elutq_native/_elutq.abi3.so
	$(CHECKS)/sanitize/kernels_check
	$(CHECKS)/sanitize/runtime_check $(CHECK_MODELS)/*.gguf
	$(CHECKS)/sanitize/allocation_check $(CHECK_MODELS)/qwen3-biases.gguf $(CHECK_MODELS)/2bit-g128.gguf
	ASAN_OPTIONS=handle_sigbus=0 $(CHECKS)/sanitize/fault_check $(CHECK_MODELS)/2bit-g64.gguf
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(CURDIR)/$(PACKAGE) \
		$(BIN)/python -m pytest -n auto --dist loadfile -q -p no:faulthandler -p no:cacheprovider $(SANITIZE_TESTS)

# ---- ThreadSanitizer: the pool, and engines side by side over one model, sequences together in one ----

$(eval $(call CHECK_BUILD,tsan,$(CC) -O1 -fsanitize=thread -g1,$(CHECK_SOURCES)))

tsan: $(CHECKS)/tsan/runtime_check $(CHECK_MODELS)
	TSAN_OPTIONS=halt_on_error=1 $(CHECKS)/tsan/runtime_check $(CHECK_MODELS)/*.gguf

# ---- libFuzzer over the model loader and a pass through what it accepts ----

CLANG ?= clang
FUZZ_SECONDS ?= 60
FUZZ_FOLDER ?= $(CHECKS)/fuzz/corpus
FUZZ_SANITIZE := -fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize-recover=all

# Whether clang can link an empty target: its runtime libraries are a package of their own.
fuzz-needs:
	@mkdir -p $(CHECKS)/fuzz
	@echo 'int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size) { (void)data; (void)size; return 0; }' \
		| $(CLANG) $(FUZZ_SANITIZE) -x c - -o $(CHECKS)/fuzz/empty 2>/dev/null \
		|| { echo "make fuzz needs clang with libFuzzer: apt-get install clang libclang-rt-dev" >&2; exit 1; }

FUZZ_COVERAGE := -fsanitize-coverage-ignorelist=$(CURDIR)/tests/fuzz/uncovered.txt

$(eval $(call CHECK_BUILD,fuzz,$(CLANG) -O2 -g1 $(FUZZ_SANITIZE) $(FUZZ_COVERAGE),$(CHECK_SOURCES),$(MAKE) fuzz-needs))

$(CHECKS)/fuzz/fuzz_model: tests/fuzz/fuzz_model.c $(CHECKS)/fuzz/.objects
	$(CLANG) -O2 -g1 $(FUZZ_SANITIZE) $(CHECK_FLAGS) $< $(@D)/*.o -o $@ -lm -lpthread

# New inputs are kept in FUZZ_FOLDER, those that fail in build/checks/fuzz.
fuzz: $(CHECKS)/fuzz/fuzz_model
	mkdir -p $(FUZZ_FOLDER)
	$< -dict=tests/fuzz/model.dict -max_len=16384 -timeout=1200 -rss_limit_mb=1024 -max_total_time=$(FUZZ_SECONDS) \
		-artifact_prefix=$(CHECKS)/fuzz/ -print_final_stats=1 $(FUZZ_FOLDER) tests/fuzz/corpus
