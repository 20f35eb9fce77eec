use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{json, karman, stderr, stdout};

fn config(arguments: &[&str]) -> Output {
    karman("127.0.0.1:1", &[&["config"], arguments].concat())
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn shipped(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config").join(directory);
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "toml")).collect();
    files.sort();
    files
}

#[test]
fn a_node_would_start_with_what_is_shipped() {
    let (alone, ha) = (shipped(""), shipped("ha"));
    assert_eq!((alone.len(), ha.len()), (2, 5));
    for path in alone.iter().chain(&ha) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let role = if name.starts_with("broker") { "broker" } else { "namesrv" };
        let output = config(&["check", path.to_str().unwrap(), "--role", role]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains(&format!("a {role} starts with it")), "{}", stdout(&output));
    }
    // Two on one host must not want the same port.
    let ports: Vec<_> = alone.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(ports[0].contains("0.0.0.0:5557\"") && ports[1].contains("0.0.0.0:5558\""));
}

#[test]
fn a_check_says_what_a_start_would_and_exits_with_1() {
    let directory = tempfile::tempdir().unwrap();
    let file = |text: &str| written(directory.path(), "broker.toml", text);
    let refused = |path: &str| {
        let output = config(&["check", path, "--role", "broker"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
        let mut broker = Command::new(env!("CARGO_BIN_EXE_karman"));
        std::os::unix::process::CommandExt::arg0(&mut broker, "karman-broker");
        let started = broker.current_dir(directory.path()).args(["--config", path]).output().unwrap();
        assert!(!started.status.success(), "a broker starts with what the check refused");
        (stderr(&output), stderr(&started))
    };
    let (said, started) = refused(&file("flushDiskTyp = 'SYNC_FLUSH'"));
    assert!(said.contains("\"flushDiskTyp\"") && said.contains("did you mean \"flushDiskType\"?"), "{said}");
    assert!(started.contains("did you mean \"flushDiskType\"?"), "{started}");
    let (said, started) = refused(&file("flushDiskType = 'MAYBE'\nfileReservedTime = 0"));
    for text in
        ["flushDiskType = \"MAYBE\"", "SYNC_FLUSH or ASYNC_FLUSH is allowed", "fileReservedTime = \"0\""]
    {
        assert!(said.contains(text) && started.contains(text), "{said}\n{started}");
    }
    assert!(refused(&file("fileReservedTime = 'three'")).0.contains("expected u64"));
    assert!(refused(&file("brokerName = [")).0.contains("line 1"));
    assert!(refused("absent.toml").0.contains("absent.toml"));
    let (said, _) = refused(&file("messageDelayLevel = '1s 5s'"));
    assert!(said.contains("key of RocketMQ, not supported: the 18 levels"), "{said}");
}

#[test]
fn a_check_takes_settings_and_the_environment_and_answers_programs() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), "namesrv.toml", "enableControllerInNamesrv = true\n");
    let output = config(&["-o", "json", "check", &path, "--role", "namesrv"]);
    assert_eq!(output.status.code(), Some(1));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&checked["good"], &checked["role"]), (&false.into(), &"namesrv".into()));
    let problem = &checked["problems"][0];
    assert_eq!((&problem["key"], &problem["origin"]), (&"controllerPeers".into(), &"default".into()));
    let peers = "controllerPeers=1-a:9876";
    let good = json(&config(&["-o", "json", "check", &path, "--role", "namesrv", "--set", peers]));
    assert_eq!((&good["good"], &good["problems"]), (&true.into(), &Value::Array(Vec::new())));
    let wrong = Command::new(env!("CARGO_BIN_EXE_karman"))
        .args(["config", "check", &path, "--role", "namesrv", "--set", peers])
        .env("KARMAN_NAMESRV__CONTROLLER_SELF_ID", "2")
        .output()
        .unwrap();
    assert!(stderr(&wrong).contains("env KARMAN_NAMESRV__CONTROLLER_SELF_ID"), "{}", stderr(&wrong));
    assert_eq!(config(&["check", &path]).status.code(), Some(2));
}

