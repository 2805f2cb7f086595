# Two commands: `make quickstart` and `make test`. Both install what is missing, build, and say what they do.
#   JOBS=4         compile jobs (default: cores, at most one per 2 GB of memory)
#   ARGS="--help"  options of quickstart
#   BENCH=report   one subject of `make bench`
SHELL := /bin/bash
CACHE ?= $(or $(TROUPE_CACHE),$(HOME)/.cache/troupe)
BUILD := build/release
JOBS ?= $(shell n=$$(nproc); m=$$(awk '/MemAvailable/{print int($$2/2000000)}' /proc/meminfo); echo $$(( m < 1 ? 1 : n < m ? n : m )))
LABELS ?= slow|gpu
.PHONY: help quickstart test bench build configure format clean

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

test: build
	@tools/bootstrap model
	ctest --test-dir $(BUILD) --output-on-failure -LE '$(LABELS)' -j $(if $(CTEST_JOBS),$(CTEST_JOBS),1)

bench: build
	@bench/run

format:
	clang-format -i $$(git ls-files '*.cpp' '*.hpp')

clean:
	rm -rf build
