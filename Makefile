# What a person does with this repository. Every target sets up what it needs, says what it
# installs and why, and ends by itself.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# How cargo spells the host in the names of its variables.
HOST_VARIABLE := $(shell echo '$(HOST)' | tr 'a-z-' 'A-Z_')
ENVOY := $(CURDIR)/target/tools/envoy
# Levels that change kernel state run as root; building never does.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
AS_ROOT := $(if $(SUDO),sudo env ENMESH_ENVOY=$(ENVOY),env ENMESH_ENVOY=$(ENVOY))
# Two tests at once is what two cores carry without stretching the time limits inside the tests.
TEST_THREADS ?= 2
# With one set of features for all, the levels share what is compiled.
TEST := cargo test --locked --no-fail-fast --all-features

.PHONY: help
help: ## this list
	@echo 'make demo    two hosts and a mesh between them, on this machine'
	@echo 'make test    everything a change must pass'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name text; do \
	    printf '  %-12s %s\n' "$$name" "$$text"; done

# --- tools -------------------------------------------------------------------------------------

.PHONY: rust tools tools-build tools-netns tools-group tools-host tools-packages tools-image tools-vm can-be-root
rust:
	@scripts/need-rust

tools-build: rust
	@scripts/need 'cc:gcc:the cryptography library (ring) is partly C' \
	    '/usr/include/stdio.h:libc6-dev:the cryptography library (ring) is partly C'

tools-netns: tools-build
	@scripts/need \
	    'nft:nftables:rules are loaded with nft' \
	    'iptables-restore:iptables:the second driver and the comparison in the benches use it' \
	    'ip:iproute2:tests and demo look at their namespaces with ip' \
	    '/etc/ssl/certs/ca-certificates.crt:ca-certificates:downloads are checked against it'
	@scripts/need \
	    'python3:python3:firewalld, beside which rules are tested, is written in it' \
	    '/usr/lib/python3/dist-packages/gi:python3-gi:firewalld needs it' \
	    '/usr/lib/python3/dist-packages/dbus:python3-dbus:firewalld needs it' \
	    'dbus-daemon:dbus-daemon:firewalld gets a bus of its own' \
	    'dmsetup:dmsetup:Docker, beside which rules are tested, needs its library'
	@scripts/fetch-envoy
	@scripts/fetch-consul
	@scripts/fetch-neighbours

tools-group: tools-netns
	@scripts/need 'mmdebstrap:mmdebstrap:the image of container groups, and the trees that host tests boot, are made with it'

tools-host: tools-group
	@scripts/need \
	    'systemd-nspawn:systemd-container:host tests boot that tree with it'

tools-image: tools-host tools-packages
	@scripts/need \
	    'qemu-img:qemu-utils:disks of machines are made with it' \
	    'sfdisk:fdisk:it writes the partition table of the image' \
	    'mkfs.vfat:dosfstools:the boot loader is on a partition of this kind' \
	    'mcopy:mtools:files get there without mounting it'

# QEMU first: where a newer qemu-utils of backports is, installing the rest of QEMU removes it.
tools-vm:
	@scripts/need \
	    'qemu-system-x86_64:qemu-system-x86:machines boot in it' \
	    'genisoimage:genisoimage:what a machine is told at its first boot is on a disk of this kind' \
	    'packer:packer:the image is made by Packer as well' \
	    '/usr/share/ovmf/OVMF.fd:ovmf:the image boots by itself, with this firmware'
	@$(MAKE) tools-image

tools: tools-vm ## install what is missing for all targets, saying what and why
	@scripts/need-rust fmt clippy
	@echo 'tools: everything is here'

can-be-root:
	@if [ -n '$(SUDO)' ] && ! command -v sudo >/dev/null; then \
	    echo 'error: this level changes kernel state in namespaces of its own and needs root; there is no sudo either' >&2; \
	    exit 77; fi

# --- build -------------------------------------------------------------------------------------

.PHONY: build
# RUSTFLAGS of the environment would replace the flag, hence env -u. With --target given, the flag
# does not reach build scripts and procedural macros, which cannot be static.
build: tools-build ## the static release binary, target/enmesh
	@env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS \
	    CARGO_TARGET_$(HOST_VARIABLE)_RUSTFLAGS='-C target-feature=+crt-static' \
	    cargo build --release --locked --target $(HOST)
	@install -m 755 target/$(HOST)/release/enmesh target/enmesh
	@if ldd target/enmesh 2>&1 | grep -q '=>'; then echo 'error: target/enmesh is not static' >&2; exit 1; fi
	@echo "target/enmesh: static, $$(stat -c %s target/enmesh | awk '{ printf "%.1f MB", $$1 / 1e6 }')"

.PHONY: packages packages-before
packages: build ## .deb, .rpm, tarball, bill of materials and checksums, in target/packages
	@$(MAKE) tools-packages
	@scripts/packages

tools-packages:
	@scripts/need 'python3:python3:the bill of materials is made with it'
	@scripts/fetch-nfpm

# What tests upgrade from: the same program in a package of a lower version.
packages-before: packages
	@scripts/packages target/packages/before 0.0.1 >/dev/null

