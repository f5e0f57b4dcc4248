CARGO ?= cargo
NEED = sh integration/demo/need.sh

.PHONY: demo interop

## demo: the main job end to end on this machine, about 20 s once it is built; KEEP=1 keeps it up until Ctrl-C
# A debug build: the shorter wait on a fresh machine, make test goes on from what it compiled, and what the demo sends is no load.
demo:
	@$(NEED) ip:iproute2 unshare:util-linux cc:gcc
	@command -v $(CARGO) >/dev/null || { echo "missing: cargo. Install Rust: https://rustup.rs" >&2; exit 1; }
	@$(CARGO) build --locked --bin tollgate --example demo
	@$(CARGO) run --quiet --locked --example demo -- $(if $(KEEP),--keep)

## interop: against HAProxy, nginx, curl, openssl and promtool, as Debian packages them
interop:
	@$(NEED) haproxy:haproxy nginx:nginx-light curl:curl openssl:openssl promtool:prometheus ip:iproute2 unshare:util-linux cc:gcc
	@$(CARGO) test --locked --test interop
