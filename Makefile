# `make quickstart`, `make llama` and `make test`. Each installs what is missing, builds, and says what it does.
#   JOBS=4         compile jobs (default: cores, at most one per 2 GB of memory)
#   ARGS="--help"  options of quickstart or llama_finetune
#   BENCH=report   one subject of `make bench`
SHELL := /bin/bash
CACHE ?= $(or $(TROUPE_CACHE),$(HOME)/.cache/troupe)
BUILD := build/release
JOBS ?= $(shell n=$$(nproc); m=$$(awk '/MemAvailable/{print int($$2/2000000)}' /proc/meminfo); echo $$(( m < 1 ? 1 : n < m ? n : m )))
LR ?= 1e-3
LABELS ?= slow|gpu
.PHONY: help quickstart llama test bench build configure format clean

help:
	@sed -n '1,4s/^# //p' Makefile

configure:
	@tools/bootstrap build
	@[ -f $(BUILD)/build.ninja ] || { echo "configuring $(BUILD)"; mkdir -p build; \
	  cmake --preset release >$(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }; }

build: configure
	cmake --build $(BUILD) -j $(JOBS)

quickstart: configure
	@tools/bootstrap model pairs
	@echo "building the quickstart"
	@cmake --build $(BUILD) -j $(JOBS) --target quickstart
	@$(BUILD)/examples/quickstart --model $(CACHE)/minilm/model --data $(CACHE)/pairs $(ARGS)

# LoRA under ZeRO-3 on a real Llama: two ranks, 60 updates of 4 x 128 tokens; the last 64 rows of the text are held out.
llama: configure
	@echo "building llama_finetune"
	@cmake --build $(BUILD) -j $(JOBS) --target troupe_cli llama_finetune
	@tools/bootstrap smollm2 kjv
	@$(BUILD)/examples/llama_finetune --model-path $(CACHE)/smollm2/model --train_path $(CACHE)/kjv/kjv.txt --ctx-len 128 \
	  --batch-size-per-device 2 --eval-batch-size-per-device 8 --max_steps 60 --lr $(LR) --eval_first --lora --lora-config examples/configs/lora.json \
	  --ds-config examples/configs/zero_3.json --no-grad-ckpt --num-devices 2 --prompt "And it came to pass, when the king" $(ARGS)

# A test that a stalled machine has failed gets a second try. One that needed it is printed: it is a bug, in the test or in what it tests.
test: build
	@tools/bootstrap model
	ctest --test-dir $(BUILD) --output-on-failure --repeat until-pass:2 -LE '$(LABELS)' -j $(if $(CTEST_JOBS),$(CTEST_JOBS),1) -O $(BUILD)/ctest.log
	@grep -E '\*\*\*(Failed|Timeout|Exception)' $(BUILD)/ctest.log | sed 's/^/passed only when tried again: /' || true

bench: build
	@bench/run

format:
	clang-format -i $$(git ls-files '*.cpp' '*.hpp')

clean:
	rm -rf build
