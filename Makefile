.PHONY: bench

bench: ## the relay beside nginx and HAProxy, in under 10 minutes; report in benches/out/
	benches/peers.sh
	cargo bench --bench side_by_side
	cargo bench --bench micro
