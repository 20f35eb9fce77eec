//! `client_matrix`: plays what each official client can do, at a namesrv and at a broker, and writes the table of
//! `docs/clients.md`. `tests/clients/setup` installs the clients. The servers are those beside it, or in `KARMAN_BIN_DIR`.

use clap::Parser;
use karman_tests::matrix::{Access, COLUMNS, Column, play, write};

/// Plays every cell of the table of the official clients and writes it when each is what it says
#[derive(Debug, Parser)]
#[command(
    after_help = "Example:\n  client_matrix\n  client_matrix --client java --access broker --row recall"
)]
struct Arguments {
    /// Only this client; nothing is written
    #[arg(long, value_parser = ["java", "go", "python", "node", "rust"])]
    client: Option<String>,
    /// Only this access point; nothing is written
    #[arg(long, value_parser = ["namesrv", "broker"])]
    access: Option<String>,
    /// Only the rows with this in their name; nothing is written
    #[arg(long)]
    row: Option<String>,
}

fn is_it(wanted: Option<&String>, name: impl std::fmt::Debug) -> bool {
    wanted.is_none_or(|wanted| *wanted == format!("{name:?}").to_lowercase())
}

fn main() {
    let Arguments { client, access, row } = Arguments::parse();
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|&language| is_it(client.as_ref(), language))
        .flat_map(|language| [Access::Namesrv, Access::Broker].map(|access| Column { language, access }))
        .filter(|column| is_it(access.as_ref(), column.access))
        .collect();
    play(&columns, &|name| row.as_ref().is_none_or(|part| name.contains(part)));
    if (client, access, row) == (None, None, None) {
        write();
    }
}
