# The few commands of everyday work. Each can be the first one on a fresh machine: scripts/setup installs what is missing.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test build check check-long asan tsan fuzz long-tests bench format clean

JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 300
CMAKE_ARGS ?=

# The CUDA backend is compiled wherever there is a CUDA compiler, and used by the demo where a GPU is visible.
CUDA_SOURCES := $(wildcard src/cuda/*/*.cu)
NVCC := $(if $(CUDA_SOURCES),$(shell PATH="$$PATH:/usr/local/cuda/bin" command -v nvcc))
GPU := $(if $(NVCC),$(shell nvidia-smi -L 2>/dev/null | head -1))
TEST_PRESET := $(if $(NVCC),cuda,release)
DEMO_PRESET := $(if $(GPU),cuda,release)
cuda_args = $(if $(filter cuda,$1),-DCMAKE_CUDA_COMPILER=$(NVCC))

define build  # $1 preset, $2 more arguments for the build
	cmake --preset $1 $(call cuda_args,$1) $(CMAKE_ARGS)
	cmake --build --preset $1 -j $(JOBS) $2
endef

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup:
	@scripts/setup

setup-dev:
	@scripts/setup --dev

demo: setup  ## set up, build, plant facts in a long text, answer dense and sparse, print both
	$(call build,$(DEMO_PRESET),--target rarefy_cli)
	build/$(DEMO_PRESET)/apps/cli/rarefy demo

test: setup  ## set up, build, run the test suite (CUDA code is compiled where nvcc is)
	$(call build,$(TEST_PRESET))
	ctest --preset $(TEST_PRESET) -j $(JOBS)

build: setup  ## set up and build the program and the tests
	$(call build,release)

check: setup-dev  ## format, clang-tidy on what changed, lints, unit tests
	scripts/check

check-long: asan tsan long-tests fuzz  ## sanitizers, long statistics, fuzzers (FUZZ_SECONDS=300 each); an hour or more

asan: setup-dev
	$(call build,asan)
	ctest --preset asan -j $(JOBS)

# Archer tells ThreadSanitizer about OpenMP's barriers; Ubuntu's libomp finds it only by its full name.
tsan: setup-dev
	$(call build,tsan)
	OMP_TOOL_LIBRARIES=$$(realpath $$(clang++ -print-resource-dir)/../../libarcher.so) ctest --preset tsan -j $(JOBS)

long-tests: setup
	$(call build,$(TEST_PRESET))
	ctest --preset $(if $(NVCC),long-cuda,long) -j $(JOBS)

fuzz: setup-dev
	$(call build,fuzz)
	scripts/fuzz build/fuzz $(FUZZ_SECONDS)

bench: setup-dev  ## build and run the micro-benchmarks
	$(call build,bench)
	scripts/bench build/bench

format: setup-dev  ## rewrite sources with clang-format
	scripts/check --fix --all

clean:  ## remove all build folders
	rm -rf build
