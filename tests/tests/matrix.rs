//! The table of the official clients in `docs/clients.md`: each client at one access point; `client_matrix` plays both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use karman_tests::driver::root;
use karman_tests::matrix::{Access, COLUMNS, Column, is_written, play};

#[test]
fn every_client_does_what_the_table_says() {
    let accesses = [Access::Broker, Access::Namesrv].into_iter().cycle();
    let columns: Vec<Column> =
        COLUMNS.into_iter().zip(accesses).map(|(language, access)| Column { language, access }).collect();
    play(&columns, &|_| true);
}

#[test]
fn the_table_is_what_is_played() {
    assert!(
        is_written(),
        "docs/clients.md: `cargo run -p karman-tests --bin client_matrix` plays it and writes it"
    );
}

#[test]
fn the_versions_of_the_table_are_those_that_are_installed() {
    for language in COLUMNS {
        let directory = root().join(format!("tests/clients/{language:?}").to_lowercase());
        let manifests = ["pom.xml", "go.mod", "requirements.txt", "package.json", "Cargo.toml"];
        let texts = manifests.iter().filter_map(|name| std::fs::read_to_string(directory.join(name)).ok());
        let version = language.version();
        let says = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        let found = says.filter(|line| line.contains(version)).count();
        assert!(found > 0, "{language:?} {version}");
    }
}
