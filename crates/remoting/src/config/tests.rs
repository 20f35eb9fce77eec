use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum FlushDiskType {
    #[default]
    AsyncFlush,
    SyncFlush,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Example {
    broker_name: String,
    flush_disk_type: FlushDiskType,
    listen_port: u16,
    file_reserved_time: u64,
    slave_read_enable: bool,
    namesrv_addr: Option<String>,
    #[serde(rename = "brokerIP1")]
    broker_ip1: String,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            broker_name: "broker-a".into(),
            flush_disk_type: FlushDiskType::AsyncFlush,
            listen_port: 8081,
            file_reserved_time: 72,
            slave_read_enable: false,
            namesrv_addr: None,
            broker_ip1: "127.0.0.1".into(),
        }
    }
}

fn load_example(
    file: &str,
    env: &[(&str, &str)],
    sets: &[&str],
) -> Result<(Loaded<Example>, String), ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.toml");
    std::fs::write(&path, file).unwrap();
    let env = env.iter().map(|&(name, value)| (name.into(), value.into()));
    let sets: Vec<_> = sets.iter().map(|&set| set.to_owned()).collect();
    let loaded = load_with("KARMAN_BROKER__", env, Some(&path), &sets)?;
    Ok((loaded, format!("file {}", path.display())))
}

fn refusal(file: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
    load_example(file, env, sets).expect_err("refused").to_string()
}

#[test]
fn the_later_origin_wins_and_each_value_tells_its_origin() {
    let file =
        "brokerName = 'from-file'\nlistenPort = 1\nfileReservedTime = 48\nflushDiskType = 'SYNC_FLUSH'";
    let env = [
        ("KARMAN_BROKER__LISTEN_PORT", "2"),
        ("KARMAN_BROKER__FILE_RESERVED_TIME", "24"),
        ("KARMAN_BROKER__SLAVE_READ_ENABLE", "true"),
        ("KARMAN_BROKER__BROKER_IP1", "10.0.0.1"),
        ("KARMAN_NAMESRV__LISTEN_PORT", "9"),
        ("PATH", "/bin"),
    ];
    let (loaded, file) = load_example(file, &env, &["listenPort=3", "namesrvAddr = a:1;b:2"]).unwrap();
    let expected = Example {
        broker_name: "from-file".into(),
        flush_disk_type: FlushDiskType::SyncFlush,
        listen_port: 3,
        file_reserved_time: 24,
        slave_read_enable: true,
        namesrv_addr: Some("a:1;b:2".into()),
        broker_ip1: "10.0.0.1".into(),
    };
    assert_eq!(loaded.config, expected);
    let origins: Vec<_> = loaded
        .origins
        .iter()
        .map(|(key, value, origin)| (key.as_str(), value.as_str(), origin.as_str()))
        .collect();
    let expected = [
        ("brokerIP1", "10.0.0.1", "env KARMAN_BROKER__BROKER_IP1"),
        ("brokerName", "from-file", &*file),
        ("fileReservedTime", "24", "env KARMAN_BROKER__FILE_RESERVED_TIME"),
        ("flushDiskType", "SYNC_FLUSH", &*file),
        ("listenPort", "3", "--set"),
        ("namesrvAddr", "a:1;b:2", "--set"),
        ("slaveReadEnable", "true", "env KARMAN_BROKER__SLAVE_READ_ENABLE"),
    ];
    assert_eq!(origins, expected);
}

#[test]
fn without_a_file_the_defaults_stand() {
    let loaded: Loaded<Example> = load("KARMAN_NOBODY_SETS_THIS__", None, &[]).unwrap();
    assert_eq!(loaded.config, Example::default());
    assert!(loaded.origins.iter().all(|(_, _, origin)| origin == "default"));
}

#[test]
fn an_unknown_key_is_named_with_its_origin_and_the_nearest_known_one() {
    let file = refusal("flushDiskTyp = 'SYNC_FLUSH'", &[], &[]);
    assert!(file.contains("\"flushDiskTyp\"") && file.contains("broker.toml"), "{file}");
    assert!(file.contains("\"flushDiskType\""), "{file}");
    let env = refusal("", &[("KARMAN_BROKER__LISTN_PORT", "1")], &[]);
    assert!(env.contains("env KARMAN_BROKER__LISTN_PORT") && env.contains("\"listenPort\""), "{env}");
    let set = refusal("", &[], &["brokername=x"]);
    assert!(set.contains("--set") && set.contains("\"brokerName\""), "{set}");
    let table = refusal("[broker]\nlistenPort = 1", &[], &[]);
    assert!(table.contains("\"broker\""), "{table}");
}

#[test]
fn a_wrong_value_is_named_with_what_is_allowed() {
    let port = refusal("brokerName = 'fine'\nlistenPort = 70000", &[], &[]);
    assert!(port.contains("listenPort = 70000") && port.contains("broker.toml"), "{port}");
    assert!(port.contains("expected u16"), "{port}");
    let text = refusal("", &[("KARMAN_BROKER__FILE_RESERVED_TIME", "three days")], &[]);
    assert!(text.contains("fileReservedTime = three days") && text.contains("FILE_RESERVED_TIME"), "{text}");
    assert!(text.contains("expected u64"), "{text}");
    let negative = refusal("", &[], &["fileReservedTime=-1"]);
    assert!(negative.contains("fileReservedTime = -1 (--set)"), "{negative}");
    let word = refusal("", &[], &["flushDiskType=FAST_FLUSH"]);
    assert!(
        word.contains("FAST_FLUSH") && word.contains("ASYNC_FLUSH") && word.contains("SYNC_FLUSH"),
        "{word}"
    );
    let boolean = refusal("slaveReadEnable = 'perhaps'", &[], &[]);
    assert!(boolean.contains("slaveReadEnable = perhaps") && boolean.contains("boolean"), "{boolean}");
    // Numbers and truth values are not taken for one another.
    assert!(refusal("listenPort = true", &[], &[]).contains("listenPort = true"));
    assert!(refusal("listenPort = 80.5", &[], &[]).contains("listenPort = 80.5"));
    let list = refusal("brokerName = ['a']", &[], &[]);
    assert!(list.contains("brokerName"), "{list}");
}

#[test]
fn files_and_arguments_that_cannot_be_read_are_named() {
    assert!(refusal("listenPort = ", &[], &[]).contains("broker.toml"));
    assert!(refusal("", &[], &["listenPort"]).contains("\"listenPort\""));
    let absent = load::<Example>("KARMAN_NOBODY_SETS_THIS__", Some(Path::new("absent.toml")), &[]);
    assert!(absent.expect_err("absent").to_string().contains("absent.toml"));
}