.PHONY: image image-seat images-for-tests
image: packages ## a disk that boots by itself: Debian, Consul, Envoy, enmesh; target/image/enmesh.qcow2
	@$(MAKE) tools-image can-be-root
	@$(SUDO) image/make enmesh target/image/enmesh.qcow2

image-seat: packages ## what Packer takes along for image/enmesh.pkr.hcl, in target/image/seat
	@scripts/need 'ssh-keygen:openssh-client:Packer gets into its machine by a key that is made for that'
	@scripts/fetch-envoy
	@scripts/fetch-consul
	@image/seat target/image/seat packer

images-for-tests: packages-before image image-seat
	@$(SUDO) image/make stock target/image/stock.qcow2

# --- run ---------------------------------------------------------------------------------------

.PHONY: demo bench
demo: tools-netns can-be-root build ## two hosts and a mesh between them, shown and checked
	@$(AS_ROOT) target/enmesh demo

bench: tools-group can-be-root build ## figures, side by side with how it is done today
	@scripts/need 'python3:python3:the way of today begins with a generator in Python'
	@CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT) ENMESH_BINARY=$(CURDIR)/target/enmesh' cargo bench --locked --bench figures

# --- tests -------------------------------------------------------------------------------------

LEVELS := check test-unit test-netns test-group test-host test-lab test-deploy test-demo

# Its machines boot without acceleration, for a quarter of an hour: it is run for itself.
MORE_LEVELS := test-vm

.PHONY: test lint deny $(LEVELS) $(MORE_LEVELS)
test: ## all levels below, then a summary
	@scripts/levels $(LEVELS)

lint: tools-build
	@scripts/need-rust fmt clippy
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	@if PATH="$(CURDIR)/target/tools/bin:$$PATH" command -v cargo-deny >/dev/null; then \
	    PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo deny --locked check --hide-inclusion-graph bans licenses sources; \
	else echo 'cargo-deny is not here; make deny installs it and looks at licences and sources'; fi

check: ## level: format, lints, and cargo-deny where it is installed
	@scripts/level check 900 $(MAKE) lint

test-unit: tools-build ## level: no root, no network, seconds (after the build)
	@tests=$$(scripts/tests-with ''); \
	scripts/level unit 900 $(TEST) --lib --bins $$tests

test-netns: tools-netns can-be-root ## level: the real kernel and the real Envoy, in namespaces; root
	@tests=$$(scripts/tests-with netns-tests); \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level netns 1500 $(TEST) $$tests -- --test-threads=$(TEST_THREADS)

test-group: tools-group can-be-root ## level: real containers that share a network namespace, without systemd; root
	@tests=$$(scripts/tests-with group-tests); \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level group 900 $(TEST) $$tests -- --test-threads=1 --nocapture

# What is ignored there runs inside the booted containers, started by the tests outside.
test-host: tools-host can-be-root packages-before ## level: real systemd in booted containers; root
	@export LEVEL_RUNS_IGNORED=1; \
	tests=$$(scripts/tests-with host-tests); \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level host 900 $(TEST) $$tests -- --test-threads=1 --skip lab:: --skip vm:: --skip deploy::

test-lab: tools-host can-be-root build ## level: three booted hosts, a real Consul, restarts under load; root
	@export LEVEL_RUNS_IGNORED=1; \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level lab 900 $(TEST) --test host -- --test-threads=1 --nocapture lab::

test-vm: tools-vm can-be-root images-for-tests ## level: machines that really boot, in QEMU; root
	@export LEVEL_RUNS_IGNORED=1; \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level vm 1200 $(TEST) --test host -- --test-threads=$(TEST_THREADS) --nocapture vm::

test-deploy: tools-host can-be-root packages image-seat ## level: cloud-init, the Vagrant labs, the Ansible role, the pages, the templates; root
	@scripts/need 'vagrant:vagrant:the labs are validated with it' \
	    'gpg:gnupg:the package repository of the tests is signed with it' \
	    'packer:packer:the template of the image is validated with it' \
	    'qemu-img:qemu-utils:the box of a lab is made with it'
	@scripts/fetch-validators
	@export LEVEL_RUNS_IGNORED=1; \
	CARGO_TARGET_$(HOST_VARIABLE)_RUNNER='$(AS_ROOT)' \
	    scripts/level deploy 900 $(TEST) --test host -- --test-threads=$(TEST_THREADS) deploy::

test-demo: tools-netns can-be-root build ## level: the demo, every claim of it checked; root
	@scripts/level demo 300 scripts/demo-holds $(AS_ROOT) target/enmesh demo --json

deny: rust ## licences, bans, sources and advisories of all crates (installs cargo-deny: minutes)
	@if ! PATH="$(CURDIR)/target/tools/bin:$$PATH" command -v cargo-deny >/dev/null; then \
	    echo 'installing cargo-deny into target/tools because it reads deny.toml'; \
	    cargo install --locked --root target/tools cargo-deny; fi
	@export PATH="$(CURDIR)/target/tools/bin:$$PATH"; \
	cargo deny --locked check --hide-inclusion-graph bans licenses sources; \
	echo 'advisories come from their public database, which has to be within reach:'; \
	cargo deny --locked check advisories

.PHONY: clean
clean: ## remove target/, the fetched tools and the tests' containers too
	@if [ -d target/host-root ]; then $(SUDO) rm -rf target/host-root; fi
	cargo clean
