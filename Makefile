# Two commands do everything on a fresh Debian 12 machine, as root:
#
#   make lab     installs what is missing, builds, starts the lab, plays the article, leaves it running
#   make test    installs what is missing, checks and tests everything
#
# What takes long to build or fetch is kept in $(CACHE), outside the clone.

CACHE ?= /var/cache/aksnet
TOOLS := $(CACHE)/tools/bin
export AKSNET_CACHE := $(CACHE)
export PATH := $(TOOLS):$(CACHE)/go/bin:$(HOME)/.cargo/bin:$(PATH)
AKSNET := target/release/aksnet
SETUP := scripts/setup.sh

.PHONY: lab build down test check bench setup
.DEFAULT_GOAL := lab

lab: build
	$(AKSNET) up
	$(AKSNET) tour

build: setup
	cargo build --release --locked
	$(AKSNET) kubernetes install

down:
	$(AKSNET) down

setup:
	$(SETUP) lab

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings --document-private-items" cargo doc --workspace --no-deps --locked

test:
	$(SETUP) test
	$(MAKE) check
	cargo build --workspace --locked
	target/debug/aksnet kubernetes install
	target/debug/aksnet cilium install
	cargo test --workspace --doc --locked
	cargo nextest run --workspace --locked --profile ci

bench: build
	$(SETUP) bench
	cargo bench --workspace --locked
	target/release/cni-bench target/release/aksnet-cni 100 3
	target/release/lab-bench $(AKSNET)
