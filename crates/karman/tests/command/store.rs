use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use karman_store::{Durability, NewRecord, QueueNumber, RecordKind, Silent, Store, StoreConfig};
use serde_json::Value;

use crate::get::metric;
use crate::support::{Dev, json, karman, stderr};

const MIB: u64 = 1 << 20;

fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        segment_size_bytes: MIB,
        disk_reserve_bytes: 0,
        owner: "shop/broker-a".into(),
        ..StoreConfig::new(directory)
    }
}

fn open(directory: &Path) -> Store {
    Store::open(config(directory), Vec::new(), Arc::new(Silent)).unwrap()
}

/// Thirty messages in three segments, in the directory `store`, as a broker has it.
fn filled(root: &Path) -> PathBuf {
    let directory = root.join("store");
    let store = open(&directory);
    for number in 0..30_u8 {
        let record = NewRecord {
            kind: RecordKind::Message,
            queue: Some(QueueNumber(u32::from(number % 2))),
            tag_hash: 0,
            mark: 0,
            keys: vec![],
            payload: vec![number; 100_000].into(),
        };
        store.append(vec![record], Durability::Disk).unwrap().wait().unwrap();
    }
    store.close().unwrap();
    directory
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn store(arguments: &[&str]) -> Output {
    karman("127.0.0.1:1", &[&["-o", "json", "store"], arguments].concat())
}

fn damaged(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(4), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_stopped_store_is_verified_repaired_and_verified_again() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = filled(scratch.path());
    let root = scratch.path().to_str().unwrap();
    let report = json(&store(&["verify", root]));
    assert_eq!(
        (&report["sound"], report["segments"].as_array().unwrap().len()),
        (&true.into(), 4),
        "{report}"
    );
    assert_eq!(json(&store(&["repair", root]))["steps"], serde_json::json!([]));

    let segment = directory.join("commitlog/00000000000001048576.log");
    flip(&segment, 500);
    let report = damaged(&store(&["verify", root]));
    assert_eq!((&report["sound"], &report["damage"][0]["from"]), (&false.into(), &MIB.into()));
    let before = fs::read(&segment).unwrap();
    let planned = damaged(&store(&["repair", directory.to_str().unwrap()]));
    assert_eq!((&planned["done"], planned["steps"].as_array().unwrap().len()), (&false.into(), 1));
    assert!(fs::read(&segment).unwrap() == before, "nothing was changed");
    let done = json(&store(&["repair", root, "--yes"]));
    assert_eq!((&done["done"], &done["steps"]), (&true.into(), &planned["steps"]));
    let report = json(&store(&["verify", root]));
    assert!(report["segments"][1]["given_up_bytes"].as_u64().unwrap() >= 100_000, "{report}");
    assert_eq!(json(&store(&["stat", root]))["quarantined_files"], 1);
    let store = open(&directory);
    assert_eq!(store.damage(), []);
}

#[test]
fn tables_fit_eighty_columns_and_errors_say_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = filled(scratch.path());
    let root = scratch.path().to_str().unwrap();
    flip(&directory.join("commitlog/00000000000000000000.log"), 500);
    let text = |arguments: &[&str]| {
        let output = karman("127.0.0.1:1", &[&["store"], arguments].concat());
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        (output.status.code(), text, stderr(&output))
    };
    let (code, out, error) = text(&["verify", root]);
    assert_eq!(code, Some(4));
    assert!(out.contains("DAMAGE FROM") && out.contains("checksum mismatch"), "{out}");
    assert!(error.contains("karman store repair"), "{error}");
    assert!(!error.contains('\r'), "no progress where there is no terminal: {error:?}");
    let (code, out, _) = text(&["stat", root]);
    assert_eq!(code, Some(0));
    assert!(out.contains("shop/broker-a") && out.contains("1.0 MiB"), "{out}");
    let (code, out, _) = text(&["dump", root, "--queue", "1", "--max", "3"]);
    assert_eq!((code, out.lines().count()), (Some(0), 4), "{out}");

    let running = open(&directory);
    let (code, _, error) = text(&["verify", root]);
    assert_eq!(code, Some(1));
    assert!(error.contains("in use by another process"), "{error}");
    drop(running);
    let (code, _, error) = text(&["verify", "/does/not/exist"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("/does/not/exist"), "{error}");
    for wrong in [&["verify"][..], &["verify", root, "--live"], &["verify", root, "--rate", "5"], &["dump"]] {
        assert_eq!(text(wrong).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn a_dump_shows_records_as_lines_and_an_index_file_is_built_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = filled(scratch.path());
    let root = scratch.path().to_str().unwrap();
    let dump = |arguments: &[&str]| {
        let output = store(&[&["dump", root], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let records = dump(&["--queue", "1"]);
    let records: Vec<_> = records.iter().filter(|line| line["what"] == "record").collect();
    assert_eq!(records.len(), 15);
    assert_eq!((&records[14]["queue_offset"], &records[14]["payload_bytes"]), (&14.into(), &100_000.into()));
    assert!(records[0]["payload"].is_null());
    let one = dump(&["--from", &MIB.to_string(), "--max", "1", "--payload"]);
    assert_eq!((one.len(), one[0]["payload"].as_str().unwrap().len()), (1, 100_000));

    let index = directory.join("commitlog/00000000000000000000.idx");
    let intact = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    assert_eq!(json(&store(&["rebuild-index", root, "--segment", "0"]))["segments"], serde_json::json!([0]));
    assert!(fs::read(&index).unwrap() == intact);
    let output = store(&["rebuild-index", root, "--segment", "5"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn an_identity_that_is_gone_comes_back_with_its_owner() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = filled(scratch.path());
    let root = scratch.path().to_str().unwrap();
    let identity = directory.join("identity");
    let intact = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let report = damaged(&store(&["verify", root]));
    assert_eq!(report["findings"][0]["severity"], "stops-start");
    let remaining = damaged(&store(&["repair", root, "--yes"]));
    assert!(remaining["remaining"][0].as_str().unwrap().contains("--owner"), "{remaining}");
    json(&store(&["repair", root, "--owner", "shop/broker-a", "--yes"]));
    assert_eq!(fs::read(&identity).unwrap(), intact);
}

#[test]
fn a_running_store_is_verified_and_its_damage_is_shown_and_repaired_later() {
    let data = tempfile::tempdir().unwrap();
    let root = data.path().to_str().unwrap();
    let dev = Dev::start(data.path());
    let run = |arguments: &[&str]| karman(&dev.endpoint, &[&["-o", "json"], arguments].concat());
    let send = |body: &str| json(&run(&["message", "send", "orders", "--body", body]))["message_id"].clone();
    let ids = [send("one"), send("two"), send("three")].map(|id| id.as_str().unwrap().to_owned());
    let report = json(&run(&["store", "verify", "--live"]));
    assert_eq!((&report[0]["sound"], &report[0]["damaged_bytes"]), (&true.into(), &0.into()), "{report}");
    assert!(report[0]["records"].as_u64().unwrap() >= 3);
    assert_eq!(store(&["verify", root]).status.code(), Some(1), "it runs");
    assert_eq!(metric(&dev.metrics, "karman_store_damaged_bytes"), 0);
    let unknown = run(&["store", "verify", "--live", "--broker", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("nobody"), "{}", stderr(&unknown));

    let second: Value = {
        let output = run(&["message", "query", "orders", "--id", &ids[1]]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let log = data.path().join("store/commitlog/00000000000000000000.log");
    flip(&log, second["position"].as_u64().unwrap() + 80);
    let report = damaged(&run(&["store", "verify", "--live"]));
    assert_eq!(report[0]["damage"][0]["from"], second["position"], "{report}");
    let damaged_bytes = report[0]["damaged_bytes"].as_u64().unwrap();
    assert_eq!(metric(&dev.metrics, "karman_store_damaged_bytes"), damaged_bytes);
    let cluster = run(&["cluster", "list"]);
    assert_eq!(json(&cluster)[0]["damaged_bytes"], damaged_bytes);
    let table = karman(&dev.endpoint, &["cluster", "list"]);
    assert!(stderr(&table).contains("are damaged"), "{}", stderr(&table));
    assert_eq!(dev.stop(), Some(0));

    let report = damaged(&store(&["verify", root]));
    assert_eq!(report["damage"][0]["from"], second["position"], "{report}");
    json(&store(&["repair", root, "--yes"]));
    let dev = Dev::start(data.path());
    assert_eq!(metric(&dev.metrics, "karman_store_damaged_bytes"), 0);
    for (number, id) in ids.iter().enumerate() {
        let output = karman(&dev.endpoint, &["message", "query", "orders", "--id", id]);
        assert_eq!(output.status.code(), Some(if number == 1 { 3 } else { 0 }), "{}", stderr(&output));
    }
    assert_eq!(dev.stop(), Some(0));
}
