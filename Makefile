# tollgate: everything there is to do with it. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help demo test check unit itest interop bench build install uninstall clean

CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=

# `need` is a program and the Debian package that has it: installed when we are root and apt is there, named otherwise.
need = command -v $(1) >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	     && { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2); } >/dev/null 2>&1 \
	     && command -v $(1) >/dev/null 2>&1; } \
	|| { echo "make: $(1) is missing; install the package $(2) (Debian's name) and try again" >&2; exit 1; }

# Rust itself, a C compiler for the linker and for crypto in the tests, ip(8) and unshare(1) for the namespaces.
.PHONY: tools
tools:
	@command -v $(CARGO) >/dev/null 2>&1 || { echo "make: cargo is missing; install a Rust toolchain from rustup.rs" >&2; exit 1; }
	@$(call need,cc,gcc libc6-dev)
	@$(call need,ip,iproute2)
	@$(call need,unshare,util-linux)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: check unit itest interop ## everything that CI runs

check: tools ## formatting, lints, documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --quiet

unit: tools ## tests beside the code
	$(CARGO) test --locked --lib --bins
	$(CARGO) test --locked --doc

itest: tools ## the real binary in network namespaces, with the shipped configuration
	$(CARGO) build --locked --bin tollgate
	$(CARGO) test --locked --test integration

build: tools ## the binary, optimised: target/release/tollgate
	$(CARGO) build --locked --release --bin tollgate

install: build ## into $(DESTDIR)$(PREFIX), with unit, sysctl and example configuration
	install -Dm755 target/release/tollgate $(DESTDIR)$(PREFIX)/bin/tollgate
	install -Dm644 systemd/tollgate.service $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.service
	install -Dm644 systemd/90-tollgate.conf $(DESTDIR)$(PREFIX)/lib/sysctl.d/90-tollgate.conf
	test -e $(DESTDIR)/etc/tollgate/tollgate.toml || install -Dm644 systemd/tollgate.toml $(DESTDIR)/etc/tollgate/tollgate.toml

uninstall: ## takes away what install put there, but the configuration
	rm -f $(DESTDIR)$(PREFIX)/bin/tollgate $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.service $(DESTDIR)$(PREFIX)/lib/sysctl.d/90-tollgate.conf

clean: ## what was built
	$(CARGO) clean