#[test]
fn secrets_are_in_no_output() {
    const SECRET: &str = "pssst+4711";
    let directory = tempfile::tempdir().unwrap();
    for (role, line) in [("broker", "brokerId"), ("namesrv", "controllerSelfId")] {
        let file = |text: &str| written(directory.path(), "node.toml", text);
        let seen = |program: &str, arguments: &[&str], code: i32| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_karman"));
            std::os::unix::process::CommandExt::arg0(&mut command, program);
            let output = command.current_dir(directory.path()).args(arguments).output().unwrap();
            let all = stdout(&output) + &stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{all}");
            assert!(!all.contains(SECRET) && !all.contains("4711"), "{arguments:?} shows the secret: {all}");
            all
        };
        let (program, check) = (format!("karman-{role}"), ["config", "check"]);
        let path = file(&format!("clusterSecret = '{SECRET}'"));
        assert!(
            seen(&program, &["--config", &path, "--print-config"], 0)
                .contains("clusterSecret = \"<hidden>\"")
        );
        let set = format!("clusterSecret={SECRET}");
        assert!(seen(&program, &["--set", &set, "--print-config"], 0).contains("<hidden>"));
        // Refused for another key, for its own value, its type, and as TOML.
        for text in [
            format!("clusterSecret = '{SECRET}'\n{line} = 'x'"),
            format!("clusterSecret = '{SECRET} with spaces'"),
            "clusterSecret = 4711".to_owned(),
            format!("clusterSecret = '{SECRET}"),
        ] {
            let path = file(&text);
            seen(&program, &["--config", &path], 1);
            seen("karman", &[&check[..], &[&path, "--role", role]].concat(), 1);
            seen("karman", &[&check[..], &[&path, "--role", role, "-o", "json"]].concat(), 1);
        }
    }
}

#[test]
fn an_import_writes_a_configuration_and_says_what_became_of_each_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(
        directory.path(),
        "broker.conf",
        "brokerName = broker-a\nnamesrvAddr = n:9876\nlistenPort = 10911\nsendMessageThreadPoolNums = 8\n\
         maxMessageSize = 65536\n",
    );
    let output = config(&["import", &path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let toml = written(directory.path(), "broker.toml", &stdout(&output));
    assert_eq!(config(&["check", &toml, "--role", "broker"]).status.code(), Some(0));
    let report = stderr(&output);
    for text in [
        "brokerName: mapped\n",
        "listenPort: mapped to internalListenAddress: ",
        "sendMessageThreadPoolNums: not needed: ",
        "maxMessageSize: NOT SUPPORTED: ",
        "flushDiskType: not in the file; by default ASYNC_FLUSH in RocketMQ, SYNC_FLUSH\n  here\n",
    ] {
        assert!(report.contains(text), "{text:?} is not in {report}");
    }
    assert!(report.lines().all(|line| line.chars().count() <= 80), "{report}");
    let object = json(&config(&["-o", "json", "import", &path]));
    assert_eq!((&object["role"], &object["toml"]), (&"broker".into(), &stdout(&output).into()));
    assert_eq!(object["keys"][3]["fate"], "not_needed");

    let path = written(directory.path(), "slave.conf", "brokerId=1\nbrokerRole=SLAVE\n");
    let output = config(&["import", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("brokerRole = \"SLAVE\""), "{}", stdout(&output));
    assert!(stderr(&output).contains("does not start with it yet"), "{}", stderr(&output));
    assert!(stderr(&config(&["import", "absent.conf"])).contains("absent.conf"));
}

#[test]
fn the_reference_is_printed_for_people_and_for_programs() {
    let text = stdout(&config(&["reference", "namesrv"]));
    assert!(text.contains("### controllerPeers\n") && !text.contains("### brokerName\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80 || !line.contains(' ')), "{text}");
    let keys = json(&config(&["-o", "json", "reference", "broker"]));
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "fileReservedTime").unwrap();
    assert_eq!(
        (&key["type"], &key["unit"], &key["default"]),
        (&"integer".into(), &"hours".into(), &72.into())
    );
    assert_eq!((&key["rocketmq"]["key"], &key["secret"]), (&"fileReservedTime".into(), &false.into()));
}
