//! The program `karman-broker`; see `command.rs`.

/// Buffers are made on a data thread and freed on the log writer; glibc's arenas contend for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    karman_broker::command::run(std::env::args_os())
}
