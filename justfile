# The entry points, for `just`. Each is one command that also works without it.

# List the recipes
default:
    @just --list

# Run the all-in-one on embedded stores
up *args:
    cargo run --release -- up {{ args }}

# Run the all-in-one on installed, private servers
up-on-servers *args:
    cargo build --release
    deploy/testbed.sh run -- target/release/tourin up --ephemeral {{ args }}

# Check formatting, lints and the rules of dependency
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo test --locked --workspace --test architecture

# Run all tests with their servers; arguments go to `cargo test`
test *args:
    deploy/test.sh {{ args }}

# Run the tests of one suite whose names contain the filter, such as `just suite scenarios session`
suite name filter="":
    deploy/testbed.sh run -- cargo test --locked --workspace --test {{ name }} -- {{ filter }}

# What continuous integration runs
ci:
    .ci/run

# Build the programs for separate processes
build:
    cargo build --locked --release --workspace --bins

# Run a benchmark; without a name, list them
bench name="" *args:
    {{ if name == "" { "sed -n '/^#   deploy/p' deploy/bench.sh" } else { "deploy/bench.sh " + name + " " + args } }}

# Build the image and run the mesh with its servers in containers
compose *args:
    docker compose up --build --wait {{ args }}
