# tollgate: everything there is to do with it. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help demo test check unit itest interop soak bench build package install uninstall clean tools

CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=
# What is installed.
BIN ?= target/release/tollgate

# Programs and the Debian packages that have them: installed when we are root and apt is there, named otherwise.
NEED = sh integration/need.sh

# Rust itself, a C compiler for the linker and for crypto in the tests, ip(8) and unshare(1) for the namespaces.
tools:
	@command -v $(CARGO) >/dev/null || { echo "missing: cargo. Install Rust: https://rustup.rs" >&2; exit 1; }
	@$(NEED) ip:iproute2 unshare:util-linux cc:gcc

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A debug build: it is there in half the time of a release build, make test uses what it built, and what the demo sends is no load.
demo: tools ## the main job end to end on this machine, about 20 s once it is built; KEEP=1 keeps it up until Ctrl-C
	@$(CARGO) build --locked --bin tollgate --example demo
	@$(CARGO) run --quiet --locked --example demo -- $(if $(KEEP),--keep)

test: check unit itest interop ## everything that CI runs

check: tools ## formatting, lints, documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --quiet

unit: tools ## tests beside the code
	$(CARGO) test --locked --lib --bins
	$(CARGO) test --locked --doc

# Every relay runs as the unit says: its system call filters, capabilities, no new privileges. `cargo test --test integration` is without.
itest: tools ## the real binary in network namespaces, with the shipped configuration, shut in as by the shipped unit
	@$(NEED) systemd-analyze:systemd perl:perl-base
	TOLLGATE_UNIT_FILTER=1 $(CARGO) test --locked --test integration

interop: tools ## against HAProxy, nginx, curl, openssl, Prometheus, sqlite3, jq and systemd, as Debian packages them
	@$(NEED) haproxy:haproxy nginx:nginx-light curl:curl openssl:openssl prometheus:prometheus promtool:prometheus sqlite3:sqlite3 jq:jq systemd-analyze:systemd perl:perl-base
	$(CARGO) test --locked --test interop

# The relay as it is shipped; what checks it spends its time in copying and comparing, which a debug build does as well.
soak: tools build ## a hundred thousand checked sessions, a few minutes; TOLLGATE_SEED=N for those of a run before
	TOLLGATE_BIN=$(CURDIR)/target/release/tollgate $(CARGO) test --locked --test soak

export NGINX HAPROXY
# RECORD=1 keeps the reports as benches/RESULTS.md and benches/BOOKS.md.
# The first run also builds a relay that keeps no books: minutes more.
bench: tools ## the relay beside nginx, HAProxy and kernel NAT, and what its books cost: 20 minutes; reports in benches/out/; RECORD=1 keeps them
	sh benches/peers.sh
	BENCH_RECORD=$(or $(RECORD),$(BENCH_RECORD)) $(CARGO) bench --locked --bench side_by_side
	$(CARGO) bench --locked --bench micro

build: ## the binary, optimised: target/release/tollgate
	$(CARGO) build --locked --release --bin tollgate

# Not part of `make test`: two release builds, the tools that make packages, and on the first run a compiler for aarch64 are half an hour of two cores.
# X86_64=FILE and AARCH64=FILE take binaries that are there already.
export X86_64 AARCH64
package: tools ## .deb, .rpm, static binaries and an OCI image, for x86-64 and aarch64: target/package/; then installs, runs and removes them
	@$(NEED) rpm:rpm dpkg-deb:dpkg man:man-db readelf:binutils objcopy:binutils skopeo:skopeo qemu-aarch64-static:qemu-user-static nginx:nginx-light curl:curl
	sh deploy/package/tools.sh
	sh deploy/package/all.sh
	$(CARGO) test --locked --test package

install: ## after make build: into $(DESTDIR)$(PREFIX), with unit, user, sysctl and example configuration
	@test -x $(BIN) || { echo "make: nothing to install yet: make build" >&2; exit 1; }
	install -Dm755 $(BIN) $(DESTDIR)$(PREFIX)/bin/tollgate
	install -Dm644 systemd/tollgate.service $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.service
	sed -i 's,/usr/bin/tollgate,$(PREFIX)/bin/tollgate,g' $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.service
	install -Dm644 systemd/tollgate.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.socket
	install -Dm644 systemd/90-tollgate.conf $(DESTDIR)$(PREFIX)/lib/sysctl.d/90-tollgate.conf
	install -Dm644 systemd/tollgate.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/tollgate.conf
	test -n "$(DESTDIR)" || systemd-sysusers $(PREFIX)/lib/sysusers.d/tollgate.conf
	test -e $(DESTDIR)/etc/tollgate/tollgate.toml || install -Dm644 systemd/tollgate.toml $(DESTDIR)/etc/tollgate/tollgate.toml

uninstall: ## takes away what install put there, but the configuration
	rm -f $(DESTDIR)$(PREFIX)/bin/tollgate $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.service $(DESTDIR)$(PREFIX)/lib/systemd/system/tollgate.socket $(DESTDIR)$(PREFIX)/lib/sysctl.d/90-tollgate.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/tollgate.conf

clean: ## what was built
	$(CARGO) clean
