//! The program `karman-namesrv`; see `command.rs`.

fn main() -> anyhow::Result<()> {
    karman_namesrv::command::run(std::env::args_os())
}
